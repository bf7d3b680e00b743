"""The roles of a load without superuser privileges, and stand-ins for superusers that the dump names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from schedgen_backups.core.formats.dump_text import Segment, Text, unquote_identifier
from schedgen_backups.core.restore.known_statements import OWNER, make_form
from schedgen_backups.core.settings import DatabaseSettings

_ROLE_STATEMENT = make_form(r"GRANT |REVOKE |ALTER DEFAULT PRIVILEGES ")
_ROLE_WORD = make_form(r"(?P<word>\b(?:TO|FROM|ROLE) )(?P<who><name>)(?=[;, ])")
GRANTOR = make_form(r"SET SESSION AUTHORIZATION (?P<who><name>);")
NO_GRANTOR = b"RESET SESSION AUTHORIZATION;"


@dataclass(frozen=True)
class StandIn:
    """A role without superuser privileges that replaces a superuser of the server.

    Nothing may be given to the superuser itself.
    """

    quoted: str
    """The superuser's name as pg_dump writes it in SQL."""
    name: str
    """The superuser's name as pg_dump writes it in comments."""
    stand_in: str
    """Needs no quotes and is unique in the dump."""


@dataclass(frozen=True)
class LoadRoles:
    """The roles of a load: one without superuser privileges, and possibly a superuser.

    The superuser runs the few statements that require it.
    """

    loader: DatabaseSettings
    superuser: DatabaseSettings | None
    reader: DatabaseSettings | None = None
    """The role that reads the loaded data, since the loader can no longer log in. Nothing of the dump runs as
    this role during the load."""
    made_roles: frozenset[str] = frozenset()
    """Names of the roles created for this load, all without superuser privileges; the loader is a member of
    each."""
    refused_owners: frozenset[str] = frozenset()
    """Names of the server's superusers, to whom nothing is given."""
    stand_ins: tuple[StandIn, ...] = ()
    """Stand-ins for those superusers that the dump names."""
    is_server_shared: bool = True
    """Whether others also use the server: privileges to read its log, or to connect from it without a
    password, then reach their data."""

    def name_stand_ins(self, statement: bytes) -> bytes:
        """Return the statement with stand-ins instead of superusers as grantees or owners."""
        names = {each.quoted.encode(): each.stand_in.encode() for each in self.stand_ins}
        owner = OWNER.fullmatch(statement)
        if owner is not None and owner["new_owner"] in names:
            return statement[: owner.start("new_owner")] + names[owner["new_owner"]] + b";"
        grantor = GRANTOR.fullmatch(statement)
        if grantor is not None:
            # Precedes the grant of a role that has the grant option. The loader is a member of each role, and
            # not a superuser.
            who = names.get(grantor["who"], grantor["who"])
            return b"SET ROLE " + who + b";" if unquote_identifier(who) in self.made_roles else statement
        if statement == NO_GRANTOR:
            return b"RESET ROLE;"
        if not names or not _ROLE_STATEMENT.match(statement):
            return statement
        return _ROLE_WORD.sub(lambda found: found["word"] + names.get(found["who"], found["who"]), statement)

    def name_superusers(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        """Yield the segments of a second dump with the superusers' names in place of their stand-ins."""
        held: list[bytes] = []
        for segment in segments:
            if self.stand_ins and isinstance(segment, Text):
                whole, newline, rest = segment.data.rpartition(b"\n")
                if newline:
                    lines = b"".join((*held, whole, newline)).splitlines(keepends=True)
                    held.clear()
                    yield Text(b"".join(map(self._name_in_line, lines)))
                # Not joined each time: a single line may be as long as the whole text.
                held.append(rest)
            else:
                if any(held):
                    yield Text(self._name_in_line(b"".join(held)))
                held.clear()
                yield segment
        if any(held):
            yield Text(self._name_in_line(b"".join(held)))

    def _name_in_line(self, line: bytes) -> bytes:
        for each in self.stand_ins:
            name = each.name if line.startswith(b"-- ") else each.quoted
            line = re.sub(
                rb"\b" + each.stand_in.encode() + rb"\b", name.encode().replace(b"\\", b"\\\\"), line
            )
        return line
