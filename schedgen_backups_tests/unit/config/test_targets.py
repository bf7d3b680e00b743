"""What a restore's target means; its password goes to the server that it belongs to, and to no other one that a URL names."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.config.config import Config
from schedgen_backups.config.sources import parse_endpoint
from schedgen_backups.config.targets import read_bucket_target, read_database_target
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups_tests.unit.config.test_config import load

OTHER = {"RESTORE_POSTGRES_HOST": "other", "RESTORE_POSTGRES_PORT": "6000"}


def make_config(tmp_path: Path, **values: str) -> Config:
    return load(tmp_path, **{"POSTGRES_HOST": "db", "POSTGRES_PASSWORD": "of-the-source", **values})


@pytest.mark.parametrize(
    ("target", "values", "password"),
    [
        ("app", {}, "of-the-source"),
        ("app", {"RESTORE_POSTGRES_PASSWORD": "own"}, "own"),
        ("app", {"RESTORE_POSTGRES_PASSWORD": "own", "RESTORE_POSTGRES_HOST": "other"}, "of-the-source"),
        ("postgresql://me@db/app", {}, "of-the-source"),
        ("postgresql://me@DB:5432/app", {"RESTORE_POSTGRES_PASSWORD": "own"}, "own"),
        ("postgresql://me@other/app", {"RESTORE_POSTGRES_PASSWORD": "own", "RESTORE_POSTGRES_HOST": "other"}, "own"),
        (
            "postgresql://me@other:6000/app",
            {"RESTORE_POSTGRES_PASSWORD": "o", "RESTORE_POSTGRES_HOST": "other", "RESTORE_POSTGRES_PORT": "6000"},
            "o",
        ),
        ("postgresql://me@other/app", {}, ""),
        ("postgresql://me@db:6000/app", {}, ""),
    ],
)
def test_a_password_goes_to_its_own_server(tmp_path: Path, target: str, values: dict[str, str], password: str) -> None:
    assert read_database_target(target, make_config(tmp_path, **values)).password == password


@pytest.mark.parametrize(
    "target",
    [
        "postgresql://me@evil/app",
        "postgresql://me@db:6000/app",
        "postgresql://me@db.evil/app",
        "postgresql:///app?host=evil&user=me",
        "postgresql://me@evil/app?hostaddr=127.0.0.1",
    ],
)
def test_a_url_of_another_server_gets_no_password(tmp_path: Path, target: str) -> None:
    with pytest.raises(ConfigurationError, match="is sent to no other server") as caught:
        read_database_target(target, make_config(tmp_path, RESTORE_POSTGRES_PASSWORD="canary"))
    assert "RESTORE_POSTGRES_HOST" in caught.value.hint
    assert "canary" not in caught.value.message + caught.value.hint


def test_an_address_in_the_url_does_not_lead_the_password_elsewhere(tmp_path: Path) -> None:
    settings = read_database_target("postgresql://me@db/app?hostaddr=192.0.2.1", make_config(tmp_path, RESTORE_POSTGRES_PASSWORD="own"))
    assert (settings.host, settings.libpq_variables) == ("db", ())


@pytest.mark.parametrize(("mode", "least"), [("disable", "prefer"), ("allow", "require"), ("require", "verify-full"), ("verify-ca", "verify-full")])
def test_a_url_asks_for_no_weaker_encryption_than_the_settings(tmp_path: Path, mode: str, least: str) -> None:
    """Whoever may name a target would else read the password on its way."""
    with pytest.raises(ConfigurationError, match=f"sslmode={mode}, and PGSSLMODE is {least}"):
        read_database_target(f"postgresql://me@db/app?sslmode={mode}", make_config(tmp_path, PGSSLMODE=least))
    settings = read_database_target(f"postgresql://me@db/app?sslmode={least}", make_config(tmp_path, PGSSLMODE=mode))
    assert settings.ssl_mode == least


def test_an_unknown_sslmode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sslmode that is none of"):
        read_database_target("postgresql://me@db/app?sslmode=anything", make_config(tmp_path))


def test_a_host_that_holds_a_login_is_not_quoted_back(tmp_path: Path) -> None:
    values = {"RESTORE_POSTGRES_HOST": "user:canary@h", "RESTORE_POSTGRES_PASSWORD": "own"}
    with pytest.raises(ConfigurationError) as caught:
        read_database_target("postgresql://me@other/app", make_config(tmp_path, **values))
    assert "canary" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://[::1]:9000/pdfs", "[::1]:9000"),
        ("https://[fd00::5]/pdfs", "[fd00::5]:443"),
        ("http://minio:9000/pdfs", "minio:9000"),
        ("https://127.0.0.1/pdfs", "127.0.0.1:443"),
    ],
)
def test_a_bucket_url_may_name_an_address_of_ipv6(tmp_path: Path, url: str, endpoint: str) -> None:
    assert read_bucket_target(url, make_config(tmp_path, MINIO_ACCESS_KEY="a", MINIO_SECRET_KEY="b")).endpoint == endpoint


@pytest.mark.parametrize("endpoint", ["::1:9000", "fd00::5:9000", "[]:9000", "[minio]:9000", "a[b]:9000", "http://minio:9000", "minio"])
def test_an_endpoint_that_is_no_host_and_port_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError):
        parse_endpoint(endpoint)


def test_an_endpoint_may_be_an_address_of_ipv6() -> None:
    assert parse_endpoint("[::1]:9000") == "[::1]:9000"
