"""The database is committed last: if one half fails, neither keeps what was written.

What stays all the same is named. Faults are real ones: an S3 server that refuses a request, a dump that does
not load, a session that is ended on the server.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest
from minio.commonconfig import ENABLED
from minio.error import S3Error
from minio.versioningconfig import VersioningConfig

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError, RestoreError, VerificationError
from schedgen_backups.core.restore.database import LoadWay, prepare_database
from schedgen_backups.core.restore.load import DatabaseLoad
from schedgen_backups.core.restore.point import (
    PreparedRestore,
    RestoreRequest,
    prepare_restore,
    restore_point,
)
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.artifacts import make_transfer, publish_archive, publish_dump
from schedgen_backups_tests.support.dumps import change_digest
from schedgen_backups_tests.support.faulty_s3 import FaultyS3Proxy
from schedgen_backups_tests.support.points import BROKEN_FOREIGN_KEY, ID, KEYS, Backup, make_backed_up, put
from schedgen_backups_tests.support.servers import client_of, run
from schedgen_backups_tests.support.sites import wait_until

pytestmark = pytest.mark.integration

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND state = 'idle in transaction'"
TABLES = (
    "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1"
)
LAST = KEYS[-1]


RESTORE_AND_WAIT = """
import json, sys, time
from pathlib import Path
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.restore.point import RestoreRequest, restore_point
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, TransferSettings
database, bucket = json.loads(sys.stdin.readline())
point = Catalog(Path(sys.argv[1])).get_point(RecoveryPointId(sys.argv[2]))
def wait(phase, _size_bytes):
    if phase == "bucket":
        print("writing", flush=True)
        time.sleep(0.5)
restore_point(RestoreRequest(point, DatabaseSettings(**database), BucketSettings(**bucket)),
    TransferSettings(), on_progress=wait)
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


@pytest.fixture
def proxy(backup: Backup) -> Iterator[FaultyS3Proxy]:
    """Yield a proxy before the target bucket that refuses the last object."""
    with FaultyS3Proxy(backup.bucket) as proxy:
        proxy.fail_next(None, status=403, method="PUT", matching=LAST)
        yield proxy


def list_bodies(bucket: BucketSettings) -> dict[str, bytes]:
    client = client_of(bucket)
    keys = [str(listed.object_name) for listed in client.list_objects(bucket.bucket, recursive=True)]
    found: dict[str, bytes] = {}
    for key in keys:
        try:
            found[key] = client.get_object(bucket.bucket, key).data
        except S3Error as error:
            # s3proxy lists objects that are still being written.
            if error.code != "NoSuchKey":
                raise
    return found


def wait_for_the_load(backup: Backup) -> None:
    """Wait until the whole dump has been executed and psql waits to COMMIT."""
    wait_until(
        lambda: run(backup.source_database, WAITING.format(backup.database.database)) == [(1,)],
        "the load waits for the bucket",
    )


def test_a_bucket_error_rolls_back_a_loaded_database(backup: Backup, proxy: FaultyS3Proxy) -> None:
    run(backup.database, "CREATE TABLE mine (a int)")
    proxy.on_request(lambda _request: wait_for_the_load(backup), method="PUT", matching=LAST)
    request = backup.request(replace_contents=True, bucket=proxy.settings(backup.bucket))
    with pytest.raises(BackupError, match="refuses access to the object 'k6'") as caught:
        restore_point(request, backup.settings)
    assert run(backup.database, TABLES) == [("mine",)]
    assert list_bodies(backup.bucket) == {}
    assert "The target is unchanged." in caught.value.hint
    assert (
        f"Removed 5 objects that the restore had written into {proxy.settings(backup.bucket).label}."
        in caught.value.hint
    )


