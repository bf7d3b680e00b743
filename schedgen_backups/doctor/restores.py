"""Check what this installation can restore now: which point, with which role and into which server."""

from __future__ import annotations

from collections.abc import Iterator

from schedgen_backups.config.config import Config
from schedgen_backups.config.targets import read_bucket_target, read_live_database
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.selection import find_newest_verified
from schedgen_backups.core.errors import DatabaseError
from schedgen_backups.core.postgres.session import Connection, DatabaseSession
from schedgen_backups.core.restore.database import MAINTENANCE_DATABASE
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.core.units import name_some
from schedgen_backups.doctor.results import PreconditionResult, Verdict, yield_with_errors

_ROLES_DOCUMENT = "docs/restore.md, The roles"


def examine_restores(config: Config, catalog: Catalog) -> Iterator[PreconditionResult]:
    """Yield what can be restored, and whether the role and the keys for restores allow it; write nothing."""
    point = find_newest_verified(catalog)
    if point is not None:
        database, bucket = config.database.database, config.bucket.bucket
        command = (
            f"{' '.join(config.command_words)} restore {point.point_id} --database {database}_restored "
            f"--bucket {bucket}-restored"
        )
        yield PreconditionResult("restore", Verdict.OK, f"to try one next to the live system: {command}")
    yield from yield_with_errors("restore of the database", lambda: _examine_role(config))
    yield from yield_with_errors("restore of the bucket", lambda: _examine_keys(config))


def _examine_role(config: Config) -> Iterator[PreconditionResult]:
    target = read_live_database("", config)
    subject = "restore of the database"
    try:
        with (
            DatabaseSession(target.with_database(MAINTENANCE_DATABASE)) as session,
            session.use() as connection,
        ):
            lacking = _list_lacking(connection, config.database)
    except DatabaseError as error:
        # The backup's role need not reach that database; a role for restores must.
        verdict = Verdict.NOTE if target.user == config.database.user else Verdict.PROBLEM
        yield PreconditionResult(subject, verdict, error.message, error.hint)
        return
    if lacking:
        detail = (
            f"the role {target.user} {' and '.join(lacking)}: it can only restore into an existing empty "
            "database"
        )
        yield PreconditionResult(
            subject,
            Verdict.NOTE,
            detail,
            f"Set RESTORE_POSTGRES_USER to a role for restores ({_ROLES_DOCUMENT}).",
        )
    else:
        place = f"{target.host}:{target.port}"
        yield PreconditionResult(
            subject,
            Verdict.OK,
            f"the role {target.user} can create databases on {place} and replace {target.database}",
        )


def _list_lacking(connection: Connection, live: DatabaseSettings) -> list[str]:
    row = connection.execute(
        "SELECT rolsuper, rolcreatedb FROM pg_catalog.pg_roles WHERE rolname = current_user"
    ).fetchone()
    is_superuser, may_create = row or (False, False)
    if is_superuser:
        return []
    lacking = [] if may_create else ["cannot create databases"]
    owner = connection.execute(
        "SELECT r.rolname FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles r ON r.oid = d.datdba"
        " WHERE d.datname = %s AND NOT pg_catalog.pg_has_role(d.datdba, 'USAGE')",
        (live.database,),
    ).fetchone()
    return [*lacking, *([f"is not a member of {owner[0]}, which owns {live.database}"] if owner else [])]


def _examine_keys(config: Config) -> Iterator[PreconditionResult]:
    subject, target = "restore of the bucket", read_bucket_target(config.bucket.bucket, config)
    if target.access_key == config.bucket.access_key:
        missing = name_some(["RESTORE_MINIO_ACCESS_KEY", "RESTORE_MINIO_SECRET_KEY"])
        detail = "no keys for restores are set: a restore would write with the keys of the backup"
        yield PreconditionResult(
            subject, Verdict.NOTE, detail, f"Set {missing}, here or when you restore ({_ROLES_DOCUMENT})."
        )
        return
    with BucketClient(
        target, threads=1, stall_timeout_seconds=config.capture.transfer.stall_timeout_seconds
    ) as client:
        client.check_exists()
    yield PreconditionResult(
        subject,
        Verdict.OK,
        f"the keys for restores can access {target.label}; write permission is not checked",
    )
