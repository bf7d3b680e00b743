"""The settings that every session with a database begins with, whatever the database, the role or a
configuration file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FIXED_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        # How values are written: both sides of a comparison must write them alike, and psycopg reads only
        # this form of dates.
        "DateStyle": "ISO,MDY",
        "IntervalStyle": "postgres",
        "TimeZone": "UTC",
        "extra_float_digits": "3",
        "bytea_output": "hex",
        "xmlbinary": "base64",
        "quote_all_identifiers": "off",
        # How values and statements are read.
        "standard_conforming_strings": "on",
        "backslash_quote": "safe_encoding",
        "array_nulls": "on",
        "transform_null_equals": "off",
        # In which order rows come: a table that another session reads is otherwise begun in its middle.
        "synchronize_seqscans": "off",
        # What is loaded: a library that is not there, named by the database's owner, ends every login to it.
        "local_preload_libraries": "",
        # Who acts, and how transactions begin.
        "role": "none",
        "default_transaction_read_only": "off",
        "default_transaction_isolation": "read committed",
        "default_transaction_deferrable": "off",
        # How long a session lives: limits are ours, by client-side timeouts.
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        # The server's probes keep a firewall from forgetting pg_dump's and psql's connections, for which
        # libpq has no variables.
        "tcp_keepalives_idle": "60",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "6",
    }
)
"""In the startup packet, which overrides ALTER DATABASE and ALTER ROLE … SET. Every supported server knows
them, and every role may set them."""
NEWER_SETTINGS = ((14, "idle_session_timeout"), (17, "transaction_timeout"))
"""The first major version that knows the setting (release notes of PostgreSQL 14 and 17). 0 is set once the
version is known: an unknown name in the startup packet ends the login."""
INHERITED_THROUGH_POOLER = (
    "bytea_output",
    "standard_conforming_strings",
    "xmlbinary",
    "quote_all_identifiers",
    "array_nulls",
    "transform_null_equals",
)
"""What pg_dump and psql take as it is where a pooler takes no options. The others they set themselves, or
have variables for."""


def list_later_settings(server_major: int, *, is_superuser: bool) -> dict[str, str]:
    """Return the settings that only this version knows, or only a superuser may set."""
    later = {name: "0" for major, name in NEWER_SETTINGS if server_major >= major}
    return later | ({"session_replication_role": "origin"} if is_superuser else {})


def make_options(settings: Mapping[str, str]) -> str:
    """Return the settings as the startup packet's `options` and PGOPTIONS take them (PostgreSQL manual,
    section 34.1.2, "options").
    """
    return " ".join(f"-c {name}={_escape(value)}" for name, value in settings.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
