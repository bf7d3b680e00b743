"""The sensor that drills each recovery point once it is committed, if DRILL_AFTER_EACH_POINT is set.

It reads the backup directory, so that points of the command line are drilled too.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

from __future__ import annotations

from datetime import datetime, timezone

import dagster as dg
from pydantic import AwareDatetime, ValidationError

from schedgen_backups import run_tags
from schedgen_backups.config.config import Config
from schedgen_backups.config.cron import find_min_gap
from schedgen_backups.core.drill.each_point import explain_no_drill, find_new_points
from schedgen_backups.core.history.events import DrillEnded, DrillSkipped
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.defs.site_sensor import SensorKind, SiteAnswer, SiteSensor, SiteTick
from schedgen_backups.monitoring.skipped_backups import UNFINISHED_STATUSES
from schedgen_backups.site_names import DRILL_JOB, RESTORE_DRILL, SiteNames

_DRILL = SensorKind(
    "drill_sensor",
    60,
    "Starts restore_drill_job for each recovery point that was committed (DRILL_AFTER_EACH_POINT), unless "
    "the last drill took more than a quarter of the time between two backups.",
)


class DrillCursor(FrozenModel):
    """What the sensor keeps between two ticks."""

    since: AwareDatetime
    """Points that were committed before are not drilled."""
    decided: tuple[str, ...] = ()
    """Points committed since then that were requested or skipped, as long as they exist."""


def make_drill_sensor(config: Config) -> SiteSensor:
    """Return this site's part in the sensor."""
    names = SiteNames(config.site_name)
    job_name, op_name = names.qualify(DRILL_JOB), names.qualify(RESTORE_DRILL)

    def request_drill(tick: SiteTick) -> SiteAnswer:
        current, now = tick.config, datetime.now(timezone.utc)
        cursor = _read_cursor(tick) or DrillCursor(since=now)
        tick.update_cursor(cursor.model_dump_json())
        catalog = current.make_catalog()
        if not catalog.directory.is_dir():
            return "no recovery points yet"
        points = catalog.list_points()
        due = find_new_points(points, cursor.since, cursor.decided)
        if not due:
            return "every new recovery point was drilled"
        running = tick.instance.get_run_records(
            dg.RunsFilter(job_name=job_name, statuses=UNFINISHED_STATUSES), limit=1
        )
        if running:
            return "a drill is running"
        point_id, existing = due[0].text, {point.point_id.text for point in points}
        decided = (*(each for each in cursor.decided if each in existing), point_id)
        tick.update_cursor(cursor.model_copy(update={"decided": decided}).model_dump_json())
        history = History(current.site_directory)
        interval = find_min_gap(current.schedule.cron, current.schedule.timezone)
        if reason := explain_no_drill(history.find_last(DrillEnded, lambda last: not last.store), interval):
            history.record(DrillSkipped(at=now, point_id=point_id, reason=reason))
            return f"{point_id} is not drilled: {reason}"
        return dg.RunRequest(
            run_key=f"{op_name} {point_id}",
            run_config={"ops": {op_name: {"config": {"point_id": point_id}}}},
            tags={run_tags.POINT: point_id},
            job_name=job_name,
        )

    return SiteSensor(_DRILL, config, request_drill, (job_name,))


def _read_cursor(tick: SiteTick) -> DrillCursor | None:
    try:
        return DrillCursor.model_validate_json(tick.cursor or "")
    except ValidationError:
        return None
