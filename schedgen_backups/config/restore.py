"""Turn the arguments of a restore, from command line or Launchpad, into requests of `core.restore`."""

from __future__ import annotations

from schedgen_backups.config.config import Config
from schedgen_backups.config.site_parts import list_part_names
from schedgen_backups.config.targets import read_bucket_target, read_database_target, read_live_database
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.restore.point import RestoreRequest
from schedgen_backups.core.restore.tables import TableRequest
from schedgen_backups.core.restore.undelete import UndeleteRequest
from schedgen_backups.core.settings import BucketSettings


def read_restored_part(config: Config, name: str) -> Config:
    """Return the part of this name, or a site of one database and one bucket, whose name is empty.

    ConfigurationError if a part of a divided site is not named, or if there is none of this name.
    """
    if name and not config.is_divided:
        raise ConfigurationError(
            f"the site has one database and one bucket, and no part {name!r}", hint="Leave `part` empty."
        )
    if name:
        return config.select_part(name)
    if config.is_divided:
        raise ConfigurationError(
            f"no part of the site {config.site_name} was named, and a restore is of one part",
            hint=f"Set `part` to one of {', '.join(list_part_names(config))}.",
        )
    return config


def read_restore_request(
    config: Config,
    point: PointListing,
    *,
    database: str,
    bucket: str,
    replace_contents: bool,
    jobs: int,
    is_swap: bool,
    creates_targets: bool,
) -> RestoreRequest:
    """Return the restore of a whole point; an empty text omits the database or the bucket.

    Raise ConfigurationError if a text is not a valid target.
    """
    return RestoreRequest(
        point=point,
        database=read_database_target(database, config) if database else None,
        bucket=read_bucket_target(bucket, config) if bucket else None,
        replace_contents=replace_contents,
        jobs=jobs,
        is_swap=is_swap,
        creates_targets=creates_targets,
    )


def read_table_request(
    config: Config,
    point: PointListing,
    names: tuple[str, ...],
    *,
    database: str,
    where: str,
    side_name: str = "",
) -> TableRequest:
    """Return the restore of tables; an empty `database` means the live database."""
    return TableRequest(point, names, read_live_database(database, config), where, side_name)


def read_undelete_request(
    config: Config, rows: TableRequest, *, bucket: str, key_column: str
) -> UndeleteRequest:
    """Return the restore of rows with their objects; if `bucket` is empty, use the one that is backed up."""
    return UndeleteRequest(rows, key_column, read_live_bucket(config, bucket))


def read_live_bucket(config: Config, bucket: str) -> BucketSettings:
    """Return the named bucket, by default the one that is backed up, with the keys for restores."""
    return read_bucket_target(bucket or config.bucket.bucket, config)
