"""Encryption in the format of age: of copies, which this host cannot read, and of packs in its own directory.

Written by pyrage. A range of an encrypted file is read here, which pyrage cannot: the format cuts the data
into chunks that are encrypted one by one (age-encryption.org/v1).
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from typing import Protocol

import pyrage
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from schedgen_backups.core.errors import ConfigurationError, PackKeyError, VerificationError
from schedgen_backups.core.formats.pack_reader import ReadRange
from schedgen_backups.core.formats.recipe import ENCRYPTED_SUFFIX, PLAIN_READERS

_PRIVATE_PREFIX = "AGE-SECRET-KEY-"
_CHUNK_BYTES = 64 << 10
_TAG_BYTES = 16
_NONCE_BYTES = 16
_HEADER_LIMIT_BYTES = 16 << 10
"""Much more than twenty recipients need."""
_FIRST_READ_BYTES = 1 << 10
_HEADER_END = b"\n--- "
_MAC_BYTES = 43
"""Length of the header's MAC in base64 without padding."""
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_WRONG_KEY_HINT = "Use the private key of one of the store's recipients."


class Encryptor(Protocol):
    """How the files of a copy are written."""

    @property
    def suffix(self) -> str:
        """What is appended to the name of an encrypted file."""
        ...

    @property
    def readers(self) -> str:
        """Who can read what is encrypted, as a text that changes when they do."""
        ...

    def encrypt(self, data: bytes) -> bytes:
        """Return what is stored for these bytes."""
        ...


class PlainEncryptor:
    """Stores the bytes as they are, for a store that says `encryption = "none"`."""

    suffix = ""
    readers = PLAIN_READERS

    def encrypt(self, data: bytes) -> bytes:
        """Return the bytes."""
        return data


class AgeEncryptor:
    """Encrypts for all of these public keys; the owner of any one of them can decrypt.

    ConfigurationError (permanent) for a text that is not a public key, without printing it if it is a private
    one.
    """

    suffix = ENCRYPTED_SUFFIX

    def __init__(self, recipients: Sequence[str]) -> None:
        if not recipients:
            raise ConfigurationError(
                "the store has no recipients",
                hint='Name the public keys that may read the copies, or say encryption = "none".',
            )
        self._recipients = [_parse_recipient(text) for text in recipients]
        keys = sorted({read_key(text) for text in recipients})
        self.readers = hashlib.sha256("\n".join(keys).encode()).hexdigest()

    def encrypt(self, data: bytes) -> bytes:
        """Return an age file. 500 MB/s on one core in packs of 4 MiB and more (2026-11-28)."""
        # Not `pyrage.encrypt`, which needs twice the memory of the result (2026-11-30).
        encrypted = BytesIO()
        pyrage.encrypt_io(BytesIO(data), encrypted, self._recipients)
        return encrypted.getvalue()


def read_key(recipient: str) -> str:
    """Return the key of a line as `ssh-keygen` writes it, without the comment behind it."""
    return " ".join(recipient.split()[:2])


def _parse_recipient(text: str) -> pyrage.x25519.Recipient | pyrage.ssh.Recipient:
    text = text.strip()
    if _PRIVATE_PREFIX in text.upper() or "PRIVATE KEY" in text:
        raise ConfigurationError(
            "a private key stands among the recipients",
            hint="Name its public key there (age-keygen -y KEYFILE), keep that of a store away from this "
            "host, and make a new pair if this file was ever readable by others.",
        )
    try:
        if text.startswith("ssh-"):
            return pyrage.ssh.Recipient.from_str(text)
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        raise ConfigurationError(
            f"{text[:24]!r} is not a public key of age",
            hint="Recipients look like age1…, ssh-ed25519 … or ssh-rsa ….",
        ) from error


@dataclass(frozen=True)
class KeyPair:
    """A new key pair of age."""

    public: str
    private: str = field(repr=False)


def make_key_pair() -> KeyPair:
    """Return a new X25519 key pair; the private key exists only in the result."""
    identity = pyrage.x25519.Identity.generate()
    return KeyPair(str(identity.to_public()), str(identity))


