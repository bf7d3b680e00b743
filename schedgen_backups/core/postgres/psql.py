"""Hands SQL to a psql that stops at the first error, and turns what it says then into our error, with a hint
that fits the SQLSTATE.
"""

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
"""psql's exit code after an error of SQL with ON_ERROR_STOP (PostgreSQL manual, psql, "Exit Status")."""
_SEVERITY = re.compile(r"^(?P<severity>\w+):  (?P<sqlstate>[0-9A-Z]{5}): ", re.MULTILINE)
_LOCATION = re.compile(r"^LOCATION:  .*\n?", re.MULTILINE)
_KEEP_ALIVE_SECONDS = 1.0
_HARMLESS_CLASSES = frozenset({"00", "01", "02"})
_NEUTRAL_HINT = "The message is the server's own; its log may say more."
_HINTS = {
    "0A000": "The server lacks a feature that the dump needs. Install the extension that the message names "
    "there, then restore again.",
    "58P01": "The server lacks a file that the dump needs. Install the extension that the message names "
    "there, then restore again.",
    "42704": "Make there what the message names (a role, a tablespace, an extension), then restore again.",
    "42501": "Restore with a role that may do this, such as the owner of the database or a superuser.",
    "53100": "Make room on the disk of the database server, then restore again.",
    "53200": "Raise max_locks_per_transaction or the memory of the database server, then restore again.",
    "42710": "Restore into a database that was made from template0.",
    "42P06": "Restore into a database that was made from template0.",
    "42P07": "Restore into a database that was made from template0.",
    "42723": "Restore into a database that was made from template0.",
}
_TABLESPACE_HINT = (
    "Make the tablespace on the server, in whatever empty folder, then restore again: "
    "CREATE TABLESPACE name LOCATION '/folder';"
)
_HINTS_BY_CLASS = {
    "08": "The connection to the server broke: look at its log, then restore again.",
    "22": "A value of the dump does not fit its type or a check there; it did in the source. Look for "
    "functions or settings that differ.",
    "23": "The captured rows break a constraint of their own database. Restore an older recovery point, or "
    "load this one by hand (docs/restore.md).",
    "53": "The database server is short of a resource: look at its log, then restore again.",
    "57": "Somebody or something ended the session on the server: look at its log, then restore again.",
}


class Psql:
    r"""A running psql that stops at the first error; a context manager, after whose block it has ended.

    Whatever it is fed stands under a `\restrict` with a random key: a psql command in it, which could run
    programs, is an error (CVE-2025-8714). Errors are RestoreErrors with psql's words.
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
        """What comes of `\\echo` alone: results of queries go elsewhere."""
        self.is_stopped_by_error = False
        """Whether an error of SQL ended it: then the server has rolled back what was not committed."""
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
        """Hand over SQL, which may still be on its way to the server afterwards."""
        try:
            self._program.write(text)
        except ProgramError as error:
            if not isinstance(error.__cause__, BrokenPipeError):
                raise RestoreError(error.message, hint=error.hint) from error
            raise self._explain(error.message) from error

    def settle(self) -> None:
        """Wait until psql has run everything that it was given so far."""
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
        raise self._explain("it ended before it had run everything")

    @contextmanager
    def keep_alive(self) -> Generator[None, None, None]:
        """Let the session ask something cheap now and then within the block: proxies and firewalls end
        connections that are silent.

        Nothing else may be fed meanwhile. That the connection is lost shows at what is fed next.
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
        """Wait until psql has run everything, and has ended."""
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
    """Run every text.

    RestoreError with psql's words at its first error; errors of `texts` end psql and are raised.
    """
    with Psql(client, target, session, transfer) as psql:
        for text in texts:
            psql.feed(text)
        psql.finish()


def explain_output(text: str) -> tuple[str, str]:
    """Return what a verbose psql said without codes and places in the server's source, and the hint that fits
    its last error's SQLSTATE.
    """
    codes = [
        found["sqlstate"]
        for found in _SEVERITY.finditer(text)
        if found["sqlstate"][:2] not in _HARMLESS_CLASSES
    ]
    if r"invalid command \restrict" in text:
        return (
            r"this psql does not know \restrict",
            "Install one of August 2025 or newer: 13.22, 14.19, 15.14, 16.10, 17.6 or any 18.",
        )
    message = _LOCATION.sub("", _SEVERITY.sub(r"\g<severity>:  ", text)).strip()
    if not codes:
        return message, _NEUTRAL_HINT
    if "default_tablespace" in message and codes[-1].startswith("22"):
        return message, _TABLESPACE_HINT
    return message, _HINTS.get(codes[-1]) or _HINTS_BY_CLASS.get(codes[-1][:2], _NEUTRAL_HINT)


def _quote(value: str) -> str:
    # DateStyle is a list, whose parts are words of their own; the others are one string.
    return value if "," in value else f"'{value}'"
