"""The project's definitions with a resource and a schedule that fail while a file says so.

Files can be changed while a daemon runs; its environment cannot. The two alerting sensors run more often;
everything else is unchanged.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from schedgen_backups import definitions  # the module: Dagster wants one Definitions object in a location
from schedgen_backups.config.config import load_config
from schedgen_backups.defs.resources import BackupResource
from schedgen_backups.site_names import OUTBOX_SENSOR

_SECONDS = 5
FOLDER_VARIABLE = "BREAKABLE_FOLDER"


def is_marked(name: str) -> bool:
    return (Path(os.environ[FOLDER_VARIABLE]) / name).exists()


@dg.resource
def breakable_resource(_context: dg.InitResourceContext) -> Iterator[BackupResource]:
    """Start, unless marked as broken."""
    if is_marked("broken resource"):
        raise ConnectionError("no such luck with the resource")
    opened = BackupResource(load_config())
    yield opened
    opened.close()


@dg.schedule(
    name="breakable_schedule",
    job_name="backup_job",
    cron_schedule="* * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def breakable_schedule() -> dg.SkipReason:
    """Request nothing, and raise while marked as broken."""
    if is_marked("broken schedule"):
        raise RuntimeError("no such luck with the schedule")
    return dg.SkipReason("nothing to do")


@dg.sensor(
    name=OUTBOX_SENSOR, minimum_interval_seconds=_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING
)
def quick_outbox(context: dg.SensorEvaluationContext) -> object:
    """Run the real sensor, more often."""
    return definitions.defs.resolve_sensor_def(OUTBOX_SENSOR)(context)


@dg.sensor(
    name="freshness_watch", minimum_interval_seconds=_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING
)
def quick_watch(context: dg.SensorEvaluationContext) -> object:
    """Run the real sensor, more often: its five minutes are too long for a test."""
    return definitions.defs.resolve_sensor_def("freshness_watch")(context)


defs = dg.Definitions(
    assets=list(definitions.defs.assets or []),
    asset_checks=list(definitions.defs.asset_checks or []),
    jobs=list(definitions.defs.jobs or []),
    schedules=[*(definitions.defs.schedules or []), breakable_schedule],
    sensors=[quick_outbox, quick_watch],
    resources={"backup": breakable_resource},
    executor=definitions.defs.executor,
)
