"""Cleartext passwords are sent on encrypted connections only, by psycopg and by programs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from schedgen_backups.core.errors import DatabaseError
from schedgen_backups.core.postgres.connection import (
    connect_database,
    make_client_environment,
    read_session_facts,
)
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.servers import FAST_SERVER_OPTIONS, run

pytestmark = pytest.mark.integration


@pytest.fixture
def server(tmp_path: Path, postgres_bin_dir_17: Path) -> Iterator[DatabaseSettings]:
    """Yield a server with TLS and `password` for every login."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"
    words = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(["openssl", *words], capture_output=True, check=True)
    key.chmod(0o600)
    with EmbeddedPostgres(
        tmp_path / "postgres", bin_dir=postgres_bin_dir_17, server_options=FAST_SERVER_OPTIONS
    ) as postgres:
        data = next((tmp_path / "postgres").rglob("pg_hba.conf")).parent
        for file in (certificate, key):
            copy = data / file.name
            shutil.copy2(file, copy)
            shutil.chown(copy, data.owner(), data.group())
        settings = postgres.settings("postgres")
        run(settings, "ALTER SYSTEM SET ssl = on")
        (data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 password\n", encoding="utf-8")
        run(settings, "SELECT pg_reload_conf()")
        run(settings, "SELECT pg_sleep(0.5)")
        yield settings


@pytest.mark.parametrize("mode", ["allow", "prefer", "require"])
def test_an_encrypted_connection_sends_it(
    server: DatabaseSettings, postgres_bin_dir_17: Path, mode: str
) -> None:
    settings = replace(server, ssl_mode=mode)
    with connect_database(settings) as connection:
        facts = read_session_facts(connection)
    assert facts.is_encrypted
    assert facts.is_encryption_needed
    environment = make_client_environment(settings, facts)
    done = subprocess.run(
        [postgres_bin_dir_17 / "pg_dump", "--schema-only"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_plaintext_connection_does_not_send_it(server: DatabaseSettings) -> None:
    with (
        pytest.raises(DatabaseError, match="in cleartext"),
        connect_database(replace(server, ssl_mode="disable")),
    ):
        pytest.fail("connected")
