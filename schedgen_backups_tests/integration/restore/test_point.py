"""Restores: refused where they would overwrite, all or nothing in the database, stopped at the first error.

Errors, kills and damage are real ones. What the final comparison must find is tested in `test_comparison`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.errors import BackupError, RestoreError, TargetNotEmptyError, VerificationError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.restore.point import RestoreRequest, prepare_restore, restore_point
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.core.verify.files import verify_archive, verify_dump
from schedgen_backups_tests.support.artifacts import (
    damage,
    get_summary,
    is_refused,
    make_transfer,
    publish_archive,
    publish_dump,
)
from schedgen_backups_tests.support.faulty_s3 import FaultyS3Proxy
from schedgen_backups_tests.support.points import BROKEN_FOREIGN_KEY, ID, KEYS, Backup, make_backed_up, put
from schedgen_backups_tests.support.restores import restore_database
from schedgen_backups_tests.support.servers import client_of, run

pytestmark = pytest.mark.integration

OTHER_ID = RecoveryPointId("20261123_020000")
RESTORE_AND_WAIT = """
import json, sys, time
from pathlib import Path
from threading import Event
from schedgen_backups_tests.support.restores import restore_database
from schedgen_backups.core.settings import TransferSettings, DatabaseSettings
seen = 0
def wait_half_way(size_bytes):
    global seen
    seen += size_bytes
    if seen > int(sys.argv[3]):
        print("half", flush=True)
        time.sleep(600)
target = DatabaseSettings(**json.loads(sys.stdin.readline()))
path = Path(sys.argv[1])
restore_database(path, target, TransferSettings(), replace_contents=sys.argv[2] == "replace", stop=Event(),
    on_progress=wait_half_way)
