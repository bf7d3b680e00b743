"""The tree of errors that core raises. Each says whether trying again can help, and what to do next.

    BackupError
    ├── ConfigurationError        a setting is missing or wrong              permanent
    │   └── PointNotFoundError    no recovery point is as asked for          permanent
    ├── LockHeldError             another run works on the directory         retryable
    ├── DatabaseError             the database could not be captured         permanent unless said
    │   ├── DatabaseUnreachableError                                         retryable
    │   ├── DatabaseMissingError  the server has no database of the name     permanent
    │   ├── ClientProgramError    no pg_dump or psql that fits               permanent
    │   └── DumpError             pg_dump failed, hung or wrote nonsense     retryable
    ├── BucketError               the bucket could not be captured           permanent unless said
    │   ├── BucketUnreachableError                                           retryable
    │   ├── BucketMissingError    the server has no bucket of the name       permanent
    │   └── ObjectError           one object could not be read or written    retryable
    ├── CommandError              a command of the operator failed           permanent
    ├── StorageError              the backup directory cannot be used        permanent
    ├── VerificationError         a file is not what it says it is           permanent
    │   └── UnreadableFileError   a file cannot be read, and may be whole    retryable
    └── RestoreError              a restore was refused or failed            permanent
        └── TargetNotEmptyError   the target holds something already         permanent

Add a class when a caller must tell it from the others; otherwise use the nearest one. No error text holds a
secret.
"""

from __future__ import annotations

from typing import ClassVar


class BackupError(Exception):
    """The root: a message that says what is wrong, and apart from it a hint that says what to do."""

    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigurationError(BackupError):
    """A setting is missing or wrong. Permanent: nothing changes until somebody edits it."""


class PointNotFoundError(ConfigurationError):
    """There is no recovery point as it was asked for. Permanent until one is taken."""


class LockHeldError(BackupError):
    """Another run works on the backup directory. Retryable: it ends, or dies and frees the lock."""

    is_retryable = True


class DatabaseError(BackupError):
    """The database could not be captured."""


class DatabaseUnreachableError(DatabaseError):
    """The server does not answer, or answered with a refusal that may pass. Retryable."""

    is_retryable = True


class DatabaseMissingError(DatabaseError):
    """The server has no database of this name. Permanent until somebody makes it."""


class ClientProgramError(DatabaseError):
    """No installed pg_dump or psql can talk to this server as asked. Permanent."""


class DumpError(DatabaseError):
    """pg_dump failed, hung, or what it wrote is not a whole dump. Retryable."""

    is_retryable = True


class BucketError(BackupError):
    """The bucket could not be captured."""


class BucketUnreachableError(BucketError):
    """The S3 server does not answer or keeps failing. Retryable."""

    is_retryable = True


class BucketMissingError(BucketError):
    """The server has no bucket of this name. Permanent until somebody makes it."""


class ObjectError(BucketError):
    """One object could not be read or written as it should be. Retryable."""

    is_retryable = True


class CommandError(BackupError):
    """A command that the operator wrote failed or took too long. Permanent."""


class StorageError(BackupError):
    """The backup directory cannot be read or written: permissions, space, a foreign file in the way."""


class VerificationError(BackupError):
    """A file of a recovery point is missing, cut short, altered or belongs elsewhere. Permanent."""


class UnreadableFileError(VerificationError):
    """A file cannot be read now: permissions, a disk or a network that fails.

    Nothing is known of what is in it. Retryable.
    """

    is_retryable = True


class RestoreError(BackupError):
    """A restore was refused or stopped at its first error; a database target is left as it was."""


class TargetNotEmptyError(RestoreError):
    """The target of a restore holds something already, and nobody confirmed to write into it."""
