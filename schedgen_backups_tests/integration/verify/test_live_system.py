"""Gaps in the live system, found in a real database and a real bucket."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, References
from schedgen_backups.core.verify.live_system import LiveApplication, check_consistency, describe_consistency
from schedgen_backups_tests.support.artifacts import make_live
from schedgen_backups_tests.support.points import FILL, KEYS, put
from schedgen_backups_tests.support.servers import client_of, run

pytestmark = pytest.mark.integration


@pytest.fixture
def live(database: DatabaseSettings, bucket: BucketSettings) -> LiveApplication:
    run(database, FILL)
    for key in KEYS:
        put(bucket, key, b"body")
    return make_live(database, bucket)


def test_a_consistent_system_is_coherent(live: LiveApplication) -> None:
    found = check_consistency(live)
    assert (found.is_coherent, found.reference_count, found.object_count, found.objects_without_row) == (
        True,
        6,
        6,
        (),
    )


def test_rows_without_an_object_and_objects_without_a_row_are_named(live: LiveApplication) -> None:
    client_of(live.bucket).remove_object(live.bucket.bucket, "k2")
    run(live.database, "DELETE FROM jobs WHERE s3_key IN ('k3', 'k4')")
    found = check_consistency(live)
    assert (
        found.is_coherent,
        found.rows_without_object,
        found.objects_without_row,
        found.unreferenced_bytes,
    ) == (False, ("k2",), ("k3", "k4"), 8)
    assert "1 row without their object, 2 objects without a row" in describe_consistency(found)


def test_an_audit_without_a_usable_query_is_not_a_success(live: LiveApplication) -> None:
    run(live.database, "ALTER TABLE jobs RENAME TO tasks")
    with pytest.raises(ConfigurationError, match="the references of the database are unknown"):
        check_consistency(live)
    wrong = replace(live, references=References("SELECT", built_in=None))
    with pytest.raises(ConfigurationError, match="BACKUP_REFERENCE_QUERY"):
        check_consistency(wrong)