def test_a_database_error_removes_the_written_objects(
    database: DatabaseSettings,
    second_database: DatabaseSettings,
    bucket: BucketSettings,
    second_bucket: BucketSettings,
    tmp_path: Path,
) -> None:
    run(database, BROKEN_FOREIGN_KEY)
    put(bucket, "a", b"a")
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    (publish_dump(catalog, database), publish_archive(catalog, bucket))
    with pytest.raises(RestoreError, match="violates foreign key constraint") as caught:
        restore_point(RestoreRequest(catalog.get_point(ID), second_database, second_bucket), make_transfer())
    assert list_bodies(second_bucket) == {}
    assert run(second_database, TABLES) == []
    assert "The captured rows break a constraint of their own database" in caught.value.hint


def test_a_cancelled_restore_leaves_nothing(backup: Backup) -> None:
    words = [sys.executable, "-c", RESTORE_AND_WAIT, str(backup.catalog.directory), ID.text]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([asdict(backup.database), asdict(backup.bucket)]) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "writing\n"
        assert list_bodies(backup.bucket) != {}
        process.send_signal(signal.SIGINT)
        _rest, stderr = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in stderr
    backup.assert_nothing_was_written()


def test_an_object_overwritten_meanwhile_is_left_and_named(backup: Backup, proxy: FaultyS3Proxy) -> None:
    def replace_one() -> None:
        wait_until(lambda: len(list_bodies(backup.bucket)) == len(KEYS) - 1, "the others are written")
        put(backup.bucket, "k1", b"newer")

    proxy.on_request(lambda _request: replace_one(), method="PUT", matching=LAST)
    with pytest.raises(BackupError) as caught:
        restore_point(backup.request(bucket=proxy.settings(backup.bucket)), backup.settings)
    assert list_bodies(backup.bucket) == {"k1": b"newer"}
    assert "4 were removed again; remaining: k1 (written by another client since" in caught.value.hint


def test_an_object_that_replaced_an_older_one_is_left_and_named(backup: Backup, proxy: FaultyS3Proxy) -> None:
    """Only the safety backup still has the older one.

    Without the object, the remaining rows would refer to nothing.
    """
    put(backup.bucket, "k1", b"older")
    put(backup.bucket, "unrelated", b"stays")
    proxy.on_request(
        lambda _request: wait_until(lambda: list_bodies(backup.bucket)["k1"] != b"older", "it is replaced"),
        method="PUT",
        matching=LAST,
    )
    request = backup.request(replace_contents=True, bucket=proxy.settings(backup.bucket))
    with pytest.raises(BackupError) as caught:
        restore_point(request, backup.settings)
    assert list_bodies(backup.bucket) == {"k1": b"body of k1", "unrelated": b"stays"}
    assert "remaining: k1 (the captured object, which replaced another one)" in caught.value.hint


def test_in_a_versioned_bucket_the_older_object_returns(backup: Backup, proxy: FaultyS3Proxy) -> None:
    client_of(backup.bucket).set_bucket_versioning(backup.bucket.bucket, VersioningConfig(ENABLED))
    put(backup.bucket, "k1", b"older")
    proxy.on_request(lambda _request: wait_for_the_load(backup), method="PUT", matching=LAST)
    request = backup.request(replace_contents=True, bucket=proxy.settings(backup.bucket))
    with pytest.raises(BackupError):
        restore_point(request, backup.settings)
    assert list_bodies(backup.bucket) == {"k1": b"older"}


