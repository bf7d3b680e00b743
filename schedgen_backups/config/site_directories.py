"""No two sites of an installation have one directory, nor one inside the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from schedgen_backups.config.config import Config
from schedgen_backups.core.errors import ConfigurationError


class SiteDirectories:
    """The directories of the sites so far."""

    def __init__(self) -> None:
        self._owners: dict[Path, str] = {}
        self._above: dict[Path, str] = {}  # each with one of the sites below

    def add(self, site: Config) -> Config:
        """Return the site; with a problem if an earlier one has its directory, or one above or below it."""
        try:
            directory = site.site_directory.resolve()
        except ConfigurationError:
            return site
        found = [*map(self._owners.get, (directory, *directory.parents)), self._above.get(directory)]
        for name in (each for each in found if each is not None):
            return site.with_problems(
                {
                    "BACKUP_DIR": f"site {site.site_name} and site {name} share the directory {directory}: "
                    "each needs one of its own"
                }
            )
        self._owners[directory] = site.site_name
        self._above |= dict.fromkeys(directory.parents, site.site_name)
        return site


def refuse_shared_directory(site: Config, others: Sequence[Config]) -> Config:
    """Return the site; with a problem if one of the others has its directory, or one above or below it."""
    directories = SiteDirectories()
    for other in others:
        directories.add(other)
    return directories.add(site)