"""


@pytest.fixture
def backup(
    database: DatabaseSettings,
    second_database: DatabaseSettings,
    bucket: BucketSettings,
    second_bucket: BucketSettings,
    tmp_path: Path,
) -> Backup:
    return make_backed_up((database, bucket), (second_database, second_bucket), tmp_path / "backups")


def test_a_restore_into_empty_targets_is_equal_and_reported(backup: Backup) -> None:
    backup.commit()
    phases: dict[str, int] = {}

    def on_progress(phase: str, size_bytes: int) -> None:
        phases[phase] = phases.get(phase, 0) + size_bytes

    report = restore_point(
        backup.request(),
        backup.settings,
        catalog=backup.catalog,
        restored_by="drill",
        on_progress=on_progress,
    )
    assert report.is_equal
    assert (report.object_count, report.notes) == (6, ())
    assert set(report.seconds) == {"verify", "restore", "compare"}
    assert set(phases) == {"verify", "database", "bucket", "compare"}
    recorded = backup.catalog.read_verification(ID).result(Check.DATABASE_IS_EQUAL)
    assert recorded is not None
    assert (recorded.status, recorded.checked_by) == (CheckStatus.PASSED, "drill")
    assert backup.catalog.get_point(ID).state is PointState.VERIFIED


def test_a_plan_says_what_would_happen_and_writes_nothing(backup: Backup) -> None:
    with prepare_restore(backup.request(), backup.settings) as prepared:
        lines = "\n".join(prepared.describe())
    assert "load 2 tables with 6 rows" in lines
    assert "write 6 objects" in lines
    backup.assert_nothing_was_written()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE t ()",
        "CREATE FUNCTION f() RETURNS int RETURN 1",
        "CREATE TYPE e AS ENUM ()",
        "CREATE SCHEMA s",
    ],
)
def test_a_database_that_is_not_empty_is_refused(backup: Backup, statement: str) -> None:
    run(backup.database, statement)
    with pytest.raises(TargetNotEmptyError, match="is not empty"):
        backup.restore()
    assert run(backup.database, "SELECT count(*) FROM pg_class WHERE relname = 'jobs'") == [(0,)]
    assert list(client_of(backup.bucket).list_objects(backup.bucket.bucket, recursive=True)) == []


def test_a_bucket_that_is_not_empty_is_refused(backup: Backup) -> None:
    put(backup.bucket, "mine", b"mine")
    with pytest.raises(TargetNotEmptyError, match="is not empty"):
        backup.restore()
    assert run(backup.database, "SELECT count(*) FROM pg_class WHERE relname = 'jobs'") == [(0,)]
    assert [
        listed.object_name
        for listed in client_of(backup.bucket).list_objects(backup.bucket.bucket, recursive=True)
    ] == ["mine"]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_database_filled_during_verification_is_refused(backup: Backup, jobs: int) -> None:
    """It was empty at the first check.

    After an error, a load in several sessions would remove everything it finds.
    """
    run(backup.source_database, "SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    (backup.dump.unlink(), backup.archive.unlink())
    backup.capture()

    def fill(phase: str, _size_bytes: int) -> None:
        if phase == "verify":
            run(backup.database, "CREATE TABLE IF NOT EXISTS mine (a int)")

    with pytest.raises(TargetNotEmptyError, match="is not empty") as caught:
        restore_point(replace(backup.request(), jobs=jobs), backup.settings, on_progress=fill)
    assert run(
        backup.database, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    ) == [("mine",)]
    assert "The target is unchanged." in caught.value.hint
    assert list(client_of(backup.bucket).list_objects(backup.bucket.bucket)) == []


def test_a_bucket_filled_during_verification_is_refused(backup: Backup) -> None:
    def fill(phase: str, _size_bytes: int) -> None:
        if phase == "verify":
            put(backup.bucket, "k1", b"mine")

    with pytest.raises(TargetNotEmptyError, match="is not empty"):
        restore_point(backup.request(), backup.settings, on_progress=fill)
    assert client_of(backup.bucket).get_object(backup.bucket.bucket, "k1").data == b"mine"
    assert (
        run(backup.database, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []
    )


def test_a_full_target_is_replaced_on_request(backup: Backup) -> None:
    run(
        backup.database,
        "CREATE SCHEMA other; CREATE TABLE other.t (a int); CREATE TABLE jobs (different text); CREATE "
        "EXTENSION hstore",
    )
    run(
        backup.database,
        "CREATE VIEW v AS SELECT * FROM other.t; SELECT lo_from_bytea(70001, 'old'); CREATE TYPE mood AS "
        "ENUM ('a')",
    )
    run(backup.database, "CREATE PUBLICATION everything FOR ALL TABLES; COMMENT ON SCHEMA public IS 'ours'")
    put(backup.bucket, "k1", b"an older body", content_type="text/plain")
    put(backup.bucket, "unrelated", b"stays")
    report = backup.restore(replace_contents=True)
    assert [result.summary for result in report.results if not result.is_passed] == []
    names = {
        listed.object_name
        for listed in client_of(backup.bucket).list_objects(backup.bucket.bucket, recursive=True)
    }
    assert names == {*KEYS, "unrelated"}
    bucket_result = next(result for result in report.results if result.check is Check.BUCKET_IS_EQUAL)
    assert bucket_result.figures["other_objects"] == 1


def test_replacing_the_source_with_its_own_backup_is_equal(backup: Backup) -> None:
    run(backup.source_database, "DELETE FROM jobs WHERE id > 2; ALTER TABLE jobs ADD COLUMN wrong int")
    request = RestoreRequest(
        backup.catalog.get_point(ID), backup.source_database, None, replace_contents=True
    )
    assert restore_point(request, backup.settings).is_equal


def test_one_half_alone_is_restored_alone(backup: Backup) -> None:
    assert restore_point(
        RestoreRequest(backup.catalog.get_point(ID), backup.database, None), backup.settings
    ).is_equal
    assert list(client_of(backup.bucket).list_objects(backup.bucket.bucket)) == []
    assert restore_point(
        RestoreRequest(backup.catalog.get_point(ID), None, backup.bucket), backup.settings
    ).is_equal
    with pytest.raises(RestoreError, match="nothing to restore"):
        restore_point(RestoreRequest(backup.catalog.get_point(ID), None, None), backup.settings)


def test_an_error_in_the_load_leaves_a_full_target_as_it_was(
    database_17: DatabaseSettings, database: DatabaseSettings, tmp_path: Path
) -> None:
    """The tests' server 18 has no pgcrypto; what was to be replaced is still there afterwards."""
    run(
        database_17,
        "CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES ('a'); CREATE EXTENSION pgcrypto",
    )
    run(
        database,
        "CREATE TABLE mine (a int); INSERT INTO mine VALUES (1), (2); CREATE SEQUENCE s; SELECT "
        "lo_from_bytea(5, 'x')",
    )
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    path = publish_dump(catalog, database_17)
    with pytest.raises(RestoreError, match=r'(?s)psql .*extension "pgcrypto" is not available') as caught:
        restore_database(path, database, make_transfer(), replace_contents=True, stop=Event())
    assert "The target is unchanged" in caught.value.hint
    assert run(database, "SELECT count(*) FROM mine") == [(2,)]
    assert run(database, "SELECT lo_get(5)") == [(b"x",)]
    assert run(database, "SELECT count(*) FROM pg_class WHERE relname = 'jobs'") == [(0,)]


def test_an_error_after_large_objects_leaves_nothing(
    database: DatabaseSettings, second_database: DatabaseSettings, tmp_path: Path
) -> None:
    """pg_dump writes its own COMMIT after the large objects; the foreign key that fails comes after it."""
    run(database, BROKEN_FOREIGN_KEY)
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    path = publish_dump(catalog, database)
    run(second_database, "CREATE TABLE mine (a int)")
    with pytest.raises(RestoreError, match="violates foreign key constraint"):
        restore_database(path, second_database, make_transfer(), replace_contents=True, stop=Event())
    assert run(
        second_database, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    ) == [("mine",)]
    assert run(second_database, "SELECT count(*) FROM pg_largeobject_metadata") == [(0,)]


