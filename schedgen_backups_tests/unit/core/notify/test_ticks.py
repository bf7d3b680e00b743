"""The record of when sensors last ran is kept beside the incidents, and its problems fail nothing."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.notify.ticks import RECORD_INTERVAL, read_ticks, record_tick
from schedgen_backups.doctor.operation import examine_sensors
from schedgen_backups.doctor.results import Verdict

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=timezone.utc)


def test_a_tick_is_recorded_and_not_rewritten_within_five_minutes(tmp_path: Path) -> None:
    record_tick(tmp_path, "alert_outbox", NOW)
    file = tmp_path / ".alerts" / "ticks.json"
    written = file.stat().st_mtime_ns
    record_tick(tmp_path, "alert_outbox", NOW + RECORD_INTERVAL / 2)
    assert (read_ticks(tmp_path), file.stat().st_mtime_ns) == ({"alert_outbox": NOW}, written)
    record_tick(tmp_path, "freshness_watch", NOW)
    record_tick(tmp_path, "alert_outbox", NOW + RECORD_INTERVAL)
    assert read_ticks(tmp_path) == {"alert_outbox": NOW + RECORD_INTERVAL, "freshness_watch": NOW}


def test_a_clock_that_went_back_is_noted(tmp_path: Path) -> None:
    record_tick(tmp_path, "alert_outbox", NOW + timedelta(days=1))
    record_tick(tmp_path, "alert_outbox", NOW)
    assert read_ticks(tmp_path) == {"alert_outbox": NOW}


def test_a_missing_directory_is_not_created_and_io_errors_fail_nothing(
    tmp_path: Path,
) -> None:
    record_tick(tmp_path / "missing", "alert_outbox", NOW)
    assert not (tmp_path / "missing").exists()
    (tmp_path / ".alerts").write_text("in the way", encoding="utf-8")
    record_tick(tmp_path, "alert_outbox", NOW)
    assert read_ticks(tmp_path) == {}
    other = tmp_path / "other"
    (other / ".alerts").mkdir(parents=True)
    (other / ".alerts" / "ticks.json").write_text("{", encoding="utf-8")
    assert read_ticks(other) == {}


def test_doctor_reports_a_sensor_that_has_stopped(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    assert list(examine_sensors(catalog, NOW)) == []
    record_tick(tmp_path, "alert_outbox", NOW - timedelta(minutes=4))
    record_tick(tmp_path, "freshness_watch", NOW - timedelta(hours=3))
    found = {result.detail.split()[0]: result.verdict for result in examine_sensors(catalog, NOW)}
    assert found == {"alert_outbox": Verdict.OK, "freshness_watch": Verdict.PROBLEM}
    record_tick(tmp_path, "alert_outbox", NOW + timedelta(days=1))
    record_tick(tmp_path, "of an older version", NOW - timedelta(days=1))
    found = {result.detail.split()[0]: result.verdict for result in examine_sensors(catalog, NOW)}
    assert found == {"alert_outbox": Verdict.PROBLEM, "freshness_watch": Verdict.PROBLEM}
