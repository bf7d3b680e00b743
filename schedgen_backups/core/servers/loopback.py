"""What every server of our own on the loopback address needs: free ports, files only we can read, the end of
a log.

Add a helper that both `embedded_postgres` and `embedded_s3` use. Anything that knows PostgreSQL or S3 must
not come here, nor anything that listens on another address.
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
    """Return the variables that a server of our own gets: those it needs to run.

    What is loaded into it may be hostile, and reads them.
    """
    return {name: value for name, value in os.environ.items() if name in _SERVER_VARIABLES} | {"LC_ALL": "C"}


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports of the loopback address that nothing listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for _ in range(count):
            held = stack.enter_context(socket.socket())
            held.bind((LOOPBACK, 0))
            ports.append(int(held.getsockname()[1]))
        return ports


def write_private_file(path: Path, text: str) -> None:
    """The file holds `text` and only its owner can read it, also while it is being written."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)


def file_tail(path: Path, lines: int) -> str:
    """The last lines of a log, or an empty text when there is none yet."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
