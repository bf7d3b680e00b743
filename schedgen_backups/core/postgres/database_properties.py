"""Read the properties of a database besides its contents, and apply them to another database."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import psycopg
from psycopg import sql
from typing_extensions import LiteralString

from schedgen_backups.core.formats.database_properties import (
    DatabaseGrant,
    DatabaseProperties,
    DatabaseSetting,
)

_PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}
_PROVIDER_MAJOR, _RULES_MAJOR, _LOCALE_MAJOR = 15, 16, 17
"""The first versions with datlocprovider, with daticurules, and with datlocale instead of daticulocale
(manual, section 52.15, of 15 to 17)."""
_LIST_SETTINGS = ("search_path", "_libraries", "temp_tablespaces", "unix_socket_directories")
"""Settings whose values are lists that are already quoted (pg_dump's variable_is_guc_list_quote)."""

_ELEMENT = re.compile(r'"(?:[^"]|"")*"|[^",\s]+')
_LIST = re.compile(rf"(?:{_ELEMENT.pattern})(?:, ?(?:{_ELEMENT.pattern}))*")
_PRIVILEGES = frozenset({"CREATE", "CONNECT", "TEMPORARY"})
"""Privileges on databases (PostgreSQL manual, section 5.8); the record may be forged."""

UNKNOWN_LOCALE_ERRORS = (
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.WrongObjectType,
    psycopg.errors.InvalidObjectDefinition,
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.UndefinedObject,
    psycopg.errors.UndefinedFile,
    psycopg.errors.SyntaxError,
)
"""Errors of CREATE DATABASE if the server lacks the collation or the tablespace, or if the collation does not
fit the encoding."""

_Connection = psycopg.Connection[Any]


def read_properties(connection: _Connection, database: str) -> DatabaseProperties | None:
    """Return the properties of a database of this server, or None if it does not exist.

    Errors are psycopg's.
    """
    major = connection.info.server_version // 10000
    provider = "d.datlocprovider::text" if major >= _PROVIDER_MAJOR else "'c'"
    locale = (
        "d.datlocale" if major >= _LOCALE_MAJOR else "d.daticulocale" if major >= _PROVIDER_MAJOR else "NULL"
    )
    rules = "d.daticurules" if major >= _RULES_MAJOR else "NULL"
    row = connection.execute(
        _as_literal(
            "SELECT pg_catalog.pg_get_userbyid(d.datdba)::text, d.datconnlimit,"  # noqa: S608 - columns by version
            " pg_catalog.shobj_description(d.oid, 'pg_database'), d.datistemplate,"
            " (SELECT t.spcname::text FROM pg_catalog.pg_tablespace t WHERE t.oid = d.dattablespace),"
            f" {provider}, d.datcollate::text, d.datctype::text, {locale}::text, {rules}::text, d.datacl "
            "IS NULL"
            " FROM pg_catalog.pg_database d WHERE d.datname = %s"
        ),
        (database,),
    ).fetchone()
    if row is None:
        return None
    (
        owner,
        limit,
        comment,
        is_template,
        tablespace,
        letter,
        collate,
        ctype,
        locale_name,
        icu_rules,
        has_default_grants,
    ) = row
    grants = connection.execute(
        "SELECT coalesce(r.rolname::text, ''), a.privilege_type, a.is_grantable FROM pg_catalog.pg_database d"
        " CROSS JOIN LATERAL pg_catalog.aclexplode(d.datacl) a LEFT JOIN pg_catalog.pg_roles r ON r.oid = "
        "a.grantee"
        " WHERE d.datname = %s ORDER BY coalesce(r.rolname::text, '') COLLATE \"C\", a.privilege_type "
        'COLLATE "C"',
        (database,),
    ).fetchall()
    settings = connection.execute(
        "SELECT coalesce(r.rolname::text, ''), pg_catalog.unnest(s.setconfig) FROM "
        "pg_catalog.pg_db_role_setting s"
        " JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_catalog.pg_roles r ON r.oid "
        "= s.setrole WHERE d.datname = %s",
        (database,),
    ).fetchall()
    labels = connection.execute(
        "SELECT l.provider, l.label FROM pg_catalog.pg_shseclabel l JOIN pg_catalog.pg_database d ON d.oid "
        "= l.objoid"
        " WHERE l.classoid = 'pg_catalog.pg_database'::pg_catalog.regclass AND d.datname = %s",
        (database,),
    ).fetchall()
    return DatabaseProperties(
        owner=str(owner),
        connection_limit=int(limit),
        comment=str(comment or ""),
        is_template=bool(is_template),
        tablespace=str(tablespace),
        provider=_PROVIDERS.get(str(letter), str(letter)),
        collate=str(collate),
        ctype=str(ctype),
        locale=str(locale_name or ""),
        icu_rules=str(icu_rules or ""),
        grants=None if has_default_grants else tuple(_make_grant(*row) for row in grants),
        settings=tuple(
            sorted(
                (make_setting(str(role), str(line)) for role, line in settings),
                key=lambda one: (one.role, one.name),
            )
        ),
        security_labels=tuple(sorted((str(provider), str(label)) for provider, label in labels)),
    )


def _make_grant(grantee: str, privilege: str, is_grantable: bool) -> DatabaseGrant:  # noqa: FBT001 - a row
    return DatabaseGrant(grantee=grantee, privilege=privilege, is_grantable=is_grantable)


def make_setting(role: str, line: str) -> DatabaseSetting:
    """Return the setting from a `name=value` entry of pg_db_role_setting."""
    name, _equals, value = line.partition("=")
    return DatabaseSetting(role=role, name=name, value=value)


def make_locale_clause(properties: DatabaseProperties, server_major: int) -> sql.Composed:
    """Return the clauses of CREATE DATABASE for this collation."""
    parts = [
        sql.SQL(" LC_COLLATE {} LC_CTYPE {}").format(
            sql.Literal(properties.collate), sql.Literal(properties.ctype)
        )
    ]
    if server_major >= _PROVIDER_MAJOR:
        parts.append(sql.SQL(" LOCALE_PROVIDER {}").format(sql.Literal(properties.provider)))
        if properties.provider == "icu":
            parts.append(sql.SQL(" ICU_LOCALE {}").format(sql.Literal(properties.locale)))
        elif properties.provider == "builtin":
            parts.append(sql.SQL(" BUILTIN_LOCALE {}").format(sql.Literal(properties.locale)))
        if properties.icu_rules and server_major >= _RULES_MAJOR:
            parts.append(sql.SQL(" ICU_RULES {}").format(sql.Literal(properties.icu_rules)))
    return sql.Composed(parts)


def list_property_statements(
    database: str, wanted: DatabaseProperties, present: DatabaseProperties
) -> tuple[sql.Composed, ...]:
    """Return the statements that give the database the wanted properties.

    Collation, tablespace, comment and template flag are not included.
    """
    name = sql.Identifier(database)
    statements: list[sql.Composed] = []
    if wanted.connection_limit != present.connection_limit:
        statements.append(
            sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(
                name, sql.Literal(wanted.connection_limit)
            )
        )
    statements += [
        make_setting_statement(database, setting)
        for setting in wanted.settings
        if setting not in present.settings
    ]
    statements += [
        sql.SQL("SECURITY LABEL FOR {} ON DATABASE {} IS {}").format(
            sql.Identifier(provider), name, sql.Literal(label)
        )
        for provider, label in wanted.security_labels
    ]
    if wanted.owner != present.owner:
        statements.append(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, sql.Identifier(wanted.owner)))
    if wanted.grants is not None:
        # Like pg_dump: start from no privileges, not even the owner's.
        grantees = dict.fromkeys(["", wanted.owner, *(grant.grantee for grant in wanted.grants)])
        statements += [
            sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(name, _name_grantee(grantee))
            for grantee in grantees
        ]
        statements += [
            sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                sql.SQL(cast("LiteralString", grant.privilege)),
                name,
                _name_grantee(grant.grantee),
                sql.SQL(" WITH GRANT OPTION" if grant.is_grantable else ""),
            )
            for grant in wanted.grants
            if grant.privilege in _PRIVILEGES
        ]
    return tuple(statements)


