"""Check every precondition of a backup, and say what is wrong and how to fix it.

Nothing is written but a probe in each store, and one in the backup directory that has no name there.

Each precondition is a small function that yields results. Add one for each further cause of a failed backup
that can be detected beforehand.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from schedgen_backups.config.config import Config
from schedgen_backups.config.env_file import EnvironmentFile
from schedgen_backups.config.presets import PRESETS
from schedgen_backups.config.site_commands import add_site
from schedgen_backups.core.drill.database_servers import find_server_bin_dirs
from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.postgres.client_programs import TLS_MODES, find_client
from schedgen_backups.core.postgres.exclusions import check_exclusions, find_tables, find_views_of
from schedgen_backups.core.postgres.object_keys import find_reference_problem
from schedgen_backups.core.postgres.snapshot import Snapshot, open_snapshot
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.servers.postgres_cluster import cluster_for
from schedgen_backups.core.servers.seaweedfs import is_seaweedfs_installed
from schedgen_backups.core.settings import (
    BucketSettings,
    CaptureSettings,
    DatabaseSettings,
    DrillSettings,
    TransferSettings,
)
from schedgen_backups.core.units import count, name_some
from schedgen_backups.doctor.operation import (
    examine_channels,
    examine_definitions,
    examine_proofs,
    examine_retention,
    examine_sensors,
    examine_starters,
    now_utc,
)
from schedgen_backups.doctor.pack_encryption import examine_pack_encryption
from schedgen_backups.doctor.restores import examine_restores
from schedgen_backups.doctor.results import PreconditionResult, Verdict, yield_with_errors
from schedgen_backups.doctor.space import examine_directory
from schedgen_backups.doctor.stores import examine_stores

_CLOCK_TOLERANCE_SECONDS = 60


def examine(config: Config) -> Iterator[PreconditionResult]:
    """Yield the result of each precondition when it is known; errors are results too."""
    for result in _examine(config):
        yield replace(result, detail=add_site(result.detail, config), fix=add_site(result.fix, config))


def _examine(config: Config) -> Iterator[PreconditionResult]:
    yield from _examine_file(config.file)
    is_complete = yield from _read(
        "settings of the backup",
        lambda: config.check("backup_directory", "capture", "schedule", "retention", "git_directory"),
    )
    yield from _read("settings of housekeeping", lambda: config.housekeeping)
    parts: list[tuple[Config, bool, bool]] = []
    for part in config.parts:
        has_database, has_bucket = yield from _read_sources(part)
        parts.append((part, has_database, has_bucket))
    has_alerts = yield from _read("settings of alerts", lambda: config.alerts)
    if has_alerts and not config.alerts.name:
        yield PreconditionResult(
            "name",
            Verdict.NOTE,
            "BACKUP_NAME is not set: alerts name the machine and the database instead",
            "Set BACKUP_NAME to the name of this installation.",
        )
    if (yield from _read("settings of the drill", lambda: config.check("drill"))):
        yield from yield_with_errors("drill", lambda: _examine_drill(config.drill))
    if not is_complete:
        return
    yield from yield_with_errors("backup directory", lambda: examine_directory(config))
    if config.git_directory is not None and not (config.git_directory / ".git").exists():
        detail = (
            f"BACKUP_GIT_DIRECTORY {config.git_directory} is not a Git checkout: recovery points do not "
            "record a commit"
        )
        yield PreconditionResult(
            "git", Verdict.NOTE, detail, "Set it to the directory that contains `.git`, or unset it."
        )
    catalog, now = config.make_catalog(), now_utc()
    yield from yield_with_errors("encryption of packs", lambda: examine_pack_encryption(config, catalog))
    yield from yield_with_errors("schedule", lambda: examine_starters(config, catalog, now))
    yield from yield_with_errors("sensors", lambda: examine_sensors(catalog, now))
    yield from examine_definitions()
    yield from yield_with_errors("stores", lambda: examine_stores(config, catalog))
    yield from yield_with_errors("verified point", lambda: examine_proofs(config, catalog, now))
    yield from yield_with_errors("retention", lambda: examine_retention(config, catalog, now))
    if has_alerts:
        yield from yield_with_errors("metrics", lambda: _examine_metrics(config))
        yield from examine_channels(config)
    yield from _examine_sources(parts)


def _examine_sources(parts: Iterable[tuple[Config, bool, bool]]) -> Iterator[PreconditionResult]:
    for part, has_database, has_bucket in parts:
        if has_database:
            yield from examine_database(part.database, part.capture)
        if has_bucket:
            yield from examine_bucket(part.bucket, part.capture.transfer)
        if has_database and has_bucket:
            yield from yield_with_errors("restore", partial(examine_restores, part, part.make_catalog()))


def _read_sources(part: Config) -> Generator[PreconditionResult, None, tuple[bool, bool]]:
    """Yield whether the settings of database and bucket are valid; return for each whether it is there."""
    name = part.part
    of = f" {name}" if name is not None else ""
    has_database = has_bucket = False
    if name is None or name.database:
        has_database = yield from _read(f"settings of the database{of}", lambda: part.database)
    if name is None or name.bucket:
        has_bucket = yield from _read(f"settings of the bucket{of}", lambda: part.bucket)
    return has_database, has_bucket


def _examine_metrics(config: Config) -> Iterator[PreconditionResult]:
    path = config.metrics_file
    if path is None:
        return
    if os.access(path.parent, os.W_OK | os.X_OK):
        yield PreconditionResult("metrics", Verdict.OK, f"written to {path}")
    else:
        yield PreconditionResult(
            "metrics",
            Verdict.PROBLEM,
            f"{path} cannot be written by this user",
            f"Create {path.parent}, and give it to the user that runs backups.",
        )


def examine_database(database: DatabaseSettings, capture: CaptureSettings) -> Iterator[PreconditionResult]:
    """Yield the results for the database; a failed connection is a result too."""
    yield from yield_with_errors("database", lambda: _examine_database(database, capture))


def examine_bucket(bucket: BucketSettings, transfer: TransferSettings) -> Iterator[PreconditionResult]:
    """Yield the results for the bucket; a failed connection is a result too."""
    yield from yield_with_errors("bucket", lambda: _examine_bucket(bucket, transfer))


def _examine_file(file: EnvironmentFile) -> Iterator[PreconditionResult]:
    subject = "environment file"
    if file.error is not None:
        yield PreconditionResult(subject, Verdict.PROBLEM, file.error.message, file.error.hint)
    elif file.path is None:
        yield PreconditionResult(
            subject,
            Verdict.OK,
            f"none at {', '.join(str(place) for place in file.places)}: only the environment is used",
        )
    elif file.warning:
        yield PreconditionResult(subject, Verdict.NOTE, file.warning, f"chmod g-w {file.path}")
    else:
        yield PreconditionResult(subject, Verdict.OK, str(file.path))


def _read(subject: str, read: Callable[[], object]) -> Generator[PreconditionResult, None, bool]:
    try:
        read()
    except BackupError as error:
        yield PreconditionResult(subject, Verdict.PROBLEM, error.message, error.hint)
        return False
    yield PreconditionResult(subject, Verdict.OK, "complete")
    return True


def _examine_drill(drill: DrillSettings) -> Iterator[PreconditionResult]:
    servers = find_server_bin_dirs(0)
    missing = ["PostgreSQL server"] if drill.database is None and not servers else []
    missing += ["S3 server"] if drill.bucket is None and not is_seaweedfs_installed() else []
    if missing:
        yield PreconditionResult(
            "drill",
            Verdict.NOTE,
            "a restore drill would fail: it starts its own servers, and this machine lacks "
            f"{' and '.join(missing)}",
            "pip install 'schedgen-backups[drill]'; in containers, use the image's stage `drill`. Or set "
            "DRILL_DATABASE_URL and DRILL_MINIO_ENDPOINT.",
        )
    if drill.database is not None or not servers:
        return
    with TemporaryDirectory(prefix="schedgen-backups-doctor-") as folder:
        is_confined = cluster_for(servers[0][0], Path(folder) / "server", drill.hidden_paths).is_confined
    if is_confined:
        yield PreconditionResult(
            "drill",
            Verdict.OK,
            "its own PostgreSQL server cannot access recovery points, settings and Dagster's history",
        )
    else:
        yield PreconditionResult(
            "drill",
            Verdict.NOTE,
            "its own PostgreSQL server runs as this user and can read this user's files: user namespaces "
            "are not available here",
            "Dumps are loaded without superuser rights nevertheless. To be safer, set DRILL_DATABASE_URL "
            "to another server.",
        )


def _examine_encryption(database: DatabaseSettings) -> Iterator[PreconditionResult]:
    if database.is_local or database.ssl_mode in TLS_MODES or not _is_public(database):
        return
    detail = (
        f"PGSSLMODE={database.ssl_mode} allows an unencrypted connection to {database.host}, which is not "
        "in a private network"
    )
    yield PreconditionResult(
        "encryption",
        Verdict.NOTE,
        detail,
        "Set PGSSLMODE=verify-full and PGSSLROOTCERT, or at least PGSSLMODE=require.",
    )


def _is_public(database: DatabaseSettings) -> bool:
    try:
        found = socket.getaddrinfo(database.host, database.port, type=socket.SOCK_STREAM)
    except OSError:  # the connection reports the reason
        return False
    return any(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global for *_kind, address in found)


def _examine_database(database: DatabaseSettings, capture: CaptureSettings) -> Iterator[PreconditionResult]:
    yield from _examine_encryption(database)
    with open_snapshot(database, stall_timeout_seconds=capture.transfer.stall_timeout_seconds) as snapshot:
        facts = snapshot.read_facts()
        yield PreconditionResult(
            "database", Verdict.OK, f"{database.label}, PostgreSQL {facts.server_version}"
        )
        if facts.session.is_pooled:
            detail = (
                "the connection goes through a pooler in session mode: its settings apply, and each backup "
                "needs BACKUP_DUMP_JOBS + 2 of its sessions"
            )
            yield PreconditionResult(
                "pooler", Verdict.NOTE, detail, "Connect to the server directly if you can."
            )
        yield _judge_clock(snapshot.taken_at, "database server")
        yield from yield_with_errors(
            "pg_dump", lambda: _examine_client(database, capture.transfer, facts.server_major)
        )
        tables = snapshot.list_tables()
        yield from yield_with_errors(
            "privileges", lambda: _examine_privileges(snapshot.check_privileges, len(tables))
        )
        if not tables and not capture.is_empty_allowed:
            fix = "Check POSTGRES_DB. If the database is meant to be empty, set BACKUP_ALLOW_EMPTY=true."
            yield PreconditionResult("tables", Verdict.PROBLEM, f"{database.database} has no tables", fix)
        if capture.exclusions.tables:
            yield from yield_with_errors("exclusions", lambda: _examine_exclusions(snapshot, capture))
        note = find_reference_problem(snapshot, capture.references)
        known = [
            name
            for name, preset in PRESETS.items()
            if preset.built_in is not None and snapshot.has_table(preset.built_in.table)
        ]
        fix = (
            f"These tables belong to another application: set BACKUP_PRESET={known[0]}"
            if known
            else (
                "Set BACKUP_REFERENCE_QUERY to a SELECT of the object keys. Without it, no check confirms "
                "that every referenced object exists."
            )
        )
        yield PreconditionResult(
            "references",
            Verdict.NOTE if note else Verdict.OK,
            note or capture.references.query,
            fix if note else "",
        )


def _examine_exclusions(snapshot: Snapshot, capture: CaptureSettings) -> Iterator[PreconditionResult]:
    excluded = find_tables(snapshot, capture.exclusions.tables)
    unused = [pattern for pattern in capture.exclusions.tables if not find_tables(snapshot, (pattern,))]
    check_exclusions(snapshot, excluded, capture.references)
    names = sorted(f"{table.schema_name}.{table.name}" for table in excluded)
    yield PreconditionResult(
        "exclusions",
        Verdict.OK,
        f"the rows of {name_some(names)} are excluded" if names else "no table is excluded",
    )
    if views := find_views_of(snapshot, excluded):
        detail = (
            f"{name_some(views)} read excluded tables: a restore refreshes them from the restored rows, "
            "and fails if their query then fails"
        )
        yield PreconditionResult(
            "exclusions",
            Verdict.NOTE,
            detail,
            "Test it: schedgen-backups backup, then schedgen-backups drill",
        )
    if unused:
        detail = f"no table of the database matches BACKUP_EXCLUDE_TABLE_DATA {', '.join(unused)}"
        yield PreconditionResult(
            "exclusions", Verdict.NOTE, detail, "Use a table, schema.table or a glob such as public.log_*."
        )


def _examine_client(
    database: DatabaseSettings, transfer: TransferSettings, server_major: int
) -> Iterator[PreconditionResult]:
    client = find_client(database, server_major, transfer.postgres_bin_dir)
    yield PreconditionResult("pg_dump", Verdict.OK, f"version {client.version} in {client.bin_dir}")


def _examine_privileges(check: Callable[[], None], table_count: int) -> Iterator[PreconditionResult]:
    check()
    yield PreconditionResult(
        "privileges", Verdict.OK, f"{count(table_count, 'table')} and all sequences can be read"
    )


def _examine_bucket(bucket: BucketSettings, transfer: TransferSettings) -> Iterator[PreconditionResult]:
    with BucketClient(bucket, threads=1, stall_timeout_seconds=transfer.stall_timeout_seconds) as client:
        client.check_exists()
        first = next(client.list_objects(), None)
        if first is None:
            yield PreconditionResult(
                "bucket", Verdict.NOTE, f"{bucket.label} is empty", "Check MINIO_BUCKET."
            )
            return
        with client.open_object(first.key) as opened:
            next(opened.read_blocks(), b"")
            yield _judge_clock(opened.head.answered_at, "S3 server")
        client.read_tags(first.key)
        versions = {
            True: "versioning is on",
            False: "versioning is off",
            None: "the server does not report whether versioning is on",
        }[client.is_versioned()]
        yield PreconditionResult("bucket", Verdict.OK, f"{bucket.label} can be listed and read; {versions}")


def _judge_clock(reported: datetime, server: str) -> PreconditionResult:
    skew = abs((datetime.now(timezone.utc) - reported).total_seconds())
    is_close = skew < _CLOCK_TOLERANCE_SECONDS
    return PreconditionResult(
        "clock",
        Verdict.OK if is_close else Verdict.PROBLEM,
        f"differs by {skew:.0f} s from the {server}'s clock",
        ""
        if is_close
        else (
            "Run a time service (chrony, systemd-timesyncd) on both hosts: ids and retention depend on the "
            "time."
        ),
    )
