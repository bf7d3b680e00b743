"""Two servers for tests that create roles, tablespaces and databases.

What they create is removed after each test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, run


@pytest.fixture(scope="session")
def servers(
    tmp_path_factory: pytest.TempPathFactory, postgres_bin_dir: Path
) -> Iterator[tuple[EmbeddedPostgres, EmbeddedPostgres]]:
    """Yield a server that is backed up, and one that DRILL_DATABASE_URL names."""
    folder = tmp_path_factory.mktemp("servers")
    with (
        EmbeddedPostgres(
            folder / "source", bin_dir=postgres_bin_dir, server_options=FAST_SERVER_OPTIONS
        ) as source,
        EmbeddedPostgres(
            folder / "named", bin_dir=postgres_bin_dir, user="drillmaster", server_options=FAST_SERVER_OPTIONS
        ) as named,
    ):
        yield source, named


@pytest.fixture
def source_server(servers: tuple[EmbeddedPostgres, EmbeddedPostgres]) -> Iterator[EmbeddedPostgres]:
    """Yield a server for a test that creates databases, roles and tablespaces, all removed after it."""
    source, _named = servers
    yield source
    clear_server(source)


@pytest.fixture
def named_server(servers: tuple[EmbeddedPostgres, EmbeddedPostgres]) -> Iterator[EmbeddedPostgres]:
    """Do as `source_server`, under another superuser."""
    _source, named = servers
    yield named
    clear_server(named)


def clear_server(server: EmbeddedPostgres) -> None:
    """Reset databases, roles and tablespaces to what initdb created."""
    admin = server.settings("postgres")
    for (name,) in run(admin, "SELECT datname FROM pg_database WHERE oid >= 16384"):
        server.drop_database(str(name))
    for (name,) in run(admin, "SELECT quote_ident(spcname) FROM pg_tablespace WHERE oid >= 16384"):
        run(admin, f"DROP TABLESPACE {name}")
    for (name,) in run(admin, "SELECT quote_ident(rolname) FROM pg_roles WHERE oid >= 16384"):
        run(admin, f"DROP OWNED BY {name}; DROP ROLE {name}")
