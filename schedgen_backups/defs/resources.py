"""The resource through which assets, checks and hooks reach the configuration and the backup directory.

It is made when a run begins and reads the environment then: an edited environment file counts from the next
run on, and a missing value is a failing run with a clear message. No Dagster `EnvVar`: a missing one makes no
run at all, only a failed tick.
"""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.drill.scratch import sweep_scratch
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.system.priority import lower_priority
from schedgen_backups.defs.commands import BackupCommands

RESOURCE_KEY = "backup"
POOL = "backup_directory"
"""Steps that write in the directory wait for one another in this pool; the directory's lock is what makes it
safe."""

MAX_RUNTIME_TAG = "dagster/max_runtime"
"""Seconds after which Dagster's run monitoring ends a run (Dagster documentation, run monitoring)."""
_ENDED_BADLY = frozenset(
    {dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE}
)


class BackupResource:
    """The configuration of a run, and the backup directory once the run has opened it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.commands = BackupCommands(config)
        self._catalog: Catalog | None = None

    def open_catalog(self, holder: str) -> Catalog:
        """Return the backup directory, writable and locked until the run's end, without what dead runs left
        in it. LockHeldError otherwise.
        """
        if self._catalog is None:
            nice = self.config.schedule.nice
            catalog = Catalog(self.config.backup_directory)
            catalog.prepare()
            if catalog.lock.acquire(holder):
                if refusal := lower_priority(nice):
                    dg.get_dagster_logger().warning(refusal)
                catalog.sweep_staging()
                _sweep_drills(self.config)
            self._catalog = catalog
        return self._catalog

    def close(self) -> None:
        """Free the lock."""
        if self._catalog is not None:
            self._catalog.lock.release()
            self._catalog = None


def make_backup_resource(config: Config) -> dg.ResourceDefinition:
    """Return the resource of this site."""

    @dg.resource(
        description="The configuration as it is when the run begins, and the backup directory, locked "
        "until the run's end."
    )
    def backup(context: dg.InitResourceContext) -> Iterator[BackupResource]:
        opened = BackupResource(config.reload())
        try:
            yield opened
        finally:
            try:
                # Still under the lock: the command after a backup belongs to it.
                if opened.commands.has_begun:
                    opened.commands.end(has_failed=_has_failed_step(context))
            finally:
                opened.close()

    return backup


def _has_failed_step(context: dg.InitResourceContext) -> bool:
    instance, run = context.instance, context.run
    if instance is None or run is None:
        return False
    now = instance.get_run_by_id(run.run_id)
    return instance.get_run_stats(run.run_id).steps_failed > 0 or (
        now is not None and now.status in _ENDED_BADLY
    )


def _sweep_drills(config: Config) -> None:
    """Remove what killed drills left; what cannot be removed now is the next sweep's, and no reason not to
    back up.
    """
    try:
        drill = config.drill
    except ConfigurationError:  # the next drill reports what is wrong
        return
    for line in sweep_scratch(drill):
        dg.get_dagster_logger().warning(line)
