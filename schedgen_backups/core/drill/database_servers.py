"""Choose the PostgreSQL server of a drill: one of this machine, or a named one other than the source."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.formats.records import DumpRecord
from schedgen_backups.core.postgres.client_programs import INSTALLED_BIN_DIRS
from schedgen_backups.core.postgres.connection import connect_database, translate_errors
from schedgen_backups.core.servers.postgres import find_embedded_bin_dirs
from schedgen_backups.core.settings import DatabaseSettings, DrillSettings

_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


def find_server_bin_dirs(major: int) -> tuple[tuple[Path, int], ...]:
    """Return directories of PostgreSQL servers of this major version or newer, with their versions.

    The closest version comes first, installed servers before wheels.
    """
    found: list[tuple[Path, int]] = []
    for bin_dir in _candidate_bin_dirs():
        version = _read_version(bin_dir)
        if version is not None and version >= major:
            found.append((bin_dir, version))
    return tuple(sorted(found, key=lambda pair: pair[1]))


def check_not_source(
    server: DatabaseSettings, record: DumpRecord, drill: DrillSettings, source: DatabaseSettings | None
) -> int:
    """Return the server's major version.

    ConfigurationError when it is the server that was backed up and that is not allowed.
    """
    with connect_database(server) as connection, translate_errors(server):
        major = connection.info.server_version // 10000
        query = "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')"
        identifier = ""
        if connection.execute(query).fetchone() == (True,):
            row = connection.execute(
                "SELECT system_identifier FROM pg_catalog.pg_control_system()"
            ).fetchone()
            identifier = str(row[0]) if row else ""
    # A DNS name may be an alias; the cluster's identifier is unique, but the role may not be allowed to read
    # it.
    is_source = bool(identifier) and identifier == record.system_identifier
    is_source = is_source or (source is not None and (server.host, server.port) == (source.host, source.port))
    if is_source and not drill.is_source_server_allowed:
        raise ConfigurationError(
            f"DRILL_DATABASE_URL names the server that was backed up ({server.host}:{server.port})",
            hint="Use another server, remove the setting to drill on this machine, or set "
            "DRILL_ON_SOURCE_SERVER=true.",
        )
    return major


def note_version(major: int, record: DumpRecord) -> str:
    """Return what the server's version limits; empty if it is that of the dump."""
    if major == record.server_major:
        return ""
    return (
        f"restored into PostgreSQL {major}, but the dump is from {record.server_major}: rows are compared; "
        "the schema's text may not be comparable"
    )


def _candidate_bin_dirs() -> Iterator[Path]:
    for pattern in INSTALLED_BIN_DIRS:
        yield from sorted(Path("/").glob(pattern))
    yield from find_embedded_bin_dirs()


def _read_version(bin_dir: Path) -> int | None:
    if not all((bin_dir / name).is_file() for name in ("postgres", "initdb", "pg_ctl")):
        return None
    try:
        answer = subprocess.run(
            [str(bin_dir / "postgres"), "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):  # built for another machine: counts as absent
        return None
    match = _VERSION.search(answer)
    return int(match[1]) if match else None
