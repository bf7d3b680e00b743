"""What a connection takes from libpq's other variables, in this process and in its programs."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from schedgen_backups.core.errors import DatabaseError, DatabaseUnreachableError
from schedgen_backups.core.postgres.connection import SessionFacts, connect_database, make_client_environment
from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups.core.servers.postgres import find_embedded_bin_dirs
from schedgen_backups.core.settings import DatabaseSettings

CERTIFICATE = "/nowhere/root.crt"
_SSL_REQUEST_BYTES = 8


@pytest.fixture
def tls_port() -> Iterator[int]:
    """Yield a port that agrees to TLS, upon which libpq looks for its certificates."""
    with socket.create_server((LOOPBACK, 0)) as listener:

        def agree() -> None:
            connection, _address = listener.accept()
            with connection:
                connection.recv(_SSL_REQUEST_BYTES)
                connection.sendall(b"S")
                connection.recv(1)

        thread = threading.Thread(target=agree)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join()


def test_libpq_variables_apply_in_this_process(tls_port: int) -> None:
    variables = (("PGSSLROOTCERT", CERTIFICATE), ("PGNOTKNOWN", "left out, as libpq does"))
    settings = DatabaseSettings(LOOPBACK, tls_port, "me", "secret", "name", "verify-ca", variables)
    with pytest.raises(DatabaseUnreachableError, match=CERTIFICATE), connect_database(settings):
        pytest.fail("connected")


def test_libpq_variables_reach_client_programs_and_never_replace_the_login() -> None:
    settings = DatabaseSettings(
        "host",
        5432,
        "me",
        "secret",
        "name",
        libpq_variables=(("PGSSLROOTCERT", CERTIFICATE), ("PGHOST", "elsewhere")),
    )
    environment = make_client_environment(settings)
    assert (environment["PGSSLROOTCERT"], environment["PGHOST"]) == (CERTIFICATE, "host")


class CleartextServer:
    """Speaks enough of PostgreSQL's protocol to ask for a cleartext password, and records it."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.received = b""
        self.port = int(listener.getsockname()[1])

    def serve(self) -> None:
        while True:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                while (data := connection.recv(4096))[4:_SSL_REQUEST_BYTES] == _SSL_REQUEST_CODE:
                    connection.sendall(b"N")
                self.received += data
                connection.sendall(b"R\x00\x00\x00\x08\x00\x00\x00\x03")
                self.received += connection.recv(4096)


_SSL_REQUEST_CODE = b"\x04\xd2\x16\x2f"


@contextmanager
def open_cleartext_server() -> Generator[CleartextServer, None, None]:
    listener = socket.create_server((LOOPBACK, 0))
    server = CleartextServer(listener)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
def test_no_password_is_sent_in_cleartext_without_encryption(mode: str) -> None:
    with open_cleartext_server() as server:
        settings = DatabaseSettings(LOOPBACK, server.port, "me", "canary-7d1f", "name", mode)
        with (
            pytest.raises(DatabaseError, match="in cleartext on an unencrypted connection") as caught,
            connect_database(settings),
        ):
            pytest.fail("connected")
    assert server.received
    assert b"canary" not in server.received
    assert not caught.value.is_retryable
    assert "PGSSLMODE=require" in caught.value.hint


@pytest.mark.parametrize("bin_dir", find_embedded_bin_dirs(), ids=lambda path: path.parents[1].name)
@pytest.mark.parametrize("program", ["pg_dump", "pg_dumpall", "psql"])
def test_no_program_sends_a_password_in_cleartext_without_encryption(bin_dir: object, program: str) -> None:
    with open_cleartext_server() as server:
        settings = DatabaseSettings(LOOPBACK, server.port, "me", "canary-7d1f", "name")
        environment = make_client_environment(settings, SessionFacts())
        done = subprocess.run(
            [f"{bin_dir}/{program}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode != 0
    assert server.received
    assert b"canary" not in server.received


def test_an_operators_own_rule_stays_and_encrypted_sessions_need_none() -> None:
    own = DatabaseSettings(
        "host", 5432, "me", "secret", "name", libpq_variables=(("PGREQUIREAUTH", "scram-sha-256"),)
    )
    assert make_client_environment(own)["PGREQUIREAUTH"] == "scram-sha-256"
    assert "PGREQUIREAUTH" not in make_client_environment(
        DatabaseSettings("host", 5432, "me", "secret", "name", "verify-full")
    )
    assert "PGREQUIREAUTH" not in make_client_environment(
        DatabaseSettings("/run/postgresql", 5432, "me", "secret", "name")
    )


def test_what_was_encrypted_once_never_falls_back_to_plaintext() -> None:
    settings = DatabaseSettings("db.example", 5432, "me", "secret", "name")
    assert make_client_environment(settings, SessionFacts(is_encrypted=True))["PGSSLMODE"] == "require"
    assert make_client_environment(settings, SessionFacts())["PGSSLMODE"] == "prefer"
