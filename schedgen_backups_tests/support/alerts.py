"""Alerts and local services that accept them: a recording HTTP server, a silent port, a closed port.

For tests of everything that connects to the outside (`channels`, `notifier`, `heartbeat`). The SMTP server
lives where it is used.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler
from typing import Any

from schedgen_backups.core.notify.alert import Alert, Severity
from schedgen_backups.core.notify.incidents import IncidentKey
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups_tests.support.http_server import JoiningHTTPServer

SECRET = "T0CANARY/B1CANARY/x2Canary3Secret"
KEY = IncidentKey(area="run", subject="database_dump failed")
RAISED_AT = datetime(2026, 3, 1, 2, 10, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Answer:
    """The server's answer to one request."""

    status: int = 200
    body: str = "ok"
    headers: dict[str, str] = field(default_factory=dict)
    seconds_per_byte: float = 0
    is_compressed: bool = False


@dataclass(frozen=True)
class Received:
    """One request as received."""

    path: str
    body: bytes
    content_type: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """Return the body as JSON."""
        return json.loads(self.body)


class RecordingServer(JoiningHTTPServer):
    """A server that accepts every POST; it sends `answers` in order, then 200."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answers: list[Answer] = []
        self.default = Answer()
        self.is_stopping = threading.Event()
        """Ends slow answers."""
        super().__init__(_Handler)

    def url(self, path: str = f"/services/{SECRET}") -> str:
        return f"http://{self.endpoint}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: RecordingServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.received.append(Received(self.path, body, self.headers.get("Content-Type", "")))
        answer = self.server.answers.pop(0) if self.server.answers else self.server.default
        data = gzip.compress(answer.body.encode()) if answer.is_compressed else answer.body.encode()
        self.send_response(answer.status)
        encoding = {"Content-Encoding": "gzip"} if answer.is_compressed else {}
        for name, value in {**answer.headers, **encoding, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not answer.seconds_per_byte:
            self.wfile.write(data)
            return
        for byte in data:
            if self.server.is_stopping.wait(answer.seconds_per_byte):
                return
            self.wfile.write(bytes([byte]))

    do_GET = do_POST  # noqa: N815 - the base class's name

    def log_message(self, *_args: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def recording_server() -> Generator[RecordingServer, None, None]:
    """Yield a server for the block."""
    server = RecordingServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def silent_server() -> Generator[int, None, None]:
    """Yield a port that accepts connections and never sends anything."""
    held: list[socket.socket] = []
    with socket.create_server((LOOPBACK, 0)) as listener:

        def take() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in held:
        connection.close()


def closed_port() -> int:
    """Return a port on which nothing listens."""
    return free_ports(1)[0]


def make_alert(**fields: object) -> Alert:
    """Return an alert like those of a failed dump."""
    values: dict[str, object] = {
        "severity": Severity.CRITICAL,
        "title": "Backup failed: database_dump",
        "cause": "pg_dump ended with 1: connection refused",
        "next_step": "Is the server up?",
        "facts": {"newest verified": "20260228_020000, 24.2 h old", "run": "abc"},
        "link": "https://dagster.example.com/runs/abc",
        "raised_at": RAISED_AT,
    }
    return Alert.model_validate({**values, **fields})
