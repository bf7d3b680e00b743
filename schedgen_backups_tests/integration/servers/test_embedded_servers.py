"""The servers of the demo and of these tests: start, restart, end and rights."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest
from minio.error import S3Error

from schedgen_backups.core.errors import ConfigurationError, DatabaseError, DatabaseUnreachableError
from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups.core.servers.postgres import EmbeddedPostgres, find_embedded_bin_dirs
from schedgen_backups.core.servers.postgres_cluster import NOBODY_ID
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups_tests.support.servers import client_of, connect, run
from schedgen_backups_tests.support.small_disk import mount_small_disk

if TYPE_CHECKING:
    from schedgen_backups.core.settings import DatabaseSettings

pytestmark = pytest.mark.integration

# The process reports that its server runs and then waits to be killed.
ABANDONED_POSTGRES = """
import sys, time
from pathlib import Path
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1])).start()
server.create_database("kept")
print("ready", flush=True)
time.sleep(600)
"""
ABANDONED_S3 = """
import sys, time
from pathlib import Path
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
server = EmbeddedS3(Path(sys.argv[1])).start()
print("ready", server._finalizer.peek()[2][0].pid, flush=True)
time.sleep(600)
"""
FORGETFUL = """
import sys
from pathlib import Path
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
database_server = EmbeddedPostgres(Path(sys.argv[1]) / "postgres").start()
object_server = EmbeddedS3(Path(sys.argv[1]) / "s3").start()
"""


def is_running(process_id: int) -> bool:
    """Return whether the process runs; an ended one that was not waited for does not."""
    return psutil.pid_exists(process_id) and psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE


def server_process_id(server: EmbeddedS3) -> int:
    registered = server._finalizer.peek() if server._finalizer else None
    assert registered is not None
    return registered[2][0].pid


def start_and_kill(program: str, directory: Path) -> list[str]:
    """Return the process's ready message; it has been killed without a chance to clean up."""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        process.kill()
    assert words[0] == "ready"
    return words[1:]


@pytest.mark.parametrize("bin_dir", find_embedded_bin_dirs(), ids=lambda path: path.parts[-3])
def test_a_restarted_postgres_keeps_data_password_and_port(bin_dir: Path, tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path, bin_dir=bin_dir) as server:
        before = server.create_database("app")
        run(before, "CREATE TABLE kept AS SELECT 42 AS answer")
    with EmbeddedPostgres(tmp_path, bin_dir=bin_dir) as server:
        assert server.settings("app") == before
        assert run(server.settings("app"), "SELECT answer FROM kept") == [(42,)]
        assert run(before, "SHOW server_version_num")[0][0].startswith(str(server.server_version))


def test_a_postgres_left_alive_by_a_killed_process_is_replaced(tmp_path: Path) -> None:
    start_and_kill(ABANDONED_POSTGRES, tmp_path)
    with EmbeddedPostgres(tmp_path) as server:
        assert run(server.settings("kept"), "SELECT 1") == [(1,)]


def test_a_postgres_left_alive_by_a_killed_process_can_be_stopped(tmp_path: Path) -> None:
    start_and_kill(ABANDONED_POSTGRES, tmp_path)
    process_id = int((tmp_path / "data" / "postmaster.pid").read_text().split()[0])
    assert is_running(process_id)
    EmbeddedPostgres(tmp_path).stop()
    assert not is_running(process_id)


def test_a_stale_process_id_of_another_program_is_ignored(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path):
        process_file = (tmp_path / "data" / "postmaster.pid").read_text()
    with subprocess.Popen(["sleep", "600"]) as bystander:
        lines = process_file.splitlines(keepends=True)
        (tmp_path / "data" / "postmaster.pid").write_text("".join([f"{bystander.pid}\n", *lines[1:]]))
        with EmbeddedPostgres(tmp_path) as server:
            assert run(server.settings("postgres"), "SELECT 1") == [(1,)]
        assert bystander.poll() is None
        bystander.kill()


def test_both_servers_end_with_an_interpreter_that_never_stopped_them(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", FORGETFUL, str(tmp_path)], check=True, timeout=60)
    assert not (tmp_path / "postgres" / "data" / "postmaster.pid").exists()
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in " ".join(command)]


