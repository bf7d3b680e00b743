"""That nothing happened, or something happened to the files: told by the sensor to people and to the UI, and
by `status` to monitoring.

Points are real ones of the job, or small ones of a chosen age; nothing is faked but their date. Failures that
do happen are in `test_outbox`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog, PointState
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.monitoring.watch import WatchCursor
from schedgen_backups_tests.support.histories import add_point
from schedgen_backups_tests.support.inbox import CANARY, Inbox, Watcher, open_inbox
from schedgen_backups_tests.support.sites import Site

pytestmark = [pytest.mark.edge]

MAX_AGE_HOURS = 10


@pytest.fixture
def inbox(site: Site) -> Iterator[Inbox]:
    with open_inbox() as opened:
        site.set(BACKUP_ALERT_WEBHOOK_URL=opened.url, BACKUP_MAX_AGE_HOURS=str(MAX_AGE_HOURS))
        yield opened


@pytest.fixture
def instance(site: Site) -> Iterator[dg.DagsterInstance]:
    """One with a home: others have no schedules."""
    with dg.DagsterInstance.from_config(str(site.home)) as opened:
        yield opened


def hours_ago(hours: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(hours=hours)


def add_point_of(site: Site, hours: float, state: PointState = PointState.VERIFIED) -> str:
    """A recovery point of this age is in the directory; returns its id."""
    catalog = Catalog(site.directory)
    catalog.prepare()
    point_id = RecoveryPointId.from_time(hours_ago(hours))
    add_point(catalog, point_id, state)
    return point_id.text


def watch_since(instance: dg.DagsterInstance, hours: float) -> Watcher:
    """The watcher's first look was so long ago."""
    return Watcher("freshness_watch", instance, WatchCursor(watched_since=hours_ago(hours)).model_dump_json())


