"""Connection settings of databases and buckets, from variables or from a URL."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv6Address

import psycopg
from psycopg.conninfo import conninfo_to_dict

from schedgen_backups.config.reader import Reader
from schedgen_backups.config.variables import CERTIFICATES_VARIABLE, LIBPQ_VARIABLES
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""libpq's values, weakest first (PostgreSQL manual, section 34.19)."""
_DEFAULT_PORT = 5432
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LAST_PORT = 65535
_LABEL = "(?![-_])[A-Za-z0-9_-]{1,63}(?<![-_])"
_ENDPOINT = re.compile(
    rf"(?P<host>\[(?P<address>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]|{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[0-9]{{1,5}}))?"
)
"""A host that the minio SDK accepts. Excluded is what other software may read as another host, such as one
with a backslash."""
_CONNECTION_TEXT = re.compile(r"://|:.*@|(?:password|passwd|pwd|secret)\s*=", re.IGNORECASE | re.DOTALL)
_BUCKET_NAME = re.compile("[A-Za-z0-9._:-]+")


def read_database(reader: Reader, *, password_name: str = "POSTGRES_PASSWORD") -> DatabaseSettings:  # noqa: S107 - a variable's name
    """Return the connection settings of the database, with the password of this variable."""
    return replace(read_database_server(reader), password=reader.required(password_name))


def read_database_server(reader: Reader) -> DatabaseSettings:
    """Return the settings of the database without a password."""
    return DatabaseSettings(
        host=reader.host("POSTGRES_HOST"),
        port=reader.number("POSTGRES_PORT", 1, 65535),
        user=reader.parsed("POSTGRES_USER", parse_name, "the name of a role", ""),
        password="",
        database=reader.parsed("POSTGRES_DB", parse_name, "the name of a database", ""),
        ssl_mode=read_ssl_mode(reader),
        libpq_variables=_read_libpq_variables(reader),
    )


def read_bucket(reader: Reader, *, prefix: str = "", bucket: str | None = None) -> BucketSettings:
    """Return the connection settings of the bucket from MINIO_… or, with a prefix, such as DRILL_MINIO_…."""
    return BucketSettings(
        endpoint=reader.parsed(f"{prefix}MINIO_ENDPOINT", parse_endpoint, "host:port without http://", ""),
        access_key=reader.required(f"{prefix}MINIO_ACCESS_KEY"),
        secret_key=reader.required(f"{prefix}MINIO_SECRET_KEY"),
        bucket=reader.parsed("MINIO_BUCKET", parse_name, "the name of a bucket", "")
        if bucket is None
        else bucket,
        is_secure=reader.yes_or_no(f"{prefix}MINIO_SECURE"),
        region=reader.parsed("MINIO_REGION", parse_name, "the name of a region", ""),
        certificates_path=reader.path(CERTIFICATES_VARIABLE),
    )


def parse_database_url(url: str, password: str, reader: Reader, *, user: str = "") -> DatabaseSettings:
    """Return the database of `postgresql://user@host:port/name`, with this password and user as defaults.

    Raise ValueError with a text that follows the name of the setting.
    """
    try:
        parts = conninfo_to_dict(url)
        port = str(parts.get("port") or _DEFAULT_PORT)
    except (psycopg.ProgrammingError, ValueError):
        raise ValueError("is not a valid PostgreSQL URL") from None
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= _LAST_PORT:
        raise ValueError(f"has a port outside 1 to {_LAST_PORT}")
    if "://" not in url:
        raise ValueError("is not a valid PostgreSQL URL")
    if not parts.get("dbname") or not (parts.get("user") or user):
        raise ValueError("lacks a user or a database")
    if str(parts.get("sslmode") or SSL_MODES[0]) not in SSL_MODES:
        raise ValueError(f"has an invalid sslmode, expected one of {', '.join(SSL_MODES)}")
    return DatabaseSettings(
        host=str(parts.get("host") or "127.0.0.1"),
        port=int(port),
        user=str(parts.get("user") or user),
        password=str(parts.get("password") or password),
        database=str(parts["dbname"]),
        ssl_mode=str(parts.get("sslmode") or read_ssl_mode(reader)),
        libpq_variables=_read_libpq_variables(reader),
    )


def parse_name(text: str) -> str:
    """Return the name unchanged; ValueError for a URL or connection string, which may hold a password."""
    if _CONNECTION_TEXT.search(text):
        raise ValueError
    return text


def parse_bucket_url(url: str) -> tuple[str, str, bool]:
    """Return endpoint, bucket and whether TLS is used, from `http(s)://host:port/bucket`.

    Raise ValueError with a text that quotes nothing of the URL.
    """
    # urllib's `urlsplit` removes line breaks and tabs, and quotes what it refuses.
    if not url.isascii() or not url.isprintable() or any(sign in url for sign in " \\"):
        raise ValueError("contains spaces, backslashes or other invalid characters")
    if "?" in url or "#" in url:
        raise ValueError("contains a query or a fragment")
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise ValueError("does not start with http:// or https://")
    endpoint, _, path = rest.partition("/")
    host, port = _split_endpoint(endpoint)
    bucket = path.removesuffix("/")
    if not _BUCKET_NAME.fullmatch(bucket):
        raise ValueError("does not end with the name of a bucket")
    return f"{host.lower()}:{port or _DEFAULT_PORTS[scheme]}", bucket, scheme == "https"


def parse_endpoint(text: str) -> str:
    """Return `host:port`, or `[address]:port` for an IPv6 address, unchanged.

    Raise ValueError with a text that quotes nothing of it.
    """
    _host, port = _split_endpoint(text)
    if not port:
        raise ValueError("lacks a port")
    return text


def _split_endpoint(text: str) -> tuple[str, int]:
    """Return host and port, 0 without a port; raise ValueError for anything else."""
    found = _ENDPOINT.fullmatch(text)
    if found is None:
        raise ValueError("has no valid host, or contains more than host and port")
    if address := found["address"]:
        try:
            IPv6Address(address)
        except ValueError:
            raise ValueError("contains an invalid IPv6 address") from None
    if found["port"] is None:
        return found["host"], 0
    port = int(found["port"])
    if not 1 <= port <= _LAST_PORT:
        raise ValueError(f"has a port outside 1 to {_LAST_PORT}")
    return found["host"], port


def read_ssl_mode(reader: Reader) -> str:
    """Return the TLS mode of database connections, as in libpq."""
    return reader.parsed("PGSSLMODE", _parse_ssl_mode, f"one of {', '.join(sorted(SSL_MODES))}", "prefer")


def _parse_ssl_mode(text: str) -> str:
    if text not in SSL_MODES:
        raise ValueError(text)
    return text


def _read_libpq_variables(reader: Reader) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name in LIBPQ_VARIABLES if (value := reader.text(name)))
