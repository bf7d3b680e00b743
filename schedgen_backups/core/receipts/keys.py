"""The keys of receipts: one private key that signs, and the public keys of all that ever did.

They are in `receipts/keys` of the backup directory. A public key stays after its private one was replaced:
older receipts are verified with it.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from schedgen_backups.core.errors import StorageError, VerificationError
from schedgen_backups.core.system.files import make_private_folder, read_small_file, write_atomically
from schedgen_backups.core.system.lock import FileLock

RECEIPTS_NAME = "receipts"
PUBLIC_SUFFIX = ".pub.pem"
_KEYS_NAME = "keys"
_PRIVATE_NAME = "signing-key.pem"
_LOCK_NAME = ".lock"
_ID_DIGITS = 16
"""Digits of the key's id in the name of its file."""


def find_keys_folder(directory: Path) -> Path:
    """Return the folder of the keys of this backup directory."""
    return directory / RECEIPTS_NAME / _KEYS_NAME


def find_public_key(folder: Path, key_id: str) -> Path:
    """Return the file of the public key with this id in the folder of the keys."""
    return folder / f"{key_id[:_ID_DIGITS]}{PUBLIC_SUFFIX}"


def settle_signer(directory: Path) -> CryptoSigner:
    """Return the key that signs; make one if there is none.

    StorageError if it cannot be read or written, or is not an Ed25519 key.
    """
    folder = find_keys_folder(directory)
    try:
        make_private_folder(folder.parent)
        make_private_folder(folder)
        with FileLock(folder / _LOCK_NAME).waited_for():
            try:
                return _read_signer(folder / _PRIVATE_NAME)
            except FileNotFoundError:
                return _make_signer(folder)
    except OSError as error:
        raise StorageError(
            f"the key of receipts in {folder} cannot be used: {error.strerror}",
            hint="Check the disk, its free space and the permissions.",
        ) from error


def replace_signer(directory: Path) -> CryptoSigner:
    """Make a new key that signs from now on, and forget the private half of the old one. StorageError."""
    settle_signer(directory)
    folder = find_keys_folder(directory)
    try:
        with FileLock(folder / _LOCK_NAME).waited_for():
            return _make_signer(folder)
    except OSError as error:
        raise StorageError(
            f"the key of receipts in {folder} cannot be replaced: {error.strerror}",
            hint="Check the disk, its free space and the permissions.",
        ) from error


def list_public_keys(folder: Path) -> dict[str, SSlibKey]:
    """Return the public keys in this folder by their ids."""
    return {
        key.keyid: key for path in sorted(folder.glob(f"*{PUBLIC_SUFFIX}")) for key in [read_public_key(path)]
    }


def read_public_key(path: Path) -> SSlibKey:
    """Return the Ed25519 public key of a PEM file; VerificationError if it is none."""
    try:
        loaded = load_pem_public_key(read_small_file(path))
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a public key in PEM"
        raise VerificationError(f"{path} cannot be read: {reason}", hint="Use another file.") from error
    if not isinstance(loaded, Ed25519PublicKey):
        raise VerificationError(f"{path} is not an Ed25519 key", hint="Use another file.")
    return SSlibKey.from_crypto(loaded)


def _read_signer(path: Path) -> CryptoSigner:
    try:
        loaded = load_pem_private_key(read_small_file(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StorageError(
            f"{path} is not a private key",
            hint="Restore it, or delete it: a new one is made, and older receipts stay valid.",
        ) from error
    if not isinstance(loaded, Ed25519PrivateKey):
        raise StorageError(f"{path} is not an Ed25519 key", hint="Delete it: a new one is made.")
    return CryptoSigner(loaded)


def _make_signer(folder: Path) -> CryptoSigner:
    key = Ed25519PrivateKey.generate()
    signer = CryptoSigner(key)
    # The public half first: what is signed must be verifiable whatever happens in between.
    write_atomically(
        find_public_key(folder, signer.public_key.keyid),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        owner=make_private_folder(folder),
    )
    write_atomically(
        folder / _PRIVATE_NAME,
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        owner=make_private_folder(folder),
    )
    return signer
