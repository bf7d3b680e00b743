"""The watch alerts on copies that are old, damaged or soon unlocked, from what was recorded of each store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups.core.copies.local_folder import CopiedPoint, CopyState
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.monitoring.watch import WatchCursor
from schedgen_backups_tests.support.histories import add_point
from schedgen_backups_tests.support.inbox import Inbox, Watcher, open_inbox
from schedgen_backups_tests.support.site_stores import UNREACHABLE, SiteStores
from schedgen_backups_tests.support.sites import Site

pytestmark = [pytest.mark.edge]


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteStores:
    return SiteStores(Site(tmp_path, UNREACHABLE, monkeypatch))


@pytest.fixture
def instance(stores: SiteStores) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(stores.site.home)) as opened:
        yield opened


@pytest.fixture
def inbox(stores: SiteStores) -> Iterator[Inbox]:
    with open_inbox() as opened:
        stores.site.set(BACKUP_ALERT_WEBHOOK_URL=opened.url)
        yield opened


@pytest.fixture
def watch(instance: dg.DagsterInstance) -> Watcher:
    return Watcher("freshness_watch", instance)


def hours_ago(hours: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(hours=hours)


def add_points(stores: SiteStores, *hours: float) -> list[str]:
    """Write verified points of these ages; return their ids."""
    ids = [RecoveryPointId.from_time(hours_ago(age)) for age in hours]
    for point_id in ids:
        add_point(stores.catalog, point_id)
    return [point_id.text for point_id in ids]


def record(stores: SiteStores, name: str, *point_ids: str, **state: object) -> None:
    """Record that the store was listed an hour ago and holds these points."""
    points = tuple(CopiedPoint(point_id=point_id, copied_at=hours_ago(1)) for point_id in point_ids)
    values: dict[str, object] = {"points": points, "listed_at": hours_ago(1), **state}
    stores.write_state(name, CopyState.model_validate(values))


def test_a_store_without_the_newest_point_is_reported_once_until_it_has_a_copy(
    stores: SiteStores, watch: Watcher, inbox: Inbox
) -> None:
    stores.describe("nas", "max_age_hours = 10")
    stores.describe("usb", "max_age_hours = 10")
    old, new = add_points(stores, 11, 1)
    record(stores, "nas", old, problem="no route to host")
    record(stores, "usb", old, new)
    watch.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[HIGH] No recent copy in the store nas\n")
    assert "no route to host" in alert
    assert new in alert
    assert "docs/alerts/no-recent-copy.md" in alert
    record(stores, "nas", old, new)
    watch.evaluate(2)
    [recovery] = inbox.recoveries
    assert "copy age: nas" in recovery
    assert len(inbox.alerts) == 1


def test_a_new_store_has_time_for_its_first_copy(
    stores: SiteStores, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    stores.describe("nas", "max_age_hours = 10")
    add_points(stores, 11, 1)
    watch = Watcher("freshness_watch", instance)
    watch.evaluate(2)
    assert inbox.alerts == []
    assert watch.cursor is not None
    assert list(WatchCursor.model_validate_json(watch.cursor).stores_since) == ["nas"]
    cursor = WatchCursor(watched_since=hours_ago(20), stores_since={"nas": hours_ago(10.1)})
    Watcher("freshness_watch", instance, cursor.model_dump_json()).evaluate()
    [alert] = inbox.alerts
    assert "No copy exists" in alert


def test_damage_is_reported_with_its_names_until_a_proof_finds_none(
    stores: SiteStores, watch: Watcher, inbox: Inbox
) -> None:
    stores.describe("nas")
    [point_id] = add_points(stores, 1)
    record(
        stores, "nas", point_id, listing_problems=("packs/7 was hidden",), reread_problems=("8 was altered",)
    )
    watch.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[HIGH] Copies in the store nas are damaged\n")
    assert "hidden" in alert
    assert "8 was altered" in alert
    record(stores, "nas", point_id)
    watch.evaluate()
    assert len(inbox.recoveries) == 1


def test_a_lock_that_runs_out_is_reported_until_it_is_extended(
    stores: SiteStores, watch: Watcher, inbox: Inbox
) -> None:
    stores.describe("nas", "lock_days = 20")
    [point_id] = add_points(stores, 1)
    record(stores, "nas", point_id, locked_until=hours_ago(-24 * 5.1))
    watch.evaluate()
    assert inbox.alerts == []
    record(stores, "nas", point_id, locked_until=hours_ago(-24 * 4.9))
    watch.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[HIGH] Locks in the store nas run out\n")
    record(stores, "nas", point_id, locked_until=hours_ago(-24 * 20))
    watch.evaluate()
    assert len(inbox.recoveries) == 1


def test_a_file_that_cannot_be_read_resolves_nothing(
    stores: SiteStores, watch: Watcher, inbox: Inbox
) -> None:
    stores.describe("nas")
    [point_id] = add_points(stores, 1)
    record(stores, "nas", point_id, listing_problems=("packs/7 is missing",))
    watch.evaluate()
    stores.file.write_text("[stores")
    assert "newest verified recovery point" in watch.evaluate()
    stores.describe("nas", "lock_days = -1")
    watch.evaluate()
    assert (len(inbox.alerts), inbox.recoveries) == (1, [])


def test_a_store_that_is_removed_from_the_file_is_over(
    stores: SiteStores, watch: Watcher, inbox: Inbox
) -> None:
    stores.describe("nas")
    [point_id] = add_points(stores, 1)
    record(stores, "nas", point_id, listing_problems=("packs/7 is missing",))
    watch.evaluate()
    stores.file.write_text("")
    watch.evaluate()
    assert (len(inbox.alerts), len(inbox.recoveries)) == (1, 1)
