"""A restore reads its files and targets once.

Sessions are counted in the server's own log (`log_connections`): our own connection, psql and pg_dump.
Python's audit hook counts every `open` and `os.open` of this process.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schedgen_backups.core.restore.point import prepare_restore, restore_point
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups_tests.support.points import Backup, make_backed_up
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, run

pytestmark = pytest.mark.integration

MAX_SESSIONS = 4
MAX_OPENINGS = 2
CHILD_SESSIONS = 2
"""One of psql, which loads, and one of pg_dump, which compares."""
_opened: list[str] = []
_is_counting = False


def _note_opening(event: str, arguments: tuple[object, ...]) -> None:
    if _is_counting and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_note_opening)  # cannot be removed, only silenced


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, postgres_bin_dir: Path) -> Iterator[EmbeddedPostgres]:
    """Yield a server that logs each session."""
    options = {**FAST_SERVER_OPTIONS, "log_connections": "on"}
    with EmbeddedPostgres(
        tmp_path_factory.mktemp("counted"), bin_dir=postgres_bin_dir, server_options=options
    ) as server:
        yield server


@pytest.fixture
def openings() -> Iterator[list[str]]:
    """Return the paths of the files that are opened from now on."""
    global _is_counting  # noqa: PLW0603 - the hook of the process
    _opened.clear()
    _is_counting = True
    yield _opened
    _is_counting = False


@pytest.fixture
def backup(
    server: EmbeddedPostgres, bucket: BucketSettings, second_bucket: BucketSettings, tmp_path: Path
) -> Iterator[Backup]:
    names = ("counted_source", "counted_target")
    source, target = map(server.create_database, names)
    yield make_backed_up((source, bucket), (target, second_bucket), tmp_path / "backups")
    for name in names:
        server.drop_database(name)


def count_sessions(server: EmbeddedPostgres, name: str) -> int:
    return len(re.findall(rf"connection authorized: .*database={name}\b", server.log_tail(100_000)))


def test_a_restore_of_both_halves_reads_once(
    backup: Backup, server: EmbeddedPostgres, openings: list[str]
) -> None:
    """There are three sessions: our own, psql and pg_dump. Each file is opened once."""
    request = backup.request()
    before = count_sessions(server, "counted_target")
    openings.clear()
    assert restore_point(request, backup.settings).is_equal
    assert count_sessions(server, "counted_target") - before == 1 + CHILD_SESSIONS <= MAX_SESSIONS
    assert openings.count(str(backup.dump)) == openings.count(str(backup.archive)) == 1 <= MAX_OPENINGS


def test_reading_reordered_rows_needs_no_other_session(
    backup: Backup, server: EmbeddedPostgres, openings: list[str]
) -> None:
    request = backup.request()
    openings.clear()
    with prepare_restore(request, backup.settings) as prepared:
        prepared.execute()
        run(backup.database, "UPDATE jobs SET price = price WHERE id IN (1, 3)")
        before = count_sessions(server, "counted_target")
        results = prepared.compare()
    assert results[1].figures["reordered_tables"] == 1
    assert count_sessions(server, "counted_target") == before + 1
    assert openings.count(str(backup.dump)) == 1


def test_a_restore_that_replaces_reads_no_more_often(
    backup: Backup, server: EmbeddedPostgres, openings: list[str]
) -> None:
    run(backup.database, "CREATE TABLE mine (a int)")
    request = backup.request(replace_contents=True)
    before = count_sessions(server, "counted_target")
    openings.clear()
    assert restore_point(request, backup.settings).is_equal
    assert count_sessions(server, "counted_target") - before <= MAX_SESSIONS
    assert max(openings.count(str(backup.dump)), openings.count(str(backup.archive))) <= MAX_OPENINGS
