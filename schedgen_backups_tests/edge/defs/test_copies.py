"""Copies in stores as Dagster runs them: what starts the jobs, what assets show, and what a backup ignores.

Points are made without a server; stores are folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon
from minio.objectlockconfig import DAYS, ObjectLockConfig
from minio.retention import COMPLIANCE

from schedgen_backups.core.catalog.pins import Pin, write_pin
from schedgen_backups.core.copies.local_folder import LocalFolder
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.defs import copy_sensor
from schedgen_backups_tests.support.artifacts import damage
from schedgen_backups_tests.support.inbox import Inbox, Ticks, TickStatus, Watcher, open_inbox
from schedgen_backups_tests.support.servers import S3Server, client_of
from schedgen_backups_tests.support.site_stores import UNREACHABLE, SiteStores
from schedgen_backups_tests.support.sites import (
    Application,
    Site,
    environment_of,
    execute_job,
    failures_of,
)

pytestmark = [pytest.mark.edge]


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteStores:
    return SiteStores(Site(tmp_path, UNREACHABLE, monkeypatch))


@pytest.fixture
def instance(stores: SiteStores) -> Iterator[dg.DagsterInstance]:
    """Return an instance with a home: others have no schedules."""
    with dg.DagsterInstance.from_config(str(stores.site.home)) as opened:
        yield opened


@pytest.fixture
def inbox(stores: SiteStores) -> Iterator[Inbox]:
    with open_inbox() as opened:
        stores.site.set(BACKUP_ALERT_WEBHOOK_URL=opened.url)
        yield opened


class Sensor:
    """The sensor that starts copies, under a clock that the test sets."""

    def __init__(
        self, stores: SiteStores, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.now = datetime.now(timezone.utc)
        self.reason = ""
        self._keys: set[str] = set()
        self._stores = stores
        self._instance = instance
        monkeypatch.setattr(copy_sensor, "now_utc", lambda: self.now)

    def pass_time(self, **span: float) -> None:
        self.now += timedelta(**span)

    def evaluate(self) -> SensorExecutionData:
        repository = self._stores.load().get_repository_def()
        sensor = repository.get_sensor_def("copy_sensor")
        with dg.build_sensor_context(instance=self._instance, repository_def=repository) as context:
            return sensor.evaluate_tick(context)

    def ask(self) -> dict[str, dg.RunRequest]:
        """Return the requested runs by job."""
        data = self.evaluate()
        self.reason = data.skip_message or ""
        requests = {str(request.job_name): request for request in data.run_requests or ()}
        keys = {str(request.run_key) for request in requests.values()}
        # Dagster starts no second run for a key that it has seen.
        assert len(keys - self._keys) == len(requests)
        self._keys |= keys
        return requests

    def run_all(self) -> dict[str, bool]:
        """Run what is requested; return job → whether it succeeded."""
        return {
            name: self._stores.run(self._instance, name, request.tags).success
            for name, request in self.ask().items()
        }


@pytest.fixture
def sensor(stores: SiteStores, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Sensor:
    return Sensor(stores, instance, monkeypatch)


def list_checks(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, dg.AssetCheckSeverity, str]]:
    return {
        found.check_name: (found.passed, found.severity, found.description or "")
        for found in result.get_asset_check_evaluations()
    }


def read_metadata(result: dg.ExecuteInProcessResult, event_type: dg.DagsterEventType) -> dict[str, object]:
    """Return the metadata that the run logged for the asset of a store."""
    [event] = [
        event
        for event in result.all_events
        if event.event_type is event_type and event.asset_key and event.asset_key.path[0] == "offsite_copy"
    ]
    found = (
        event.step_materialization_data.materialization
        if event_type is dg.DagsterEventType.ASSET_MATERIALIZATION
        else event.asset_observation_data.asset_observation
    )
    return {name: value.value for name, value in found.metadata.items()}


def test_a_run_copies_what_is_due_and_proves_it(stores: SiteStores, instance: dg.DagsterInstance) -> None:
    stores.add("nas", "reread_days = 1")
    ids = [stores.take_point(night) for night in range(2)]
    result = stores.run(instance, "copy_to_nas_job")
    assert result.success
    assert stores.list_copies("nas") == ids
    metadata = read_metadata(result, dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert (metadata["points_copied"], metadata["copies"], metadata["problems"]) == (2, 2, "none")
    assert metadata["oldest_unread_pack_sent_at"] == "every pack was read back"
    assert int(str(metadata["uploaded_bytes"])) > 0
    assert int(str(metadata["reused_bytes"])) > 0
    assert "no overwriting: yes" in str(metadata["capabilities"])
    checks = list_checks(result)
    assert {name: passed for name, (passed, _severity, _text) in checks.items()} == {
        "copy_is_complete": True,
        "copy_reads_back": True,
    }


def test_without_a_new_point_the_run_proves_and_materializes_nothing(
    stores: SiteStores, instance: dg.DagsterInstance
) -> None:
    stores.add("nas")
    stores.take_point(0)
    assert stores.run(instance, "copy_to_nas_job").success
    result = stores.run(instance, "copy_to_nas_job")
    metadata = read_metadata(result, dg.DagsterEventType.ASSET_OBSERVATION)
    assert (metadata["points_copied"], metadata["copies"]) == (0, 1)


def test_packs_that_are_not_read_back_yet_are_a_warning(
    stores: SiteStores, instance: dg.DagsterInstance
) -> None:
    stores.add("nas", "reread_days = 30")
    stores.take_point(0)
    result = stores.run(instance, "copy_to_nas_job")
    assert result.success
    passed, severity, text = list_checks(result)["copy_reads_back"]
    assert (passed, severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "never read back" in text


def test_an_altered_pack_fails_the_check_and_not_the_run(
    stores: SiteStores, instance: dg.DagsterInstance
) -> None:
    stores.add("nas", "reread_days = 1")
    stores.take_point(0)
    assert stores.run(instance, "copy_to_nas_job").success
    pack = next(stores.find_folder("nas").glob("*/packs/*"))
    data = pack.read_bytes()
    pack.write_bytes(damage(data, len(data) * 4))
    result = stores.run(instance, "copy_to_nas_job")
    assert result.success
    passed, severity, text = list_checks(result)["copy_reads_back"]
    assert (passed, severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert pack.name in text


def test_a_check_that_is_started_alone_reports_the_last_proof(
    stores: SiteStores, instance: dg.DagsterInstance
) -> None:
    stores.add("nas", "reread_days = 1")
    stores.take_point(0)
    assert stores.run(instance, "copy_to_nas_job").success
    stores.unmount("nas")
    key = dg.AssetKey(["offsite_copy", "nas"])
    chosen = dg.Definitions.merge(
        stores.load(),
        dg.Definitions(
            jobs=[dg.define_asset_job("chosen", selection=dg.AssetSelection.checks_for_assets(key))]
        ),
    )
    result = execute_job(chosen.resolve_job_def("chosen"), instance, None)
    assert result.success
    assert {name: passed for name, (passed, _severity, _text) in list_checks(result).items()} == {
        "copy_is_complete": True,
        "copy_reads_back": True,
    }
    stores.take_point(1)
    result = execute_job(chosen.resolve_job_def("chosen"), instance, None)
    assert not list_checks(result)["copy_is_complete"][0]


def test_of_two_stores_the_one_that_is_down_for_three_nights_catches_up(
    stores: SiteStores, sensor: Sensor
) -> None:
    """The clock of the sensor advances; runs end at the real time, so that no pause is left."""
    stores.add("nas", "reread_days = 1")
    stores.add("usb", "reread_days = 1")
    stores.unmount("usb")
    ids: list[str] = []
    for night in range(3):
        ids.append(stores.take_point(night))
        assert sensor.run_all() == {"copy_to_nas_job": True, "copy_to_usb_job": False}
        assert stores.list_copies("nas") == ids
        assert "is not a store" in stores.read_state("usb").problem
        assert stores.list_copies("usb-disk") == []
        sensor.pass_time(hours=24)
    stores.mount("usb")
    assert sensor.run_all() == {"copy_to_usb_job": True, "copy_to_nas_job": True}
    assert stores.list_copies("usb") == ids
    sensor.now = datetime.now(timezone.utc)
    assert sensor.ask() == {}


def test_a_failed_run_is_repeated_only_after_a_pause(stores: SiteStores, sensor: Sensor) -> None:
    stores.add("usb")
    stores.unmount("usb")
    stores.take_point(0)
    assert sensor.run_all() == {"copy_to_usb_job": False}
    sensor.pass_time(minutes=29)
    assert sensor.ask() == {}
    assert "follows after a pause" in sensor.reason
    sensor.pass_time(minutes=2)
    assert list(sensor.ask()) == ["copy_to_usb_job"]


def test_a_new_point_is_copied_without_a_pause(stores: SiteStores, sensor: Sensor) -> None:
    stores.add("nas")
    stores.take_point(0)
    assert sensor.run_all() == {"copy_to_nas_job": True}
    assert sensor.ask() == {}
    stores.take_point(1)
    assert sensor.run_all() == {"copy_to_nas_job": True}


def test_without_a_new_point_the_store_is_proven_daily(
    stores: SiteStores, instance: dg.DagsterInstance, sensor: Sensor
) -> None:
    stores.add("nas")
    stores.take_point(0)
    assert sensor.run_all() == {"copy_to_nas_job": True}
    sensor.pass_time(hours=24)
    assert sensor.ask() == {}
    sensor.pass_time(hours=1.1)
    assert sensor.run_all() == {"copy_to_nas_job": True}
    assert instance.get_runs_count(dg.RunsFilter(job_name="copy_to_nas_job")) == 2


def test_no_second_run_is_requested_while_one_is_unfinished(
    stores: SiteStores, instance: dg.DagsterInstance, sensor: Sensor
) -> None:
    stores.add("nas")
    stores.take_point(0)
    job = stores.load().resolve_job_def("copy_to_nas_job")
    run = instance.create_run_for_job(job)
    sensor.pass_time(hours=5)
    assert sensor.ask() == {}
    assert "its job is running" in sensor.reason
    instance.report_run_canceled(run)
    assert list(sensor.ask()) == ["copy_to_nas_job"]


def test_a_store_that_is_described_wrongly_has_a_job_that_fails_with_the_reason(
    stores: SiteStores, instance: dg.DagsterInstance, sensor: Sensor
) -> None:
    stores.add("nas")
    stores.describe("My Disk")
    stores.describe("b2", "lock_days = -1")
    stores.take_point(0)
    keys = {key.to_user_string() for key in stores.load().resolve_asset_graph().get_all_asset_keys()}
    assert {"offsite_copy/nas", "offsite_copy/my_disk", "offsite_copy/b2"} <= keys
    assert sensor.run_all() == {
        "copy_to_nas_job": True,
        "copy_to_my_disk_job": False,
        "copy_to_b2_job": False,
    }
    [failure] = failures_of(stores.run(instance, "copy_to_b2_job")).values()
    assert "lock_days" in failure.description
    assert failure.metadata["exit_code"] == 4
    sensor.pass_time(hours=5)
    assert "copy_to_my_disk_job" not in sensor.ask(), "nothing has changed in the file"
    stores.describe("b2")
    assert "copy_to_b2_job" in sensor.ask()


def test_names_that_dagster_cannot_tell_apart_become_different_ones(stores: SiteStores) -> None:
    for name in ("a-b", "a b", "a_b", "-"):
        stores.describe(name)
    defs = stores.load()
    dg.Definitions.validate_loadable(defs)
    names = {job.name for job in defs.get_repository_def().get_all_jobs()}
    assert {f"copy_to_{label}_job" for label in ("a_b", "a_b_2", "a_b_3", "store")} <= names


@pytest.mark.parametrize(
    "text", ["[stores.nas", None, "[store.nas]\n"], ids=["not TOML", "missing", "other table"]
)
def test_a_file_that_cannot_be_read_loads_and_fails_the_tick_with_the_reason(
    stores: SiteStores, instance: dg.DagsterInstance, sensor: Sensor, inbox: Inbox, text: str | None
) -> None:
    if text is not None:
        stores.file.write_text(text)
    stores.take_point(0)
    dg.Definitions.validate_loadable(stores.load())
    with pytest.raises(ConfigurationError, match="stores") as caught:
        sensor.evaluate()
    reason = caught.value.message
    ticks = Ticks(instance, "copy_sensor")
    ticks.add(TickStatus.FAILURE, reason=reason)
    watcher = Watcher("alert_outbox", instance)
    watcher.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[CRITICAL] No run was started: copy_sensor")
    assert reason in alert
    assert Watcher("freshness_watch", instance).evaluate(), "the watch goes on"
    ticks.add(TickStatus.SKIPPED)
    watcher.evaluate()
    assert len(inbox.recoveries) == 1


def test_a_failed_copy_sends_one_alert_that_only_the_same_store_resolves(
    stores: SiteStores, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    stores.add("nas")
    stores.add("usb")
    stores.unmount("usb")
    stores.take_point(0)
    outbox = Watcher("alert_outbox", instance)
    for _ in range(2):
        result = stores.run(instance, "copy_to_usb_job")
        assert not result.success
        assert list_checks(result)["copy_is_complete"][:2] == (False, dg.AssetCheckSeverity.ERROR)
    assert stores.run(instance, "copy_to_nas_job").success
    outbox.evaluate(2)
    [alert] = inbox.alerts
    assert alert.startswith("[MEDIUM] Copy to a store failed: offsite_copy_usb")
    assert "Mount the disk" in alert
    assert "docs/alerts/copy-failed.md" in alert
    assert inbox.recoveries == []
    stores.mount("usb")
    assert stores.run(instance, "copy_to_usb_job").success
    [recovery] = inbox.recoveries
    assert "offsite_copy_usb failed" in recovery


def test_the_outbox_resolves_what_the_hook_could_not(
    stores: SiteStores, instance: dg.DagsterInstance, inbox: Inbox
) -> None:
    stores.add("nas")
    stores.add("usb")
    stores.unmount("usb")
    stores.take_point(0)
    stores.run(instance, "copy_to_usb_job")
    assert len(inbox.alerts) == 1
    inbox.go_down()
    stores.mount("usb")
    assert stores.run(instance, "copy_to_usb_job").success
    inbox.come_up()
    Watcher("alert_outbox", instance).evaluate()
    assert len(inbox.recoveries) == 1


def test_another_process_that_copies_to_the_same_store_fails_the_run_with_5(
    stores: SiteStores, instance: dg.DagsterInstance
) -> None:
    stores.add("nas")
    stores.take_point(0)
    with LocalFolder(stores.site.directory, "nas").held():
        [failure] = failures_of(stores.run(instance, "copy_to_nas_job")).values()
    assert failure.metadata["exit_code"] == 5
    assert stores.run(instance, "copy_to_nas_job").success


def test_a_copy_does_not_need_the_lock_of_the_backup_directory(
    stores: SiteStores, instance: dg.DagsterInstance
) -> None:
    stores.add("nas")
    stores.take_point(0)
    with stores.catalog.lock.held("a backup"):
        assert stores.run(instance, "copy_to_nas_job").success


def test_pruning_keeps_what_is_pinned_here(stores: SiteStores, instance: dg.DagsterInstance) -> None:
    stores.add("nas")
    ids = [stores.take_point(night) for night in range(3)]
    assert stores.run(instance, "copy_to_nas_job").success
    write_pin(stores.catalog, Pin(point_id=ids[0], reason="audit", pinned_at=datetime.now(timezone.utc)))
    expired = datetime.now(timezone.utc) - timedelta(days=1)
    write_pin(stores.catalog, Pin(point_id=ids[1], reason="over", pinned_at=expired, expires_at=expired))
    stores.describe("nas", "retention = {days = 1, weeks = 0, months = 0, keep_last = 1}")
    result = stores.run(instance, "prune_copies_in_nas_job")
    assert result.success
    assert stores.list_copies("nas") == [ids[0], ids[2]]
    metadata = read_metadata(result, dg.DagsterEventType.ASSET_OBSERVATION)
    assert (metadata["copies_kept"], metadata["copies_removed"]) == (2, 1)
    assert "pinned: audit" in str(metadata["decisions"])


def test_only_a_host_that_may_delete_prunes(stores: SiteStores) -> None:
    stores.describe("nas")
    stores.describe("b2", "append_only = true")
    stores.describe("s3", "append_only = true\nprune = {access_key = 'x'}")
    defs = stores.load()
    names = {job.name for job in defs.get_repository_def().get_all_jobs()}
    assert {name for name in names if name.startswith("prune_copies")} == {
        "prune_copies_in_nas_job",
        "prune_copies_in_s3_job",
    }
    schedules = {schedule.name for schedule in defs.get_repository_def().schedule_defs}
    assert {name for name in schedules if "copies" in name} == {
        "weekly_prune_copies_in_nas_schedule",
        "weekly_prune_copies_in_s3_schedule",
    }


def test_locks_are_checked_where_there_are_locks_or_should_be(
    stores: SiteStores, instance: dg.DagsterInstance
) -> None:
    stores.add("nas", "lock_days = 30")
    stores.add("usb")
    stores.take_point(0)
    names = {
        (key.asset_key.path[-1], key.name)
        for key in stores.load().resolve_asset_graph().asset_check_keys
        if key.name == "copy_is_locked"
    }
    assert names == {("nas", "copy_is_locked")}
    result = stores.run(instance, "copy_to_nas_job")
    passed, severity, text = list_checks(result)["copy_is_locked"]
    assert (passed, severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "not every file is locked" in text


@pytest.fixture
def locked_bucket(s3_server: S3Server) -> BucketSettings:
    """Return a bucket that locks every new object for two days."""
    settings = s3_server.settings(f"locked-{uuid4().hex}")
    client = client_of(settings)
    client.make_bucket(settings.bucket, object_lock=True)
    client.set_object_lock_config(settings.bucket, ObjectLockConfig(COMPLIANCE, 2, DAYS))
    return settings


@pytest.mark.parametrize(("lock_days", "shortest"), [(0, 1), (30, 29)])
def test_in_a_locked_bucket_every_file_of_a_copy_is_locked_as_long_as_the_check_says(
    stores: SiteStores,
    instance: dg.DagsterInstance,
    locked_bucket: BucketSettings,
    lock_days: int,
    shortest: int,
) -> None:
    stores.describe_bucket("b2", locked_bucket, f"lock_days = {lock_days}")
    stores.take_point(0)
    result = stores.run(instance, "copy_to_b2_job")
    assert result.success
    now = datetime.now(timezone.utc)
    client = client_of(locked_bucket)
    keys = [
        found.object_name or ""
        for found in client.list_objects(locked_bucket.bucket, recursive=True)
        if any(part in (found.object_name or "") for part in ("/packs/", "/points/"))
    ]
    retentions = [client.get_object_retention(locked_bucket.bucket, key) for key in keys]
    ends = [retention.retain_until_date for retention in retentions if retention is not None]
    assert len(ends) == len(keys) > 5
    assert min(ends) > now + timedelta(days=shortest)
    # Whether this job knew of locks when its definitions were loaded decides whether it has the check.
    result = stores.run(instance, "copy_to_b2_job")
    assert list_checks(result)["copy_is_locked"][0]
    locked_until = stores.read_state("b2").locked_until
    assert locked_until is not None
    assert abs(locked_until - min(ends)) < timedelta(seconds=2)


def test_without_a_file_of_stores_nothing_is_defined(stores: SiteStores) -> None:
    stores.site.unset("BACKUP_STORES_FILE")
    repository = stores.load().get_repository_def()
    names = {job.name for job in repository.get_all_jobs()} | {each.name for each in repository.sensor_defs}
    assert {name for name in names if "cop" in name} == set()


def test_copies_wait_in_their_own_pools(stores: SiteStores) -> None:
    """Runs wait for each other if they share a pool (dagster.yaml); a backup shares none with a store."""
    stores.describe("nas")
    stores.describe("usb")
    defs = stores.load()
    pools = {
        name: {node.pool for node in defs.resolve_job_def(name).graph.node_defs} - {None}  # type: ignore[attr-defined]
        for name in (
            "backup_job",
            "prune_job",
            "restore_job",
            "restore_drill_job",
            "copy_to_nas_job",
            "prune_copies_in_nas_job",
            "copy_to_usb_job",
        )
    }
    assert pools["backup_job"] == pools["prune_job"] == pools["restore_job"] == {"backup_directory"}
    assert pools["copy_to_nas_job"] == pools["prune_copies_in_nas_job"] == {"copies_nas"}
    assert pools["copy_to_usb_job"] == {"copies_usb"}
    assert "backup_directory" not in pools["restore_drill_job"]


def test_a_backup_and_materialize_all_ignore_a_store_that_is_down(
    stores: SiteStores, instance: dg.DagsterInstance, application: Application
) -> None:
    """With a real database and bucket: the backup neither waits for the store nor fails by it."""
    stores.site.set(**environment_of(application, stores.site.directory))
    stores.describe("usb")
    defs = stores.load()
    result = execute_job(defs.resolve_job_def("backup_job"), instance, None)
    assert result.success
    chosen = dg.Definitions.merge(
        defs, dg.Definitions(jobs=[dg.define_asset_job("chosen", selection=dg.AssetSelection.all())])
    )
    result = execute_job(chosen.resolve_job_def("chosen"), instance, None)
    assert result.success
    steps = {str(event.step_key) for event in result.all_events if event.is_step_success}
    assert "recovery_point" in steps
    assert {step for step in steps if step.startswith("offsite_copy_usb")} == set()
    assert len(stores.site.points()) == 2
    state = stores.read_state("usb")
    assert (state.attempted_at, state.points) == (None, ())


def test_a_queued_backup_starts_while_a_copy_runs_but_not_while_another_backup_does(
    stores: SiteStores, instance: dg.DagsterInstance
) -> None:
    """As Dagster's queue decides with the project's dagster.yaml."""
    stores.describe("nas")
    defs = stores.load()

    location = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="schedgen_backups.definitions"))
    repository = RemoteRepositoryOrigin(location, "__repository__")

    def create(job_name: str, status: dg.DagsterRunStatus) -> str:
        run = instance.create_run_for_job(
            defs.resolve_job_def(job_name),
            status=status,
            remote_job_origin=RemoteJobOrigin(repository, job_name),
        )
        return run.run_id

    def choose() -> set[str]:
        config = instance.get_concurrency_config()
        daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
        return {run.run_id for run in daemon._get_runs_to_dequeue(instance, config, None)}

    # Dagster learns of a pool when a run that needs it is first in the queue.
    first = [create(name, dg.DagsterRunStatus.QUEUED) for name in ("backup_job", "copy_to_nas_job")]
    choose()
    for run_id in first:
        instance.delete_run(run_id)
    create("copy_to_nas_job", dg.DagsterRunStatus.STARTED)
    create("copy_to_nas_job", dg.DagsterRunStatus.QUEUED)
    backup = create("backup_job", dg.DagsterRunStatus.QUEUED)
    assert choose() == {backup}
    create("prune_job", dg.DagsterRunStatus.STARTED)
    assert choose() == set()
