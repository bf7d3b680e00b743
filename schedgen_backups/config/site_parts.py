"""The databases and buckets of a site, each with what is wrong with its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

from schedgen_backups.config.config import Config
from schedgen_backups.config.variables import PACK_RECIPIENTS_VARIABLE
from schedgen_backups.core.catalog.check_results import BOTH_KINDS
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.model import ArtifactKind, PartName
from schedgen_backups.core.settings import BucketSource, CaptureSettings, DatabaseSource
from schedgen_backups.core.verify.live_system import SitePart

_ARCHIVE_SETTINGS: Mapping[str, Callable[[CaptureSettings], object]] = {
    "BACKUP_EXCLUDE_OBJECTS": lambda capture: capture.exclusions.objects,
    "BACKUP_ALLOW_EMPTY": lambda capture: capture.is_empty_allowed,
    "BACKUP_ALLOW_NEW_SOURCE": lambda capture: capture.is_new_source_allowed,
    "BACKUP_REREAD_DAYS": lambda capture: capture.reread_days,
    "BACKUP_LAYOUT": lambda capture: capture.layout,
    "BACKUP_PACK_REREAD_DAYS": lambda capture: capture.pack_reread_days,
    PACK_RECIPIENTS_VARIABLE: lambda capture: capture.pack_recipients,
    "BACKUP_MAX_MB_PER_SECOND": lambda capture: capture.transfer.max_mb_per_second,
}
"""The settings of a capture that decide what is archived and how fast the live system is read."""


def read_databases(
    config: Config,
) -> tuple[tuple[DatabaseSource, ...], dict[str, ConfigurationError]]:
    """Return the databases of the site, and what is wrong with the settings of others, by their names."""
    usable, errors = _check_sources(config, ArtifactKind.DATABASE)
    sources = (
        DatabaseSource(name or part.database.database, part.database, part.capture)
        for name, part in usable.items()
    )
    return tuple(sources), errors


def read_buckets(
    config: Config,
) -> tuple[tuple[BucketSource, ...], dict[str, ConfigurationError]]:
    """Return the buckets of the site, and what is wrong with the settings of others, by their names."""
    usable, errors = _check_sources(config, ArtifactKind.BUCKET)
    for name, differing in _find_differing_settings(config).items():
        del usable[name]
        errors[name] = ConfigurationError(
            f"site {config.site_name}: the databases of bucket {name} differ in {', '.join(differing)}",
            hint=f"Set them once, in the table of bucket {name}, or the same in the table of each database.",
        )
    sources = (
        BucketSource(name or part.bucket.bucket, part.bucket, part.capture) for name, part in usable.items()
    )
    return tuple(sources), errors


def _check_sources(
    config: Config, kind: ArtifactKind
) -> tuple[dict[str, Config], dict[str, ConfigurationError]]:
    """Return the first part with each database or bucket that can be used, and what is wrong with others."""
    usable: dict[str, Config] = {}
    errors: dict[str, ConfigurationError] = {}
    for part in config.parts:
        name = part.part.get_source(kind) if part.part is not None else ""
        if part.part is not None and not name:
            continue
        try:
            part.check("database" if kind is ArtifactKind.DATABASE else "bucket", "capture")
        except ConfigurationError as error:
            errors[name] = error
        else:
            usable.setdefault(name, part)
    # A bucket of two databases is captured with the settings of either: those that matter are the same.
    return usable, {name: error for name, error in errors.items() if name not in usable}


def _find_differing_settings(config: Config) -> dict[str, tuple[str, ...]]:
    """Return in which settings of the archive the parts with the same bucket differ, by its name."""
    captures: dict[str, list[CaptureSettings]] = {}
    for part in config.parts:
        if part.part is None or not part.part.bucket:
            continue
        with suppress(ConfigurationError):  # found with the part itself
            part.check("bucket", "capture")
            captures.setdefault(part.part.bucket, []).append(part.capture)
    found = {
        bucket: tuple(
            name.lower()
            for name, read in _ARCHIVE_SETTINGS.items()
            if any(read(each) != read(own[0]) for each in own)
        )
        for bucket, own in captures.items()
    }
    return {bucket: names for bucket, names in found.items() if names}


def find_baseline_source(config: Config) -> str:
    """Return of which part objects are accepted as missing; empty for a site of one part.

    ConfigurationError for a whole site of several.
    """
    if config.part is not None:
        return str(config.part) if config.part_count > 1 else ""
    if len(config.parts) > 1:
        raise ConfigurationError(
            f"the site {config.site_name} has several databases or buckets: name the one that lacks objects",
            hint="Add --site before the command: "
            f"{', '.join(f'{config.site_name}/{name}' for name in list_part_names(config))}.",
        )
    return ""


def read_known_live_parts(config: Config) -> tuple[SitePart, ...]:
    """Return the same as `read_live_parts`, without the live system of a part whose settings are wrong."""
    found: list[SitePart] = []
    for part in config.parts:
        try:
            found += read_live_parts(part)
        except ConfigurationError:
            found += [SitePart(name, None) for name in read_part_names(part)]
    return tuple(found)


def read_live_parts(config: Config) -> tuple[SitePart, ...]:
    """Return each part with its live system; none for a site of one database and one bucket."""
    return tuple(
        SitePart(part.part, part.live_application if part.part.kinds == frozenset(ArtifactKind) else None)
        for part in config.parts
        if part.part is not None
    )


def find_database_server(config: Config) -> str:
    """Return `host:port` of the first database server of the site; empty without one, and while unknown."""
    for part in config.parts:
        if part.part is None or part.part.database:
            try:
                return f"{part.database_server.host}:{part.database_server.port}"
            except ConfigurationError:  # the backup reports it
                return ""
    return ""


def find_kinds(config: Config) -> frozenset[ArtifactKind]:
    """Return whether the site has databases, buckets or both."""
    names = read_part_names(config)
    return frozenset(kind for name in names for kind in name.kinds) if names else frozenset(ArtifactKind)


def has_referring_part(config: Config) -> bool:
    """Return whether the site has a database that can refer to one of its buckets."""
    return any(part.part is None or part.part.kinds == BOTH_KINDS for part in config.parts)


def read_part_names(config: Config) -> tuple[PartName, ...]:
    """Return the names of the parts; none for a site of one database and one bucket."""
    return tuple(part.part for part in config.parts if part.part is not None)


def list_part_names(config: Config) -> list[str]:
    """Return NAME of `--site SITE/NAME` for each part; none for a site of one database and one bucket."""
    return [name.database or name.bucket for name in read_part_names(config)]
