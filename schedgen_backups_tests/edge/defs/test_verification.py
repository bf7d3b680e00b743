"""Copied or modified points are read again automatically; a damaged one raises an alert.

Points are small real ones. `unit/core/verify/test_reread` tests which points are due and how they are read.
"""

from __future__ import annotations

import os
import shutil
from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.verify.reread import find_unread
from schedgen_backups.definitions import defs
from schedgen_backups_tests.support.histories import add_point
from schedgen_backups_tests.support.inbox import Watcher, open_inbox
from schedgen_backups_tests.support.sites import Site, failures_of

pytestmark = [pytest.mark.edge]


@pytest.fixture
def catalog(site: Site) -> Catalog:
    """Return two verified points, of yesterday and the day before."""
    catalog = Catalog(site.directory)
    catalog.prepare()
    for days in (2, 1):
        add_point(catalog, RecoveryPointId.from_time(datetime.now(timezone.utc) - timedelta(days=days)))
    return catalog


def ask(instance: dg.DagsterInstance) -> dg.RunRequest | dg.SkipReason:
    answer = defs.resolve_sensor_def("verification_sensor")(dg.build_sensor_context(instance=instance))
    assert isinstance(answer, dg.RunRequest | dg.SkipReason)
    return answer


def read_again(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def("verify_job").execute_in_process(instance=instance, raise_on_error=False)


def test_no_run_is_requested_while_every_file_is_unchanged(
    catalog: Catalog, instance: dg.DagsterInstance
) -> None:
    assert len(catalog.list_points()) == 2
    assert isinstance(ask(instance), dg.SkipReason)


def test_no_run_is_requested_without_points(site: Site, instance: dg.DagsterInstance) -> None:
    shutil.rmtree(site.directory, ignore_errors=True)
    assert isinstance(ask(instance), dg.SkipReason)


def test_a_moved_directory_is_read_once(catalog: Catalog, instance: dg.DagsterInstance) -> None:
    for point in catalog.list_points():
        for artifact in point.artifacts:
            os.utime(artifact.path)
    first, second = ask(instance), ask(instance)
    assert isinstance(first, dg.RunRequest)
    assert isinstance(second, dg.RunRequest)
    assert first.run_key == second.run_key  # Dagster starts one run per key
    assert read_again(instance).success
    assert isinstance(ask(instance), dg.SkipReason)
    assert [point.state for point in catalog.list_points()] == [PointState.VERIFIED] * 2


def test_changed_bytes_raise_an_alert_until_the_file_is_replaced_by_the_original(
    site: Site, catalog: Catalog, instance: dg.DagsterInstance
) -> None:
    with open_inbox() as inbox:
        site.set(BACKUP_ALERT_WEBHOOK_URL=inbox.url)
        point = catalog.list_points()[0]
        path = point.get_path(ArtifactKind.BUCKET)
        whole = path.read_bytes()
        path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
        assert isinstance(ask(instance), dg.RunRequest)
        [failure] = failures_of(read_again(instance)).values()
        assert f"differ from what was captured: {point.point_id} (failed)" in failure.description
        [alert] = inbox.alerts
        assert alert.startswith("[HIGH] Verification failed: reread_recovery_points\n")
        assert isinstance(ask(instance), dg.SkipReason)  # read in its present place
        path.write_bytes(whole)
        assert find_unread(catalog)
        assert read_again(instance).success
        Watcher("alert_outbox", instance).evaluate()
        assert len(inbox.recoveries) == 1