class Decryptor:
    """Private keys that open copies.

    ConfigurationError (permanent) for a text that holds none.
    """

    def __init__(self, identity_texts: Sequence[str]) -> None:
        self._identities: list[pyrage.x25519.Identity | pyrage.ssh.Identity] = []
        self._x25519_keys: list[X25519PrivateKey] = []
        for text in identity_texts:
            self._add(text)

    def _add(self, text: str) -> None:
        try:
            if "-----BEGIN" in text:
                self._identities.append(pyrage.ssh.Identity.from_buffer(text.encode()))
                return
            lines = [line.strip() for line in text.splitlines()]
            keys = [line for line in lines if line and not line.startswith("#")]
            for key in keys:
                self._identities.append(pyrage.x25519.Identity.from_str(key))
                self._x25519_keys.append(X25519PrivateKey.from_private_bytes(_decode_bech32(key)))
        except (pyrage.IdentityError, ValueError) as error:
            raise ConfigurationError(
                "the identity is not a private key of age or ssh",
                hint="Give the file that age-keygen or ssh-keygen wrote, without a passphrase.",
            ) from error
        if not keys:
            raise ConfigurationError("the identity holds no key", hint="Is it the right file?")

    def decrypt(self, name: str, data: bytes) -> bytes:
        """Return the plain bytes of a whole stored file.

        VerificationError (permanent) if it is altered or was encrypted for other keys.
        """
        if not name.endswith(ENCRYPTED_SUFFIX):
            return data
        if not self._identities:
            raise ConfigurationError(
                "the copy is encrypted, and no private key was given",
                hint="Add --identity FILE with the private key of one of the recipients.",
            )
        try:
            return pyrage.decrypt(data, self._identities)
        except pyrage.DecryptError as error:
            raise VerificationError(f"{name} cannot be decrypted: {error}", hint=_WRONG_KEY_HINT) from error

    def open_ranges(self, name: str, size_bytes: int, read: ReadRange) -> ReadRange | None:
        """Return a reader (offset, length) of the plain bytes of a stored file of this size.

        `read` reads the stored bytes in the same way. None if only whole files can be decrypted: with an ssh
        key. VerificationError (permanent) from the reader when the file is altered.
        """
        if not name.endswith(ENCRYPTED_SUFFIX):
            return read
        if not self._x25519_keys:
            return None
        head = read(0, min(size_bytes, _FIRST_READ_BYTES))
        if _HEADER_END not in head:
            head += read(len(head), min(size_bytes, _HEADER_LIMIT_BYTES) - len(head))
        header_bytes = head.find(_HEADER_END) + len(_HEADER_END) + _MAC_BYTES + 1
        is_whole = _HEADER_END in head and head[header_bytes - 1 : header_bytes] == b"\n"
        if not is_whole or len(head) < header_bytes + _NONCE_BYTES:
            raise VerificationError(f"{name} is not an age file", hint="Use another copy.")
        file_key = next(filter(None, (_find_file_key(head, key) for key in self._x25519_keys)), None)
        if file_key is None:
            return None
        nonce = head[header_bytes : header_bytes + _NONCE_BYTES]
        payload = _Payload(
            name, header_bytes + _NONCE_BYTES, size_bytes, _derive(file_key, nonce, b"payload")
        )
        return lambda offset, length: payload.read(read, offset, length)

    def open_pack(self, name: str, size_bytes: int, read: ReadRange) -> ReadRange:
        """Return a reader of the plain bytes of a pack in a folder; errors as in `pack_reader.PackKeys`.

        With an ssh key, the whole pack is in memory.
        """
        ranges = self.open_ranges(name, size_bytes, read)
        if ranges is not None:
            return ranges
        try:
            # pyrage says no more than that it failed. What is altered, the caller finds by its digest.
            plain = pyrage.decrypt(read(0, size_bytes), self._identities)
        except pyrage.DecryptError as error:
            raise PackKeyError(
                f"no private key at hand opens the pack {name}",
                hint="It was encrypted for other keys: add one of theirs to the file of private keys.",
            ) from error
        return lambda offset, length: plain[offset : offset + length]

    def derive_digest_key(self) -> bytes:
        """Return what only the owner of the first key can compute: the key of digests that reveal nothing.

        ConfigurationError (permanent) unless that is a key of age.
        """
        if not self._x25519_keys:
            raise ConfigurationError(
                "the identity holds no key of age",
                hint="Use a file that age-keygen or `schedgen-backups stores make-key` wrote.",
            )
        private = self._x25519_keys[0].private_bytes_raw()
        return _derive(private, b"", b"schedgen-backups digests of pieces")


