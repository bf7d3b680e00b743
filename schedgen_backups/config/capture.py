"""How recovery points are taken and data is moved, from variables."""

from __future__ import annotations

import os

from schedgen_backups.config.presets import PRESETS
from schedgen_backups.config.reader import Reader
from schedgen_backups.config.schedules import read_layout
from schedgen_backups.config.variables import PACK_RECIPIENTS_VARIABLE
from schedgen_backups.core.settings import (
    CaptureSettings,
    CommandSettings,
    Exclusions,
    References,
    TransferSettings,
)

_MOST_THREADS = 64
_CORES_FOR_TWO_DUMPS = 4
"""Number of cores from which two pg_dump run by default. One pg_dump, its server and the compression keep two
cores busy; there, a second one gained nothing (2026-11-25: 6.6 s with one and with two)."""


def read_capture(reader: Reader) -> CaptureSettings:
    """Return the settings of taking a recovery point and of transferring data."""
    query = reader.text("BACKUP_REFERENCE_QUERY")
    preset = reader.parsed(
        "BACKUP_PRESET", PRESETS.__getitem__, f"one of {', '.join(PRESETS)}", PRESETS["schedgen"]
    )
    return CaptureSettings(
        transfer=_read_transfer(reader),
        references=References(query, built_in=None) if query and query != preset.query else preset,
        exclusions=Exclusions(
            tables=_read_patterns(reader, "BACKUP_EXCLUDE_TABLE_DATA"),
            objects=_read_patterns(reader, "BACKUP_EXCLUDE_OBJECTS"),
        ),
        is_empty_allowed=reader.yes_or_no("BACKUP_ALLOW_EMPTY"),
        is_new_source_allowed=reader.yes_or_no("BACKUP_ALLOW_NEW_SOURCE"),
        reread_days=reader.number("BACKUP_REREAD_DAYS", 0, 3650),
        layout=read_layout(reader),
        pack_reread_days=reader.number("BACKUP_PACK_REREAD_DAYS", 1, 3650),
        pack_recipients=_read_patterns(reader, PACK_RECIPIENTS_VARIABLE),
    )


def read_commands(reader: Reader) -> CommandSettings:
    """Return the commands that run before and after a backup."""
    return CommandSettings(
        before=reader.text("BACKUP_BEFORE_COMMAND"),
        after=reader.text("BACKUP_AFTER_COMMAND"),
        on_failure=reader.text("BACKUP_FAILURE_COMMAND"),
        timeout_seconds=reader.number("BACKUP_COMMAND_TIMEOUT_SECONDS", 1, 24 * 3600),
    )


def _read_patterns(reader: Reader, name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in reader.text(name).split(",") if part.strip())


def _read_transfer(reader: Reader) -> TransferSettings:
    threads, jobs = reader.text("BACKUP_COMPRESSION_THREADS"), reader.text("BACKUP_DUMP_JOBS")
    cores = os.cpu_count() or 1
    return TransferSettings(
        compression_threads=reader.number("BACKUP_COMPRESSION_THREADS", 1, _MOST_THREADS)
        if threads
        else min(cores, 8),
        dump_jobs=reader.number("BACKUP_DUMP_JOBS", 1, _MOST_THREADS)
        if jobs
        else 1 + (cores >= _CORES_FOR_TWO_DUMPS),
        download_threads=reader.number("BACKUP_DOWNLOAD_THREADS", 1, _MOST_THREADS),
        stall_timeout_seconds=reader.number("BACKUP_STALL_TIMEOUT_SECONDS", 1, 24 * 3600),
        max_mb_per_second=reader.number("BACKUP_MAX_MB_PER_SECOND", 0, 100_000),
        postgres_bin_dir=reader.path("PG_BIN_DIR"),
    )
