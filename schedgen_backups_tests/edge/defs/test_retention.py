"""Retention: the sensor, its job, and the commands `prune`, `pin` and `unpin`.

Points are small real ones of chosen age and state. `unit/core/retention` tests which points may be deleted.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.retention.policy_change import GRACE, PolicyState
from schedgen_backups.definitions import defs
from schedgen_backups_tests.support.artifacts import list_files
from schedgen_backups_tests.support.histories import add_point
from schedgen_backups_tests.support.inbox import Watcher, open_inbox
from schedgen_backups_tests.support.sites import Site, failures_of

pytestmark = [pytest.mark.edge]

DAYS = (20, 15, 12, 10, 9, 1)
"""Keeps the newest three verified points of `history`, and those younger than a week."""
KEPT_DAYS = (10, 9, 1)
OLD_SCRIPT = ("schedgen_20240101_020000.sql.gz", "minio_backup_20240101_020000.tar.gz", "notes.txt")


class History:
    """Points by their age in days, with the names of their files."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.catalog = Catalog(site.directory)
        self.catalog.prepare()
        self.files: dict[float, tuple[str, ...]] = {}
        self.ids: dict[float, str] = {}

    def add(self, days: float, state: PointState = PointState.VERIFIED) -> None:
        point_id = RecoveryPointId.from_time(datetime.now(timezone.utc) - timedelta(days=days))
        self.files[days] = add_point(self.catalog, point_id, state)
        self.ids[days] = point_id.text

    def names_of(self, *days: float) -> list[str]:
        return sorted([name for day in days for name in self.files[day]] + list(OLD_SCRIPT))


@pytest.fixture
def history(site: Site) -> History:
    found = History(site)
    for days in DAYS:
        found.add(days)
    for name in OLD_SCRIPT:
        (site.directory / name).write_bytes(b"not ours")
    return found


def ask(instance: dg.DagsterInstance) -> dg.RunRequest | dg.SkipReason:
    """Return what the sensor yields; it keeps no cursor."""
    with dg.build_sensor_context(instance=instance) as context:
        answer = defs.resolve_sensor_def("retention_sensor")(context)
    assert isinstance(answer, dg.RunRequest | dg.SkipReason)
    return answer


