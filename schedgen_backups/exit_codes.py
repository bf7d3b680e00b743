"""The exit codes of the command line, for scripts, cron and systemd, and the code of each error of core.

The application's monitoring knows the first four. `status` alone uses the codes of monitoring plugins.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from schedgen_backups.core.errors import (
    BackupError,
    BucketError,
    CommandError,
    ConfigurationError,
    DatabaseError,
    DeliveryError,
    LockHeldError,
    PointNotFoundError,
    RestoreError,
    StorageError,
    VerificationError,
)

DATABASE_EXIT_CODE = 1
"""The database could not be captured, reached or read."""
BUCKET_EXIT_CODE = 2
"""The bucket could not be captured, reached or read."""
VERIFICATION_EXIT_CODE = 3
"""A check failed or could not be performed."""
CONFIGURATION_EXIT_CODE = 4
"""A setting or a precondition is missing or wrong."""
LOCK_EXIT_CODE = 5
"""Another run uses the backup directory."""
STORAGE_EXIT_CODE = 6
"""The backup directory or another file could not be read or written."""
RESTORE_EXIT_CODE = 7
"""A restore was refused, not confirmed or aborted."""
NO_POINT_EXIT_CODE = 8
"""The recovery point does not exist."""
ALERT_EXIT_CODE = 9
"""A channel did not accept an alert."""
COMMAND_EXIT_CODE = 10
"""A command that the operator configured to run before or after a backup failed."""
USAGE_EXIT_CODE = 64
"""The command line is invalid (EX_USAGE of sysexits.h)."""
CANCELLED_EXIT_CODE = 130
"""The code that shells report for a program that Ctrl-C ended."""

MEANINGS: Mapping[int, str] = MappingProxyType(
    {
        0: "success",
        DATABASE_EXIT_CODE: "the database could not be captured, reached or read",
        BUCKET_EXIT_CODE: "the bucket could not be captured, reached or read",
        VERIFICATION_EXIT_CODE: "a check failed or could not be performed",
        CONFIGURATION_EXIT_CODE: "a setting or a precondition is missing or wrong",
        LOCK_EXIT_CODE: "another run uses the backup directory",
        STORAGE_EXIT_CODE: "the backup directory or another file could not be read or written",
        RESTORE_EXIT_CODE: "a restore was refused, not confirmed or aborted",
        NO_POINT_EXIT_CODE: "the recovery point does not exist",
        ALERT_EXIT_CODE: "a channel did not accept an alert",
        COMMAND_EXIT_CODE: "a command that runs before or after a backup failed",
        USAGE_EXIT_CODE: "the command line is invalid",
        CANCELLED_EXIT_CODE: "cancelled",
    }
)
"""Exit code → meaning, for the manual."""

STATUS_MEANINGS: Mapping[int, str] = MappingProxyType(
    {
        0: "the newest verified point is recent enough",
        1: "the newest verified point is almost too old, a point is damaged, something is wrong with copies, "
        "or an incident is open",
        2: "the newest verified point is too old, or there is none",
    }
)
"""Exit code → meaning, for `status` only (Monitoring Plugins Development Guidelines)."""

_BY_ERROR: tuple[tuple[type[BackupError], int], ...] = (
    (PointNotFoundError, NO_POINT_EXIT_CODE),
    (CommandError, COMMAND_EXIT_CODE),
    (DeliveryError, ALERT_EXIT_CODE),
    (DatabaseError, DATABASE_EXIT_CODE),
    (BucketError, BUCKET_EXIT_CODE),
    (ConfigurationError, CONFIGURATION_EXIT_CODE),
    (StorageError, STORAGE_EXIT_CODE),
    (LockHeldError, LOCK_EXIT_CODE),
    (RestoreError, RESTORE_EXIT_CODE),
    (VerificationError, VERIFICATION_EXIT_CODE),
)


def get_exit_code(error: BackupError) -> int:
    """Return the exit code of a command that fails with this error."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), VERIFICATION_EXIT_CODE)
