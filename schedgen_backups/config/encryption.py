"""The encryption of packs in the backup directory: for whom, and with which keys this host reads them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from schedgen_backups.config.reader import Reader
from schedgen_backups.config.schedules import read_layout
from schedgen_backups.config.variables import (
    PACK_IDENTITY_VARIABLE,
    PACK_RECIPIENTS_VARIABLE,
    STAGING_VARIABLE,
)
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.packs.encryption import AgeEncryptor
from schedgen_backups.core.packs.identity_file import IdentityFile
from schedgen_backups.core.settings import CaptureSettings, Layout


def read_identity_file(reader: Reader, directory: Path) -> IdentityFile | None:
    """Return the file of private keys, which is not opened here; None if it is not set.

    ConfigurationError if it lies in the backup directory.
    """
    path = reader.path(PACK_IDENTITY_VARIABLE)
    reader.check()
    if path is not None and directory.resolve() in path.resolve().parents:
        raise ConfigurationError(
            f"{PACK_IDENTITY_VARIABLE} {path} is inside BACKUP_DIR",
            hint="Whoever has that disk would have the key, too: put the file elsewhere.",
        )
    return IdentityFile(path) if path is not None else None


def read_staging(reader: Reader, directory: Path) -> Path | None:
    """Return where backups into packs stage what is not encrypted yet; None if that is in `directory`.

    A directory of its own below the configured one, which several sites may share.
    """
    path = reader.path(STAGING_VARIABLE)
    if path is None or read_layout(reader) is not Layout.PACKS:
        return None
    return path / f"schedgen-backups-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}"


def check_encryption(settings: CaptureSettings, identity: str) -> None:
    """Raise ConfigurationError for settings with which packs would not be encrypted, or not be readable."""
    if not settings.pack_recipients:
        return
    try:
        AgeEncryptor(settings.pack_recipients)
    except ConfigurationError as error:
        # Without its message, which quotes what may be a misplaced secret.
        raise ConfigurationError(
            f"{PACK_RECIPIENTS_VARIABLE} is invalid, expected public keys of age with commas between them",
            hint="They look like age1…. A private key belongs into "
            f"{PACK_IDENTITY_VARIABLE}, never here: `age-keygen -y KEYFILE` prints its public key.",
        ) from error
    if settings.layout is not Layout.PACKS:
        raise ConfigurationError(
            f"{PACK_RECIPIENTS_VARIABLE} is set, but BACKUP_LAYOUT=files writes plain files",
            hint=f"Set BACKUP_LAYOUT=packs, or unset {PACK_RECIPIENTS_VARIABLE}.",
        )
    if not identity:
        raise ConfigurationError(
            f"{PACK_RECIPIENTS_VARIABLE} is set, but not {PACK_IDENTITY_VARIABLE}",
            hint="This host reads its own packs every night: give it the private key of one recipient "
            "(docs/packs.md).",
        )
