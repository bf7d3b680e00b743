"""What the metrics of a directory say: present values, absent ones, and how many series there are."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus, VerificationLevel
from schedgen_backups.core.catalog.pins import Pin, write_pin
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.copies.local_folder import CopiedPoint, CopyState
from schedgen_backups.core.copies.settings import StoreSettings
from schedgen_backups.core.copies.status import StoreStatus
from schedgen_backups.core.history.events import DrillEnded, RunFailed, RunStarted
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.metrics.exposition import render_metrics
from schedgen_backups.core.metrics.families import FAMILIES
from schedgen_backups.core.metrics.samples import MonitoredSite, measure_site
from schedgen_backups.core.notify.alert import Alert, Severity
from schedgen_backups.core.notify.incidents import IncidentKey
from schedgen_backups.core.notify.notifier import Notifier
from schedgen_backups.core.notify.ticks import record_tick
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups_tests.support.artifacts import TAKEN_AT, make_result
from schedgen_backups_tests.support.histories import add_point, name_night

NOW = TAKEN_AT + timedelta(days=3)
HOUR = timedelta(hours=1)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    found = Catalog(tmp_path / "points")
    found.prepare()
    return found


def make_site(catalog: Catalog, stores: Iterable[StoreStatus] = ()) -> MonitoredSite:
    return MonitoredSite(
        name="schedgen",
        catalog=catalog,
        max_age=26 * HOUR,
        schedule_gap=24 * HOUR,
        drill_max_age=180 * HOUR,
        drill_max_duration=4 * HOUR,
        stores=tuple(stores),
    )


def make_store(state: CopyState) -> StoreStatus:
    location = StoreLocation("file:///mnt/nas")
    policy = RetentionPolicy(keep_days=7, keep_last=1)
    return StoreStatus("nas", state, StoreSettings("nas", location, (), policy, lock_days=30))


def read(site: MonitoredSite, now: datetime = NOW) -> dict[str, float]:
    """Return the exposition's values by `name{labels beside the site}`, as Prometheus would parse them."""
    text = render_metrics({site.name: measure_site(site, now)}).decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels.pop("site") == "schedgen"
            labels = ",".join(value for _name, value in sorted(sample.labels.items()))
            name = sample.name.removeprefix("schedgen_backup_")
            key = f"{name}{{{labels}}}" if labels else name
            assert key not in found
            found[key] = sample.value
    return found


def test_what_is_unknown_is_absent(catalog: Catalog) -> None:
    values = read(make_site(catalog))
    for absent in (
        "last_verified_timestamp_seconds",
        "last_attempt_timestamp_seconds",
        "last_failure_timestamp_seconds",
        "drill_timestamp_seconds",
        "daemon_tick_timestamp_seconds",
        "last_size_bytes{database}",
    ):
        assert absent not in values
    assert values["level{stored}"] == -1
    assert values["points{verified}"] == 0
    assert values["max_age_seconds"] == 26 * 3600
    assert values["metrics_written_timestamp_seconds"] == NOW.timestamp()


def test_a_missing_directory_has_no_points(tmp_path: Path) -> None:
    assert read(make_site(Catalog(tmp_path / "none")))["points{verified}"] == 0


def test_points_count_by_state_however_they_were_taken(catalog: Catalog) -> None:
    for day, state in enumerate((PointState.VERIFIED, PointState.FAILED, PointState.VERIFIED)):
        add_point(catalog, name_night(day), state)
    values = read(make_site(catalog))
    assert (values["points{verified}"], values["points{failed}"]) == (2, 1)
    assert values["last_verified_timestamp_seconds"] == name_night(2).taken_at.timestamp()
    sizes = {artifact.name.kind.value: artifact.size_bytes for artifact in catalog.list_points()[2].artifacts}
    assert {kind: values[f"last_size_bytes{{{kind}}}"] for kind in sizes} == sizes
    assert values["previous_size_bytes{bucket}"] > 0
    assert (values["last_rows"], values["last_objects"]) == (1, 1)
    assert values["oldest_verified_timestamp_seconds"] == name_night(0).taken_at.timestamp()


def test_broken_points_are_those_that_status_warns_of(catalog: Catalog) -> None:
    add_point(catalog, name_night(0))
    add_point(catalog, name_night(1), PointState.FAILED)
    add_point(catalog, name_night(2), PointState.PARTIAL)
    assert read(make_site(catalog))["broken_points"] == 1
    name = add_point(catalog, name_night(3))[0]
    with (catalog.directory / name).open("r+b") as file:
        file.truncate(10)
    values = read(make_site(catalog))
    assert values["broken_points"] == 2
    assert values["last_verified_timestamp_seconds"] == name_night(0).taken_at.timestamp()


