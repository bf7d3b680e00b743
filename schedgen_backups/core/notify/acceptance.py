"""What a service that answers with a success took all the same for none: a login page, or a refusal in JSON or in a word.

Services spell a refusal in many ways. Add one when it was seen, and only where nobody means a success by it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import cast

from schedgen_backups.core.notify.exchange import Answer

_SUCCESS_FIELDS = frozenset({"ok", "success", "successful", "accepted", "delivered"})
_STATE_FIELDS = frozenset({"status", "state", "result", "outcome", "code", "statuscode", "statustext"})
_ERROR_FIELD = re.compile(r"error|err$|errcode$|exception|fault$|failure$")
"""Not `errmsg`, which is "ok" beside an `errcode` of 0."""
_WRAPPERS = frozenset({"data", "response", "result", "body", "meta"})
_MOST_LAYERS = 4
_NO_WORDS = frozenset({"", "0", "false", "no", "none", "null", "off", "n"})
_NO_ERROR_WORDS = _NO_WORDS | {"ok", "success"}
_REFUSAL = re.compile(
    r"\W*(error|fail|invalid|denied|deny|refused|rejected|unauthori[sz]ed|unauthenticated|forbidden|exception|expired|declined"
    r"|unavailable|time(d[ _])?out|bad[ _]request|access[ _]denied|not[ _]|no_)",
    re.IGNORECASE,
)
_FIRST_REFUSAL = 400
_FIRST_STATUS = 100
"""Of HTTP; services that count their own errors begin at 1, and 0 is none."""
_PLAIN_SUCCESS = frozenset({"", "ok"})


def is_refusal(answer: Answer) -> bool:
    """Return whether the body takes back what a status of 2xx says. An empty body, and any text or JSON that is not about a failure, does not."""
    body = answer.body.strip()
    try:
        said: object = json.loads(body)
    except RecursionError:
        return True
    except ValueError:
        is_page = answer.content_type.partition(";")[0].strip().lower() in {"text/html", "application/xhtml+xml"}
        if body.startswith("<") or (is_page and body.lower() not in _PLAIN_SUCCESS):
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
    return any(_is_no(re.sub(r"[\W_]", "", name).lower(), value, layers) for name, value in fields.items())


def _is_no(name: str, value: object, layers: int) -> bool:
    is_plain = value is None or isinstance(value, (str, int, float))
    if name in _SUCCESS_FIELDS and is_plain:
        return str(value or "").strip().lower() in _NO_WORDS
    if _ERROR_FIELD.match(name):
        return bool(value) and str(value).strip().lower() not in _NO_ERROR_WORDS
    if name in _STATE_FIELDS and is_plain:
        return _is_refusing_state(name, value)
    return (
        name in _WRAPPERS and layers > 0 and isinstance(value, (list, dict)) and _says_no(cast("list[object] | dict[str, object]", value), layers - 1)
    )


def _is_refusing_state(name: str, value: object) -> bool:
    if value is False:
        return True
    text = str(value).strip()
    if re.fullmatch(r"-?[0-9]{1,9}(\.0+)?", text):
        number = int(float(text))
        return number >= _FIRST_REFUSAL or number < 0 or (name == "statuscode" and 0 < number < _FIRST_STATUS)
    return bool(_REFUSAL.match(text))
