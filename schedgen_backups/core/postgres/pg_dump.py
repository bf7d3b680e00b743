"""Run pg_dump and yield its plain text, without a setting that older servers do not support.

Add what concerns one run of pg_dump. `dump_text` parses the text; `dump` and `equality` use it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from schedgen_backups.core.errors import DumpError
from schedgen_backups.core.postgres.activity import ServerActivity
from schedgen_backups.core.postgres.client_programs import ClientPrograms
from schedgen_backups.core.postgres.connection import SessionFacts, make_client_environment
from schedgen_backups.core.postgres.login_refusals import find_login_hint
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.core.system.process import Program, ProgramError

TRANSACTION_TIMEOUT_MAJOR = 17
"""The first server that supports `transaction_timeout` (PostgreSQL 17 release notes); newer pg_dumps set it
in every dump."""
_TRANSACTION_TIMEOUT = b"SET transaction_timeout = 0;\n"
_HEAD_LIMIT_BYTES = 64 * 1024


def stream_dump(
    settings: DatabaseSettings,
    client: ClientPrograms,
    *,
    session: SessionFacts,
    stall_timeout_seconds: float,
    snapshot_id: str | None = None,
    options: Sequence[str] = (),
    on_start: Callable[[Program], object] = lambda _program: None,
    on_progress: Callable[[int], object] = lambda _size_bytes: None,
) -> Generator[bytes, None, None]:
    """Yield the plain dump as pg_dump writes it.

    DumpError (retryable) if pg_dump fails, hangs or is killed, at the latest at the end. Closing the
    generator early ends pg_dump. `options` are additional arguments. `on_start` gets the running program,
    which the caller can stop from another thread.
    """
    arguments = [
        client.pg_dump,
        "--format=plain",
        "--no-password",
        f"--lock-wait-timeout={int(stall_timeout_seconds)}s",
        *([f"--snapshot={snapshot_id}"] if snapshot_id else []),
        *options,
    ]
    activity = ServerActivity(settings)
    environment = {**make_client_environment(settings, session), **activity.environment}
    try:
        with Program(
            arguments,
            environment=environment,
            stall_timeout_seconds=stall_timeout_seconds,
            is_working=activity.is_working,
        ) as program:
            on_start(program)
            blocks = program.read_blocks()
            if session.server_major < TRANSACTION_TIMEOUT_MAJOR:
                blocks = _leave_out_transaction_timeout(blocks)
            for block in blocks:
                on_progress(len(block))
                yield block
            code = program.wait()
            if code != 0:
                ending = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
                raise DumpError(
                    f"pg_dump {ending}: {program.stderr_tail or 'it wrote no message'}",
                    hint=find_login_hint(settings, program.stderr_tail)
                    or "Check the server's log; run the backup again.",
                )
    except ProgramError as error:
        raise DumpError(error.message, hint=error.hint) from error


def make_pattern(schema_name: str, name: str) -> str:
    """Return the pattern that matches exactly this table in pg_dump (its manual, option `--table`)."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in (schema_name, name))


def leave_out_rows(tables: Iterable[tuple[str, str]]) -> list[str]:
    """Return the options that exclude exactly the rows of these tables, given by schema and name."""
    return [f"--exclude-table-data={make_pattern(schema_name, name)}" for schema_name, name in tables]


def _leave_out_transaction_timeout(blocks: Iterable[bytes]) -> Iterator[bytes]:
    # The statement is at the start of the dump, before the first object. A server older than 17 rejects it.
    head = b""
    is_in_head = True
    for block in blocks:
        if not is_in_head:
            yield block
            continue
        head += block
        if b"\nSELECT pg_catalog.set_config(" in head or len(head) > _HEAD_LIMIT_BYTES:
            is_in_head = False
            yield head.replace(_TRANSACTION_TIMEOUT, b"", 1)
    if is_in_head and head:
        yield head.replace(_TRANSACTION_TIMEOUT, b"", 1)
