"""One object as a tar member, packed as gzip members: name, header with S3 metadata, bytes and padding."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from schedgen_backups.core.formats.gzip_members import (
    BLOCK_BYTES,
    compress_member,
    is_compressible,
    store_member,
)
from schedgen_backups.core.formats.records import ObjectEntry, make_format_error

RESERVED_FOLDER = ".schedgen-backups"
_DRIVE_LETTER = re.compile("[A-Za-z]:")
_PART_LIMIT_BYTES = 255
"""The longest file name on ext4, XFS, APFS and NTFS."""


class MemberNames:
    """Assigns unique names, of which none is used both as a file and as a directory.

    Holds a digest of 16 bytes per name and directory.
    """

    def __init__(self) -> None:
        self._files: set[bytes] = set()
        self._folders: set[bytes] = set()
        self._escaped: set[bytes] = set()

    def has_named(self, key: str) -> bool:
        """Return whether the key already has a name."""
        digest = digest_name(key)
        return digest in self._files or digest in self._escaped

    def choose(self, key: str) -> str:
        """Return the key itself when it can be a path next to the earlier ones.

        Otherwise return `.schedgen-backups/keys/SHA256`.
        """
        parts = key.split("/")
        path = digest_name(key)
        if not _is_safe(parts):
            self._escaped.add(path)
            return _escape(key)
        folders = [digest_name("/".join(parts[:depth])) for depth in range(1, len(parts))]
        if path in self._files or path in self._folders or any(folder in self._files for folder in folders):
            self._escaped.add(path)
            return _escape(key)
        self._files.add(path)
        self._folders.update(folders)
        return key


def _is_safe(parts: list[str]) -> bool:
    # bsdtar removes a drive letter from a name when it unpacks.
    if parts[0] == RESERVED_FOLDER or _DRIVE_LETTER.match(parts[0]):
        return False
    return all(
        part not in {"", ".", ".."}
        and len(part.encode("utf-8", "surrogateescape")) <= _PART_LIMIT_BYTES
        and part.isprintable()
        and "\\" not in part
        # bsdtar normalizes other forms when it unpacks: two keys would become one file.
        and unicodedata.is_normalized("NFC", part)
        for part in parts
    )


def _escape(key: str) -> str:
    return f"{RESERVED_FOLDER}/keys/{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}"


def digest_name(path: str) -> bytes:
    """Return 16 bytes that represent a key or a path where many must be held in memory."""
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).digest()


TAR_BLOCK_BYTES = 512
FILE_MODE = 0o600
_PLAIN_NAME = 100
"""Longer names, and names that are not ASCII, need a pax record, which tarfile writes; so do numbers of more
than eleven octal digits."""
_PLAIN_NUMBER = 8**11


@dataclass(frozen=True)
class PackedObject:
    """An object as gzip members, ready to be appended."""

    entry: ObjectEntry
    members: bytes
    """All members in order, to be appended at once."""


def pack_object(entry: ObjectEntry, data: bytes | bytearray) -> PackedObject:
    """Return the object as gzip members; its position in the file is not set yet.

    May run in any thread.
    """
    header = make_header(entry)
    padding = make_padding(len(data))
    if len(data) and not is_compressible(data):
        return PackedObject(entry, store_member(data, padding, before=compress_member(header)))
    content = memoryview(b"".join((header, data, padding)))
    blocks = range(0, len(content), BLOCK_BYTES)
    return PackedObject(
        entry, b"".join(compress_member(content[start : start + BLOCK_BYTES]) for start in blocks)
    )


def make_header(entry: ObjectEntry) -> bytes:
    """Return the tar header of an object.

    The key and the S3 metadata are in pax's `comment`, which every tar ignores silently.
    """
    described = entry.model_dump(
        mode="json",
        include={"key", "etag", "version_id", "content_type", "headers", "metadata", "tags"},
        exclude_defaults=True,
    )
    comment = json.dumps(described, separators=(",", ":"))
    modified = int(entry.modified_at.timestamp())
    name = entry.member_name
    if (
        name.isascii()
        and len(name) <= _PLAIN_NAME
        and entry.size_bytes < _PLAIN_NUMBER
        and 0 <= modified < _PLAIN_NUMBER
    ):
        record = _make_pax_record(f" comment={comment}\n".encode("ascii"))
        extended = _EXTENDED_HEADER.fill(b"././@PaxHeader", len(record), 0)
        return b"".join(
            (
                extended,
                record,
                make_padding(len(record)),
                _FILE_HEADER.fill(name.encode("ascii"), entry.size_bytes, modified),
            )
        )
    info = tarfile.TarInfo(name)
    info.size = entry.size_bytes
    info.mtime = modified
    info.mode = FILE_MODE
    info.pax_headers = {"comment": comment}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class _HeaderTemplate:
    """A header block of tarfile in which only name, size, time and checksum differ.

    POSIX pax, ustar interchange format.
    """

    def __init__(self, info: tarfile.TarInfo) -> None:
        block = info.tobuf(tarfile.USTAR_FORMAT)
        self._between = block[100:124]
        self._rest = block[156:]
        # The checksum field itself counts as eight spaces in the sum.
        self._sum = sum(self._between) + sum(self._rest) + 8 * ord(" ")

    def fill(self, name: bytes, size_bytes: int, modified: int) -> bytes:
        numbers = b"%011o\0%011o\0" % (size_bytes, modified)
        checksum = self._sum + sum(name) + sum(numbers)
        return b"".join(
            (name.ljust(_PLAIN_NAME, b"\0"), self._between, numbers, b"%06o\0 " % checksum, self._rest)
        )


def _make_template(kind: bytes, mode: int) -> _HeaderTemplate:
    info = tarfile.TarInfo()
    info.type = kind
    info.mode = mode
    return _HeaderTemplate(info)


def _make_pax_record(text: bytes) -> bytes:
    # The length includes its own digits.
    length = len(text)
    while (total := len(text) + len(str(length))) != length:
        length = total
    return b"%d%b" % (length, text)


def check_members(entry: ObjectEntry, blocks: Iterable[bytes]) -> None:
    """Raise VerificationError unless the unpacked members are exactly this object.

    Compares the header with the one this module would write, the digest and the padding.
    """
    header, padding = make_header(entry), make_padding(entry.size_bytes)
    begin, end = len(header), len(header) + entry.size_bytes
    around = b""
    digest = hashlib.sha256()
    position = 0
    # Views instead of copies: most of what is checked is the object's bytes.
    for block in blocks:
        view = memoryview(block)
        first, last = max(0, begin - position), max(0, end - position)
        around += bytes(view[:first])
        digest.update(view[first:last])
        around += bytes(view[last:])
        position += len(block)
        if len(around) > begin + len(padding):
            break
    if around[:begin] != header:
        raise make_format_error(f"there is something else in place of object {entry.key!r}")
    if digest.hexdigest() != entry.sha256 or around[begin:] != padding or position != end + len(padding):
        raise make_format_error(f"object {entry.key!r} has other bytes than were captured")


def make_padding(size_bytes: int) -> bytes:
    """Return the zeros that follow an object of this size in a tar."""
    return b"\0" * (-size_bytes % TAR_BLOCK_BYTES)


# After the functions that create them. tarfile takes 45 microseconds for a header, which matters for a
# capture of small objects (2026-11-25).
_FILE_HEADER = _make_template(tarfile.REGTYPE, FILE_MODE)
_EXTENDED_HEADER = _make_template(tarfile.XHDTYPE, 0)
