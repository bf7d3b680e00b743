"""How a person names a recovery point, on the command line and in the Launchpad: an id, `latest`, or a time.

Add a way of naming one here. Listing and reading points is the business of `core.catalog`.
"""

from __future__ import annotations

from datetime import datetime

from schedgen_backups.config.environment import load_environment, read_backup_settings
from schedgen_backups.core.catalog.catalog import Catalog, PointListing, PointState
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.model import RecoveryPointId

LATEST = "latest"


def open_catalog() -> Catalog:
    """The backup directory; ConfigurationError when it is not there."""
    directory = read_backup_settings(load_environment()).directory
    if not directory.is_dir():
        raise ConfigurationError(f"BACKUP_DIR {directory} is no folder", hint="Set BACKUP_DIR, or take a first backup.")
    return Catalog(directory)


def get_point(catalog: Catalog, text: str, *, as_of: str = "") -> PointListing:
    """The point of this id, the newest sealed one for `latest`, or with `as_of` as `get_point_as_of` says; ConfigurationError when there is none."""
    if as_of and text != LATEST:
        raise ConfigurationError(f"both {text} and a time are given", hint="Give `latest` as the id beside --as-of.")
    if as_of:
        return get_point_as_of(catalog, as_of)
    if text == LATEST:
        sealed = [point for point in catalog.list_points() if point.manifest is not None]
        if not sealed:
            raise ConfigurationError(f"there is no sealed recovery point in {catalog.directory}", hint="Take one: schedgen-backups backup")
        return sealed[-1]
    return catalog.get_point(RecoveryPointId.parse(text))


def get_point_as_of(catalog: Catalog, text: str) -> PointListing:
    """The newest verified point whose snapshot is not later than this time, ISO 8601, without an offset in BACKUP_TIMEZONE.

    ConfigurationError when the text is no time, or no point is as old.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is no time", hint="Write it as 2026-11-22 14:30, or with an offset as 2026-11-22T14:30+02:00.") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=read_backup_settings(load_environment()).timezone)
    fitting = [
        point
        for point in catalog.list_points()
        if point.state is PointState.VERIFIED and point.manifest is not None and point.manifest.snapshot_at <= moment
    ]
    if not fitting:
        raise ConfigurationError(f"no verified recovery point is as old as {text}", hint="`schedgen-backups list` shows those there are.")
    return fitting[-1]
