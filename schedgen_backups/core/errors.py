"""Exceptions that core raises: each says whether a retry can help and what to do next.

    BackupError
    ├── ConfigurationError        a setting is missing or wrong              permanent
    │   ├── PointNotFoundError    no recovery point matches the request      permanent
    │   └── PackKeyError          no private key opens packs of this host    permanent
    ├── LockHeldError             another run uses the directory             retryable
    ├── DatabaseError             the database could not be captured         permanent unless noted
    │   ├── DatabaseUnreachableError                                         retryable
    │   ├── DatabaseMissingError  the server has no database of that name    permanent
    │   ├── ClientProgramError    no suitable pg_dump or psql                permanent
    │   └── DumpError             pg_dump failed, hung or wrote a bad dump   retryable
    ├── BucketError               the bucket could not be captured           permanent unless noted
    │   ├── BucketUnreachableError                                           retryable
    │   ├── BucketMissingError    the server has no bucket of that name      permanent
    │   └── ObjectError           one object could not be read or written    retryable
    ├── CommandError              a command of the operator failed           permanent
    ├── DeliveryError             a channel refused a message                permanent
    ├── StorageError              the backup directory cannot be used        permanent
    │   └── DiskFullError         no space is left there                     permanent
    ├── StoreError                a store of copies refused or is unusable   permanent unless noted
    │   ├── StoreUnreachableError                                            retryable
    │   ├── KeyExistsError        the store already holds this key           permanent
    │   ├── KeyMissingError       the store does not hold this key           permanent
    │   ├── LockedError           a lock forbids the deletion                permanent until it ends
    │   └── CopyChangedError      what a copy relies on was removed meanwhile  retryable
    ├── VerificationError         a file is not what it should be            permanent
    │   ├── UnreadableFileError   a file cannot be read, but may be intact   retryable
    │   └── ReadBackError         a new file is not what was written         retryable
    └── RestoreError              a restore was refused or failed            permanent
        └── TargetNotEmptyError   the target is not empty                    permanent

Add a class when a caller must distinguish it; otherwise use the closest existing one. No error text contains
a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar


class BackupError(Exception):
    """Root of the tree: a message that says what is wrong and a separate hint that says what to do."""

    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def restate(self, message: str, *, hint: str) -> BackupError:
        """Return an error of the same class that says this instead."""
        # Not by its constructor: a class may need other values, which are kept.
        restated = type(self).__new__(type(self), message)
        vars(restated).update(vars(self))
        restated.message, restated.hint = message, hint
        return restated


class ConfigurationError(BackupError):
    """A setting is missing or wrong. Permanent until the setting is changed."""


class PointNotFoundError(ConfigurationError):
    """No recovery point matches the request. Permanent until one is taken."""


class PackKeyError(ConfigurationError):
    """No private key opens the packs of a backup directory: what is in them is unknown.

    Permanent until the right key is there.
    """


class LockHeldError(BackupError):
    """Another run uses the backup directory. Retryable: the lock is freed when that run ends or dies."""

    is_retryable = True


class DatabaseError(BackupError):
    """The database could not be captured."""


class DatabaseUnreachableError(DatabaseError):
    """The server does not answer, or refused for a reason that may pass. Retryable."""

    is_retryable = True


class DatabaseMissingError(DatabaseError):
    """The server has no database of this name. Permanent until it is created."""


class ClientProgramError(DatabaseError):
    """No installed pg_dump or psql can connect to this server as configured. Permanent."""


class DumpError(DatabaseError):
    """pg_dump failed, hung, or wrote an incomplete dump. Retryable."""

    is_retryable = True


class BucketError(BackupError):
    """The bucket could not be captured."""


class BucketUnreachableError(BucketError):
    """The S3 server does not answer or keeps failing. Retryable."""

    is_retryable = True


class BucketMissingError(BucketError):
    """The server has no bucket of this name. Permanent until it is created."""


class ObjectError(BucketError):
    """One object could not be read or written correctly. Retryable."""

    is_retryable = True


class CommandError(BackupError):
    """A command configured by the operator failed or took too long. Permanent."""


class DeliveryError(BackupError):
    """A channel did not accept a message that has no other recipient. Permanent until that is repaired."""


class StorageError(BackupError):
    """The backup directory cannot be read or written: permissions, disk space or a conflicting file."""


class DiskFullError(StorageError):
    """No space, or no quota, is left for the backup directory. Permanent until some is freed."""


class StoreError(BackupError):
    """A store of copies refused a request, or what it holds cannot be used."""


class StoreUnreachableError(StoreError):
    """The store does not answer or keeps failing. Retryable."""

    is_retryable = True


class KeyExistsError(StoreError):
    """The store already holds an object of this key; nothing was overwritten."""


class KeyMissingError(StoreError):
    """The store holds no object of this key."""


class LockedError(StoreError):
    """A lock of the store forbids the deletion. Permanent until the lock ends."""

    def __init__(self, message: str, *, hint: str = "", until: datetime | None = None) -> None:
        super().__init__(message, hint=hint)
        self.until = until
        """When the lock ends, aware UTC; None if the store does not say."""


class CopyChangedError(StoreError):
    """What an unfinished copy relies on was removed, or is about to be. Retryable."""

    is_retryable = True


class VerificationError(BackupError):
    """A file of a recovery point is missing, truncated, altered or belongs elsewhere. Permanent."""


class UnreadableFileError(VerificationError):
    """A file cannot be read at the moment: permissions, disk failure or network failure. Retryable.

    Its content is unknown.
    """

    is_retryable = True


class ReadBackError(VerificationError):
    """A new file cannot be read back as it was written. Retryable: nothing was published."""

    is_retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, keys: Sequence[str]) -> None:
        super().__init__(
            message, hint="Check the disk and the memory of this machine. Nothing was published."
        )
        self.keys = tuple(keys)
        """The objects that are not as they were captured; empty when it is something else."""


class RestoreError(BackupError):
    """A restore was refused or stopped at its first error; a database target is left unchanged."""


class TargetNotEmptyError(RestoreError):
    """The target of a restore is not empty, and writing into it was not confirmed."""
