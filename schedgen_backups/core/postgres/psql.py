"""Hands SQL to a psql that stops at the first error, and turns what it says then into our error.

For loads into databases that are dropped or emptied again when they fail. The load of a whole database in one transaction has hints of its own and
lives in `database_restore`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from schedgen_backups.core.errors import RestoreError
from schedgen_backups.core.postgres.client_programs import ClientPrograms
from schedgen_backups.core.postgres.connection import make_client_environment
from schedgen_backups.core.settings import DatabaseSettings, TransferSettings
from schedgen_backups.core.system.process import Program, ProgramError


def feed_psql(client: ClientPrograms, target: DatabaseSettings, transfer: TransferSettings, texts: Iterable[bytes]) -> None:
    """The database has taken every text. RestoreError with psql's words at its first error; errors of `texts` end psql and are raised."""
    words = [client.psql, "--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"]
    try:
        with Program(
            words,
            environment=make_client_environment(target),
            stall_timeout_seconds=transfer.stall_timeout_seconds,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ) as psql:
            try:
                for text in texts:
                    psql.write(text)
                psql.close_stdin()
            except ProgramError as error:
                psql.wait()
                raise RestoreError(f"psql stopped at the first error: {psql.stderr_tail or error.message}") from error
            if psql.wait() != 0:
                raise RestoreError(f"psql stopped at the first error: {psql.stderr_tail}")
    except ProgramError as error:
        raise RestoreError(error.message, hint=error.hint) from error
