"""Restore targets: a password goes only to its own server, whatever server a URL names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from schedgen_backups.config.config import Config
from schedgen_backups.config.sources import parse_endpoint, read_bucket
from schedgen_backups.config.targets import read_bucket_target, read_database_target, read_live_database
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
        (
            "postgresql://me@other/app",
            {"RESTORE_POSTGRES_PASSWORD": "own", "RESTORE_POSTGRES_HOST": "other"},
            "own",
        ),
        (
            "postgresql://me@other:6000/app",
            {
                "RESTORE_POSTGRES_PASSWORD": "o",
                "RESTORE_POSTGRES_HOST": "other",
                "RESTORE_POSTGRES_PORT": "6000",
            },
            "o",
        ),
        ("postgresql://me@other/app", {}, ""),
        ("postgresql://me@db:6000/app", {}, ""),
    ],
)
def test_a_password_goes_to_its_own_server(
    tmp_path: Path, target: str, values: dict[str, str], password: str
) -> None:
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
    with pytest.raises(ConfigurationError, match="is not sent to") as caught:
        read_database_target(target, make_config(tmp_path, RESTORE_POSTGRES_PASSWORD="canary"))
    assert "RESTORE_POSTGRES_HOST" in caught.value.hint
    assert "canary" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("target", "values", "login"),
    [
        ("app", {}, ("restorer", "own")),
        ("app", OTHER, ("schedgen", "of-the-source")),
        ("postgresql://db/app", {}, ("restorer", "own")),
        ("postgresql://me@db/app", {}, ("me", "own")),
        ("postgresql://other:6000/app", OTHER, ("restorer", "own")),
    ],
)
def test_a_restore_has_its_own_role(
    tmp_path: Path, target: str, values: dict[str, str], login: tuple[str, str]
) -> None:
    config = make_config(
        tmp_path, RESTORE_POSTGRES_USER="restorer", RESTORE_POSTGRES_PASSWORD="own", **values
    )
    settings = read_database_target(target, config)
    assert (settings.user, settings.password, settings.database) == (*login, "app")


def test_the_role_of_restores_needs_its_own_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="RESTORE_POSTGRES_PASSWORD"):
        read_database_target("app", make_config(tmp_path, RESTORE_POSTGRES_USER="restorer"))
    assert (
        read_database_target(
            "postgresql://db/app", make_config(tmp_path, RESTORE_POSTGRES_USER="restorer")
        ).password
        == ""
    )


def test_the_restore_role_writes_the_live_database(tmp_path: Path) -> None:
    reader = make_config(tmp_path)
    assert read_live_database("", reader) == reader.database
    config = make_config(tmp_path, RESTORE_POSTGRES_USER="restorer", RESTORE_POSTGRES_PASSWORD="own")
    assert read_live_database("", config) == replace(config.database, user="restorer", password="own")
    assert read_live_database("other", config).database == "other"


def test_an_address_in_the_url_does_not_redirect_the_password(tmp_path: Path) -> None:
    settings = read_database_target(
        "postgresql://me@db/app?hostaddr=192.0.2.1", make_config(tmp_path, RESTORE_POSTGRES_PASSWORD="own")
    )
    assert (settings.host, settings.libpq_variables) == ("db", ())


@pytest.mark.parametrize(
    ("mode", "least"),
    [("disable", "prefer"), ("allow", "require"), ("require", "verify-full"), ("verify-ca", "verify-full")],
)
def test_a_url_cannot_weaken_the_configured_encryption(tmp_path: Path, mode: str, least: str) -> None:
    """Otherwise anyone who may name a target could read the password in transit."""
    with pytest.raises(ConfigurationError, match=f"sslmode={mode}, which is weaker than PGSSLMODE={least}"):
        read_database_target(f"postgresql://me@db/app?sslmode={mode}", make_config(tmp_path, PGSSLMODE=least))
    settings = read_database_target(
        f"postgresql://me@db/app?sslmode={least}", make_config(tmp_path, PGSSLMODE=mode)
    )
    assert settings.ssl_mode == least


def test_an_unknown_sslmode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="invalid sslmode, expected one of"):
        read_database_target("postgresql://me@db/app?sslmode=anything", make_config(tmp_path))


def test_a_host_with_a_login_is_not_quoted(tmp_path: Path) -> None:
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
        ("HTTP://MinIO/pdfs/", "minio:80"),
    ],
)
def test_a_bucket_url_accepts_an_ipv6_address(tmp_path: Path, url: str, endpoint: str) -> None:
    assert (
        read_bucket_target(url, make_config(tmp_path, MINIO_ACCESS_KEY="a", MINIO_SECRET_KEY="b")).endpoint
        == endpoint
    )


@pytest.mark.parametrize(
    "endpoint",
    [
        *(
            "::1:9000",
            "fd00::5:9000",
            "[]:9000",
            "[minio]:9000",
            "a[b]:9000",
            "http://minio:9000",
            "minio",
            "[::1]",
            "[1.2.3.4]:9000",
        ),
        *(
            ":9000",
            "minio:",
            "minio:0",
            "minio:99999",
            "minio:65536",
            "minio:123456",
            "minio:\u0663",
            "minio:+9",
            "minio:9_0",
            "minio:-1",
        ),
        *(
            "h\\x:9",
            "h#x:9000",
            "h?x:9000",
            "h;x:9000",
            "h&x:9000",
            "h%2f:9000",
            "'h':9000",
            "h/x:9000",
            "u@h:9000",
            "u:canary@h:9000",
        ),
        *(
            "h h:9000",
            "h\x00:9000",
            "h\nx:9000",
            "h\tx:9000",
            "h\x7f:9000",
            "m\u00fcnchen:9000",
            "\uff41:9000",
            "-:9",
            "-h:9",
            "a..b:9",
            ".a:9",
            "h:9000\n",
        ),
        "[::1%x\\y]:9000",
    ],
    ids=ascii,
)
def test_an_endpoint_that_is_not_host_and_port_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_endpoint(endpoint)
    assert endpoint not in str(caught.value)


@pytest.mark.parametrize("name", ["MINIO_ENDPOINT", "DRILL_MINIO_ENDPOINT"])
def test_a_wrong_endpoint_is_named_and_not_quoted(tmp_path: Path, name: str) -> None:
    values = {
        name: "user:canary@h:9000",
        f"{name.removesuffix('ENDPOINT')}ACCESS_KEY": "a",
        f"{name.removesuffix('ENDPOINT')}SECRET_KEY": "b",
    }
    reader = make_config(tmp_path, **values).open_reader()
    read_bucket(reader, prefix=name.removesuffix("MINIO_ENDPOINT"), bucket="b")
    with pytest.raises(ConfigurationError, match=f"{name} is invalid, expected host:port") as caught:
        reader.check()
    assert "canary" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    "endpoint", ["minio:9000", "MinIO_1.my-net.example:1", "10.0.0.5:65535", "a:09000", "[fe80::1%eth0]:9000"]
)
def test_an_endpoint_is_used_unchanged(endpoint: str) -> None:
    assert parse_endpoint(endpoint) == endpoint


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://minio:0/canary", "port"),
        ("http://minio:99999/canary", "port"),
        ("http://minio:x/canary", "host and port"),
        ("http://minio:/canary", "host and port"),
        ("http://minio:\u0663/canary", "characters"),
        ("http://:9000/canary", "has no valid host"),
        ("http:///canary", "has no valid host"),
        ("http://minio:9000/canary?x=1", "query"),
        ("http://minio:9000/canary?", "query"),
        ("http://minio:9000/canary#f", "fragment"),
        ("http://minio:9000/canary#", "fragment"),
        ("http://minio#x:9000/canary", "fragment"),
        ("http://mi\nnio/canary", "characters"),
        ("http://mi\tnio/canary", "characters"),
        ("http://minio\\x/canary", "backslashes"),
        ("http://minio /canary", "spaces"),
        (" http://minio/canary", "spaces"),
        ("http://%68/canary", "host and port"),
        ("http://h;x/canary", "host and port"),
        ("http://[::g]/canary", "host and port"),
        ("http://[12:3]/canary", "IPv6"),
        ("http://[1.2.3.4]/canary", "IPv6"),
        ("ftp://minio/canary", "http://"),
        ("http://minio", "name of a bucket"),
        ("http://minio/canary/x", "name of a bucket"),
        ("http://minio//canary", "name of a bucket"),
        ("http://minio/canary%2fx", "name of a bucket"),
    ],
    ids=ascii,
)
def test_a_bucket_url_with_missing_or_extra_parts_is_refused_and_not_quoted(
    tmp_path: Path, url: str, reason: str
) -> None:
    with pytest.raises(
        ConfigurationError, match=f"--bucket is not a valid bucket URL: it .*{reason}"
    ) as caught:
        read_bucket_target(url, make_config(tmp_path, MINIO_ACCESS_KEY="a", MINIO_SECRET_KEY="b"))
    assert "canary" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize("port", ["0", "99999", "\u0663", "-1", "5432,5433", "1_0"], ids=ascii)
def test_an_invalid_database_port_is_refused(tmp_path: Path, port: str) -> None:
    with pytest.raises(ConfigurationError, match="--database has a port"):
        read_database_target(f"postgresql://me@db:{port}/app", make_config(tmp_path))
    with pytest.raises(ConfigurationError, match="POSTGRES_PORT is invalid"):
        read_database_target("app", make_config(tmp_path, POSTGRES_PORT=port))


def test_an_endpoint_accepts_an_ipv6_address() -> None:
    assert parse_endpoint("[::1]:9000") == "[::1]:9000"