def test_pins_count_until_they_expire(catalog: Catalog) -> None:
    for day in range(4):
        add_point(catalog, name_night(day))
    for day, expires_at in ((0, None), (1, NOW + HOUR), (2, NOW - HOUR)):
        write_pin(
            catalog, Pin(point_id=name_night(day).text, reason="x", pinned_at=NOW, expires_at=expires_at)
        )
    assert read(make_site(catalog))["pinned_points"] == 2


def test_other_results_are_judged_again(catalog: Catalog) -> None:
    """The levels of unchanged results are kept, also by a copy of the value."""
    add_point(catalog, name_night(0))
    assert read(make_site(catalog))["level{stored}"] == 1
    [point] = catalog.list_points()
    assert point.verification.level(VerificationLevel.STORED).status is CheckStatus.PASSED
    failed = make_result(Check.DUMP_IS_STORED, CheckStatus.FAILED)
    changed = point.verification.with_results((failed,))
    assert changed.level(VerificationLevel.STORED).status is CheckStatus.FAILED
    assert point.verification.level(VerificationLevel.STORED).status is CheckStatus.PASSED
    catalog.record_results(name_night(0), (failed,))
    assert read(make_site(catalog))["level{stored}"] == 0


def test_a_store_without_problems_is_a_place_of_the_newest_point(catalog: Catalog) -> None:
    add_point(catalog, name_night(0))

    def count_places(**fields: object) -> dict[str, float]:
        copied = CopiedPoint(point_id=name_night(0).text, copied_at=NOW)
        values = read(make_site(catalog, [make_store(CopyState(points=(copied,), **fields))]))  # type: ignore[arg-type]
        return {what: values[f"newest_point_places{{{what}}}"] for what in ("copies", "kinds", "elsewhere")}

    assert count_places() == {"copies": 2, "kinds": 2, "elsewhere": 0}
    assert count_places(listing_problems=("x is missing",)) == {"copies": 1, "kinds": 1, "elsewhere": 0}


def test_a_level_is_what_was_seen_last_and_keeps_the_time_of_its_last_success(catalog: Catalog) -> None:
    for day in range(2):
        add_point(catalog, name_night(day))
    before = read(make_site(catalog))
    catalog.record_results(
        name_night(0), (make_result(Check.DUMP_IS_STORED, CheckStatus.FAILED, checked_at=NOW),)
    )
    results = (make_result(Check.ARCHIVE_IS_STORED, CheckStatus.PASSED, checked_at=NOW),)
    catalog.record_results(name_night(0), results)
    after = read(make_site(catalog))
    assert (before["level{stored}"], after["level{stored}"]) == (1, 0)
    passed = "level_passed_timestamp_seconds{stored}"
    assert after[passed] == before[passed]


def test_a_level_that_passes_again_is_not_hidden_by_the_age_of_packs(catalog: Catalog) -> None:
    for day in range(2):
        add_point(catalog, name_night(day))
    stored = (Check.DUMP_IS_STORED, Check.ARCHIVE_IS_STORED)
    failed = [make_result(check, CheckStatus.FAILED, checked_at=NOW) for check in stored]
    catalog.record_results(name_night(0), tuple(failed))
    read_at = NOW - 200 * HOUR
    passed = [make_result(check, checked_at=NOW + HOUR, oldest_reading_at=read_at) for check in stored]
    catalog.record_results(name_night(1), tuple(passed))
    after = read(make_site(catalog))
    assert after["level{stored}"] == 1
    assert after["level_passed_timestamp_seconds{stored}"] == read_at.timestamp()


def test_runs_and_drills_are_those_of_the_history(catalog: Catalog) -> None:
    history = History(catalog.directory)
    history.record(RunStarted(at=NOW - HOUR, kind="run", run_id="1"))
    history.record(RunStarted(at=NOW, kind="drill", run_id="2"))
    history.record(RunFailed(at=NOW - HOUR, kind="run", run_id="1", subject="dump", cause="no"))
    for store, is_passed in (("", True), ("nas", False)):
        history.record(
            DrillEnded(
                at=NOW,
                began_at=NOW - HOUR,
                point_id=name_night(0).text,
                is_passed=is_passed,
                rto_seconds=12.5,
                rpo_seconds=3600,
                store=store,
            )
        )
    values = read(make_site(catalog))
    assert values["last_attempt_timestamp_seconds"] == (NOW - HOUR).timestamp()
    assert values["last_failure_timestamp_seconds"] == (NOW - HOUR).timestamp()
    assert (values["drill_passed"], values["drill_rto_seconds"]) == (1, 12.5)


