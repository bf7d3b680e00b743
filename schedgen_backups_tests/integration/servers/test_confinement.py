"""User namespaces hide the host from the drill's own PostgreSQL server.

Without them the server still runs.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from schedgen_backups.core.drill.scratch_folder import end_processes_in
from schedgen_backups.core.servers import postgres_cluster
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration

CANARY = "canary-of-the-backups"


def has_user_namespaces() -> bool:
    return (
        subprocess.run(["unshare", "--user", "--mount", "true"], capture_output=True, check=False).returncode
        == 0
    )


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    """Return a backup directory with a secret, beside an environment file with another.

    The drill's folder lies in it.
    """
    folder = tmp_path / "backups"
    (folder / ".drill").mkdir(parents=True)
    for path in (folder / "dump", tmp_path / "env"):
        path.write_text(CANARY, encoding="utf-8")
    return folder


@pytest.fixture
def server(backups: Path) -> Iterator[EmbeddedPostgres]:
    hidden = (backups, backups.parent / "env", backups.parent / "absent")
    with EmbeddedPostgres(backups / ".drill" / "postgres", hidden_paths=hidden) as server:
        yield server


def run_program(database: DatabaseSettings, command: str) -> str:
    """Return the output of a program that a superuser ran on the server."""
    run(database, "CREATE TABLE IF NOT EXISTS said (line text)")
    run(database, "TRUNCATE said")
    run(database, f"COPY said FROM PROGRAM $${command} 2>&1 || true$$")
    return "\n".join(line for (line,) in run(database, "SELECT line FROM said"))


def test_a_superuser_of_the_server_sees_no_backups_settings_or_secrets(
    server: EmbeddedPostgres, backups: Path
) -> None:
    if not has_user_namespaces():
        pytest.skip("no user namespaces here")
    assert server.is_confined
    database = server.settings("postgres")
    assert CANARY not in run_program(
        database, f"cat {backups}/dump {backups.parent}/env; ls -la {backups} {backups.parent}"
    )
    assert "dump" not in run_program(database, f"ls {backups}").split()
    for name in ("environ", "root/etc/hostname", "cwd/pyproject.toml"):
        assert "Permission denied" in run_program(database, f"cat /proc/{os.getpid()}/{name}"), name
    assert "not permitted" in run_program(database, f"umount {backups} 2>&1 || echo not permitted")
    nested = f"unshare --user --map-root-user --mount sh -c 'umount {backups}; cat {backups}/dump'"
    assert CANARY not in run_program(database, nested)
    with pytest.raises(psycopg.Error):
        run(database, f"SELECT pg_read_file('{backups}/dump')")


def test_a_superuser_of_the_server_reaches_no_network(tmp_path: Path) -> None:
    """Neither the loopback ports of the host nor anything beyond.

    We reach it over a Unix socket in its folder.
    """
    if not has_user_namespaces():
        pytest.skip("no user namespaces here")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    with (
        TemporaryDirectory(prefix="pg-") as short,
        socket.create_server(("127.0.0.1", 0)) as listener,
        EmbeddedPostgres(Path(short) / "postgres", hidden_paths=(hidden,)) as server,
    ):
        assert (server.is_confined, server.has_network) == (True, False)
        database = server.settings("postgres")
        assert database.host == str(Path(short) / "postgres")
        script = f"import socket; socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), 2)"
        assert "unreachable" in run_program(database, f'{sys.executable} -c "{script}"')
        devices = run_program(database, "cat /proc/net/dev")
        assert [line.split(":")[0].strip() for line in devices.splitlines() if ":" in line] == ["lo"]


def connect_unix_socket(server: EmbeddedPostgres, path: Path) -> str:
    """Return the output of a server program that tried that."""
    script = f"import socket; socket.socket(socket.AF_UNIX).connect('{path}'); print('reached')"
    return run_program(server.settings("postgres"), f'{sys.executable} -c "{script}"')


@pytest.mark.parametrize("name", ["server", "x" * 90], ids=["without network", "with network"])
def test_a_superuser_of_the_server_reaches_no_unix_socket_of_the_host(name: str) -> None:
    """A network namespace does not hide paths.

    PostgreSQL's default socket directories are /tmp and /var/run/postgresql, and peer authentication asks for
    no password.
    """
    if not has_user_namespaces():
        pytest.skip("no user namespaces here")
    with TemporaryDirectory(prefix="pg-", dir="/tmp") as short, socket.socket(socket.AF_UNIX) as listener:
        path = Path(short) / "listener"
        listener.bind(str(path))
        listener.listen()
        hidden = Path(short) / "hidden"
        hidden.mkdir()
        with EmbeddedPostgres(Path(short) / name, hidden_paths=(hidden,)) as server:
            assert (server.is_confined, server.has_network) == (True, len(name) > 80)
            assert "No such file" in connect_unix_socket(server, path)
            assert run_program(server.settings("postgres"), "ls /run /var/run | grep -v ':$' | grep .") == ""


def test_a_folder_behind_a_symbolic_link_works_under_both_names(tmp_path: Path) -> None:
    """The link or its target may lie in a hidden directory."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    with (
        TemporaryDirectory(prefix="pg-", dir="/var/tmp") as outside,
        TemporaryDirectory(prefix="pg-", dir="/tmp") as inside,
    ):
        for link, real in (
            (Path(outside) / "link", Path(inside) / "real"),
            (Path(inside) / "link", Path(outside) / "real"),
        ):
            real.mkdir()
            link.symlink_to(real)
            with EmbeddedPostgres(link / "postgres", hidden_paths=(hidden,)) as server:
                assert server.is_confined == has_user_namespaces()
                assert run(server.settings("postgres"), "SELECT 1") == [(1,)]


@pytest.mark.parametrize("name", ["x" * 90, "a,b"], ids=["long", "comma"])
def test_without_a_usable_socket_path_the_server_stays_on_loopback(tmp_path: Path, name: str) -> None:
    """The path of a Unix socket has 107 bytes, and libpq takes a comma as a separator of hosts."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    with EmbeddedPostgres(tmp_path / name / "postgres", hidden_paths=(hidden,)) as server:
        assert server.has_network
        assert run(server.settings("postgres"), "SELECT 1") == [(1,)]


def test_a_confined_server_keeps_its_data_and_is_stopped_from_outside(
    server: EmbeddedPostgres, backups: Path
) -> None:
    run(server.settings("postgres"), "CREATE TABLE kept AS SELECT 7 AS a")
    server.stop()
    server.start()
    assert run(server.settings("postgres"), "SELECT a FROM kept") == [(7,)]
    assert end_processes_in(backups / ".drill" / "postgres")
    with pytest.raises(psycopg.OperationalError):
        run(server.settings("postgres"), "SELECT 1")


def test_without_namespaces_the_server_still_runs(
    backups: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As in a confined container.

    PostgreSQL refuses to run as root, so root starts it as nobody, who must be able to read its folder.
    """
    monkeypatch.setattr(postgres_cluster, "_NAMESPACE_LAUNCHER", "raise OSError")
    cluster = postgres_cluster.cluster_for(
        Path(sys.executable).parent, tmp_path_factory.mktemp("server"), (backups,)
    )
    assert (cluster.launcher, cluster.is_confined) == ((), False)
    assert cluster.user_id == (postgres_cluster.NOBODY_ID if os.geteuid() == 0 else None)
