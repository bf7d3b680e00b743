"""The databases and buckets of a site, each with what is wrong with its settings."""

from __future__ import annotations

from schedgen_backups.config.config import Config
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.model import ArtifactKind, PartName
from schedgen_backups.core.settings import BucketSource, DatabaseSource
from schedgen_backups.core.verify.live_system import SitePart


def read_databases(
    config: Config,
) -> tuple[tuple[DatabaseSource, ...], dict[str, ConfigurationError]]:
    """Return the databases of the site, and what is wrong with the settings of others, by their names."""
    found: dict[str, DatabaseSource] = {}
    errors: dict[str, ConfigurationError] = {}
    for part in config.parts:
        name = part.part.database if part.part is not None else ""
        if part.part is not None and not name:
            continue
        try:
            part.check("database", "capture")
            settings = part.database
        except ConfigurationError as error:
            errors[name] = error
        else:
            found.setdefault(name, DatabaseSource(name or settings.database, settings, part.capture))
    return tuple(found.values()), errors


def read_buckets(
    config: Config,
) -> tuple[tuple[BucketSource, ...], dict[str, ConfigurationError]]:
    """Return the buckets of the site, and what is wrong with the settings of others, by their names."""
    found: dict[str, BucketSource] = {}
    errors: dict[str, ConfigurationError] = {}
    for part in config.parts:
        name = part.part.bucket if part.part is not None else ""
        if part.part is not None and not name:
            continue
        try:
            part.check("bucket", "capture")
            settings = part.bucket
        except ConfigurationError as error:
            errors[name] = error
        else:
            found.setdefault(name, BucketSource(name or settings.bucket, settings, part.capture))
    return tuple(found.values()), errors


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


def read_part_names(config: Config) -> tuple[PartName, ...]:
    """Return the names of the parts; none for a site of one database and one bucket."""
    return tuple(part.part for part in config.parts if part.part is not None)
