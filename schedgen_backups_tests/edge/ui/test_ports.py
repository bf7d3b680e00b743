"""A port in use is an error that names its process, before anything is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups.ui.processes import check_port_free

pytestmark = [pytest.mark.edge]


def test_the_process_that_holds_the_port_is_named() -> None:
    with socket.create_server((LOOPBACK, 0)) as server, pytest.raises(ConfigurationError) as refused:
        check_port_free(LOOPBACK, int(server.getsockname()[1]))
    assert f"(process {os.getpid()})" in refused.value.message
    assert "SCHEDGEN_UI_PORT" in refused.value.hint


def test_a_free_or_just_closed_port_is_usable() -> None:
    [port] = free_ports(1)
    check_port_free(LOOPBACK, port)
    check_port_free("0.0.0.0", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        check_port_free("192.0.2.1", 3000)


@pytest.mark.parametrize("words", [("demo", "--ui"), ("serve",)], ids=" ".join)
def test_commands_that_serve_report_it_and_start_nothing(words: tuple[str, ...], tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = str(server.getsockname()[1])
        environment = {**os.environ, "SCHEDGEN_UI_PORT": port, "DAGSTER_HOME": str(tmp_path / "home")}
        program = [sys.executable, "-m", "schedgen_backups.cli.main", *words]
        done = subprocess.run(
            program,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, f"port {port} is in use by" in done.stderr, done.stdout) == (4, True, "")
    assert not (tmp_path / "home").exists()
