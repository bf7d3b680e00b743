"""Run SQL in a psql that stops at the first error, and convert that error, with a hint for its SQLSTATE."""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from threading import Event, Thread

from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.postgres.activity import ServerActivity
from schedgen_backups.core.postgres.client_programs import ClientPrograms
from schedgen_backups.core.postgres.connection import SessionFacts, make_client_environment
from schedgen_backups.core.postgres.login_refusals import find_login_hint
from schedgen_backups.core.postgres.session_settings import FIXED_SETTINGS, list_later_settings
from schedgen_backups.core.settings import DatabaseSettings, TransferSettings
from schedgen_backups.core.system.process import Program, ProgramError

_WORDS = (
    "--no-psqlrc",
    "--quiet",
    "--no-password",
    "--set=ON_ERROR_STOP=1",
    "--set=VERBOSITY=verbose",
    "--output=/dev/null",
)
_STOPPED_BY_ERROR = 3
"""psql's exit code after an SQL error with ON_ERROR_STOP (PostgreSQL manual, psql, "Exit Status")."""
_SEVERITY = re.compile(r"^(?P<severity>\w+):  (?P<sqlstate>[0-9A-Z]{5}): ", re.MULTILINE)
_LOCATION = re.compile(r"^LOCATION:  .*\n?", re.MULTILINE)
_KEEP_ALIVE_SECONDS = 1.0
_HARMLESS_CLASSES = frozenset({"00", "01", "02"})
_NEUTRAL_HINT = "The message is from the server; its log may contain more."
_HINTS = {
    "0A000": "The server lacks a feature that the dump needs. Install the extension that the message names "
    "on the server, then restore again.",
    "58P01": "The server lacks a file that the dump needs. Install the extension that the message names "
    "on the server, then restore again.",
    "42704": "Create what the message names (a role, a tablespace, an extension), then restore again.",
    "42501": "Restore with a role that has this privilege, such as the owner of the database or a superuser.",
    "53100": "Free disk space on the database server, then restore again.",
    "53200": "Raise max_locks_per_transaction or the memory of the database server, then restore again.",
    "42710": "Restore into a database that was created from template0.",
    "42P06": "Restore into a database that was created from template0.",
    "42P07": "Restore into a database that was created from template0.",
    "42723": "Restore into a database that was created from template0.",
}
_TABLESPACE_HINT = (
    "Create the tablespace on the server, in any empty directory, then restore again: "
    "CREATE TABLESPACE name LOCATION '/directory';"
)
_HINTS_BY_CLASS = {
    "08": "The connection to the server broke: check its log, then restore again.",
    "22": "A value of the dump does not fit its type or a check on this server; it did in the source. Look "
    "for functions or settings that differ.",
    "23": "The captured rows break a constraint of their own database. Restore an older recovery point, or "
    "load this one by hand (docs/restore.md).",
    "53": "The database server is short of a resource: check its log, then restore again.",
    "57": "The session was ended on the server: check its log, then restore again.",
}


