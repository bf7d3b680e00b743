"""Helpers of the embedded servers: free ports, private files, the end of a log.

Add only helpers that both `embedded_postgres` and `embedded_s3` use. Code specific to PostgreSQL or S3, or
listening on another address, does not belong here.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK = "127.0.0.1"


_SERVER_VARIABLES = frozenset({"PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH"})


def make_server_environment() -> dict[str, str]:
    """Return the environment of an embedded server: only the variables that it needs to run.

    The data loaded into it may be hostile and can read its environment.
    """
    return {name: value for name, value in os.environ.items() if name in _SERVER_VARIABLES} | {"LC_ALL": "C"}


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports of the loopback address that are free now."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for _ in range(count):
            held = stack.enter_context(socket.socket())
            held.bind((LOOPBACK, 0))
            ports.append(int(held.getsockname()[1]))
        return ports


def write_private_file(path: Path, text: str) -> None:
    """Write the text to a new file that only its owner can read, from the start; replace an old one."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)


def file_tail(path: Path, lines: int) -> str:
    """Return the last lines of a log, or an empty text if it does not exist."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
