"""No two sites of an installation have one directory, one inside the other, or the same copies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from schedgen_backups.config.config import Config
from schedgen_backups.config.stores import STORES_VARIABLE
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError, ConfigurationError


class SiteDirectories:
    """The directories of the sites so far."""

    def __init__(self) -> None:
        self._owners: dict[Path, str] = {}
        self._above: dict[Path, str] = {}  # each with one of the sites below
        self._by_identity: dict[str, Config] = {}

    def add(self, site: Config) -> Config:
        """Return the site; with a problem if an earlier one has its directory, or one above or below it.

        If an earlier one has its identity and a store of its stores, its copies are a problem: each would
        remove those of the other.
        """
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
        return self._refuse_same_copies(site, directory)

    def _refuse_same_copies(self, site: Config, directory: Path) -> Config:
        identity = _read_identity(directory)
        if not identity:
            return site
        other = self._by_identity.setdefault(identity, site)
        if other is site or not _list_places(site) & _list_places(other):
            return site
        return site.with_problems(
            {
                STORES_VARIABLE: f"the directory of site {site.site_name} was copied from that of site "
                f"{other.site_name}, and has its identity: each would remove the copies of the other from "
                "the store that they share. Give one of the sites another store, or an empty directory"
            }
        )


def _read_identity(directory: Path) -> str:
    """Return the identity of the directory; empty without one, or while it cannot be read."""
    with suppress(BackupError, OSError):
        own = Catalog(directory).read_site()
        return own.site_id if own is not None else ""
    return ""


def _list_places(site: Config) -> set[str]:
    with suppress(BackupError):
        return {entry.settings.location.place for entry in site.stores if entry.settings is not None}
    return set()


def refuse_shared_directory(site: Config, others: Sequence[Config]) -> Config:
    """Return the site; with a problem if one of the others has its directory, or one above or below it."""
    directories = SiteDirectories()
    for other in others:
        directories.add(other)
    return directories.add(site)