def test_a_load_in_several_sessions_is_removed_when_the_bucket_fails(
    backup: Backup, proxy: FaultyS3Proxy
) -> None:
    run(backup.source_database, "SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    (backup.dump.unlink(), backup.archive.unlink())
    backup.capture()
    request = replace(backup.request(bucket=proxy.settings(backup.bucket)), jobs=3)
    loaded = Event()

    def on_progress(phase: str, _size_bytes: int) -> None:
        if phase == "database":
            loaded.set()

    proxy.on_request(lambda _request: loaded.wait(60), method="PUT", matching=LAST)
    with pytest.raises(BackupError) as caught:
        restore_point(request, backup.settings, on_progress=on_progress)
    assert loaded.is_set()
    backup.assert_nothing_was_written()
    assert "The target is empty, as before." in caught.value.hint


def without_locks(prepared: PreparedRestore) -> PreparedRestore:
    """Run the same restore as if the server's lock table were tiny."""
    database = prepared.get_database()
    return replace(prepared, database=replace(database, facts=replace(database.facts, lock_capacity=1)))


def test_a_load_too_large_for_a_transaction_waits_for_the_bucket_and_says_so(
    backup: Backup, proxy: FaultyS3Proxy
) -> None:
    run(backup.database, "CREATE TABLE mine (a int)")
    with prepare_restore(
        backup.request(replace_contents=True, bucket=proxy.settings(backup.bucket)), backup.settings
    ) as prepared:
        tight = without_locks(prepared)
        assert tight.get_database().choose_way(1) is LoadWay.NO_TRANSACTION
        assert any("WITHOUT a transaction" in line for line in tight.describe())
        assert any("permanently, before the load begins" in line for line in tight.describe())
        with pytest.raises(BackupError) as caught:
            tight.execute()
    assert "The target is unchanged." in caught.value.hint
    assert run(backup.database, TABLES) == [("mine",)]


def test_a_load_without_a_transaction_is_equal(backup: Backup) -> None:
    with prepare_restore(backup.request(), backup.settings) as prepared:
        tight = without_locks(prepared)
        tight.execute()
        assert [result.summary for result in tight.compare() if not result.is_passed] == []


def test_a_connection_lost_after_commit_keeps_the_objects(backup: Backup) -> None:
    """It is then unknown whether the rows that refer to them exist."""
    end_it = WAITING.replace("count(*)", "pg_terminate_backend(pid)").format(backup.database.database)
    with prepare_database(backup.dump, backup.database, backup.settings) as prepared:
        load = DatabaseLoad(
            prepared,
            replace_contents=False,
            jobs=1,
            roles=None,
            stop=Event(),
            on_progress=lambda _size_bytes: None,
        )
        with pytest.raises(RestoreError):
            load.run(lambda: run(backup.source_database, end_it))
        assert load.is_in_doubt
        assert "check whether it contains the restored or the previous contents" in load.describe_target()


@pytest.mark.parametrize("changed", ["text", "table"])
def test_a_dump_that_does_not_match_its_index_is_never_committed(backup: Backup, changed: str) -> None:
    """Only the digests show it, after the whole dump was executed."""
    with prepare_database(backup.dump, backup.database, backup.settings) as prepared:
        change_digest(prepared.dump, changed)
        load = DatabaseLoad(
            prepared,
            replace_contents=False,
            jobs=1,
            roles=None,
            stop=Event(),
            on_progress=lambda _size_bytes: None,
        )
        with pytest.raises(VerificationError, match="the dump changed while it was read"):
            load.run(lambda: None)
    assert run(backup.database, TABLES) == []


def test_roles_created_before_the_load_failed_are_dropped(
    database_17: DatabaseSettings, database: DatabaseSettings, tmp_path: Path
) -> None:
    role = f"role_{uuid4().hex}"
    run(
        database_17,
        f"CREATE ROLE {role}; CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES ('a'); CREATE "
        "EXTENSION pgcrypto",
    )
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    publish_dump(catalog, database_17)
    run(database_17, f"DROP ROLE {role}")
    with prepare_restore(RestoreRequest(catalog.get_point(ID), database, None), make_transfer()) as prepared:
        assert any(f"create the roles {role}" in line or role in line for line in prepared.describe())
        with pytest.raises(RestoreError, match="pgcrypto") as caught:
            prepared.execute()
    assert "The target is unchanged." in caught.value.hint
    assert "Install the extension that the message names" in caught.value.hint
    assert run(database, f"SELECT count(*) FROM pg_roles WHERE rolname = '{role}'") == [(0,)]
