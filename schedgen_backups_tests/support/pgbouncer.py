"""A real PgBouncer in front of a database, in any pool mode."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from tempfile import NamedTemporaryFile

import pytest

from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups.core.settings import DatabaseSettings

_START_SECONDS = 10


@contextmanager
def open_pgbouncer(
    target: DatabaseSettings, pool_mode: str, **settings: str
) -> Generator[DatabaseSettings, None, None]:
    """Yield settings that reach `target` through a pooler; skip the test without pgbouncer."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    port = free_ports(1)[0]
    values = {
        "listen_addr": LOOPBACK,
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": pool_mode,
        **settings,
    }
    # It refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    login = f"host={target.host} port={target.port} user={target.user} password={target.password}"
    lines = [
        "[databases]",
        f"* = {login}",
        "[pgbouncer]",
        *(f"{name} = {value}" for name, value in values.items()),
    ]
    with NamedTemporaryFile("w", prefix="pgbouncer-", suffix=".ini") as file:
        file.write("\n".join([*lines, ""]))
        file.flush()
        if user:
            shutil.chown(file.name, user)
        command = [program, "-q", file.name]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, user=user, cwd="/"
        ) as process:
            try:
                _wait(port, process)
                yield replace(target, port=port)
            finally:
                process.terminate()


def _wait(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
        except OSError:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return
