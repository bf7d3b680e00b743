"""Find PostgreSQL client programs for a server: its major version or the next newer one, with TLS if needed.

Add search locations here. `dump` and `database_restore` call the programs. The facts behind the rules (which
pg_dump talks to which server, which build lacks TLS) were measured on 2026-11-22: shared research, embedded
servers, A5 and A7.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from schedgen_backups.core.errors import ClientProgramError
from schedgen_backups.core.servers.postgres import find_embedded_bin_dirs
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.core.system.process import ProgramError, run_program

INSTALLED_BIN_DIRS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql@*/bin",
)
"""Directories of PostgreSQL's programs in distributions, relative to the root directory."""
TLS_MODES = frozenset({"require", "verify-ca", "verify-full"})
_VERSION = re.compile(r"\(PostgreSQL\) (?P<major>\d+)(?:\.(?P<minor>\d+))?")
_FIRST_SAFE_MINORS = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}
"""The minor versions of 14 August 2025; every minor of 18 and newer is safe, none of 12 and older is. In
earlier ones, a name with a newline becomes a psql command in the dump (CVE-2025-8715), and psql does not
support `\\restrict`."""
_PROBE_TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class ClientPrograms:
    """A directory with pg_dump, pg_dumpall and psql of one version."""

    bin_dir: Path
    major: int
    version: str
    minor: int = 0

    @property
    def is_safe(self) -> bool:
        """Whether names and data of a database cannot become commands in its dump."""
        first = _FIRST_SAFE_MINORS.get(self.major)
        return self.minor >= first if first is not None else self.major > max(_FIRST_SAFE_MINORS)

    @property
    def pg_dump(self) -> Path:
        """Absolute path."""
        return self.bin_dir / "pg_dump"

    @property
    def pg_dumpall(self) -> Path:
        """Absolute path."""
        return self.bin_dir / "pg_dumpall"

    @property
    def psql(self) -> Path:
        """Absolute path."""
        return self.bin_dir / "psql"


def find_all_clients(preferred_bin_dir: Path | None) -> tuple[ClientPrograms, ...]:
    """Return every set of client programs on this machine, in order of preference.

    That is the configured directory alone if there is one, otherwise PATH, the distribution's version
    directories, and the wheels. ClientProgramError if the configured directory contains none.
    """
    if preferred_bin_dir is not None:
        configured = _probe(preferred_bin_dir)
        if configured is None:
            raise ClientProgramError(
                f"PG_BIN_DIR {preferred_bin_dir} does not contain working pg_dump, pg_dumpall and psql",
                hint="Point PG_BIN_DIR to a directory like /usr/lib/postgresql/16/bin, or unset it to "
                "search the machine.",
            )
        return (configured,)
    found = (_probe(bin_dir) for bin_dir in _candidate_bin_dirs())
    return tuple(client for client in found if client is not None)


def find_client(
    settings: DatabaseSettings, server_major: int, preferred_bin_dir: Path | None
) -> ClientPrograms:
    """Return the programs of the server's major version, or of the nearest newer one.

    ClientProgramError (permanent) if there are none.
    """
    clients = find_all_clients(preferred_bin_dir)
    fitting = sorted(
        (client for client in clients if client.major >= server_major), key=lambda client: client.major
    )
    if not fitting:
        newest = max((client.major for client in clients), default=None)
        have = f"the newest pg_dump here is {newest}" if newest else "no pg_dump was found here"
        raise ClientProgramError(
            f"the server is PostgreSQL {server_major} and {have}: "
            "an older pg_dump cannot dump a newer server",
            hint=f"Install postgresql-client-{server_major} or newer (or set PG_BIN_DIR to its directory).",
        )
    safe = [client for client in fitting if client.is_safe]
    if not safe:
        raise ClientProgramError(
            f"pg_dump in {fitting[0].bin_dir} is {fitting[0].version}: before August 2025, a table's owner "
            "could put commands into the dump",
            hint="Install one of August 2025 or newer: 13.22, 14.19, 15.14, 16.10, 17.6 or any 18.",
        )
    with_tls = [client for client in safe if _is_tls_settled(client, settings)]
    if not with_tls:
        raise ClientProgramError(
            f"pg_dump in {safe[0].bin_dir} was built without TLS, and the connection to {settings.host} "
            "requires it "
            f"(PGSSLMODE={settings.ssl_mode}) or crosses a network",
            hint=f"Install postgresql-client-{server_major} or newer from your distribution, or set "
            "PGSSLMODE=disable if the network is trusted.",
        )
    return with_tls[0]


def _is_tls_settled(client: ClientPrograms, settings: DatabaseSettings) -> bool:
    if settings.ssl_mode not in TLS_MODES and (settings.is_local or settings.ssl_mode == "disable"):
        return True
    return _has_tls(client.psql)


@lru_cache(maxsize=64)
def _has_tls(psql: Path) -> bool:
    # libpq checks sslmode before it connects; port 1 on loopback refuses immediately.
    environment = {"PGSSLMODE": "require", "PGHOST": "127.0.0.1", "PGPORT": "1", "PGCONNECT_TIMEOUT": "2"}
    _code, _output, stderr = run_program(
        [psql, "--no-psqlrc", "--no-password", "--dbname=postgres"],
        environment=environment,
        timeout_seconds=_PROBE_TIMEOUT_SECONDS,
    )
    return "not compiled in" not in stderr


def _candidate_bin_dirs() -> Iterator[Path]:
    on_path = shutil.which("pg_dump")
    # Debian's pg_dump is a wrapper that selects a version; the version directories name each one explicitly.
    if on_path and Path(on_path).resolve().name != "pg_wrapper":
        yield Path(on_path).resolve().parent
    for pattern in INSTALLED_BIN_DIRS:
        yield from sorted(Path("/").glob(pattern))
    yield from find_embedded_bin_dirs()


@lru_cache(maxsize=64)
def _probe(bin_dir: Path) -> ClientPrograms | None:
    if not all(os.access(bin_dir / name, os.X_OK) for name in ("pg_dump", "pg_dumpall", "psql")):
        return None
    try:
        code, output, _stderr = run_program(
            [bin_dir / "pg_dump", "--version"], environment={}, timeout_seconds=_PROBE_TIMEOUT_SECONDS
        )
    except ProgramError:
        return None
    match = _VERSION.search(output)
    if code != 0 or match is None:
        return None
    return ClientPrograms(
        bin_dir, int(match["major"]), match[0].removeprefix("(PostgreSQL) "), int(match["minor"] or 0)
    )
