"""Make a damaged pack whole again: from its own good pieces, and from equal ones that lie in other packs.

Equal objects give equal pieces, so that a backup which had to read them from the bucket again has just placed
the bytes that the damaged pack lacks.
"""

from __future__ import annotations

import hashlib

from schedgen_backups.core.formats.recipe import StatedPack
from schedgen_backups.core.packs.local_packs import PACK_BYTES, LocalPacks
from schedgen_backups.core.packs.piece_index import PieceIndex

_LARGEST_BYTES = 4 * PACK_BYTES
"""Larger than any pack that is written: what states more was not written by this program."""


def heal_pack(packs: LocalPacks, index: PieceIndex, pack: StatedPack) -> bool:
    """Write the pack again, if that gives exactly the bytes that are stated; return whether it did.

    Never of an encrypted one.

    The pieces of the pack must have been set aside in the index. StorageError when it cannot be written.
    """
    if pack.size_bytes > _LARGEST_BYTES or pack.encryption is not None:
        # Encrypted again, the same plain bytes give others.
        return False
    data = bytearray(packs.read_as_it_is(pack.name, pack.size_bytes).ljust(pack.size_bytes, b"\0"))
    for digest, offset, length in index.list_set_aside(pack.name):
        place = slice(offset, offset + length)
        if hashlib.sha256(data[place]).digest() != digest:
            data[place] = _find_piece(packs, index, digest, length)
    return put_back(packs, index, pack, bytes(data))


def put_back(packs: LocalPacks, index: PieceIndex, pack: StatedPack, data: bytes) -> bool:
    """Replace a damaged pack by these bytes, if they are those that are stated; return whether they are.

    StorageError when it cannot be written.
    """
    if (len(data), hashlib.sha256(data).hexdigest()) != (pack.size_bytes, pack.sha256):
        return False
    packs.replace(pack.name, data)
    index.take_back(pack.name)
    return True


def _find_piece(packs: LocalPacks, index: PieceIndex, digest: bytes, length: int) -> bytes:
    """Return the piece out of another pack; zeros if none has it."""
    for segment in index.list_places(digest):
        pack = index.state_pack(segment.pack)
        if pack is not None and segment.length == length:
            data = packs.read_part(pack, segment)
            if hashlib.sha256(data).digest() == digest:
                return data
    return bytes(length)