@dataclass(frozen=True)
class CarriedProperties:
    """The result of applying properties to a database."""

    differences: tuple[str, ...]
    """Properties that still differ from the wanted ones."""
    problem: str = ""
    """Why the statements were refused; then none of them is in effect."""


def carry_properties(connection: _Connection, database: str, wanted: DatabaseProperties) -> CarriedProperties:
    """Apply the wanted properties, as far as `list_property_statements` covers them, all or none."""
    present = read_properties(connection, database)
    if present is None:
        return CarriedProperties(())
    problem = ""
    try:
        execute_all(connection, list_property_statements(database, wanted, present))
    except psycopg.Error as error:
        problem = " ".join(str(error).split())
    return CarriedProperties(
        (read_properties(connection, database) or present).list_differences(wanted), problem
    )


def make_setting_statement(database: str, setting: DatabaseSetting) -> sql.Composed:
    """Return the statement ALTER DATABASE … SET, or ALTER ROLE … IN DATABASE … SET."""
    place = sql.SQL("DATABASE {}").format(sql.Identifier(database))
    if setting.role:
        place = sql.SQL("ROLE {} IN ").format(sql.Identifier(setting.role)) + place
    value = sql.SQL(", ").join(map(sql.Literal, split_setting(setting)))
    return sql.SQL("ALTER {} SET {} = {}").format(place, sql.Identifier(*setting.name.split(".")), value)


def execute_all(connection: _Connection, statements: Sequence[sql.Composed]) -> None:
    """Run the statements in one transaction."""
    with connection.transaction():
        for statement in statements:
            connection.execute(statement)


def split_setting(setting: DatabaseSetting) -> list[str]:
    """Return the strings that pg_dump writes for the setting's value.

    These are the elements of a list, otherwise the value alone.
    """
    if not setting.name.endswith(_LIST_SETTINGS) or not _LIST.fullmatch(setting.value):
        return [setting.value]
    return [
        found[1:-1].replace('""', '"') if found.startswith('"') else found
        for found in _ELEMENT.findall(setting.value)
    ]


def _name_grantee(name: str) -> sql.Composable:
    return sql.Identifier(name) if name else sql.SQL("PUBLIC")


def _as_literal(text: str) -> sql.SQL:
    return sql.SQL(cast("LiteralString", text))
