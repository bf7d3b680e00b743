"""One object as it lies in an archive: a tar header that says what S3 knows of it, its bytes, its padding, packed as gzip members.

Add here what concerns one object alone; the file around them is `archive_file`'s business. Described to the byte in docs/file-format.md.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from schedgen_backups.core.artifact_file import make_format_error
from schedgen_backups.core.block_reader import BlockReader
from schedgen_backups.core.gzip_members import BLOCK_BYTES, compress_member, is_compressible, store_member
from schedgen_backups.core.records import ObjectEntry

TAR_BLOCK_BYTES = 512
FILE_MODE = 0o600


@dataclass(frozen=True)
class PackedObject:
    """An object as gzip members, ready to be appended."""

    entry: ObjectEntry
    members: tuple[bytes, ...]


def pack_object(entry: ObjectEntry, data: bytes) -> PackedObject:
    """The object as the members that an archive holds; its place in the file is still open. May run in any thread."""
    header = make_header(entry)
    padding = make_padding(len(data))
    if len(data) and not is_compressible(data):
        return PackedObject(entry, (compress_member(header), store_member(data + padding)))
    content = memoryview(b"".join((header, data, padding)))
    blocks = range(0, len(content), BLOCK_BYTES)
    return PackedObject(entry, tuple(compress_member(content[start : start + BLOCK_BYTES]) for start in blocks))


def make_header(entry: ObjectEntry) -> bytes:
    """The tar header of an object: the key and what S3 knows of it stand in pax's `comment`, which every tar passes over silently."""
    info = tarfile.TarInfo(entry.member_name)
    info.size = entry.size_bytes
    info.mtime = int(entry.modified_at.timestamp())
    info.mode = FILE_MODE
    described = entry.model_dump(
        mode="json", include={"key", "etag", "version_id", "content_type", "headers", "metadata", "tags"}, exclude_defaults=True
    )
    info.pax_headers = {"comment": json.dumps(described, separators=(",", ":"))}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def check_members(entry: ObjectEntry, blocks: Iterator[bytes]) -> None:
    """The unpacked members are this object to the byte: its header as we would write it, its digest, its padding; VerificationError otherwise."""
    header = make_header(entry)
    reader = BlockReader(blocks)
    if reader.read(len(header)) != header:
        raise make_format_error(f"what lies at the place of object {entry.key!r} is something else")
    digest = hashlib.sha256()
    for block in reader.read_exactly(entry.size_bytes):
        digest.update(block)
    padding = make_padding(entry.size_bytes)
    # One byte more: nothing may follow.
    if digest.hexdigest() != entry.sha256 or reader.read(len(padding) + 1) != padding:
        raise make_format_error(f"object {entry.key!r} has other bytes than were captured")


def make_padding(size_bytes: int) -> bytes:
    """The zeros that follow so many bytes in a tar."""
    return b"\0" * (-size_bytes % TAR_BLOCK_BYTES)
