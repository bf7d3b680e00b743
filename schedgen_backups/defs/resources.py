"""The resource through which assets and checks reach the database, the bucket and the backup directory.

It has no fields: what it gives is read from the environment at the moment of the run, so that a missing value is a failing run with a clear
message and no secret is ever part of a resource's `repr`. No Dagster `EnvVar`: a missing one makes no run at all, only a failed tick. Parsing is
the business of `environment`.
"""

from __future__ import annotations

import dagster as dg
from pydantic import PrivateAttr

from schedgen_backups.config.drill import read_drill_settings
from schedgen_backups.config.environment import (
    load_environment,
    read_backup_settings,
    read_bucket_settings,
    read_database_settings,
    read_live_application,
)
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.drill.scratch import sweep_scratch
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.settings import BackupSettings, BucketSettings, DatabaseSettings
from schedgen_backups.core.system.priority import lower_priority
from schedgen_backups.core.verify.live_system import LiveApplication

POOL = "backup_directory"
"""Steps that write in the directory wait for one another in this pool; the directory's lock is what makes it safe."""


class BackupResource(dg.ConfigurableResource[object]):
    """The database, the bucket and the backup directory as the environment names them at the moment of the run."""

    _catalog: Catalog | None = PrivateAttr(default=None)

    def read_database(self) -> DatabaseSettings:
        """How the database is reached; ConfigurationError otherwise."""
        return read_database_settings(load_environment())

    def read_bucket(self) -> BucketSettings:
        """How the bucket is reached; ConfigurationError otherwise."""
        return read_bucket_settings(load_environment())

    def read_backup(self) -> BackupSettings:
        """Where and how recovery points are kept; ConfigurationError otherwise."""
        return read_backup_settings(load_environment())

    def read_live(self) -> LiveApplication:
        """The live system that missing references are asked about."""
        return read_live_application(load_environment())

    def open_catalog(self, holder: str) -> Catalog:
        """The backup directory, writable and locked until the run's end; what dead runs left in it is gone. LockHeldError otherwise."""
        if self._catalog is None:
            catalog = Catalog(self.read_backup().directory)
            catalog.prepare()
            if catalog.lock.acquire(holder):
                self._yield_to_others()
                catalog.sweep_staging()
                _sweep_drills()
            self._catalog = catalog
        return self._catalog

    def _yield_to_others(self) -> None:
        refusal = lower_priority(self.read_backup().nice)
        if refusal:
            dg.get_dagster_logger().warning(refusal)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """The lock is free again."""
        del context
        if self._catalog is not None:
            self._catalog.lock.release()
            self._catalog = None


def _sweep_drills() -> None:
    """What killed drills left is gone; what cannot be removed now is the next sweep's, and no reason not to back up."""
    try:
        drill = read_drill_settings(load_environment())
    except ConfigurationError:  # the next drill tells what is wrong
        return
    for line in sweep_scratch(drill):
        dg.get_dagster_logger().warning(line)