def test_a_drill_that_ends_without_a_result_has_not_passed(catalog: Catalog) -> None:
    test_runs_and_drills_are_those_of_the_history(catalog)
    failure = RunFailed(at=NOW + HOUR, kind="drill", run_id="3", subject="restore_drill", cause="damaged")
    History(catalog.directory).record(failure)
    values = read(make_site(catalog))
    assert values["drill_passed"] == 0
    assert values["drill_timestamp_seconds"] == NOW.timestamp()


def test_incidents_and_ticks_are_those_of_the_directory(catalog: Catalog) -> None:
    alert = Alert(severity=Severity.HIGH, title="t", cause="c", raised_at=NOW - HOUR)
    Notifier((), catalog.directory).report_trouble(IncidentKey(area="run", subject="s"), alert)
    record_tick(catalog.directory, "watch", NOW)
    values = read(make_site(catalog))
    assert values["incidents_open"] == 1
    assert values["incident_oldest_timestamp_seconds"] == (NOW - HOUR).timestamp()
    assert values["daemon_tick_timestamp_seconds"] == NOW.timestamp()


def test_a_store_shows_its_copies_its_proofs_and_what_was_found(catalog: Catalog) -> None:
    for day in range(2):
        add_point(catalog, name_night(day))
    copied = CopiedPoint(point_id=name_night(0).text, copied_at=NOW)
    state = CopyState(
        points=(copied,),
        listed_at=NOW,
        listing_problems=("x was not written by this program", "y is missing"),
        stranger_count=1,
        reread_problems=("z was altered",),
        opened_at=NOW - HOUR,
    )
    values = read(make_site(catalog, [make_store(state)]))
    assert values["copy_last_point_timestamp_seconds{nas}"] == name_night(0).taken_at.timestamp()
    assert values["copy_lacking_points{nas}"] == 1
    assert {kind: values[f"copy_problems{{{kind},nas}}"] for kind in ("stranger", "listing", "reread")} == {
        "stranger": 1,
        "listing": 1,
        "reread": 1,
    }
    assert values["copy_proof_timestamp_seconds{opened,nas}"] == (NOW - HOUR).timestamp()
    assert "copy_proof_timestamp_seconds{reread,nas}" not in values
    assert values["copy_lock_seconds{nas}"] == 30 * 24 * 3600


def test_the_number_of_series_does_not_grow_with_the_points(catalog: Catalog) -> None:
    everything = CopyState(
        points=(CopiedPoint(point_id=name_night(0).text, copied_at=NOW),),
        listed_at=NOW,
        oldest_reread_at=NOW,
        oldest_unread_at=NOW,
        locked_until=NOW,
        opened_at=NOW,
    )
    test_runs_and_drills_are_those_of_the_history(catalog)
    test_incidents_and_ticks_are_those_of_the_directory(catalog)
    for day in range(2):
        add_point(catalog, name_night(day))
    own, with_store = read(make_site(catalog)), read(make_site(catalog, [make_store(everything)]))
    for day in range(2, 6):
        add_point(catalog, name_night(day))
    assert read(make_site(catalog)).keys() == own.keys()
    assert len(own) <= 60
    assert len(with_store) - len(own) <= 15


def test_names_are_those_of_prometheus_and_each_is_described() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", family.name)
        assert family.meaning
        assert not family.name.endswith(("_total", "_count"))


def test_a_scrape_of_400_points_reads_again_only_what_has_changed(catalog: Catalog) -> None:
    """The bar of 50 ms is measured in `benchmarks/metrics.py`; here is why it holds."""
    for day in range(3):
        add_point(catalog, name_night(day))
    time.sleep(1.1)
    first = {point.point_id: point.manifest for point in catalog.list_points()}
    assert all(point.manifest is first[point.point_id] for point in catalog.list_points())
    path = catalog.manifest_path(name_night(1))
    path.write_bytes(path.read_bytes().replace(b'"tool_version": "', b'"tool_version": "x'))
    again = {point.point_id: point.manifest for point in catalog.list_points()}
    changed = again[name_night(1)]
    assert changed is not None
    assert changed.tool_version.startswith("x")
    assert again[name_night(0)] is first[name_night(0)]
