"""What is reported about a target when a load fails before any of it has run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.postgres.client_programs import ClientPrograms
from schedgen_backups.core.postgres.connection import SessionFacts
from schedgen_backups.core.postgres.session import DatabaseSession
from schedgen_backups.core.restore.database import PreparedDatabase, TargetFacts
from schedgen_backups.core.restore.load import DatabaseLoad
from schedgen_backups.core.restore.load_roles import LoadRoles
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.artifacts import DUMP_NAME, TableText, make_transfer, write_dump

DATABASE = DatabaseSettings("host", 5432, "user", "canary", "fresh")
FACTS = TargetFacts(
    session=SessionFacts(server_major=18),
    encoding="UTF8",
    relation_count=0,
    lock_capacity=6400,
    roles=frozenset(),
)


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[PreparedDatabase]:
    """Return a dump and a connection that is never opened."""
    write_dump(tmp_path / DUMP_NAME, [TableText("jobs", (b"1",))])
    with ArtifactFile(tmp_path / DUMP_NAME) as file, DatabaseSession(DATABASE) as session:
        yield PreparedDatabase(
            file,
            DumpFile(file.open_reader()),
            session,
            ClientPrograms(Path("/bin"), 18, "18.6"),
            FACTS,
            make_transfer(),
        )


def make_load(prepared: PreparedDatabase, *, roles: LoadRoles | None = None, jobs: int = 1) -> DatabaseLoad:
    return DatabaseLoad(
        prepared,
        replace_contents=False,
        jobs=jobs,
        roles=roles,
        stop=Event(),
        on_progress=lambda _size_bytes: None,
    )


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("roles", [None, LoadRoles(DATABASE, None)], ids=["own role", "drill"])
def test_a_load_that_has_not_started_leaves_the_target_as_it_was(
    prepared: PreparedDatabase, roles: LoadRoles | None, jobs: int
) -> None:
    load = make_load(prepared, roles=roles, jobs=jobs)
    assert load.describe_target() == "The target is unchanged."
    assert (load.uncompared, load.is_in_doubt, load.is_committed) == ("", False, False)


def test_roles_that_stay_on_the_server_are_named(prepared: PreparedDatabase) -> None:
    load = make_load(prepared)
    load.made_roles = ("app", "reader")
    assert (
        load.describe_target()
        == "The target is unchanged. The roles app, reader were created on its server and remain."
    )


def test_a_committed_load_is_reported_as_one(prepared: PreparedDatabase) -> None:
    load = make_load(prepared)
    load.is_committed = True
    assert load.describe_target() == "The target contains the restored database."
