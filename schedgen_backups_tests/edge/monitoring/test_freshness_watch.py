"""The sensor alerts about missing backups and damaged files; `status` reports them to monitoring.

Points are real ones of the job, or small ones of a chosen age; only their dates are faked. Failed runs are in
`test_outbox`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.monitoring.watch import WatchCursor
from schedgen_backups_tests.support.alerts import recording_server
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
    """Return an instance with a home: others have no schedules."""
    with dg.DagsterInstance.from_config(str(site.home)) as opened:
        yield opened


def hours_ago(hours: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(hours=hours)


def add_point_of(site: Site, hours: float, state: PointState = PointState.VERIFIED) -> str:
    """Write a recovery point of this age into the directory; return its id."""
    catalog = Catalog(site.directory)
    catalog.prepare()
    point_id = RecoveryPointId.from_time(hours_ago(hours))
    add_point(catalog, point_id, state)
    return point_id.text


def watch_since(instance: dg.DagsterInstance, hours: float) -> Watcher:
    """Set the time since the watch's first evaluation."""
    return Watcher("freshness_watch", instance, WatchCursor(watched_since=hours_ago(hours)).model_dump_json())


def test_silence_without_any_run_sends_one_alert_after_the_limit(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    early = watch_since(instance, MAX_AGE_HOURS - 0.1)
    early.evaluate(2)
    assert inbox.texts == []
    late = watch_since(instance, MAX_AGE_HOURS + 0.1)
    late.evaluate(3)
    [alert] = inbox.texts
    assert alert.startswith(f"[CRITICAL] No verified recovery point for {MAX_AGE_HOURS} hours\n")
    assert "schedgen-backups backup" in alert
    assert site.run(instance).success
    late.evaluate()
    Watcher("alert_outbox", instance).evaluate(2)
    [recovery] = inbox.recoveries
    assert "no verified recovery point" in recovery
    assert inbox.alerts == [alert]


def test_every_evaluation_pings_the_address_of_the_daemon(site: Site, instance: dg.DagsterInstance) -> None:
    with recording_server() as server:
        site.set(BACKUP_DAEMON_HEARTBEAT_URL=server.url("/daemon"))
        Watcher("freshness_watch", instance).evaluate(2)
        assert [received.path for received in server.received] == ["/daemon"] * 2
        assert b"no verified recovery point" in server.received[0].body


def test_the_wait_begins_with_the_first_evaluation_only(instance: dg.DagsterInstance, inbox: Inbox) -> None:
    watcher = Watcher("freshness_watch", instance)
    watcher.evaluate()
    first = watcher.cursor
    watcher.evaluate(2)
    assert first is not None
    assert watcher.cursor == first
    assert inbox.texts == []


@pytest.mark.parametrize(
    ("hours", "alert_count"), [(MAX_AGE_HOURS - 0.1, 0), (MAX_AGE_HOURS + 0.1, 1)], ids=["young", "old"]
)
def test_a_point_that_is_too_old_alerts_at_the_first_evaluation(
    hours: float, alert_count: int, site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    point_id = add_point_of(site, hours)
    reason = Watcher("freshness_watch", instance).evaluate()
    assert point_id in reason
    assert len(inbox.alerts) == alert_count
    assert all(point_id in alert for alert in inbox.alerts)


@pytest.mark.parametrize("state", [PointState.PARTIAL, PointState.UNVERIFIED, PointState.FAILED])
def test_a_young_unverified_point_does_not_count(
    state: PointState, site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    old = add_point_of(site, MAX_AGE_HOURS + 1)
    add_point_of(site, 1, state)
    Watcher("freshness_watch", instance).evaluate()
    [alert] = [alert for alert in inbox.alerts if alert.startswith("[CRITICAL]")]
    assert f"{old}, {MAX_AGE_HOURS + 1:.1f} h old" in alert


def test_a_failed_backup_does_not_resolve_the_alert(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    watcher = watch_since(instance, MAX_AGE_HOURS + 1)
    watcher.evaluate()
    site.set(POSTGRES_PASSWORD=CANARY)
    assert not site.run(instance).success
    watcher.evaluate()
    Watcher("alert_outbox", instance).evaluate()
    assert inbox.recoveries == []
    assert len(inbox.alerts) == 2


def test_a_channel_that_was_down_gets_the_alert_once(instance: dg.DagsterInstance, inbox: Inbox) -> None:
    inbox.go_down()
    watcher = watch_since(instance, MAX_AGE_HOURS + 1)
    watcher.evaluate(2)
    inbox.come_up()
    watcher.evaluate(2)
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
def test_status_exit_codes_suit_monitoring_and_match_json(
    hours: float | None, code: int, word: str, site: Site
) -> None:
    site.set(BACKUP_MAX_AGE_HOURS=str(MAX_AGE_HOURS))
    point_id = add_point_of(site, hours) if hours is not None else None
    answer = site.cli("status")
    assert (answer.code, answer.stderr) == (code, "")
    newest = f"newest verified recovery point {point_id} is" if point_id else "no verified recovery point"
    assert answer.stdout.startswith(f"{word}: {newest}")
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
    """Return what the UI shows of this check of the recovery point, oldest first."""
    history = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("recovery_point"), name), limit=20
    )
    found = [record.evaluation for record in reversed(history)]
    return [
        (each.passed, each.description or "") for each in found if isinstance(each, dg.AssetCheckEvaluation)
    ]


@pytest.mark.parametrize("state", [PointState.DAMAGED, PointState.FAILED])
def test_a_damaged_point_sends_one_alert_shows_in_the_ui_and_is_resolved_by_repair(
    state: PointState, site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    """`status` reports it as well, and is no longer OK."""
    older = add_point_of(site, 5, PointState.FAILED if state is PointState.FAILED else PointState.VERIFIED)
    add_point_of(site, 1)
    point = Catalog(site.directory).get_point(RecoveryPointId(older))
    path = point.get_path(ArtifactKind.DATABASE)
    whole = path.read_bytes()
    if state is PointState.DAMAGED:
        path.write_bytes(whole[:100])
    watcher = Watcher("freshness_watch", instance)
    watcher.evaluate(3)
    [alert] = inbox.alerts
    assert alert.startswith("[HIGH] A recovery point is damaged\n")
    assert f"{older} {state.value}: " in alert
    [(passed, words)] = list_evaluations(instance, "recovery_point_is_intact")
    assert not passed
    assert f"{older} {state.value}" in words
    assert [passed for passed, _words in list_evaluations(instance, "recovery_point_is_fresh")] == [True]
    answer = site.cli("status")
    assert answer.code == 1
    assert answer.stdout.startswith("WARNING: ")
    assert f"{older} {state.value}" in " ".join(answer.stdout.split())
    assert json.loads(site.cli("status", "--json").stdout)["damaged"] == [older]
    path.write_bytes(whole)
    assert site.cli("verify", "--changed").code == 0
    watcher.evaluate(2)
    assert len(inbox.recoveries) == 1
    assert [passed for passed, _words in list_evaluations(instance, "recovery_point_is_intact")] == [
        False,
        True,
    ]
    assert site.cli("status").code == 0


def test_newest_points_ahead_of_the_clock_are_one_incident_about_the_clock(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    """They do not count: the rest is too old, and one alert gives the reason."""
    add_point_of(site, MAX_AGE_HOURS + 1)
    ahead = add_point_of(site, -960)
    reason = watch_since(instance, 100).evaluate()
    assert "ahead of the clock" in reason
    [alert] = inbox.alerts
    assert alert.startswith("[CRITICAL] A recovery point is ahead of the clock\n")
    assert f"{ahead}; this machine's clock says {datetime.now(timezone.utc):%Y-%m-%d}" in alert
    assert "-960" not in alert
    [(passed, words)] = list_evaluations(instance, "recovery_point_is_intact")
    assert not passed
    assert ahead in words
    answer = json.loads(site.cli("status", "--json").stdout)
    assert (answer["state"], answer["ahead"]) == ("CRITICAL", [ahead])


def test_a_point_ahead_of_the_clock_beside_fresh_ones_is_high_until_it_is_gone(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    add_point_of(site, 1)
    ahead = add_point_of(site, -24)
    watcher = Watcher("freshness_watch", instance)
    watcher.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[HIGH] A recovery point is ahead of the clock\n")
    for path in site.directory.glob(f"*{ahead}*"):
        path.unlink()
    watcher.evaluate(2)
    assert len(inbox.recoveries) == 1


def test_points_ahead_of_the_clock_do_not_hide_that_the_others_are_too_old(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    """The HIGH alert is repeated once a day; that no point is young enough alerts at once."""
    young = add_point_of(site, 1)
    add_point_of(site, -24)
    watcher = Watcher("freshness_watch", instance)
    watcher.evaluate(2)
    for path in site.directory.glob(f"*{young}*"):
        path.unlink()
    add_point_of(site, MAX_AGE_HOURS + 1)
    watcher.evaluate(2)
    assert [alert.partition("]")[0] for alert in inbox.alerts] == ["[HIGH", "[CRITICAL"]


@pytest.mark.usefixtures("inbox")
def test_an_evaluation_is_written_only_when_something_changed(
    site: Site, instance: dg.DagsterInstance
) -> None:
    watcher = Watcher("freshness_watch", instance)
    watcher.evaluate(3)
    assert [passed for passed, _words in list_evaluations(instance, "recovery_point_is_fresh")] == [
        True
    ]  # long enough to wait
    add_point_of(site, MAX_AGE_HOURS + 1)
    watcher.evaluate(3)
    assert [passed for passed, _words in list_evaluations(instance, "recovery_point_is_fresh")] == [
        True,
        False,
    ]
    add_point_of(site, 1)
    watcher.evaluate(3)
    assert [passed for passed, _words in list_evaluations(instance, "recovery_point_is_fresh")] == [
        True,
        False,
        True,
    ]


def test_a_backup_evaluates_both_checks(site: Site, instance: dg.DagsterInstance) -> None:
    assert site.run(instance).success
    for name in ("recovery_point_is_intact", "recovery_point_is_fresh"):
        assert [passed for passed, _words in list_evaluations(instance, name)] == [True]


def test_status_lists_open_incidents(site: Site, instance: dg.DagsterInstance, inbox: Inbox) -> None:
    assert site.run(instance).success
    site.set(POSTGRES_PASSWORD=CANARY)
    site.run(instance)
    assert len(inbox.alerts) == 1
    answer = site.cli("status")
    assert (answer.code, answer.stdout.split(":")[0]) == (1, "WARNING")
    assert "open incidents: run: database_dump failed" in " ".join(answer.stdout.split())
    assert json.loads(site.cli("status", "--json").stdout)["open_incidents"] == ["run: database_dump failed"]


@pytest.mark.parametrize(
    "cursor", ["2026-11-27T12:00:00+00:00", "{", '{"watched_since": "yesterday"}', "null"]
)
@pytest.mark.parametrize("sensor", ["freshness_watch", "alert_outbox"])
def test_a_cursor_of_another_version_is_a_first_evaluation(
    site: Site, instance: dg.DagsterInstance, inbox: Inbox, sensor: str, cursor: str
) -> None:
    """A sensor that failed on it would fail forever, and its alerts would stop."""
    add_point_of(site, 1)
    watcher = Watcher(sensor, instance, cursor)
    watcher.evaluate(2)
    assert watcher.cursor not in {"", cursor}
    assert inbox.texts == []