def get_metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Return the metadata of the one observation that the run reported on the recovery point."""
    [event] = [
        event for event in result.all_events if event.event_type is dg.DagsterEventType.ASSET_OBSERVATION
    ]
    observation = event.asset_observation_data.asset_observation
    assert observation.asset_key == dg.AssetKey("recovery_point")
    return {name: value.value for name, value in observation.metadata.items()}


def decide(site: Site, *words: str) -> dict[str, bool]:
    """Return what `prune --json` decides: id → kept."""
    result = site.cli("prune", "--json", *words)
    assert (result.code, result.stderr) == (0, "")
    return {made["id"]: made["kept"] for made in json.loads(result.stdout)["decisions"]}


def test_the_sensor_requests_no_run_when_nothing_is_deleted(site: Site, instance: dg.DagsterInstance) -> None:
    answer = ask(instance)
    assert isinstance(answer, dg.SkipReason)
    assert "no recovery points yet" in str(answer.skip_message)
    young = History(site)
    young.add(1)
    answer = ask(instance)
    assert isinstance(answer, dg.SkipReason)
    assert "nothing to remove, 1 recovery points are kept" in str(answer.skip_message)


def test_the_sensor_gives_its_reason_when_no_point_is_verified(
    site: Site, instance: dg.DagsterInstance
) -> None:
    partial = History(site)
    partial.add(30, PointState.PARTIAL)
    answer = ask(instance)
    assert isinstance(answer, dg.SkipReason)
    assert answer.skip_message == "no point is verified"


def test_the_sensor_uses_the_same_run_key_for_the_same_plan(
    history: History, instance: dg.DagsterInstance
) -> None:
    """Dagster starts one run per key, however often the sensor requests it."""
    first, second = ask(instance), ask(instance)
    assert isinstance(first, dg.RunRequest)
    assert isinstance(second, dg.RunRequest)
    assert first.run_key is not None
    assert first.run_key == second.run_key
    history.add(11)
    third = ask(instance)
    assert isinstance(third, dg.RunRequest)
    assert third.run_key != first.run_key


def tick(
    instance: dg.DagsterInstance, cursor: str | None
) -> tuple[dg.RunRequest | dg.SkipReason, str | None]:
    """Return what the sensor yields with this cursor, and the next one."""
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        answer = defs.resolve_sensor_def("retention_sensor")(context)
        assert isinstance(answer, dg.RunRequest | dg.SkipReason)
        return answer, context.cursor


def put_back(cursor: str | None, time: timedelta) -> str:
    """Return the cursor of an announcement that much earlier."""
    state = PolicyState.model_validate_json(cursor or "")
    assert state.announced_at is not None
    return state.announce(state.announced_at - time).model_dump_json()


def list_point_files(site: Site) -> list[str]:
    return [name for name in list_files(site.directory) if not name.startswith(".alerts/")]


def test_stricter_rules_are_announced_once_and_carried_out_a_day_later(history: History) -> None:
    site = history.site
    with open_inbox() as inbox, dg.DagsterInstance.from_config(str(site.home)) as instance:
        site.set(BACKUP_ALERT_WEBHOOK_URL=inbox.url)
        request, cursor = tick(instance, None)
        assert isinstance(request, dg.RunRequest)
        site.set(BACKUP_RETENTION_HOURS="48", BACKUP_RETENTION_KEEP_LAST="1")
        for _ in range(2):
            waiting, cursor = tick(instance, cursor)
            assert isinstance(waiting, dg.SkipReason)
            assert "the rules changed; 5 recovery points would be removed after" in str(waiting.skip_message)
        [text] = inbox.texts
        assert text.startswith("[INFO] Retention rules changed: 5 recovery points will be removed\n")
        assert f"do not keep {history.ids[20]}, {history.ids[15]}, " in text
        assert "They are removed after" in text
        [record] = instance.fetch_observations(dg.AssetKey("recovery_point"), limit=5).records
        assert record.asset_observation is not None
        table = str(record.asset_observation.metadata["decisions"].value)
        assert f"| {history.ids[20]} | verified | remove | older than 48 hours" in table
        # A run that waited in the queue since before the change removes nothing.
        assert site.run(instance, "prune_job", tags=dict(request.tags)).success
        assert list_point_files(site) == history.names_of(*DAYS)
        requested, cursor = tick(instance, put_back(cursor, GRACE))
        assert isinstance(requested, dg.RunRequest)
        assert site.run(instance, "prune_job", tags=dict(requested.tags)).success
        assert list_point_files(site) == history.names_of(1)
        assert inbox.texts == [text]
        waiting, cursor = tick(instance, cursor)
        assert "nothing to remove" in str(waiting.skip_message if isinstance(waiting, dg.SkipReason) else "")


def test_nothing_is_removed_while_no_channel_accepts_the_announcement(history: History) -> None:
    site = history.site
    with open_inbox() as inbox, dg.DagsterInstance.from_config(str(site.home)) as instance:
        site.set(BACKUP_ALERT_WEBHOOK_URL=inbox.url, BACKUP_RETENTION_HOURS="48")
        inbox.go_down()
        waiting, cursor = tick(instance, None)
        assert isinstance(waiting, dg.SkipReason)
        assert "no channel accepted the announcement yet" in str(waiting.skip_message)
        inbox.come_up()
        waiting, cursor = tick(instance, cursor)
        assert isinstance(waiting, dg.SkipReason)
        assert "would be removed after" in str(waiting.skip_message)


def test_dry_run_and_doctor_print_what_would_go(history: History) -> None:
    site = history.site
    site.set(BACKUP_RETENTION_HOURS="48", BACKUP_RETENTION_KEEP_LAST="1", BACKUP_RETENTION_DAYS="2")
    kept = decide(site, "--dry-run")
    assert [days for days in DAYS if kept[history.ids[days]]] == [1]
    shown = site.cli("doctor").stdout
    assert f"1 recovery point kept, 5 to remove: {history.ids[20]}" in " ".join(shown.split())
    assert list_files(site.directory) == history.names_of(*DAYS)


def test_the_job_removes_exactly_the_planned_files_with_reasons(
    history: History, instance: dg.DagsterInstance
) -> None:
    result = history.site.run(instance, "prune_job")
    assert failures_of(result) == {}
    assert list_files(history.site.directory) == history.names_of(*KEPT_DAYS)
    metadata = get_metadata(result)
    assert (metadata["recovery_points_kept"], metadata["recovery_points_removed"], metadata["refusal"]) == (
        3,
        3,
        "none",
    )
    assert metadata["bytes_freed"] > 0
    log = "\n".join(entry.user_message for entry in instance.all_logs(result.run_id))
    for days in DAYS:
        line = f"| {history.ids[days]} | verified | {'keep' if days in KEPT_DAYS else 'remove'} | "
        assert line in str(metadata["decisions"])
        assert line in log
    assert isinstance(ask(instance), dg.SkipReason)
    history.site.assert_left_clean()


def test_a_held_lock_fails_the_job_with_an_alert_until_it_succeeds(
    history: History,
) -> None:
    site = history.site
    history.catalog.lock.acquire("a backup that runs")
    with open_inbox() as inbox, dg.DagsterInstance.from_config(str(site.home)) as instance:
        site.set(BACKUP_ALERT_WEBHOOK_URL=inbox.url)
        [failed] = failures_of(site.run(instance, "prune_job")).values()
        assert "in use by a backup that runs" in failed.description
        [alert] = inbox.alerts
        assert alert.startswith("[MEDIUM] Retention failed: prune_recovery_points\n")
        assert "in use by a backup that runs" in alert
        outbox = Watcher("alert_outbox", instance)
        outbox.evaluate(2)
        assert inbox.texts == [alert]
        pruned = site.cli("prune")
        assert pruned.code == 5
        assert "in use by a backup that runs" in pruned.stderr
        assert {path.name for path in site.directory.iterdir() if path.is_file()} >= set(
            history.names_of(*DAYS)
        )
        history.catalog.lock.release()
        site.set(BACKUP_ALLOW_NEW_SOURCE="true")  # the history belongs to another application
        assert site.run(instance).success
        outbox.evaluate(2)
        assert inbox.texts == [alert]
        assert site.run(instance, "prune_job").success
        outbox.evaluate(2)
        [recovery] = inbox.recoveries
        assert "retention: prune_recovery_points failed" in recovery


def test_prune_does_what_its_dry_run_printed(history: History) -> None:
    site = history.site
    said = decide(site, "--dry-run")
    assert said == {history.ids[days]: days in KEPT_DAYS for days in DAYS}
    assert list_files(site.directory) == history.names_of(*DAYS)
    assert decide(site) == said
    assert list_files(site.directory) == history.names_of(*KEPT_DAYS)
    shown = site.cli("prune")
    assert shown.code == 0
    assert "3 kept, 0 removed" in shown.stdout
    site.assert_left_clean()


def test_a_pinned_point_stays_until_it_is_unpinned(history: History) -> None:
    site, oldest = history.site, history.ids[20]
    pinned = site.cli("pin", oldest, "--reason", "the audit of [2026]")
    assert (pinned.code, pinned.stderr) == (0, "")
    assert f"{oldest} is pinned: the audit of [2026]" in pinned.stdout
    assert decide(site)[oldest] is True
    assert sorted([*history.names_of(20, *KEPT_DAYS), f"pin_{oldest}.json"]) == list_files(site.directory)
    assert "no longer pinned" in site.cli("unpin", oldest).stdout
    assert "not pinned" in site.cli("unpin", oldest).stdout
    assert decide(site)[oldest] is False
    assert list_files(site.directory) == history.names_of(*KEPT_DAYS)


def test_a_pin_with_a_duration_prints_its_end(history: History) -> None:
    until = f"{datetime.now(timezone.utc) + timedelta(days=30):%Y-%m-%d}"
    assert (
        f"is pinned until {until}: audit"
        in history.site.cli("pin", "latest", "--reason", "audit", "--days", "30").stdout
    )


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("pin", "20200101_000000", "--reason", "x"), 8),
        (("unpin", "20200101_000000"), 8),
        (("pin", "latest"), 64),
    ],
)
def test_a_pin_without_a_point_or_a_reason_is_refused(
    command: tuple[str, ...], code: int, history: History
) -> None:
    assert history.site.cli(*command).code == code
