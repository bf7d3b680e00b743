"""The exit codes of the command line, for scripts, cron and systemd, and which of them an error of core ends with."""

from __future__ import annotations

from schedgen_backups.core.errors import BackupError, BucketError, ConfigurationError, DatabaseError, LockHeldError, StorageError

DATABASE_EXIT_CODE = 1
BUCKET_EXIT_CODE = 2
VERIFICATION_EXIT_CODE = 3
CONFIGURATION_EXIT_CODE = 4
LOCK_EXIT_CODE = 5
CANCELLED_EXIT_CODE = 130
"""What shells report of a program that Ctrl-C ended."""

_BY_ERROR: tuple[tuple[type[BackupError], int], ...] = (
    (DatabaseError, DATABASE_EXIT_CODE),
    (BucketError, BUCKET_EXIT_CODE),
    (ConfigurationError, CONFIGURATION_EXIT_CODE),
    (StorageError, CONFIGURATION_EXIT_CODE),
    (LockHeldError, LOCK_EXIT_CODE),
)


def get_exit_code(error: BackupError) -> int:
    """Return the exit code of a command that this error ends."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), VERIFICATION_EXIT_CODE)
