# The part of apprise that we use: its own annotations leave addresses and plugins partly untyped.
from collections.abc import Mapping
from enum import Enum
from io import StringIO

class NotifyType(Enum):
    INFO = "info"
    SUCCESS = "success"
    WARNING = "warning"
    FAILURE = "failure"

class NotifyFormat(Enum):
    TEXT = "text"
    HTML = "html"
    MARKDOWN = "markdown"

class OverflowMode(Enum):
    UPSTREAM = "upstream"
    TRUNCATE = "truncate"
    SPLIT = "split"

class NotifyBase:
    host: str | None
    overflow_mode: OverflowMode
    body_maxlen: int
    protocol: str | tuple[str, ...] | None
    service_name: str
    secure: bool
    secure_protocol: str | tuple[str, ...] | None
    password: str | None
    socket_connect_timeout: float
    socket_read_timeout: float
    def notify(
        self,
        body: str,
        title: str = ...,
        notify_type: NotifyType = ...,
        body_format: NotifyFormat = ...,
        attach: str | None = ...,
    ) -> bool: ...

class Apprise:
    @staticmethod
    def instantiate(url: str | Mapping[str, object]) -> NotifyBase | None: ...

class LogCapture:
    def __init__(self, *, level: int, fmt: str) -> None: ...
    def __enter__(self) -> StringIO: ...
    def __exit__(self, *exception: object) -> bool | None: ...
