"""Missing targets: the restore creates them as they were captured, and removes them if it fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import (
    BackupError,
    BucketError,
    BucketMissingError,
    DatabaseError,
    DatabaseMissingError,
    RestoreError,
)
from schedgen_backups.core.restore.point import RestoreReport, RestoreRequest, prepare_restore, restore_point
from schedgen_backups.core.restore.service import RestoreOptions, RestoreService
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.artifacts import make_capture
from schedgen_backups_tests.support.points import BROKEN_FOREIGN_KEY, Backup, make_backed_up, put
from schedgen_backups_tests.support.servers import S3Server, client_of, run

pytestmark = pytest.mark.integration


@pytest.fixture
def backup(
    database: DatabaseSettings, bucket: BucketSettings, s3_server: S3Server, tmp_path: Path
) -> Iterator[Backup]:
    """Return a backup whose targets do not exist; what a test creates there is removed."""
    name = f"missing-{uuid4().hex}"
    targets = (database.with_database(name), s3_server.settings(name))
    yield make_backed_up((database, bucket), targets, tmp_path / "backups")
    run(database.with_database("postgres"), f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    client = client_of(targets[1])
    if client.bucket_exists(name):
        for entry in client.list_objects(name, recursive=True):
            client.remove_object(name, str(entry.object_name))
        client.remove_bucket(name)


def make_request(backup: Backup) -> RestoreRequest:
    return replace(backup.request(), creates_targets=True)


def restore(backup: Backup, request: RestoreRequest) -> RestoreReport:
    return restore_point(request, backup.settings)


def capture_again(backup: Backup) -> None:
    backup.catalog = Catalog(backup.catalog.directory.with_name("again"))
    backup.catalog.prepare()
    backup.capture()


def find_targets(backup: Backup) -> tuple[bool, bool]:
    names = run(backup.source_database.with_database("postgres"), "SELECT datname FROM pg_database")
    return (backup.database.database,) in names, client_of(backup.bucket).bucket_exists(backup.bucket.bucket)


def test_both_are_created_and_hold_the_point(backup: Backup) -> None:
    report = restore(backup, make_request(backup))
    assert report.is_equal
    assert (report.object_count, report.notes) == (6, ())
    assert find_targets(backup) == (True, True)


def test_the_plan_says_what_would_be_created_and_creates_nothing(backup: Backup) -> None:
    with prepare_restore(make_request(backup), backup.settings) as prepared:
        lines = prepared.describe()
    assert f"create the database {backup.database.label}, with encoding and collation as captured" in lines
    assert f"create the bucket {backup.bucket.label}" in lines
    assert find_targets(backup) == (False, False)


def test_without_permission_to_create_them_they_are_missing(backup: Backup) -> None:
    with pytest.raises(DatabaseMissingError, match="has no database"):
        restore(backup, backup.request())
    with pytest.raises(BucketMissingError, match="has no bucket"):
        restore(backup, replace(backup.request(), database=None))
    assert find_targets(backup) == (False, False)


def test_the_database_has_the_captured_properties(backup: Backup) -> None:
    name, admin = backup.source_database.database, backup.source_database.with_database("postgres")
    owner = f"owner_{uuid4().hex}"
    run(
        admin,
        f'CREATE ROLE {owner}; ALTER DATABASE "{name}" OWNER TO {owner}; ALTER DATABASE "{name}" SET '
        "work_mem = '9MB'",
    )
    run(admin, f'ALTER DATABASE "{name}" CONNECTION LIMIT 7; REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC')
    run(admin, f"COMMENT ON DATABASE \"{name}\" IS 'of the application'")
    try:
        capture_again(backup)
        assert restore(backup, make_request(backup)).notes == ()
        properties = (
            "SELECT pg_get_userbyid(datdba), datconnlimit, datcollate, encoding, shobj_description(oid, "
            "'pg_database'), datacl::text"
            " FROM pg_database WHERE datname = '{}'"
        )
        assert run(admin, properties.format(backup.database.database)) == run(admin, properties.format(name))
        assert run(backup.database, "SHOW work_mem") == [("9MB",)]
    finally:
        run(admin, f'DROP DATABASE IF EXISTS "{backup.database.database}" WITH (FORCE)')
        run(admin, f'ALTER DATABASE "{name}" OWNER TO CURRENT_USER; DROP ROLE {owner}')


def test_a_failed_restore_leaves_neither(backup: Backup) -> None:
    run(backup.source_database, BROKEN_FOREIGN_KEY)
    capture_again(backup)
    with pytest.raises(RestoreError, match="foreign key") as caught:
        restore(backup, make_request(backup))
    assert find_targets(backup) == (False, False)
    assert f"The database {backup.database.database} does not exist, as before." in caught.value.hint
    assert (
        f"The bucket {backup.bucket.label}, which was created for this restore, was removed again."
        in caught.value.hint
    )


def test_objects_of_others_keep_a_created_bucket(backup: Backup) -> None:
    run(backup.source_database, BROKEN_FOREIGN_KEY)
    capture_again(backup)
    with prepare_restore(make_request(backup), backup.settings) as prepared:
        assert prepared.bucket is not None
        prepared.bucket.writer.make_bucket()
        put(backup.bucket, "of-somebody-else", b"body")
        assert "of-somebody-else" not in prepared.undo_bucket()
    assert find_targets(backup) == (False, True)


def test_a_role_that_may_not_create_databases_is_refused_first(backup: Backup) -> None:
    admin = backup.source_database.with_database("postgres")
    role = f"reader_{uuid4().hex}"
    run(admin, f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
    try:
        request = replace(make_request(backup), database=replace(backup.database, user=role, password="p"))
        with pytest.raises(DatabaseError, match="may not create a database") as caught:
            restore(backup, request)
    finally:
        run(admin, f"DROP ROLE {role}")
    assert f'ALTER ROLE "{role}" CREATEDB' in caught.value.hint
    assert "RESTORE_POSTGRES_USER" in caught.value.hint
    assert find_targets(backup) == (False, False)


def test_keys_that_may_not_create_buckets_are_refused_with_the_reason(
    backup: Backup, s3_server: S3Server
) -> None:
    reader = s3_server.read_only_settings(backup.bucket.bucket)
    with pytest.raises(BucketError) as caught:
        restore(backup, replace(make_request(backup), bucket=reader))
    assert "RESTORE_MINIO_ACCESS_KEY" in caught.value.hint
    assert find_targets(backup) == (False, False)


def test_a_swap_that_is_not_equal_removes_the_bucket(backup: Backup) -> None:
    run(backup.source_database, BROKEN_FOREIGN_KEY)
    capture_again(backup)
    reports: list[str] = []
    service = RestoreService(backup.catalog, make_capture(), RestoreOptions("a test"), report=reports.append)
    request = replace(make_request(backup), is_swap=True)
    with prepare_restore(request, backup.settings) as prepared, pytest.raises(BackupError):
        service.restore_whole(prepared)
    assert find_targets(backup) == (False, False)