def wait_for_no_sessions(database: DatabaseSettings) -> None:
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    deadline = time.monotonic() + 60
    while run(database, query) != [(0,)]:
        assert time.monotonic() < deadline, "a session of the killed restore is still there"
        time.sleep(0.05)


@pytest.mark.parametrize("mode", ["empty", "replace"])
def test_a_killed_restore_commits_nothing(backup: Backup, mode: str) -> None:
    run(
        backup.source_database,
        "CREATE TABLE zlarge (t text); INSERT INTO zlarge SELECT md5(n::text) FROM generate_series(1, "
        "100000) n",
    )
    backup.capture(OTHER_ID)
    if mode == "replace":
        run(backup.database, "CREATE TABLE mine (a int)")
    words = [
        sys.executable,
        "-c",
        RESTORE_AND_WAIT,
        str(backup.dump),
        mode,
        str(backup.dump.stat().st_size // 2),
    ]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(backup.database)) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "half\n"
        process.kill()
    wait_for_no_sessions(backup.database)
    there = run(backup.database, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    assert there == ([("mine",)] if mode == "replace" else [])


def test_a_bucket_error_stops_the_database_before_its_commit(backup: Backup) -> None:
    run(
        backup.source_database,
        "CREATE TABLE zlarge (t text); INSERT INTO zlarge SELECT md5(n::text) FROM generate_series(1, "
        "200000) n",
    )
    (backup.dump.unlink(), backup.archive.unlink())
    backup.capture()
    has_failed = Event()

    def hold_the_load(phase: str, _size_bytes: int) -> None:
        if phase == "database":
            assert has_failed.wait(60)
            while any(thread.name.startswith("objects") for thread in threading.enumerate()):
                time.sleep(0.01)
            time.sleep(0.02)  # the other half has ended, so its failure may now stop this one

    with FaultyS3Proxy(backup.bucket) as proxy:
        proxy.fail_next(None, status=403, method="PUT")
        proxy.on_request(lambda _request: has_failed.set(), method="PUT")
        request = backup.request(bucket=proxy.settings(backup.bucket))
        with pytest.raises(BackupError, match="refuses access to the object"):
            restore_point(request, backup.settings, on_progress=hold_the_load)
    backup.assert_nothing_was_written()


def test_a_database_error_stops_the_bucket(
    database_17: DatabaseSettings,
    database: DatabaseSettings,
    bucket: BucketSettings,
    second_bucket: BucketSettings,
    tmp_path: Path,
) -> None:
    run(
        database_17,
        "CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES ('a'); CREATE EXTENSION pgcrypto",
    )
    for number in range(60):
        put(bucket, f"{number}", b"x")
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    publish_dump(catalog, database_17)
    publish_archive(catalog, bucket)
    with FaultyS3Proxy(second_bucket) as proxy:
        proxy.delay(0.5, count=None, method="PUT")
        request = RestoreRequest(catalog.get_point(ID), database, proxy.settings(second_bucket))
        with pytest.raises(RestoreError, match="pgcrypto"):
            restore_point(request, make_transfer())
        assert len(proxy.requests(method="PUT")) < 60


@pytest.mark.parametrize("half", ["dump", "archive"])
def test_a_damaged_file_is_refused_before_anything_is_written(backup: Backup, half: str) -> None:
    path = backup.dump if half == "dump" else backup.archive
    path.write_bytes(damage(path.read_bytes(), path.stat().st_size * 4))
    with pytest.raises(VerificationError):
        backup.restore()
    backup.assert_nothing_was_written()


@pytest.fixture
def two_points(backup: Backup) -> Iterator[Backup]:
    """Return a second committed point with other contents, whose files then replace those of the first."""
    backup.commit()
    run(backup.source_database, "INSERT INTO jobs VALUES (7, 'k7', 1, '1 s', '2026-01-01', 'jobs', '')")
    put(backup.source_bucket, "k7", b"seven")
    first = {"dump": backup.dump, "archive": backup.archive}
    backup.capture(OTHER_ID)
    backup.commit(OTHER_ID)
    backup.dump = backup.dump.replace(first["dump"])
    backup.archive = backup.archive.replace(first["archive"])
    return backup


def test_files_of_another_point_are_refused(two_points: Backup) -> None:
    assert is_refused(verify_dump(two_points.dump))
    assert is_refused(verify_archive(two_points.archive))
    assert "exchanged or renamed" in get_summary(verify_dump(two_points.dump), Check.DUMP_IS_COMPLETE)
    with pytest.raises(VerificationError, match="is damaged, nothing was written"):
        two_points.restore()
    two_points.assert_nothing_was_written()


def test_a_sound_file_that_is_not_the_manifests_is_refused(backup: Backup) -> None:
    """It has the same name and id and was written again: only the manifest's digest shows it."""
    backup.commit()
    (backup.dump.unlink(), backup.archive.unlink())
    backup.capture()
    assert not is_refused((*verify_dump(backup.dump), *verify_archive(backup.archive)))
    with pytest.raises(VerificationError, match="it was exchanged"):
        backup.restore()
    backup.assert_nothing_was_written()
