"""All Dagster definitions of a site, and of an installation with several sites."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import dagster as dg

from schedgen_backups.config.config import Config
from schedgen_backups.config.site_parts import find_database_server, find_kinds, has_referring_part
from schedgen_backups.defs.assets import make_assets
from schedgen_backups.defs.audit import make_audit_check, make_audit_job
from schedgen_backups.defs.checks import make_checks, make_condition_checks
from schedgen_backups.defs.copies import list_places, make_copy_definitions
from schedgen_backups.defs.copy_sensor import make_copy_sensor
from schedgen_backups.defs.drill import make_drill_asset, make_drill_checks, make_drill_job
from schedgen_backups.defs.drill_sensor import make_drill_sensor
from schedgen_backups.defs.housekeeping import make_report_job, make_run_removal_job
from schedgen_backups.defs.jobs import make_backup_job, make_prune_job, make_verify_job
from schedgen_backups.defs.resources import make_backup_resource
from schedgen_backups.defs.restore import make_restore_job
from schedgen_backups.defs.schedules import make_run_removal_schedule, make_schedules
from schedgen_backups.defs.sensors import make_sensors
from schedgen_backups.defs.site_sensor import SiteSensor, make_own_sensor, make_shared_sensors
from schedgen_backups.site_names import InstallationNames, SiteNames


def build_site_definitions(config: Config) -> dg.Definitions:
    """Return the definitions of an installation whose only site this is.

    Schedules and limits are fixed here; runs and ticks read the configuration again.
    """
    return build_installation_definitions([config])


def build_installation_definitions(configs: Sequence[Config]) -> dg.Definitions:
    """Return the definitions of these sites, and those that an installation has once.

    There is at least one site. Raise ValueError if two have the same name, or Dagster cannot use one.
    """
    installation = InstallationNames(tuple(SiteNames(config.site_name) for config in configs))
    sites = [_build_site(config, installation) for config in configs]
    keeper = next(config for config in configs if config.site_name == installation.keeper.site)
    shared = _build_shared(keeper, [site.definitions for site in sites])
    if len(sites) == 1 and not keeper.site_name:
        return dg.Definitions.merge(sites[0].add_sensors(), shared)
    isolated = [_isolate(site.definitions) for site in sites]
    sensors = make_shared_sensors(
        [sensor for site in sites for sensor in site.sensors],
        {name: job for site in isolated for name, job in _list_jobs(site).items()},
    )
    return dg.Definitions.merge(*isolated, dg.Definitions(sensors=sensors), shared)


def build_embedded_definitions(config: Config) -> dg.Definitions:
    """Return the definitions of a site in a code location that also has definitions of others.

    Nothing in them concerns runs of others: neither alerts of their failures nor the removal of old runs.
    """
    # Every name that is not this site's belongs to a site without a name, which the location does not have.
    installation = InstallationNames((SiteNames(), SiteNames(config.site_name)))
    return _isolate(_build_site(config, installation).add_sensors())


@dataclass(frozen=True)
class _Site:
    """The definitions of one site, with its part in the sensors apart."""

    definitions: dg.Definitions
    sensors: tuple[SiteSensor, ...]

    def add_sensors(self) -> dg.Definitions:
        """Return the definitions with sensors that are the site's own."""
        jobs = _list_jobs(self.definitions)
        own = dg.Definitions(sensors=[make_own_sensor(sensor, jobs) for sensor in self.sensors])
        return dg.Definitions.merge(self.definitions, own)


def _list_jobs(definitions: dg.Definitions) -> dict[str, dg.JobDefinition]:
    return {job.name: job for job in definitions.jobs or () if isinstance(job, dg.JobDefinition)}


def _isolate(site: dg.Definitions) -> dg.Definitions:
    """Return the site's definitions with jobs that know its own assets and resources only.

    Otherwise Dagster searches all assets of the location for each job, and binds every site's resource to it:
    the time to load would grow with the square of the number of sites (200 sites: 54 s of processor time
    instead of 15 s, 2026-11-30). The jobs keep the site's executor; a code location has one, its owner's.
    """
    return dg.Definitions(
        assets=site.assets,
        asset_checks=site.asset_checks,
        jobs=[site.resolve_job_def(job.name) for job in site.jobs or ()],
        sensors=site.sensors,
        schedules=site.schedules,
        resources=site.resources,
    )


def _build_shared(keeper: Config, sites: Iterable[dg.Definitions]) -> dg.Definitions:
    """Return what an installation has once, with the settings of the site that keeps it."""
    check_keys = [
        key
        for site in sites
        for check in site.asset_checks or ()
        if isinstance(check, dg.AssetChecksDefinition)
        for key in check.check_keys
    ]
    return dg.Definitions(
        jobs=[make_run_removal_job(SiteNames(keeper.site_name), check_keys)],
        schedules=[make_run_removal_schedule(keeper.definitions.timezone)],
        executor=dg.in_process_executor,
    )


def _build_site(config: Config, installation: InstallationNames) -> _Site:
    names, settings, kinds = SiteNames(config.site_name), config.definitions, find_kinds(config)
    if not has_referring_part(config):
        settings = replace(settings, has_references=False)
    assets = make_assets(names, kinds)
    audit_checks = [make_audit_check(names)] if settings.has_references else []
    checks = [*make_checks(names, settings, kinds), *make_drill_checks(names, settings), *audit_checks]
    places = list_places(config)
    backup = make_backup_resource(config)
    copies = make_copy_definitions(places, backup, timezone=settings.timezone, max_age=settings.max_age)
    definitions = dg.Definitions(
        assets=[
            *assets.captures,
            assets.recovery_point,
            make_drill_asset(names, settings.drill_max_age),
            assets.live_system,
            *copies.assets,
        ],
        # The watch reports what is wrong with copies: it knows the store, and a warning only the check.
        asset_checks=[*checks, *make_condition_checks(names), *copies.checks],
        jobs=[
            make_backup_job(names, settings, kinds, find_database_server(config)),
            make_drill_job(names, settings.drill_max_minutes),
            make_prune_job(names),
            make_verify_job(names),
            make_restore_job(names),
            make_report_job(names),
            *(make_audit_job(names, check) for check in audit_checks),
            *copies.copy_jobs,
            *copies.prune_jobs,
        ],
        schedules=[*make_schedules(names, settings), *copies.schedules],
        resources={names.resource_key: backup},
        # One process per run: it holds the lock, and nothing remains when it exits.
        executor=dg.in_process_executor,
    )
    sensors = (
        *make_sensors(config, checks, installation),
        *([make_drill_sensor(config)] if settings.is_each_point_drilled else []),
        *([make_copy_sensor(config, places)] if settings.has_stores else []),
    )
    return _Site(definitions, sensors)