@dataclass(frozen=True)
class _Payload:
    """The encrypted chunks of an age file."""

    name: str
    start: int
    """Where the first chunk begins in the stored file."""
    size_bytes: int
    """Size of the stored file."""
    key: bytes = field(repr=False)

    def read(self, read: ReadRange, offset: int, length: int) -> bytes:
        stored_chunk_bytes = _CHUNK_BYTES + _TAG_BYTES
        last = max(0, -(-(self.size_bytes - self.start) // stored_chunk_bytes) - 1)
        first, final = offset // _CHUNK_BYTES, min(last, max(offset, offset + length - 1) // _CHUNK_BYTES)
        if first > last:
            return b""
        stored = read(self.start + first * stored_chunk_bytes, (final - first + 1) * stored_chunk_bytes)
        cipher = ChaCha20Poly1305(self.key)
        plain = bytearray()
        try:
            for index in range(first, final + 1):
                start = (index - first) * stored_chunk_bytes
                nonce = index.to_bytes(11, "big") + (b"\1" if index == last else b"\0")
                plain += cipher.decrypt(nonce, stored[start : start + stored_chunk_bytes], None)
        except InvalidTag as error:
            raise VerificationError(f"{self.name} was altered", hint="Use another copy.") from error
        start = offset - first * _CHUNK_BYTES
        return bytes(plain[start : start + length])


def _find_file_key(head: bytes, private: X25519PrivateKey) -> bytes | None:
    """Return the key of the file if its header holds it for this private key."""
    end = head.find(_HEADER_END)
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    lines = head[:end].split(b"\n")
    for line, body in pairwise(lines):
        if not line.startswith(b"-> X25519 "):
            continue
        try:
            share = _decode_base64(line.removeprefix(b"-> X25519 "))
            shared = private.exchange(X25519PublicKey.from_public_bytes(share))
            wrapping = _derive(shared, share + public, b"age-encryption.org/v1/X25519")
            file_key = ChaCha20Poly1305(wrapping).decrypt(bytes(12), _decode_base64(body), None)
        except (InvalidTag, ValueError):
            continue
        mac = hmac.digest(
            _derive(file_key, b"", b"header"), head[: end + len(_HEADER_END) - 1], hashlib.sha256
        )
        stated = head[end + len(_HEADER_END) : end + len(_HEADER_END) + _MAC_BYTES]
        # Compared as it is written: anything else than base64 is another MAC.
        if hmac.compare_digest(b64encode(mac).rstrip(b"="), stated):
            return file_key
    return None


def _derive(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(key)


def _decode_base64(data: bytes) -> bytes:
    try:
        decoded = b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except Base64Error as error:
        raise ValueError("not base64") from error
    # The last letter has bits that mean nothing: like age, accept only the canonical form.
    if b64encode(decoded).rstrip(b"=") != data:
        raise ValueError("not canonical base64")
    return decoded


def _decode_bech32(text: str) -> bytes:
    """Return the 32 bytes of a private key; pyrage has checked the text."""
    digits = [_BECH32.index(letter) for letter in text.lower().rpartition("1")[2][:-6]]
    number = 0
    for digit in digits:
        number = number << 5 | digit
    surplus_bits = len(digits) * 5 % 8
    return (number >> surplus_bits).to_bytes(len(digits) * 5 // 8, "big")
