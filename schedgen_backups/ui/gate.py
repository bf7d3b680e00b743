"""The gate: ASGI middleware that decides which requests reach Dagster's webserver. It does not use Dagster.

A browser sends requests for any page that it shows. The rules refuse requests that were made by a page of
another site, or of another port of this host.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schedgen_backups.config.ui import UiSettings, parse_address, parse_origin
from schedgen_backups.ui.login import Login

HEALTH_PATH = "/server_info"
"""Dagster's path that returns its versions. Probes use the address of a container or pod, so it is open under
every host name."""
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_READING_METHODS = frozenset({"GET", "HEAD"})
_OWN_SITES = frozenset({"same-origin", "none"})
_QUERY_LIMIT_BYTES = 1 << 20
"""More than the UI sends: its largest queries are about 100 kB (2026-11-29, dagster-webserver 1.13)."""
_LOGIN_LIMIT_CHARACTERS = 600
"""Maximum length of user and password in a URL."""
_NEVER_IN_LOGIN = re.compile(r"""[\s/"'\\]""")
_NEVER_IN_USER = re.compile(r"[?#]")
_LIBPQ_SCHEMES = ("postgres", "postgresql")
"""Schemes whose passwords may contain characters that other URLs must escape."""
_PASSWORD_SETTING = re.compile(
    r"""(?<![A-Za-z0-9_])(?:ssl)?password\s{0,20}=\s{0,20}['"]?[^\s&'"]""", re.IGNORECASE
)
_ESCAPE = re.compile(r"\\(?:U([0-9A-Fa-f]{8})|u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|([/nt]))|%([0-9A-Fa-f]{2})")
_LETTERS = {"/": "/", "n": "\n", "t": "\t"}
_MOST_LAYERS = 4
"""Maximum nesting of escapes, such as JSON or YAML in a JSON string."""
_WRONG_POLICY_CODE = 1008
"""RFC 6455, section 7.4.1: a message violates the server's policy."""
_SECURITY_HEADERS = {
    # A page of another site must not show the UI in a frame and redirect a click to a button.
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class Refusal:
    """Why a request does not reach Dagster."""

    status: HTTPStatus
    reason: str
    is_login_missing: bool = False


class Gate:
    """Passes on the requests of UI users, and refuses all others before Dagster sees them."""

    def __init__(self, app: ASGIApp, settings: UiSettings) -> None:
        self._app = app
        self._settings = settings
        self._login = Login(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request or websocket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._find_refusal(scope)
        if refusal is None and not _is_health_request(scope) and not await self._login.accepts(scope):
            refusal = Refusal(HTTPStatus.UNAUTHORIZED, "a login is required", is_login_missing=True)
        if refusal is not None:
            await self._refuse(refusal, scope, receive, send)
            return

        if _is_http(scope) and _is_graphql(scope):
            receive, refusal = await _read_query(receive)
            if refusal is not None:
                await self._refuse(refusal, scope, receive, send)
                return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURITY_HEADERS)
            await send(message)

        await self._app(scope, receive, send_secured)

    def _find_refusal(self, scope: Scope) -> Refusal | None:
        if _is_health_request(scope):
            return None
        headers = Headers(scope=scope)
        return (
            self._judge_host(headers)
            or self._judge_sender(scope, headers)
            or (_judge_request(scope, headers) if _is_http(scope) else None)
        )

    def _judge_host(self, headers: Headers) -> Refusal | None:
        """Refuse other host names than the UI's: any site can let its name resolve to 127.0.0.1."""
        hosts = headers.getlist("host")
        try:
            [address] = [parse_address(host) for host in hosts]
        except ValueError:
            return Refusal(HTTPStatus.BAD_REQUEST, "exactly one Host header with a host name is required")
        if address.host in _LOOPBACK_HOSTS or any(
            allowed.host == address.host for allowed in self._settings.addresses
        ):
            return None
        return Refusal(
            HTTPStatus.BAD_REQUEST,
            f"{address.host} is not a host name of the UI; add it to BACKUP_UI_HOSTS",
        )

    def _judge_sender(self, scope: Scope, headers: Headers) -> Refusal | None:
        """Refuse requests from a page of another origin.

        Browsers send `Origin` with each POST and websocket; other programs send neither header.
        """
        origins = headers.getlist("origin")
        if origins and not (len(origins) == 1 and self._is_own_origin(origins[0], headers["host"])):
            return Refusal(
                HTTPStatus.FORBIDDEN,
                "a page of another origin sent this request; BACKUP_UI_HOSTS lists the hosts of the UI",
            )
        sites = headers.getlist("sec-fetch-site")
        if (
            sites
            and not (len(sites) == 1 and sites[0] in _OWN_SITES)
            and not _is_followed_link(scope, headers)
        ):
            return Refusal(HTTPStatus.FORBIDDEN, "a page of another site sent this request")
        return None

    def _is_own_origin(self, origin: str, host: str) -> bool:
        # Comparing with Host is not enough: a reverse proxy may replace it, and then the origin is one of the
        # configured addresses.
        try:
            address = parse_origin(origin)
        except ValueError:  # also for `null`, the origin of sandboxed frames
            return False
        if any(
            allowed.host == address.host and allowed.port in {None, address.port}
            for allowed in self._settings.addresses
        ):
            return True
        # Other programs serve pages on other ports of this host: the port of a loopback origin must match.
        return address.host in _LOOPBACK_HOSTS and _is_same(origin, host)

    @staticmethod
    async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()  # ASGI: the first message must be received before an answer is sent
            await send({"type": "websocket.close", "code": _WRONG_POLICY_CODE, "reason": refusal.reason})
            return
        headers = (
            {"WWW-Authenticate": 'Basic realm="backups", charset="UTF-8"'} if refusal.is_login_missing else {}
        )
        response = PlainTextResponse(
            f"Refused: {refusal.reason}.\n", status_code=refusal.status, headers=headers
        )
        await response(scope, receive, send)


async def _read_query(receive: Receive) -> tuple[Receive, Refusal | None]:
    """Return a stream that replays the query, and the reason to refuse it, or None.

    Dagster stores the configuration of a run permanently, so it must not contain a password.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return _replay(message, receive), None
        body += message.get("body", b"")
        if len(body) > _QUERY_LIMIT_BYTES:
            return receive, Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the query is too large")
        if not message.get("more_body", False):
            break
    refusal = None
    if _holds_password(bytes(body)):
        reason = (
            "a URL or connection string in the query contains a password, which Dagster would store; "
            "remove it and set RESTORE_POSTGRES_PASSWORD"
        )
        refusal = Refusal(HTTPStatus.BAD_REQUEST, reason)
    return _replay({"type": "http.request", "body": bytes(body), "more_body": False}, receive), refusal


def _holds_password(body: bytes) -> bool:
    """Return whether the query, however escaped, contains a URL or connection string with a password."""
    text = body.decode(json.detect_encoding(body), "replace")
    for _layer in range(_MOST_LAYERS):
        if _PASSWORD_SETTING.search(text) or _holds_url_with_password(text):
            return True
        text = _ESCAPE.sub(_unescape, text.replace("\\\\", "\\"))
    return False


def _holds_url_with_password(text: str) -> bool:
    """Return whether the text contains a URL with user and password.

    The start of each URL is examined once, in bounded time: a POST must not block other requests.
    """
    for found in re.finditer("://", text):
        end = text.find("@", found.end(), found.end() + _LOGIN_LIMIT_CHARACTERS)
        user, _colon, password = text[found.end() : max(end, found.end())].partition(":")
        if password:
            is_libpq = text[max(found.start() - 10, 0) : found.start()].lower().endswith(_LIBPQ_SCHEMES)
            if is_libpq or not (_NEVER_IN_LOGIN.search(user + password) or _NEVER_IN_USER.search(user)):
                return True
    return False


def _unescape(found: re.Match[str]) -> str:
    digits = found[1] or found[2] or found[3] or found[5]
    if not digits:
        return _LETTERS[found[4]]
    return chr(min(int(digits, 16), sys.maxunicode))


def _replay(first: Message, receive: Receive) -> Receive:
    left = [first]

    async def receive_again() -> Message:
        return left.pop() if left else await receive()

    return receive_again


def _judge_request(scope: Scope, headers: Headers) -> Refusal | None:
    """Refuse requests that can change something and that browsers send without a CORS preflight."""
    method = scope["method"]
    if not scope["path"].isprintable():  # Starlette's routes ignore a line break at the end
        return Refusal(HTTPStatus.BAD_REQUEST, "the path contains control characters")
    if method in _READING_METHODS:
        if _is_graphql(scope):  # Dagster executes mutations of a GET
            return Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "GraphQL accepts only POST")
        return None
    if method != "POST":  # this also refuses CORS preflights (OPTIONS)
        return Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"the UI does not use {method}")
    kinds = headers.getlist("content-type")
    if len(kinds) != 1 or kinds[0].partition(";")[0].strip().lower() != "application/json":
        return Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "POST accepts only application/json")
    return None


def _is_http(scope: Scope) -> bool:
    return scope["type"] == "http"


def _is_health_request(scope: Scope) -> bool:
    return _is_http(scope) and scope["method"] in _READING_METHODS and scope["path"] == HEALTH_PATH


def _is_graphql(scope: Scope) -> bool:
    return scope["path"].strip().rstrip("/").lower().endswith("/graphql")


def _is_followed_link(scope: Scope, headers: Headers) -> bool:
    """Return whether the user followed a link to the UI, such as one in an alert; it changes nothing."""
    return (
        _is_http(scope)
        and scope["method"] in _READING_METHODS
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _is_same(origin: str, host: str) -> bool:
    return origin.lower().partition("://")[2] == host.lower()
