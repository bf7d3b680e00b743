"""The resource that gives assets, checks and hooks the configuration and the backup directory.

It reads the environment when a run starts: an edited environment file applies from the next run, and a
missing value fails the run with a clear message. With a Dagster `EnvVar`, a missing value would start no run
at all, only fail the tick.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import dagster as dg

from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.drill.scratch import sweep_scratch
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.system.priority import lower_priority
from schedgen_backups.defs.commands import BackupCommands
from schedgen_backups.evidence.metrics import write_metrics_file
from schedgen_backups.site_names import SiteNames

MAX_RUNTIME_TAG = "dagster/max_runtime"
"""Seconds after which Dagster's run monitoring aborts a run (Dagster documentation, run monitoring)."""
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
        """Return the backup directory, locked until the end of the run and without files of killed runs.

        Raise LockHeldError if another run holds the lock.
        """
        if self._catalog is None:
            nice = self.config.schedule.nice
            catalog = self.config.make_catalog()
            catalog.prepare()
            if catalog.lock.acquire(holder):
                if refusal := lower_priority(nice):
                    dg.get_dagster_logger().warning(refusal)
                catalog.sweep_staging()
                _sweep_drills(self.config)
            self._catalog = catalog
        return self._catalog

    def close(self) -> None:
        """Release the lock."""
        if self._catalog is not None:
            self._catalog.lock.release()
            self._catalog = None


class _Context(Protocol):
    """A context of Dagster with the resources of its step."""

    @property
    def resources(self) -> Any:
        """The resources by key, as attributes."""


def get_backup(context: _Context, names: SiteNames) -> BackupResource:
    """Return the resource of this site; its step requires `names.resource_key`."""
    backup = getattr(context.resources, names.resource_key)
    if not isinstance(backup, BackupResource):
        raise TypeError(f"the resource {names.resource_key} is {type(backup).__name__}")
    return backup


def make_backup_resource(config: Config) -> dg.ResourceDefinition:
    """Return the resource of this site."""

    @dg.resource(
        description="The configuration at the start of the run, and the backup directory, locked until the "
        "end of the run."
    )
    def backup(context: dg.InitResourceContext) -> Iterator[BackupResource]:
        opened = BackupResource(config.reload())
        try:
            yield opened
        finally:
            try:
                # The lock is still held: the command after a backup is part of the backup.
                if opened.commands.has_begun:
                    opened.commands.end(has_failed=_has_failed_step(context))
            finally:
                opened.close()
                write_metrics_file(opened.config)

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
    """Remove what killed drills left; log what cannot be removed, which must not block a backup."""
    try:
        drill = config.drill
    except ConfigurationError:  # the next drill reports it
        return
    for line in sweep_scratch(drill):
        dg.get_dagster_logger().warning(line)