class Psql:
    r"""A running psql that stops at the first error; a context manager that ends it.

    All input is read under a `\restrict` with a random key: a psql command in it, which could run programs,
    is an error (CVE-2025-8714). Errors are RestoreErrors with psql's message.
    """

    def __init__(
        self,
        client: ClientPrograms,
        target: DatabaseSettings,
        session: SessionFacts,
        transfer: TransferSettings,
    ) -> None:
        activity = ServerActivity(target)
        try:
            self._program = Program(
                [client.psql, *_WORDS],
                environment={**make_client_environment(target, session), **activity.environment},
                stall_timeout_seconds=transfer.stall_timeout_seconds,
                stdin=subprocess.PIPE,
                is_working=activity.is_working,
            )
        except ProgramError as error:
            raise RestoreError(error.message, hint=error.hint) from error
        self._echoes = self._program.read_blocks()
        """Only the output of `\\echo`: query results are discarded."""
        self.is_stopped_by_error = False
        """Whether an SQL error ended it; the server has then rolled back what was not committed."""
        self._key = secrets.token_hex(16)
        self._target = target
        self.feed(f"\\restrict {self._key}\n".encode())
        if session.is_pooled:
            values = {
                **FIXED_SETTINGS,
                **list_later_settings(session.server_major, is_superuser=session.is_superuser),
            }
            self.feed("".join(f"SET {name} = {_quote(value)};\n" for name, value in values.items()).encode())

    def feed(self, text: bytes) -> None:
        """Send SQL; when this returns, it may not have reached the server yet."""
        try:
            self._program.write(text)
        except ProgramError as error:
            if not isinstance(error.__cause__, BrokenPipeError):
                raise RestoreError(error.message, hint=error.hint) from error
            raise self._explain(error.message) from error

    def settle(self) -> None:
        """Wait until psql has run everything sent so far."""
        mark = secrets.token_hex(16)
        self.feed(f"\n\\unrestrict {self._key}\n\\echo {mark}\n\\restrict {self._key}\n".encode())
        echoed = b""
        try:
            for block in self._echoes:
                echoed += block
                if mark.encode() in echoed:
                    return
        except ProgramError as error:
            raise RestoreError(error.message, hint=error.hint) from error
        raise self._explain("it ended before it had run all statements")

    @contextmanager
    def keep_alive(self) -> Generator[None, None, None]:
        """Send a cheap query now and then within the block: proxies and firewalls close silent connections.

        Nothing else may be sent meanwhile. A lost connection becomes visible at the next statement.
        """
        stop = Event()

        def ask() -> None:
            with suppress(RestoreError):
                while not stop.wait(_KEEP_ALIVE_SECONDS):
                    self.feed(b"SELECT;\n")

        thread = Thread(target=ask, name="keep-alive")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def finish(self) -> None:
        """Wait until psql has run everything and has ended."""
        self._program.close_stdin()
        code = self._wait()
        if code != 0:
            raise self._explain(f"exit code {code}")

    def __enter__(self) -> Psql:
        return self

    def __exit__(self, *exception: object) -> None:
        self._program.end()

    def _wait(self) -> int:
        try:
            return self._program.wait()
        except ProgramError as error:
            raise RestoreError(error.message, hint=error.hint) from error

    def _explain(self, reason: str) -> RestoreError:
        self.is_stopped_by_error = self._wait() == _STOPPED_BY_ERROR
        message, hint = explain_output(self._program.stderr_tail)
        hint = find_login_hint(self._target, self._program.stderr_tail) or hint
        return RestoreError(f"psql stopped at the first error: {message or reason}", hint=hint)


def feed_psql(
    client: ClientPrograms,
    target: DatabaseSettings,
    session: SessionFacts,
    transfer: TransferSettings,
    texts: Iterable[bytes],
) -> None:
    """Run all texts.

    RestoreError with psql's message at its first error; errors of `texts` end psql and are raised.
    """
    with Psql(client, target, session, transfer) as psql:
        for text in texts:
            psql.feed(text)
        psql.finish()


def explain_output(text: str) -> tuple[str, str]:
    """Return psql's message without codes and source locations, and the hint for the last SQLSTATE."""
    codes = [
        found["sqlstate"]
        for found in _SEVERITY.finditer(text)
        if found["sqlstate"][:2] not in _HARMLESS_CLASSES
    ]
    if r"invalid command \restrict" in text:
        return (
            r"this psql does not support \restrict",
            "Install one of August 2025 or newer: 13.22, 14.19, 15.14, 16.10, 17.6 or any 18.",
        )
    message = _LOCATION.sub("", _SEVERITY.sub(r"\g<severity>:  ", text)).strip()
    if not codes:
        return message, _NEUTRAL_HINT
    if "default_tablespace" in message and codes[-1].startswith("22"):
        return message, _TABLESPACE_HINT
    return message, _HINTS.get(codes[-1]) or _HINTS_BY_CLASS.get(codes[-1][:2], _NEUTRAL_HINT)


def _quote(value: str) -> str:
    # DateStyle is a list of separate words; the other values are single strings.
    return value if "," in value else f"'{value}'"
