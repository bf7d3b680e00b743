"""Deleted rows with their objects: only what is missing is written, rows last, and an error removes both.

The command line is tested in `edge/defs/test_restore_job`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.restore.log import read_restore_log
from schedgen_backups.core.restore.service import RestoreOptions, RestoreService
from schedgen_backups.core.restore.tables import TableRequest
from schedgen_backups.core.restore.undelete import UndeleteRequest, prepare_undelete
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.artifacts import POINT, make_capture, publish_archive, publish_dump
from schedgen_backups_tests.support.points import put
from schedgen_backups_tests.support.servers import client_of, run

pytestmark = pytest.mark.integration


class Deleted:
    """A live system that lost rows and objects after its recovery point was taken."""

    def __init__(self, database: DatabaseSettings, bucket: BucketSettings, directory: Path) -> None:
        self.database, self.bucket = database, bucket
        run(
            database,
            "CREATE TABLE jobs (id int PRIMARY KEY, s3_key text); INSERT INTO jobs SELECT n, 'k' || n FROM "
            "generate_series(1, 4) n",
        )
        for number in (1, 2, 3):
            put(bucket, f"k{number}", b"body %d" % number)
        catalog = Catalog(directory)
        catalog.prepare()
        (publish_dump(catalog, database), publish_archive(catalog, bucket))
        self.reports: list[str] = []
        options = RestoreOptions("a test", is_safety_wanted=False)
        self.service = RestoreService(catalog, make_capture(), options, report=self.reports.append)
        run(database, "DELETE FROM jobs WHERE id > 1")
        client_of(bucket).remove_object(bucket.bucket, "k2")
        put(bucket, "k3", b"newer")

    @property
    def request(self) -> UndeleteRequest:
        point = self.service.catalog.get_point(RecoveryPointId(POINT))
        rows = TableRequest(
            point, ("jobs",), self.database, side_name=f"side_of_{self.database.database[-20:]}"
        )
        return UndeleteRequest(rows, "s3_key", self.bucket)

    def read_ids(self) -> list[int]:
        return [number for (number,) in run(self.database, "SELECT id FROM jobs ORDER BY id")]

    def read_bodies(self) -> dict[str, bytes]:
        client = client_of(self.bucket)
        keys = [str(listed.object_name) for listed in client.list_objects(self.bucket.bucket)]
        return {key: client.get_object(self.bucket.bucket, key).data for key in keys}


@pytest.fixture
def deleted(database: DatabaseSettings, bucket: BucketSettings, tmp_path: Path) -> Iterator[Deleted]:
    return Deleted(database, bucket, tmp_path / "backups")


def test_what_is_missing_is_restored_and_what_is_newer_stays(deleted: Deleted) -> None:
    with prepare_undelete(deleted.request, deleted.service.transfer) as prepared:
        assert prepared.lost_keys == ("k4",)
        assert deleted.read_ids() == [1]
        undeleted = deleted.service.undelete(prepared)
    assert (undeleted.row_count, [entry.key for entry in undeleted.objects]) == (3, ["k2"])
    assert deleted.read_ids() == [1, 2, 3, 4]
    assert deleted.read_bodies() == {"k1": b"body 1", "k2": b"body 2", "k3": b"newer"}
    assert deleted.reports == []


def test_a_refused_row_removes_the_objects_again(deleted: Deleted) -> None:
    run(deleted.database, "ALTER TABLE jobs ADD CHECK (id < 4)")
    with (
        prepare_undelete(deleted.request, deleted.service.transfer) as prepared,
        pytest.raises(RestoreError, match="refused a row") as caught,
    ):
        deleted.service.undelete(prepared)
    assert deleted.read_ids() == [1]
    assert deleted.read_bodies() == {"k1": b"body 1", "k3": b"newer"}
    assert "Removed 1 object that the restore had written into" in caught.value.hint


def test_rows_that_a_trigger_drops_are_reported_and_logged(deleted: Deleted) -> None:
    run(
        deleted.database,
        "CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    )
    run(
        deleted.database,
        "CREATE TRIGGER t BEFORE INSERT ON jobs FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION drop_it()",
    )
    with prepare_undelete(deleted.request, deleted.service.transfer) as prepared:
        assert deleted.service.undelete(prepared).row_count == 2
    assert "rows still missing: 1 of public.jobs" in deleted.reports[0]
    assert (
        "rows still missing: 1 of public.jobs"
        in read_restore_log(deleted.service.catalog.directory)[-1].result
    )
