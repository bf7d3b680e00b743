"""Recognize refusals that a service sends with a success status: a login page, or an error in JSON or text.

Services spell a refusal in many ways. Add a spelling once it was observed, and only if no service uses it for
a success.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import cast

from schedgen_backups.core.notify.exchange import Answer

_SUCCESS_FIELDS = frozenset(
    {"ok", "success", "successful", "issuccess", "issuccessful", "succeeded", "accepted", "delivered", "sent"}
)
_STATE_FIELDS = frozenset(
    {
        "status",
        "state",
        "result",
        "outcome",
        "code",
        "statuscode",
        "statustext",
        "httpstatus",
        "httpcode",
        "responsecode",
        "responsestatus",
    }
)
_ERROR_FIELD = re.compile(
    r"(?:is|has)?(?:failed|error|err|errcode|errno|errorcode|errors|errormessage|errortext|errortype|errordescription|exception|fault|failure)"
)
"""Not `errmsg`, which is "ok" next to an `errcode` of 0, and not `errorurl`."""
_MESSAGE_FIELDS = frozenset({"message", "detail", "msg", "reason", "description"})
_REFUSING_MESSAGE = re.compile(
    r"\W*(?:unauthori[sz]ed|unauthenticated|not authenticated|not "
    r"authorized|forbidden|(?:access|permission) denied|bad ?device"
    r"|invalid[ _](?:token|key|signature|credential)|failed to |rate limit|token expired|unknown "
    r"webhook|key words not found)",
    re.IGNORECASE,
)
_WRAPPERS = frozenset({"data", "response", "result", "results", "body", "meta"})
_MOST_LAYERS = 4
_NO_WORDS = frozenset({"", "0", "false", "no", "none", "null", "off", "n"})
_NO_ERROR_WORDS = _NO_WORDS | {"ok", "success", "no error", "no errors", "0 errors", "nil", "n/a", "na", "-"}
_REFUSAL = re.compile(
    r"\W*(error|fail(?!over)|invalid(?!at)|nok$|ko$|denied|deny|refused|rejected|unauthori[sz]ed|unauthenticated|forbidden|exception|expired|declined"
    r"|unavailable|time(d[ _])?out|bad[ _](request|gateway)|access[ _]denied|not[ "
    r"_](?!applicable|required)|no_(?!error)|channel_not|rate[ _-]?limit"
    r"|too[ _]many|service[ _]unavailable|internal[ _]server[ _]error|(session|token)[ _]expired|login[ "
    r"_]required|blocked|dropped|disabled)",
    re.IGNORECASE,
)
_FIRST_REFUSAL = 400
_LAST_REFUSAL = 599
"""HTTP error statuses; above 599, services also use numbers for successes."""
_FIRST_STATUS = 100
"""The lowest HTTP status. Services with their own error numbers start at 1, and 0 means no error."""
_TAG = re.compile(r"<[A-Za-z!/]")


def is_refusal(answer: Answer) -> bool:
    """Return whether the body reports a failure although the status is 2xx.

    An empty body is not a refusal, nor is text or JSON that does not report a failure.
    """
    body = answer.body.strip()
    try:
        said: object = json.loads(body)
    except RecursionError:
        return True
    except ValueError:
        # Many frameworks label any text as HTML; a real page contains a tag.
        is_page = answer.content_type.partition(";")[0].strip().lower() in {
            "text/html",
            "application/xhtml+xml",
        } and _TAG.search(body)
        if body.startswith("<") or is_page:
            return True
        said = body
    return _says_no(said, _MOST_LAYERS)


def _says_no(said: object, layers: int) -> bool:
    if isinstance(said, list):
        listed = cast("list[object]", said)
        return bool(listed) and layers > 0 and _says_no(listed[0], layers - 1)
    if isinstance(said, str):
        return bool(_REFUSAL.match(said))
    if not isinstance(said, dict):
        return said is False
    fields = cast("Mapping[str, object]", said)
    return any(
        _is_refusing_field(re.sub(r"[\W_]", "", name).lower(), value, layers)
        for name, value in fields.items()
    )


def _is_refusing_field(name: str, value: object, layers: int) -> bool:
    is_plain = value is None or isinstance(value, (str, int, float))
    if name in _SUCCESS_FIELDS and is_plain:
        return str(value or "").strip().lower() in _NO_WORDS
    if _ERROR_FIELD.fullmatch(name):
        return _is_error(value)
    if name in _STATE_FIELDS and is_plain:
        return _is_refusing_state(name, value)
    if name in _MESSAGE_FIELDS and isinstance(value, str):
        return bool(_REFUSING_MESSAGE.match(value))
    return (
        name in _WRAPPERS | _STATE_FIELDS
        and layers > 0
        and isinstance(value, (list, dict))
        and _says_no(cast("list[object] | dict[str, object]", value), layers - 1)
    )


def _is_error(value: object) -> bool:
    if isinstance(value, dict):
        parts = cast("Mapping[str, object]", value).values()
        # A number or word within that means success shows that nothing failed.
        return bool(parts) and not any(isinstance(part, (str, int)) and not _is_error(part) for part in parts)
    text = str(value or "").strip().lower()
    return bool(value) and text not in _NO_ERROR_WORDS and bool(text.strip("0"))


def _is_refusing_state(name: str, value: object) -> bool:
    if value is False:
        return True
    text = str(value).strip()
    if re.fullmatch(r"-?[0-9]{1,9}(\.0+)?", text):
        number = int(float(text))
        return (
            _FIRST_REFUSAL <= number <= _LAST_REFUSAL
            or number < 0
            or (name == "statuscode" and 0 < number < _FIRST_STATUS)
        )
    return bool(_REFUSAL.match(text))
