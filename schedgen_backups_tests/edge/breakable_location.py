"""The project's definitions with a resource and a schedule that fail while a file says so, for a daemon that is started once and watched.

The environment of a daemon cannot be changed from outside, files can. Everything else is the real thing.
"""

import os
from pathlib import Path

import dagster as dg

from schedgen_backups import definitions  # the module: Dagster wants one Definitions object in a location
from schedgen_backups.resources import BackupResource

FOLDER_VARIABLE = "BREAKABLE_FOLDER"


def is_marked(name: str) -> bool:
    return (Path(os.environ[FOLDER_VARIABLE]) / name).exists()


class BreakableResource(BackupResource):
    """A resource that does not come up while it is marked as broken."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        del context
        if is_marked("broken resource"):
            raise ConnectionError("no such luck with the resource")


@dg.schedule(
    name="breakable_schedule",
    job_name="backup_job",
    cron_schedule="* * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def breakable_schedule() -> dg.SkipReason:
    """Asks for nothing, and raises while it is marked as broken."""
    if is_marked("broken schedule"):
        raise RuntimeError("no such luck with the schedule")
    return dg.SkipReason("nothing to do")


defs = dg.Definitions(
    assets=list(definitions.defs.assets or []),
    asset_checks=list(definitions.defs.asset_checks or []),
    jobs=list(definitions.defs.jobs or []),
    schedules=[*(definitions.defs.schedules or []), breakable_schedule],
    sensors=list(definitions.defs.sensors or []),
    resources={"backup": BreakableResource()},
    executor=definitions.defs.executor,
)
