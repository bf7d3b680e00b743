"""What a connection takes from the settings beside host and login: libpq's other variables, in this process and in its programs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from schedgen_backups.core.errors import DatabaseUnreachableError
from schedgen_backups.core.postgres.connection import connect_database, make_client_environment
from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups.core.settings import DatabaseSettings

CERTIFICATE = "/nowhere/root.crt"
_SSL_REQUEST_BYTES = 8


@pytest.fixture
def tls_port() -> Iterator[int]:
    """Where somebody agrees to TLS, which is when libpq looks for its certificates."""
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


def test_libpq_variables_count_in_this_process(tls_port: int) -> None:
    variables = (("PGSSLROOTCERT", CERTIFICATE), ("PGNOTKNOWN", "left out, as libpq does"))
    settings = DatabaseSettings(LOOPBACK, tls_port, "me", "secret", "name", "verify-ca", variables)
    with pytest.raises(DatabaseUnreachableError, match=CERTIFICATE), connect_database(settings):
        pytest.fail("connected")


def test_libpq_variables_reach_client_programs_and_never_replace_the_login() -> None:
    settings = DatabaseSettings("host", 5432, "me", "secret", "name", libpq_variables=(("PGSSLROOTCERT", CERTIFICATE), ("PGHOST", "elsewhere")))
    environment = make_client_environment(settings)
    assert (environment["PGSSLROOTCERT"], environment["PGHOST"]) == (CERTIFICATE, "host")