def test_without_any_run_ever_silence_is_told_once_when_it_is_too_long(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    early = watch_since(instance, MAX_AGE_HOURS - 0.1)
    early.look(2)
    assert inbox.texts == []
    late = watch_since(instance, MAX_AGE_HOURS + 0.1)
    late.look(3)
    [alert] = inbox.texts
    assert alert.startswith(f"[CRITICAL] No verified recovery point for {MAX_AGE_HOURS} hours\n")
    assert "schedgen-backups backup" in alert
    assert site.run(instance).success
    late.look()
    Watcher("alert_outbox", instance).look(2)
    [recovery] = inbox.recoveries
    assert "no verified recovery point" in recovery
    assert inbox.alerts == [alert]


def test_the_first_look_begins_the_wait_and_later_looks_do_not_begin_it_anew(
    instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    watcher = Watcher("freshness_watch", instance)
    watcher.look()
    first = watcher.cursor
    watcher.look(2)
    assert first is not None
    assert watcher.cursor == first
    assert inbox.texts == []


@pytest.mark.parametrize(
    ("hours", "told"), [(MAX_AGE_HOURS - 0.1, 0), (MAX_AGE_HOURS + 0.1, 1)], ids=["young", "old"]
)
def test_a_point_that_is_too_old_is_told_at_the_first_look(
    hours: float, told: int, site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    point_id = add_point_of(site, hours)
    reason = Watcher("freshness_watch", instance).look()
    assert point_id in reason
    assert len(inbox.alerts) == told
    assert all(point_id in alert for alert in inbox.alerts)


@pytest.mark.parametrize("state", [PointState.PARTIAL, PointState.UNVERIFIED, PointState.FAILED])
def test_a_young_point_that_is_not_verified_does_not_count(
    state: PointState, site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    old = add_point_of(site, MAX_AGE_HOURS + 1)
    add_point_of(site, 1, state)
    Watcher("freshness_watch", instance).look()
    [alert] = [alert for alert in inbox.alerts if alert.startswith("[CRITICAL]")]
    assert f"{old}, {MAX_AGE_HOURS + 1:.1f} h old" in alert


def test_a_failed_backup_does_not_end_the_alarm(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    watcher = watch_since(instance, MAX_AGE_HOURS + 1)
    watcher.look()
    site.set(POSTGRES_PASSWORD=CANARY)
    assert not site.run(instance).success
    watcher.look()
    Watcher("alert_outbox", instance).look()
    assert inbox.recoveries == []
    assert len(inbox.alerts) == 2


def test_a_channel_that_is_down_gets_the_alarm_once_when_it_is_up(
    instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    inbox.go_down()
    watcher = watch_since(instance, MAX_AGE_HOURS + 1)
    watcher.look(2)
    inbox.come_up()
    watcher.look(2)
    assert len(inbox.alerts) == 1


@pytest.mark.parametrize(
    ("hours", "code", "word"),
    [
        (1, 0, "OK"),
        (MAX_AGE_HOURS * 0.85, 1, "WARNING"),
        (MAX_AGE_HOURS + 0.1, 2, "CRITICAL"),
        (None, 2, "CRITICAL"),
    ],
    ids=["ok", "warning", "critical", "none"],
)
def test_status_ends_as_monitoring_expects_and_says_the_same_as_json(
    hours: float | None, code: int, word: str, site: Site
) -> None:
    site.set(BACKUP_MAX_AGE_HOURS=str(MAX_AGE_HOURS))
    point_id = add_point_of(site, hours) if hours is not None else None
    told = site.cli("status")
    assert (told.code, told.stderr) == (code, "")
    newest = f"newest verified recovery point {point_id} is" if point_id else "no verified recovery point"
    assert told.stdout.startswith(f"{word}: {newest}")
    as_json = site.cli("status", "--json")
    found = json.loads(as_json.stdout)
    assert as_json.code == code
    assert (found["state"], found["id"], found["max_age_seconds"], found["open_incidents"]) == (
        word,
        point_id,
        MAX_AGE_HOURS * 3600,
        [],
    )


def list_evaluations(instance: dg.DagsterInstance, name: str) -> list[tuple[bool, str]]:
    """What the UI shows of this check of the recovery point, oldest first."""
    history = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("recovery_point"), name), limit=20
    )
    found = [record.evaluation for record in reversed(history)]
    return [
        (each.passed, each.description or "") for each in found if isinstance(each, dg.AssetCheckEvaluation)
    ]


@pytest.mark.parametrize("state", [PointState.DAMAGED, PointState.FAILED])
def test_a_point_that_is_damaged_is_told_once_shown_in_the_ui_and_over_when_it_is_mended(
    state: PointState, site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    """Status says the same, and is no longer OK."""
    older = add_point_of(site, 5, PointState.FAILED if state is PointState.FAILED else PointState.VERIFIED)
    add_point_of(site, 1)
    point = Catalog(site.directory).get_point(RecoveryPointId(older))
    path = point.get_path(ArtifactKind.DATABASE)
    whole = path.read_bytes()
    if state is PointState.DAMAGED:
        path.write_bytes(whole[:100])
    watcher = Watcher("freshness_watch", instance)
    watcher.look(3)
    [alert] = inbox.alerts
    assert alert.startswith("[HIGH] A recovery point is damaged\n")
    assert f"{older} {state.value}: " in alert
    [(passed, words)] = list_evaluations(instance, "recovery_point_is_intact")
    assert not passed
    assert f"{older} {state.value}" in words
    assert [passed for passed, _words in list_evaluations(instance, "recovery_point_is_fresh")] == [True]
    told = site.cli("status")
    assert told.code == 1
    assert told.stdout.startswith("WARNING: ")
    assert f"{older} {state.value}" in " ".join(told.stdout.split())
    assert json.loads(site.cli("status", "--json").stdout)["damaged"] == [older]
    path.write_bytes(whole)
    assert site.cli("verify", "--changed").code == 0
    watcher.look(2)
    assert len(inbox.recoveries) == 1
    assert [passed for passed, _words in list_evaluations(instance, "recovery_point_is_intact")] == [
        False,
        True,
    ]
    assert site.cli("status").code == 0


def test_when_the_newest_points_are_ahead_the_clock_is_the_incident(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    """They count for nothing: what is left is too old, and one alert says why."""
    add_point_of(site, MAX_AGE_HOURS + 1)
    ahead = add_point_of(site, -960)
    reason = watch_since(instance, 100).look()
    assert "ahead of the clock" in reason
    [alert] = inbox.alerts
    assert alert.startswith("[CRITICAL] A recovery point is ahead of the clock\n")
    assert f"{ahead}; this machine's clock says {datetime.now(timezone.utc):%Y-%m-%d}" in alert
    assert "-960" not in alert
    [(passed, words)] = list_evaluations(instance, "recovery_point_is_intact")
    assert not passed
    assert ahead in words
    told = json.loads(site.cli("status", "--json").stdout)
    assert (told["state"], told["ahead"]) == ("CRITICAL", [ahead])


def test_a_point_ahead_of_the_clock_beside_fresh_ones_is_told_as_high_and_over_when_it_is_gone(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    add_point_of(site, 1)
    ahead = add_point_of(site, -24)
    watcher = Watcher("freshness_watch", instance)
    watcher.look(2)
    [alert] = inbox.alerts
    assert alert.startswith("[HIGH] A recovery point is ahead of the clock\n")
    for path in site.directory.glob(f"*{ahead}*"):
        path.unlink()
    watcher.look(2)
    assert len(inbox.recoveries) == 1


def test_points_ahead_of_the_clock_do_not_hide_that_the_others_became_too_old(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    """The alert that was HIGH is repeated once a day; that nothing young enough is left is told at once."""
    young = add_point_of(site, 1)
    add_point_of(site, -24)
    watcher = Watcher("freshness_watch", instance)
    watcher.look(2)
    for path in site.directory.glob(f"*{young}*"):
        path.unlink()
    add_point_of(site, MAX_AGE_HOURS + 1)
    watcher.look(2)
    assert [alert.partition("]")[0] for alert in inbox.alerts] == ["[HIGH", "[CRITICAL"]


@pytest.mark.usefixtures("inbox")
def test_an_evaluation_is_written_when_something_changed_and_not_at_every_look(
    site: Site, instance: dg.DagsterInstance
) -> None:
    watcher = Watcher("freshness_watch", instance)
    watcher.look(3)
    assert [passed for passed, _words in list_evaluations(instance, "recovery_point_is_fresh")] == [
        True
    ]  # waited for
    add_point_of(site, MAX_AGE_HOURS + 1)
    watcher.look(3)
    assert [passed for passed, _words in list_evaluations(instance, "recovery_point_is_fresh")] == [
        True,
        False,
    ]
    add_point_of(site, 1)
    watcher.look(3)
    assert [passed for passed, _words in list_evaluations(instance, "recovery_point_is_fresh")] == [
        True,
        False,
        True,
    ]


def test_a_backup_evaluates_both_checks_itself(site: Site, instance: dg.DagsterInstance) -> None:
    assert site.run(instance).success
    for name in ("recovery_point_is_intact", "recovery_point_is_fresh"):
        assert [passed for passed, _words in list_evaluations(instance, name)] == [True]


def test_status_names_what_is_still_open(site: Site, instance: dg.DagsterInstance, inbox: Inbox) -> None:
    assert site.run(instance).success
    site.set(POSTGRES_PASSWORD=CANARY)
    site.run(instance)
    assert len(inbox.alerts) == 1
    told = site.cli("status")
    assert (told.code, told.stdout.split(":")[0]) == (1, "WARNING")
    assert "open incidents: run: database_dump failed" in " ".join(told.stdout.split())
    assert json.loads(site.cli("status", "--json").stdout)["open_incidents"] == ["run: database_dump failed"]


@pytest.mark.parametrize(
    "cursor", ["2026-11-27T12:00:00+00:00", "{", '{"watched_since": "yesterday"}', "null"]
)
@pytest.mark.parametrize("sensor", ["freshness_watch", "alert_outbox"])
def test_a_cursor_of_another_version_is_a_first_look(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox, sensor: str, cursor: str
) -> None:
    """A sensor that fails at it would fail for ever, and nobody would be told of what it watches."""
    add_point_of(site, 1)
    watcher = Watcher(sensor, instance, cursor)
    watcher.look(2)
    assert watcher.cursor not in {"", cursor}
    assert inbox.texts == []
