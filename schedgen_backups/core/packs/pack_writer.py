"""Pieces go into packs: those that the store lacks into new ones, which are encrypted and uploaded."""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from schedgen_backups.core.errors import CopyChangedError, KeyExistsError
from schedgen_backups.core.formats.gzip_members import salt_member
from schedgen_backups.core.formats.recipe import Encryption, Segment, StatedPack
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.encryption import Encryptor
from schedgen_backups.core.packs.pack_files import StoredFile, make_pack_name
from schedgen_backups.core.packs.piece_index import NewPack, PieceIndex, make_pack_key

PutNew = Callable[[str, bytes], object]
"""Stores a pack of this name; KeyExistsError when there is one."""
_UPLOAD_BYTES = 48 << 20
"""Packs on their way at the same time, so that memory stays below 300 MiB whatever the size."""
_UPLOAD_THREADS = 4


@dataclass(frozen=True)
class Piece:
    """A part of an artifact. All pieces, one behind the other, are the artifact."""

    data: bytes
    is_tail: bool = False
    """Whether it is a part of the index, of which hardly anything is the same the next time."""


class PackWriter:
    """Places the pieces of one point; a context manager, for one thread.

    The index and the tail of an artifact get packs of their own: hardly anything of them is used again.
    """

    def __init__(
        self,
        put: PutNew,
        encryptor: Encryptor,
        index: PieceIndex,
        point_id: RecoveryPointId,
        *,
        first_number: int,
        pack_bytes: int,
        confirm: Callable[[Segment, bytes], bool] = lambda _segment, _data: True,
        digest_key: bytes | None = None,
    ) -> None:
        """`confirm` says whether these bytes lie where the index has them.

        With a `digest_key`, no digest that is stored reveals what was digested: those of pieces are keyed,
        and each pack begins with random bytes. The index gets what each encrypted pack holds.
        """
        self._digest_key = digest_key
        self._put_new = put
        self._confirm = confirm
        self._encryptor = encryptor
        self._index = index
        self._point_id = point_id
        self._next_number = first_number
        self._pack_bytes = pack_bytes
        self._open: dict[bool, _OpenPack] = {}
        """The packs that are being filled, by whether they are for tails."""
        self._uploads = ThreadPoolExecutor(_UPLOAD_THREADS, thread_name_prefix="upload")
        self._waiting: deque[tuple[_OpenPack, Encryption | None, Future[StoredFile]]] = deque()
        self.new_packs: list[StoredFile] = []
        """The packs that were stored."""
        self.reused_bytes = 0
        """Plain size of the pieces that the store already held."""

    def place(self, piece: Piece) -> Segment:
        """Return where the piece lies, in an older pack or in a new one.

        Errors of the store may come from packs placed earlier. CopyChangedError (retryable) when another
        host has just stored a pack of the same name.
        """
        digest = self._digest(piece.data)
        if (segment := self._find_confirmed(digest, piece.data)) is not None:
            self.reused_bytes += segment.length
            return segment
        pack = self._open.get(piece.is_tail)
        if pack is not None and pack.size_bytes + len(piece.data) > self._pack_bytes:
            self._upload(pack)
            pack = None
        if pack is None:
            pack = self._open[piece.is_tail] = self._begin_pack()
        return pack.add(digest, piece.data)

    def place_alone(self, sha256: str, read: Callable[[], bytes]) -> Segment:
        """Return which pack has the bytes with this digest and nothing else: a new one if none does.

        They are read in that case only. Errors like those of `place`.
        """
        key = make_pack_key(sha256)
        if (segment := self._find_new(key) or self._index.find(key)) is not None:
            self.reused_bytes += segment.length
            return segment
        pack = self._begin_pack()
        segment = pack.add(key, read())
        self._upload(pack)
        return segment

    @property
    def readers(self) -> str:
        """Who can read what is stored, as in `Encryptor`."""
        return self._encryptor.readers

    def place_encrypted(self, pack: StatedPack, read: Callable[[], bytes]) -> Segment:
        """Like `place_alone`, for a pack that is encrypted for the same readers: it is stored as it is."""
        key = make_pack_key(pack.plain_sha256)
        if (segment := self._find_new(key) or self._index.find(key)) is not None:
            self.reused_bytes += segment.length
            return segment
        new = self._begin_pack()
        segment = new.reserve(key, pack.plain_bytes)
        self._wait(_UPLOAD_BYTES - new.size_bytes)
        self._start(new, read(), None)
        return segment

    def _digest(self, data: bytes) -> bytes:
        key = self._digest_key
        return hashlib.sha256(data).digest() if key is None else hmac.digest(key, data, "sha256")

    def _begin_pack(self) -> _OpenPack:
        name = make_pack_name(self._point_id, self._next_number, self._encryptor.suffix)
        self._next_number += 1
        pack = _OpenPack(name)
        if self._digest_key is not None:
            pack.begin(salt_member())
        return pack

    def finish_artifact(self) -> None:
        """Return when every piece placed so far is in the store; the next artifact gets new packs."""
        for pack in self._open.values():
            self._upload(pack)
        self._open.clear()
        self._wait(0)

    def _find_confirmed(self, digest: bytes, data: bytes) -> Segment | None:
        if (segment := self._find_new(digest)) is not None:
            return segment
        segment = self._index.find(digest)
        return segment if segment is not None and self._confirm(segment, data) else None

    def _find_new(self, digest: bytes) -> Segment | None:
        packs = (*self._open.values(), *(pack for pack, *_upload in self._waiting))
        return next(filter(None, (pack.find(digest) for pack in packs)), None)

    def _upload(self, pack: _OpenPack) -> None:
        """Encrypt the pack and start its upload, once there is memory for it."""
        self._wait(_UPLOAD_BYTES - pack.size_bytes)
        plain = pack.take_data()
        inside = None
        if self._digest_key is not None:
            inside = Encryption(len(plain), hashlib.sha256(plain).hexdigest(), self.readers)
        self._start(pack, self._encryptor.encrypt(plain), inside)

    def _start(self, pack: _OpenPack, data: bytes, inside: Encryption | None) -> None:
        stored = StoredFile(name=pack.name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        self._waiting.append((pack, inside, self._uploads.submit(self._put, stored, data)))

    def _put(self, stored: StoredFile, data: bytes) -> StoredFile:
        try:
            self._put_new(stored.name, data)
        except KeyExistsError as error:
            raise CopyChangedError(error.message, hint="Is another host copying the same point?") from error
        return stored

    def _wait(self, size_bytes: int) -> None:
        """Wait until packs of at most this plain size are on their way, and remember those that arrived."""
        while self._waiting and sum(pack.size_bytes for pack, *_upload in self._waiting) > max(size_bytes, 0):
            pack, inside, upload = self._waiting.popleft()
            stored = upload.result()
            self._index.add(NewPack(stored, pack.size_bytes, pack.list_pieces(), inside))
            self.new_packs.append(stored)

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._uploads.shutdown(wait=True, cancel_futures=True)


class _OpenPack:
    """A pack that is being filled."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.size_bytes = 0
        self._parts: list[bytes] = []
        self._places: dict[bytes, tuple[int, int]] = {}

    def begin(self, data: bytes) -> None:
        """Let the pack begin with these bytes, which are not a piece."""
        self._parts.append(data)
        self.size_bytes += len(data)

    def add(self, digest: bytes, data: bytes) -> Segment:
        """Append a piece; return where it lies."""
        self._parts.append(data)
        return self.reserve(digest, len(data))

    def reserve(self, digest: bytes, size_bytes: int) -> Segment:
        """Note the place of a piece; return it."""
        self._places[digest] = (self.size_bytes, size_bytes)
        self.size_bytes += size_bytes
        return Segment(self.name, *self._places[digest])

    def find(self, digest: bytes) -> Segment | None:
        """Return where this piece lies; None if the pack lacks it."""
        place = self._places.get(digest)
        return Segment(self.name, *place) if place is not None else None

    def take_data(self) -> bytes:
        """Return the bytes of the pack, and let go of them."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def list_pieces(self) -> tuple[tuple[bytes, int, int], ...]:
        """Return digest, offset and length of every piece."""
        return tuple((digest, offset, length) for digest, (offset, length) in self._places.items())
