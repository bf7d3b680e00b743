"""The settings of every session, which override those of the database, the role and configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FIXED_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        # Output format of values: both sides of a comparison must have the same, and psycopg parses only this
        # date format.
        "DateStyle": "ISO,MDY",
        "IntervalStyle": "postgres",
        "TimeZone": "UTC",
        "extra_float_digits": "3",
        "bytea_output": "hex",
        "xmlbinary": "base64",
        "quote_all_identifiers": "off",
        # Input format of values and statements.
        "standard_conforming_strings": "on",
        "backslash_quote": "safe_encoding",
        "array_nulls": "on",
        "transform_null_equals": "off",
        # Order of rows: otherwise, reading a table that another session reads starts in its middle.
        "synchronize_seqscans": "off",
        # Libraries: a missing one, set by the database's owner, would end every login to the database.
        "local_preload_libraries": "",
        # Role and transaction mode.
        "role": "none",
        "default_transaction_read_only": "off",
        "default_transaction_isolation": "read committed",
        "default_transaction_deferrable": "off",
        # Timeouts: we use client-side limits instead.
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        # Keepalives of the server, so that a firewall does not drop the connections of pg_dump and psql.
        # libpq has no variables for these.
        "tcp_keepalives_idle": "60",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "6",
    }
)
"""Sent in the startup packet, which overrides ALTER DATABASE and ALTER ROLE … SET. Every supported server
knows them, and every role may set them."""
NEWER_SETTINGS = ((14, "idle_session_timeout"), (17, "transaction_timeout"))
"""The first major version that supports the setting (release notes of PostgreSQL 14 and 17). Set to 0 once
the version is known: an unknown name in the startup packet ends the login."""
INHERITED_THROUGH_POOLER = (
    "bytea_output",
    "standard_conforming_strings",
    "xmlbinary",
    "quote_all_identifiers",
    "array_nulls",
    "transform_null_equals",
)
"""Settings that pg_dump and psql inherit if a pooler accepts no options. They set the others themselves, or
have variables for them."""


def list_later_settings(server_major: int, *, is_superuser: bool) -> dict[str, str]:
    """Return the settings that only this version supports, or that only a superuser may set."""
    later = {name: "0" for major, name in NEWER_SETTINGS if server_major >= major}
    return later | ({"session_replication_role": "origin"} if is_superuser else {})


def make_options(settings: Mapping[str, str]) -> str:
    """Return the settings in the format of the startup packet's `options` and of PGOPTIONS.

    Source: PostgreSQL manual, section 34.1.2, "options".
    """
    return " ".join(f"-c {name}={_escape(value)}" for name, value in settings.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
