"""The sensor that drills each new point; its runs are real drills."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest

from schedgen_backups.config.config import load_config
from schedgen_backups.core.history.events import DrillEnded, DrillSkipped
from schedgen_backups.core.history.journal import History
from schedgen_backups.defs.site import build_site_definitions
from schedgen_backups.site_names import RESTORE_DRILL, SiteNames
from schedgen_backups_tests.edge.defs.test_drill import name_servers
from schedgen_backups_tests.support.sites import Site

pytestmark = [pytest.mark.edge]


class Sensor:
    """The sensor as it is defined with the site's settings, with its cursor."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._definitions = build_site_definitions(load_config())
        self._instance = instance
        self._cursor: str | None = None

    def tick(self) -> dg.RunRequest | str:
        """Return what the sensor requests, or why nothing."""
        with dg.build_sensor_context(instance=self._instance, cursor=self._cursor) as context:
            answer = self._definitions.resolve_sensor_def("drill_sensor")(context)
            self._cursor = context.cursor
        if isinstance(answer, dg.SkipReason):
            return answer.skip_message or ""
        assert isinstance(answer, dg.RunRequest)
        return answer

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Run what was requested, as the daemon would."""
        job = self._definitions.resolve_job_def("restore_drill_job")
        return job.execute_in_process(
            instance=self._instance,
            run_config=request.run_config,
            tags=dict(request.tags),
            raise_on_error=False,
        )


def names_of_sensors() -> set[str]:
    return {sensor.name for sensor in build_site_definitions(load_config()).sensors or ()}


def test_only_the_setting_defines_the_sensor(site: Site) -> None:
    assert "drill_sensor" not in names_of_sensors()
    site.set(DRILL_AFTER_EACH_POINT="true")
    assert "drill_sensor" in names_of_sensors()


def test_each_new_point_is_drilled_once_and_listed_as_restored_and_equal(
    site: Site, instance: dg.DagsterInstance
) -> None:
    site.set(DRILL_AFTER_EACH_POINT="true")
    name_servers(site)
    assert site.run(instance).success
    sensor = Sensor(instance)
    assert sensor.tick() == "every new recovery point was drilled", "the first point is older than the sensor"
    # Of the command line, as by cron.
    assert site.cli("backup").code == 0
    old, new = (point.point_id.text for point in site.points())
    request = sensor.tick()
    assert isinstance(request, dg.RunRequest)
    assert request.tags["backup/point"] == new
    assert sensor.tick() == "every new recovery point was drilled"
    assert sensor.run(request).success
    rows = {line.split()[0]: line.split() for line in site.cli("list", COLUMNS="200").stdout.splitlines()}
    header = rows["recovery"]
    # "recovery point" and the age are two words or more: counted from the state on.
    assert header[header.index("level") + 1 : header.index("level") + 3] == ["restored", "equal"]
    assert rows[new][rows[new].index("verified") + 2 :][:2] == ["yes", "yes"]
    assert rows[old][rows[old].index("verified") + 2 :][:2] == ["-", "-"]


def test_a_slow_drill_skips_the_next_points_and_the_reason_is_recorded(
    site: Site, instance: dg.DagsterInstance
) -> None:
    site.set(DRILL_AFTER_EACH_POINT="true", BACKUP_SCHEDULE="0 * * * *")
    sensor = Sensor(instance)
    sensor.tick()
    assert site.run(instance).success
    now = datetime.now(timezone.utc)
    history = History(site.directory)
    slow = DrillEnded(
        at=now,
        began_at=now - timedelta(minutes=16),
        point_id="20261122_020000",
        is_passed=True,
        rto_seconds=1,
        rpo_seconds=1,
    )
    history.record(slow)
    [point] = site.points()
    reason = "the last drill took 16 min, more than a quarter of the time between two backups (1 h 0 min)"
    assert sensor.tick() == f"{point.point_id} is not drilled: {reason}"
    assert sensor.tick() == "every new recovery point was drilled"
    [skipped] = [event for event in history.read().events if isinstance(event, DrillSkipped)]
    assert (skipped.point_id, skipped.reason) == (point.point_id.text, reason)
    report = site.cli("report", "--month", f"{now:%Y-%m}", "--to", "report.html")
    assert report.code == 0, report.stderr
    assert reason in " ".join((site.folder / "report.html").read_text().split())


def test_a_drill_and_a_backup_do_not_wait_for_each_other(site: Site) -> None:
    site.set(DRILL_AFTER_EACH_POINT="true")
    definitions = build_site_definitions(load_config())
    pools = {
        name: {
            node.definition.pool
            for node in definitions.resolve_job_def(name).nodes
            if hasattr(node.definition, "pool")
        }
        for name in ("backup_job", "restore_drill_job")
    }
    directory_pool, drill_pool = SiteNames().directory_pool, SiteNames().make_pool(RESTORE_DRILL)
    assert directory_pool in pools["backup_job"]
    assert pools["restore_drill_job"] - {None} == {drill_pool}
    assert not pools["backup_job"] & {drill_pool}