def test_a_taken_port_is_an_error_that_shows_the_servers_log(
    tmp_path: Path, database: DatabaseSettings
) -> None:
    server = EmbeddedPostgres(tmp_path, port=database.port)
    with pytest.raises(DatabaseError, match="Address already in use"):
        server.start()
    with pytest.raises(DatabaseUnreachableError):
        server.settings("postgres")


def test_a_kept_port_that_was_taken_is_replaced(tmp_path: Path, database: DatabaseSettings) -> None:
    (tmp_path / "port").write_text(str(database.port))
    with EmbeddedPostgres(tmp_path) as server:
        assert server.settings("postgres").port != database.port


def test_a_data_directory_of_another_major_version_is_refused(
    tmp_path: Path, postgres_bin_dir: Path, postgres_bin_dir_17: Path
) -> None:
    with EmbeddedPostgres(tmp_path, bin_dir=postgres_bin_dir):
        pass
    with pytest.raises(ConfigurationError, match="holds data of PostgreSQL 18"):
        EmbeddedPostgres(tmp_path, bin_dir=postgres_bin_dir_17).start()


def test_another_password_for_existing_data_is_refused(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path, password="first"):
        pass
    with pytest.raises(ConfigurationError, match="another password"):
        EmbeddedPostgres(tmp_path, password="second").start()


