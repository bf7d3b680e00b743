"""All Dagster definitions of a site."""

from __future__ import annotations

import dagster as dg

from schedgen_backups.config.config import Config
from schedgen_backups.defs.assets import ASSETS, live_system
from schedgen_backups.defs.audit import AUDIT_CHECKS, audit_job
from schedgen_backups.defs.checks import CONDITION_CHECKS, list_checks
from schedgen_backups.defs.copies import list_places, make_copy_definitions
from schedgen_backups.defs.copy_sensor import make_copy_sensor
from schedgen_backups.defs.drill import list_drill_checks, make_drill_asset, make_drill_job
from schedgen_backups.defs.drill_sensor import make_drill_sensor
from schedgen_backups.defs.housekeeping import make_run_removal_job, monthly_report_job
from schedgen_backups.defs.jobs import make_backup_job, prune_job, verify_job
from schedgen_backups.defs.resources import RESOURCE_KEY, make_backup_resource
from schedgen_backups.defs.restore import restore_job
from schedgen_backups.defs.schedules import make_schedules
from schedgen_backups.defs.sensors import make_sensors


def build_site_definitions(config: Config) -> dg.Definitions:
    """Return the definitions of one site.

    Schedules and limits are fixed here; runs and ticks read the configuration again.
    """
    settings = config.definitions
    checks = [
        *list_checks(settings),
        *list_drill_checks(settings),
        *(AUDIT_CHECKS if settings.has_references else ()),
    ]
    places = list_places(config)
    backup = make_backup_resource(config)
    copies = make_copy_definitions(places, backup, timezone=settings.timezone, max_age=settings.max_age)
    return dg.Definitions(
        assets=[*ASSETS, make_drill_asset(settings.drill_max_age), live_system, *copies.assets],
        # The watch reports what is wrong with copies: it knows the store, and a warning only the check.
        asset_checks=[*checks, *CONDITION_CHECKS, *copies.checks],
        jobs=[
            make_backup_job(settings),
            make_drill_job(settings.drill_max_minutes),
            prune_job,
            verify_job,
            restore_job,
            monthly_report_job,
            make_run_removal_job([key for check in (*checks, *CONDITION_CHECKS) for key in check.check_keys]),
            *([audit_job] if settings.has_references else []),
            *copies.copy_jobs,
            *copies.prune_jobs,
        ],
        sensors=[
            *make_sensors(config, checks),
            *([make_drill_sensor(config)] if settings.is_each_point_drilled else []),
            *([make_copy_sensor(config, places, copies.copy_jobs)] if settings.has_stores else []),
        ],
        schedules=[*make_schedules(settings), *copies.schedules],
        resources={RESOURCE_KEY: backup},
        # One process per run: it holds the lock, and nothing remains when it exits.
        executor=dg.in_process_executor,
    )
