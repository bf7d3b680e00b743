"""The names that Dagster knows a site's definitions by, made from the name of the site.

One code location can hold several sites, and Dagster refuses two definitions of one name. The site without a
name has the local names, such as `backup_job`; the site `acme` has `acme__backup_job`. Files in the backup
directory, alerts and commands contain local names only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

LIVE_SYSTEM = "live_system"
DATABASE_DUMP = "database_dump"
MINIO_ARCHIVE = "minio_archive"
RECOVERY_POINT = "recovery_point"
RESTORE_DRILL = "restore_drill"
"""The drill's asset, the step that drills, and the pool of its runs."""
RESTORES = "restores"
"""The asset that restores are recorded with; it has no definition."""
COPIES = "offsite_copy"
"""First part of the asset of each store's copies."""

BACKUP_JOB = "backup_job"
PRUNE_JOB = "prune_job"
VERIFY_JOB = "verify_job"
RESTORE_JOB = "restore_job"
AUDIT_JOB = "audit_job"
DRILL_JOB = "restore_drill_job"
REPORT_JOB = "monthly_report_job"
RUN_REMOVAL_JOB = "remove_old_runs_job"
"""The job of an installation, whatever its sites are: it has no site's name."""

BACKUP_SCHEDULE = "daily_backup_schedule"
"""The name is kept whatever BACKUP_SCHEDULE is: Dagster stores the history of a schedule under its name."""
OUTBOX_SENSOR = "alert_outbox"
WATCH_SENSOR = "freshness_watch"

SITE_NAME_PATTERN = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
"""What Dagster accepts in names, without the separator of site and local name."""
_SEPARATOR = "__"
RESERVED_SITE_NAMES = frozenset({COPIES})
"""Dagster names the checks of copies `offsite_copy__STORE_CHECK`."""
_BACKUP = "backup"


@dataclass(frozen=True)
class SiteNames:
    """The names of one site. Raises ValueError if Dagster cannot use the site's name in other names."""

    site: str = ""
    """Empty for the only site of an installation without a file of sites."""

    def __post_init__(self) -> None:
        if self.site and (not SITE_NAME_PATTERN.fullmatch(self.site) or self.site in RESERVED_SITE_NAMES):
            raise ValueError(f"{self.site!r} cannot be the name of a site")

    @property
    def group(self) -> str:
        """Group of the site's assets."""
        return self.site or _BACKUP

    @property
    def resource_key(self) -> str:
        """Key of the resource that opens the site's configuration and backup directory."""
        return self._add_suffix(_BACKUP)

    @property
    def directory_pool(self) -> str:
        """Pool of the runs that write to the backup directory, or to the live system.

        They wait for each other. The directory's lock ensures safety.
        """
        return self.make_pool("backup_directory")

    def make_pool(self, local: str) -> str:
        """Return the site's pool of this local name."""
        return self._add_suffix(local)

    def qualify(self, local: str) -> str:
        """Return the full name of the job, op, schedule, sensor or hook with this local name."""
        return f"{self.site}{_SEPARATOR}{local}" if self.site else local

    def localize(self, name: str) -> str:
        """Return the local name of one of the site's full names; any other name as it is."""
        return name.removeprefix(self.qualify(""))

    def make_asset_path(self, *parts: str) -> tuple[str, ...]:
        """Return the path of the asset with these local parts.

        Dagster names the asset's op, and those of its checks, by the path joined by two underscores: the same
        as `qualify`.
        """
        return (self.site, *parts) if self.site else parts

    def make_tag(self, tag: str) -> str:
        """Return the site's own form of a run's tag: a run from the UI may be of several sites."""
        return f"{tag}.{self.site}" if self.site else tag

    def _add_suffix(self, local: str) -> str:
        return f"{local}{_SEPARATOR}{self.site}" if self.site else local


def name_shared(local: str) -> str:
    """Return the name of the sensor that serves all sites of a file.

    It is not that of the site without a name: the two keep different cursors.
    """
    return f"{local}_of_all_sites"


@dataclass(frozen=True)
class InstallationNames:
    """The sites of an installation, and which of them a name belongs to.

    A name that no site made belongs to the site without a name, otherwise to the first: someone has to send
    the alerts of the installation's own jobs and of foreign ones.
    """

    sites: tuple[SiteNames, ...]
    """At least one; their names are distinct."""
    _by_name: Mapping[str, SiteNames] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {names.site: names for names in self.sites}
        if len(by_name) != len(self.sites):
            raise ValueError("two sites have the same name")
        object.__setattr__(self, "_by_name", MappingProxyType(by_name))

    @property
    def keeper(self) -> SiteNames:
        """The site to which everything belongs that has no site's name."""
        return self._by_name.get("", self.sites[0])

    def find_owner(self, name: str) -> SiteNames:
        """Return the site of the job, step, schedule or sensor of this full name."""
        site, separator, _local = name.partition(_SEPARATOR)
        return self._by_name.get(site, self.keeper) if separator and site else self.keeper

    def find_owner_of_asset(self, path: Sequence[str]) -> SiteNames:
        """Return the site of the asset with this path."""
        return self._by_name.get(path[0], self.keeper) if len(path) > 1 else self.keeper