def test_an_interrupted_initdb_does_not_block_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "data.new").mkdir()
    (tmp_path / "data.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(tmp_path) as server:
        assert run(server.settings("postgres"), "SELECT 1") == [(1,)]


def test_server_options_reach_the_server_whatever_they_contain(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path, server_options={"fsync": "off", "cluster_name": "it's $HOME"}) as server:
        assert run(server.settings("postgres"), "SHOW fsync") == [("off",)]
        assert run(server.settings("postgres"), "SHOW cluster_name") == [("it's $HOME",)]


def test_databases_are_created_and_dropped_under_open_sessions(postgres_server: EmbeddedPostgres) -> None:
    settings = postgres_server.create_database('odd "name"')
    with pytest.raises(DatabaseError, match="already exists"):
        postgres_server.create_database('odd "name"')
    with connect(settings):
        postgres_server.drop_database('odd "name"')
    postgres_server.drop_database('odd "name"')


def test_the_password_is_required_and_kept_private(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path) as server:
        settings = server.settings("postgres")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(
                host=settings.host, port=settings.port, user=settings.user, password="x", dbname="postgres"
            )
        assert (tmp_path / "password").stat().st_mode & 0o777 == 0o600
        assert settings.password not in server.log_tail(1000)
        assert settings.password not in repr(settings)


def test_postgres_runs_as_another_user_where_root_has_no_user_namespaces(postgres_bin_dir: Path) -> None:
    # Another user can enter neither pytest's folder nor root's home.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        package = postgres_bin_dir.parents[1]
        for source in (package, package.with_name(f"{package.name}.libs")):
            shutil.copytree(source, directory / source.name, symlinks=True)
        bin_dir = directory / package.name / "pginstall" / "bin"
        server = EmbeddedPostgres(directory / "server", bin_dir=bin_dir)
        if os.geteuid() == 0:
            server._cluster = replace(server._cluster, launcher=(), user_id=NOBODY_ID)
        with server:
            before = server.create_database("app")
            assert (directory / "server" / "data").stat().st_uid == (os.geteuid() or NOBODY_ID)
        # The files return to their first owner when namespaces are allowed again.
        with EmbeddedPostgres(directory / "server", bin_dir=bin_dir) as server:
            assert run(server.settings("app"), "SELECT 1") == [(1,)]
            assert server.settings("app").password == before.password


def test_a_restarted_s3_server_keeps_keys_ports_and_objects(tmp_path: Path) -> None:
    with EmbeddedS3(tmp_path) as server:
        before = server.settings("kept")
        client_of(before).make_bucket("kept")
        client_of(before).put_object("kept", "a b/é.txt", io.BytesIO(b"hello"), 5)
    with EmbeddedS3(tmp_path) as server:
        assert server.settings("kept") == before
        with client_of(before).get_object("kept", "a b/é.txt") as response:
            assert response.read() == b"hello"


def test_an_s3_server_with_taken_ports_moves_with_its_objects(tmp_path: Path) -> None:
    with EmbeddedS3(tmp_path) as server:
        before = server.settings("kept")
        client_of(before).make_bucket("kept")
        client_of(before).put_object("kept", "key", io.BytesIO(b"hello"), 5)
        with EmbeddedS3(tmp_path / "other") as other:
            (tmp_path / "taken.json").write_text((tmp_path / "other" / "ports.json").read_text())
            server.stop()
            (tmp_path / "taken.json").replace(tmp_path / "ports.json")
            server.start()
            assert server.endpoint != other.endpoint
            with client_of(server.settings("kept")).get_object("kept", "key") as response:
                assert response.read() == b"hello"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_an_s3_server_dies_with_its_parent_and_its_socket_is_removed_at_the_next_start(
    tmp_path: Path,
) -> None:
    before = set(Path("/tmp").glob("seaweedfs-*-grpc-*.sock"))  # noqa: S108 - other servers', some of them of ports that are free again
    (process_id,) = start_and_kill(ABANDONED_S3, tmp_path)
    deadline = time.monotonic() + 5
    while is_running(int(process_id)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(process_id))
    with EmbeddedS3(tmp_path) as server:
        ports = dict(server._ports)
    sockets = set(Path("/tmp").glob("seaweedfs-*-grpc-*.sock")) - before  # noqa: S108
    assert not {int(path.stem.rpartition("-")[2]) for path in sockets} & set(ports.values())


def test_the_backup_keys_can_read_and_not_write(tmp_path: Path) -> None:
    with EmbeddedS3(tmp_path) as server:
        admin = client_of(server.settings("kept"))
        admin.make_bucket("kept")
        admin.put_object("kept", "key", io.BytesIO(b"hello"), 5)
        reader = client_of(server.read_only_settings("kept"))
        assert [entry.object_name for entry in reader.list_objects("kept", recursive=True)] == ["key"]
        with reader.get_object("kept", "key") as response:
            assert response.read() == b"hello"
        for attempt in (
            lambda: reader.put_object("kept", "key", io.BytesIO(b"x"), 1),
            lambda: reader.remove_object("kept", "key"),
            lambda: reader.remove_bucket("kept"),
        ):
            with pytest.raises(S3Error, match="AccessDenied"):
                attempt()
        assert (tmp_path / "s3.json").stat().st_mode & 0o777 == 0o600


def test_servers_start_in_a_folder_with_a_long_and_odd_path(tmp_path: Path) -> None:
    directory = tmp_path / ("it's a long name " * 10)
    with EmbeddedS3(directory / "s3") as server, EmbeddedPostgres(directory / "postgres") as postgres:
        assert client_of(server.settings("any")).list_buckets() == []
        assert run(postgres.settings("postgres"), "SELECT 1") == [(1,)]


def test_an_s3_server_creates_no_bucket_implicitly_and_deletes_no_full_one(tmp_path: Path) -> None:
    with EmbeddedS3(tmp_path) as server:
        client = client_of(server.settings("kept"))
        with pytest.raises(S3Error, match="NoSuchBucket"):
            client.put_object("missing", "key", io.BytesIO(b"x"), 1)
        client.make_bucket("full")
        client.put_object("full", "key", io.BytesIO(b"x"), 1)
        with pytest.raises(S3Error, match="BucketNotEmpty"):
            client.remove_bucket("full")


def test_a_small_disk_holds_as_many_buckets_as_needed(tmp_path: Path) -> None:
    with mount_small_disk(tmp_path, "200m"), EmbeddedS3(tmp_path / "s3") as server:
        client = client_of(server.settings("unused"))
        for number in range(20):
            client.make_bucket(f"bucket-{number}")
            client.put_object(f"bucket-{number}", "a.pdf", io.BytesIO(b"a"), 1)
        assert [client.get_object(f"bucket-{number}", "a.pdf").data for number in range(20)] == [b"a"] * 20


def test_every_listener_is_on_loopback(tmp_path: Path) -> None:
    with EmbeddedS3(tmp_path / "s3") as s3, EmbeddedPostgres(tmp_path / "postgres") as postgres:
        postmaster = int((tmp_path / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        process_ids = [server_process_id(s3), postmaster]
        connections = [
            entry for each in process_ids for entry in psutil.Process(each).net_connections("inet")
        ]
        listeners = {entry.laddr for entry in connections if entry.status == psutil.CONN_LISTEN}
        assert {entry.ip for entry in listeners} == {"127.0.0.1"}
        assert {*s3._ports.values(), postgres.settings("postgres").port} == {
            entry.port for entry in listeners
        }
        peers = {entry.raddr.ip for entry in connections if entry.raddr}
        assert peers <= {"127.0.0.1"}


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(20))) == 20
