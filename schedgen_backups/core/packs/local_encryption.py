"""How the packs of a backup directory are encrypted, so that its disk reveals nothing of their contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from schedgen_backups.core.errors import ConfigurationError, PackKeyError, VerificationError
from schedgen_backups.core.formats.pack_reader import PackKeys
from schedgen_backups.core.packs.encryption import AgeEncryptor

_TRIAL = b"a few bytes"


@dataclass(frozen=True)
class LocalEncryption:
    """For whom new packs are encrypted, and the key of the digests of their pieces."""

    encryptor: AgeEncryptor
    digest_key: bytes = field(repr=False)


def make_local_encryption(recipients: Sequence[str], keys: PackKeys) -> LocalEncryption | None:
    """Return how new packs are encrypted; None without recipients.

    ConfigurationError (permanent) unless the keys open what is encrypted for the recipients: this host reads
    its packs every night, and a backup that it cannot verify is none.
    """
    if not recipients:
        return None
    encryptor = AgeEncryptor(recipients)
    data = encryptor.encrypt(_TRIAL)
    try:
        read = keys.open_pack(f"trial{encryptor.suffix}", len(data), lambda at, size: data[at : at + size])
        is_opened = read(0, len(_TRIAL)) == _TRIAL
        digest_key = keys.derive_digest_key()
    except (PackKeyError, VerificationError) as error:
        raise ConfigurationError(
            f"packs for BACKUP_PACK_RECIPIENTS could not be read by this host: {error.message}",
            hint="BACKUP_PACK_IDENTITY_FILE needs the private key of one of them (docs/packs.md).",
        ) from error
    if not is_opened:
        raise ConfigurationError(
            "what is encrypted for BACKUP_PACK_RECIPIENTS comes back as something else",
            hint="Report this as a bug.",
        )
    return LocalEncryption(encryptor, digest_key)
