"""Create a dump's missing roles, with memberships and settings, and report differences of the others.

The dump's lines are parsed. Only statements of known forms run, one at a time, and never as psql input.
Passwords were not captured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.formats.dump_text import unquote_identifier
from schedgen_backups.core.postgres.database_properties import (
    make_setting,
    make_setting_statement,
    split_setting,
)
from schedgen_backups.core.postgres.session import Connection
from schedgen_backups.core.units import name_some

_NAME = r'(?:"(?:[^"]|"")+"|[a-z_\u0080-\U0010ffff][a-z0-9_$\u0080-\U0010ffff]*)'
_STRING = r"(?:'(?:[^'\\]|'')*'|E'(?:[^'\\]|''|\\.)*')"
_STRINGS = re.compile(_STRING)
CREATE_ROLE = re.compile(rf"CREATE ROLE (?P<name>{_NAME});")
_ATTRIBUTES = re.compile(
    rf"ALTER ROLE (?P<name>{_NAME}) WITH(?: "
    r"(?:NO)?(?:SUPERUSER|INHERIT|CREATEROLE|CREATEDB|LOGIN|REPLICATION|BYPASSRLS)"
    rf"| CONNECTION LIMIT -?[0-9]+| VALID UNTIL {_STRING})*;"
)
_ATTRIBUTE_WORDS = re.compile(
    r" (?P<no>NO)?(?P<word>SUPERUSER|INHERIT|CREATEROLE|CREATEDB|LOGIN|REPLICATION|BYPASSRLS)\b"
)
_CONNECTION_LIMIT = re.compile(r" CONNECTION LIMIT (?P<limit>-?[0-9]+)")
_VALID_UNTIL = re.compile(rf" VALID UNTIL (?P<text>{_STRING})")
_ATTRIBUTE_COLUMNS = {
    "SUPERUSER": "rolsuper",
    "INHERIT": "rolinherit",
    "CREATEROLE": "rolcreaterole",
    "CREATEDB": "rolcreatedb",
    "LOGIN": "rolcanlogin",
    "REPLICATION": "rolreplication",
    "BYPASSRLS": "rolbypassrls",
}
_SETTING = re.compile(
    rf"ALTER ROLE (?P<name>{_NAME}) SET (?P<setting>{_NAME}(?:\.{_NAME})*) TO (?P<values>{_STRING}(?:, "
    rf"{_STRING})*);"
)
_COMMENT = re.compile(rf"COMMENT ON ROLE (?P<name>{_NAME}) IS {_STRING};")
_OPTION = r"(?:ADMIN OPTION|(?:ADMIN|INHERIT|SET) (?:TRUE|FALSE|OPTION))"
_MEMBERSHIP = re.compile(
    rf"GRANT (?P<role>{_NAME}) TO (?P<member>{_NAME})(?P<options> WITH {_OPTION}(?:, {_OPTION})*)?(?: "
    rf"GRANTED BY {_NAME})?;"
)
_MEMBER_OPTIONS_MAJOR = 16
"""The first server with INHERIT and SET for a single membership (PostgreSQL 16 release notes)."""
_DROP_LOCK_SECONDS = 30


@dataclass(frozen=True)
class Membership:
    """The membership of one role in another; names as SQL quotes them."""

    role: str
    member: str
    options: str = ""

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.member} in {self.role}"

    def make_statement(self) -> str:
        """Return the GRANT; the grantor is not preserved."""
        return f"GRANT {self.role} TO {self.member}{self.options};"

    def is_held(self, held: tuple[bool, bool | None, bool | None]) -> bool:
        """Return whether a membership's (admin, inherit, set) match this one.

        Values that the server does not provide are None.
        """
        admin, inherit, may_set = held
        is_right = admin == ("ADMIN OPTION" in self.options or "ADMIN TRUE" in self.options)
        if "INHERIT " in self.options:
            is_right = is_right and inherit in {None, "INHERIT TRUE" in self.options}
        return is_right and may_set in {None, "SET FALSE" not in self.options}


@dataclass(frozen=True)
class DumpRoles:
    """A dump's statements about roles; keys are names as SQL quotes them."""

    attributes: dict[str, str] = field(default_factory=dict[str, str])
    """Role → its ALTER ROLE … WITH, or an empty text."""
    details: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Role → its ALTER ROLE … SET and its comment."""
    settings: dict[str, dict[str, list[str]]] = field(default_factory=dict[str, dict[str, list[str]]])
    """Role → setting in lower case → its value, or the elements of a list."""
    memberships: list[Membership] = field(default_factory=list[Membership])
    unknown_count: int = 0
    """Number of lines without a known form, which are never run."""

    def has_attribute(self, role: str, word: str) -> bool:
        """Return whether the captured role has SUPERUSER, BYPASSRLS or another attribute."""
        return _parse_attributes(self.attributes.get(role, "")).get(word, False)


@dataclass(frozen=True)
class MadeRoles:
    """The roles that a restore created, and notes on failures and differences."""

    names: tuple[str, ...] = ()
    """As SQL quotes them."""
    notes: tuple[str, ...] = ()


def parse_roles(text: str) -> DumpRoles:
    """Parse the statements of the dump's roles, one per line.

    After a line without a known form, no further line is used. It may be part of a value with a line break,
    whose further lines would be an attacker's text: captures before 2026-11-29 kept such values.
    """
    found = DumpRoles()
    unknown = 0
    for line in filter(None, text.split("\n")):
        if unknown:
            unknown += 1
        elif match := CREATE_ROLE.fullmatch(line):
            found.attributes.setdefault(match["name"], "")
        elif (match := _ATTRIBUTES.fullmatch(line)) and found.attributes.get(match["name"]) == "":
            found.attributes[match["name"]] = line
        elif match := _SETTING.fullmatch(line):
            found.details.setdefault(match["name"], []).append(line)
            values = [_unquote_string(text) for text in _STRINGS.findall(match["values"])]
            found.settings.setdefault(match["name"], {})[match["setting"].replace('"', "").lower()] = values
        elif match := _COMMENT.fullmatch(line):
            found.details.setdefault(match["name"], []).append(line)
        elif match := _MEMBERSHIP.fullmatch(line):
            found.memberships.append(Membership(match["role"], match["member"], match["options"] or ""))
        else:
            unknown += 1
    return DumpRoles(found.attributes, found.details, found.settings, found.memberships, unknown)


def make_roles(
    connection: Connection,
    text: str,
    present: frozenset[str],
    *,
    database: str,
    captured: DatabaseProperties | None,
) -> MadeRoles:
    """Create the roles that are not in `present`, with attributes, memberships and settings.

    Return refusals and differences as notes. A refusal does not stop the restore: the load may not need the
    role.
    """
    wanted = parse_roles(text)
    made: list[str] = []
    notes: list[str] = []
    if wanted.unknown_count:
        notes.append(
            f"{wanted.unknown_count} lines about roles have no known form and were not run; they are in "
            "the dump file"
        )
    for name in wanted.attributes:
        if name in present:
            continue
        try:
            _execute_single(connection, f"CREATE ROLE {name};")
        except psycopg.Error as error:
            notes.append(f"role {name} could not be created: {_describe(error)}")
            continue
        made.append(name)
        for statement in filter(None, (wanted.attributes[name], *wanted.details.get(name, ()))):
            try:
                _execute_single(connection, statement)
            except psycopg.Error as error:
                notes.append(f"role {name} could not be created as captured: {_describe(error)}")
    notes += _grant_memberships(connection, wanted, made)
    notes += _set_in_database(connection, database, captured, made)
    notes += _find_differences(connection, wanted, made)
    return MadeRoles(tuple(made), tuple(notes))


def drop_roles(connection: Connection, names: Sequence[str]) -> tuple[str, ...]:
    """Drop the roles that a failed restore created; return those that remain.

    A role remains if it owns objects or the current role may not drop it.
    """
    left: list[str] = []
    for name in names:
        try:
            with connection.transaction():
                connection.execute(
                    sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_DROP_LOCK_SECONDS * 1000))
                )
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(_unquote(name))))
        except psycopg.Error:
            left.append(name)
    return tuple(left)


def _grant_memberships(connection: Connection, wanted: DumpRoles, made: Sequence[str]) -> Iterator[str]:
    """Grant the memberships in which at least one role is new; existing roles never join existing roles."""
    for membership in wanted.memberships:
        if membership.role in made or membership.member in made:
            try:
                _execute_single(connection, membership.make_statement())
            except psycopg.Error as error:
                yield f"the membership of {membership.label} could not be granted: {_describe(error)}"


def _set_in_database(
    connection: Connection, database: str, captured: DatabaseProperties | None, made: Sequence[str]
) -> Iterator[str]:
    names = {_unquote(name) for name in made}
    for setting in captured.settings if captured is not None else ():
        if setting.role in names:
            try:
                connection.execute(make_setting_statement(database, setting))
            except psycopg.Error as error:
                yield f"the setting {setting.label} in this database could not be set: {_describe(error)}"


def _find_differences(connection: Connection, wanted: DumpRoles, made: Sequence[str]) -> Iterator[str]:
    major = connection.info.server_version // 10000
    options = (
        "pg_catalog.bool_or(m.inherit_option), pg_catalog.bool_or(m.set_option)"
        if major >= _MEMBER_OPTIONS_MAJOR
        else "NULL, NULL"
    )
    rows = connection.execute(
        "SELECT pg_catalog.quote_ident(r.rolname), pg_catalog.quote_ident(u.rolname), "  # noqa: S608 - columns by version
        "pg_catalog.bool_or(m.admin_option),"
        f" {options} FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r ON r.oid = m.roleid"
        " JOIN pg_catalog.pg_roles u ON u.oid = m.member GROUP BY 1, 2"
    ).fetchall()
    held = {(_unquote(str(row[0])), _unquote(str(row[1]))): (bool(row[2]), row[3], row[4]) for row in rows}
    missing: list[str] = []
    for each in wanted.memberships:
        options_held = held.get((_unquote(each.role), _unquote(each.member)))
        if (
            each.role not in made
            and each.member not in made
            and (options_held is None or not each.is_held(options_held))
        ):
            missing.append(each.label)
    if missing:
        yield (f"memberships of existing roles differ from the captured ones: {name_some(missing)}")
    rows = connection.execute(
        "SELECT r.rolname::text, pg_catalog.unnest(s.setconfig) FROM pg_catalog.pg_db_role_setting s"
        " JOIN pg_catalog.pg_roles r ON r.oid = s.setrole WHERE s.setdatabase = 0"
    ).fetchall()
    present = {
        (one.role, one.name.lower()): split_setting(one)
        for one in (make_setting(str(role), str(line)) for role, line in rows)
    }
    lacking = [
        f"{setting} of {name}"
        for name, settings in wanted.settings.items()
        for setting, values in settings.items()
        if name not in made and present.get((_unquote(name), setting)) != values
    ]
    if lacking:
        yield f"settings of existing roles differ from the captured ones: {name_some(lacking)}"
    different = [
        f"{word} of {name}"
        for name, statement in wanted.attributes.items()
        if statement and name not in made
        for word in _find_different_attributes(connection, name, statement)
    ]
    if different:
        yield (f"attributes of existing roles differ from the captured ones: {name_some(different)}")


def _find_different_attributes(connection: Connection, name: str, statement: str) -> Iterator[str]:
    until = _VALID_UNTIL.search(statement)
    row = connection.execute(
        sql.SQL(
            "SELECT {}, r.rolconnlimit, coalesce(r.rolvaliduntil, 'infinity') = coalesce(%s::timestamptz, "
            "'infinity')"
            " FROM pg_catalog.pg_roles r WHERE r.rolname = %s"
        ).format(sql.SQL(", ").join(sql.Identifier("r", column) for column in _ATTRIBUTE_COLUMNS.values())),
        (_unquote_string(until["text"]) if until is not None else None, _unquote(name)),
    ).fetchone()
    if row is None:  # could not be created, which has its own note
        return
    wanted = _parse_attributes(statement)
    for word, is_held in zip(_ATTRIBUTE_COLUMNS, row, strict=False):
        if word in wanted and wanted[word] != is_held:
            yield word
    limit = _CONNECTION_LIMIT.search(statement)
    if row[-2] != (int(limit["limit"]) if limit is not None else -1):
        yield "CONNECTION LIMIT"
    if not row[-1]:
        yield "VALID UNTIL"


def _execute_single(connection: Connection, statement: str) -> None:
    # The extended protocol accepts a single statement only, even if our parser misread the text.
    result = connection.pgconn.exec_params(statement.encode(), None)
    if result.status not in {psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.TUPLES_OK}:
        raise psycopg.errors.error_from_result(result)


def _unquote(name: str) -> str:
    return unquote_identifier(name.encode())


def _parse_attributes(statement: str) -> dict[str, bool]:
    return {
        found["word"]: found["no"] is None
        for found in _ATTRIBUTE_WORDS.finditer(_STRINGS.sub("''", statement))
    }


def _unquote_string(text: str) -> str:
    if text.startswith("E"):
        return re.sub(r"\\(.)|''", lambda found: found[1] or "'", text[2:-1])
    return text[1:-1].replace("''", "'")


def _describe(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
