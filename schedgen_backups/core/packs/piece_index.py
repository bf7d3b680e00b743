"""Which pieces a store holds, as a local cache: lost, it is made again, or pieces are uploaded once more."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from schedgen_backups.core.errors import StorageError
from schedgen_backups.core.formats.recipe import ENCRYPTED_SUFFIX, Encryption, Segment, StatedPack
from schedgen_backups.core.packs.pack_files import StoredFile

_VERSION = 3
_SCHEMA = """
CREATE TABLE IF NOT EXISTS packs (
    name TEXT PRIMARY KEY, plain_bytes INTEGER NOT NULL, size_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
    is_usable INTEGER NOT NULL DEFAULT 0, reread_at TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pieces (
    digest BLOB PRIMARY KEY, pack TEXT NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
    proof BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pieces_by_place ON pieces (pack, start);
CREATE TABLE IF NOT EXISTS set_aside (
    pack TEXT NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (pack, start)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS moved (
    digest BLOB NOT NULL, pack TEXT NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
    PRIMARY KEY (digest, pack)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS moved_by_pack ON moved (pack);
CREATE TRIGGER IF NOT EXISTS remember_moved AFTER UPDATE ON pieces WHEN OLD.pack != NEW.pack BEGIN
    INSERT OR REPLACE INTO moved VALUES (OLD.digest, OLD.pack, OLD.start, OLD.length);
END;
CREATE TABLE IF NOT EXISTS encryptions (
    pack TEXT PRIMARY KEY, plain_bytes INTEGER NOT NULL, plain_sha256 TEXT NOT NULL, readers TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, reread_at TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (place TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS readers (readers TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS locks (key TEXT PRIMARY KEY, locked_until TEXT NOT NULL) WITHOUT ROWID;
"""

_SIGNS_OF_DAMAGE = ("malformed", "unsupported file format", "no such ", "could not decode", "has no column")
"""In messages of SQLite that are errors of operation to Python."""
_AHEAD = 500
"""Pieces that are read at once; one by one, they took a third of the time of a copy (2026-11-30)."""
_MOST_AHEAD = 50_000
"""Pieces that are held, of several packs: about 15 MB."""


@dataclass(frozen=True)
class NewPack:
    """A pack that was just stored, and where its pieces lie in its plain bytes."""

    file: StoredFile
    plain_bytes: int
    pieces: tuple[tuple[bytes, int, int], ...]
    """Digest, offset and length of each piece."""
    encryption: Encryption | None = None
    """What it holds, if a recipe of the backup directory is to state that."""


def _make_proof(digest: bytes, pack: str, start: int, length: int) -> bytes:
    """Return what shows that these four belong together.

    A wrong place in a store would be noticed with a private key only, which this host does not have.
    """
    return hashlib.blake2b(b"%s %d %d" % (pack.encode(), start, length), digest_size=8, key=digest).digest()


def _prove_row(digest: object, pack: object, start: object, length: object) -> bytes | None:
    """Return the same of what a row holds, which may be anything in a damaged file."""
    if (
        isinstance(digest, bytes)
        and isinstance(pack, str)
        and isinstance(start, int)
        and isinstance(length, int)
    ):
        with suppress(ValueError):
            return _make_proof(digest, pack, start, length)
    return None


def make_pack_key(sha256: str) -> bytes:
    """Return the digest for which a pack is known that was stored alone, by the digest of its bytes.

    Another one than that of a piece of the same bytes, which may lie among others.
    """
    return hashlib.sha256(b"a pack of its own: " + bytes.fromhex(sha256)).digest()


class PieceIndex:
    """The packs and pieces of one site in one store; a context manager, for one thread.

    A damaged file is replaced by an empty one. StorageError when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_new = not path.exists()
        self._ahead: dict[bytes, Segment] = {}
        with self._translated():
            try:
                self._database = self._open()
            except (sqlite3.DatabaseError, ValueError) as error:
                if not self._is_damage(error):
                    raise
                path.unlink(missing_ok=True)
                self.is_new = True
                self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, isolation_level=None)
        try:
            self.path.chmod(0o600)
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in {0, _VERSION}:
                raise sqlite3.DatabaseError("another version")
            database.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
            database.create_function("make_proof", 4, _prove_row, deterministic=True)
            if database.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("damaged")
        except BaseException:
            database.close()
            raise
        return database

    def settle_readers(self, readers: str) -> None:
        """Forget where the pieces lie if other keys can read them than those of `readers`.

        They are stored again, since a copy is only readable with a key that opens every pack of it.
        """
        if [row[0] for row in self._list_rows("SELECT readers FROM readers")] == [readers]:
            return
        with self._writing():
            self._database.execute("DELETE FROM pieces")
            self._database.execute("DELETE FROM readers")
            self._database.execute("INSERT INTO readers VALUES (?)", (readers,))

    def settle_place(self, place: str) -> None:
        """Forget what was read back and locked if it was at another place than `place`."""
        if [row[0] for row in self._list_rows("SELECT place FROM places")] == [place]:
            return
        with self._writing():
            self._database.execute("UPDATE packs SET reread_at = ''")
            for table in ("files", "locks", "places"):
                self._database.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
            self._database.execute("INSERT INTO places VALUES (?)", (place,))

    def choose_usable(self, packs: Collection[str]) -> None:
        """Use only pieces in these packs."""
        with self._writing():
            self._database.execute("UPDATE packs SET is_usable = 0")
            self._database.executemany(
                "UPDATE packs SET is_usable = 1 WHERE name = ?", ((name,) for name in packs)
            )

    def find(self, digest: bytes) -> Segment | None:
        """Return where this piece lies in a usable pack; None if it must be stored."""
        if (segment := self._ahead.get(digest)) is not None:
            return segment
        row = self._find_row(
            "SELECT pack, start, length FROM pieces JOIN packs ON name = pack "
            "WHERE digest = ? AND is_usable AND proof = make_proof(digest, pack, start, length)",
            digest,
        )
        if row is None:
            return None
        self._read_ahead(*row[:2])
        return Segment(*row)

    def _read_ahead(self, pack: str, start: int) -> None:
        """Hold the pieces that lie behind this one: an unchanged artifact asks for them next."""
        rows = self._list_rows(
            "SELECT digest, start, length FROM pieces "
            "WHERE pack = ? AND start > ? AND proof = make_proof(digest, pack, start, length) "
            "ORDER BY start LIMIT ?",
            pack,
            start,
            _AHEAD,
        )
        if len(self._ahead) > _MOST_AHEAD:
            self._ahead.clear()
        self._ahead.update((digest, Segment(pack, *place)) for digest, *place in rows)

    def find_pack(self, name: str) -> StoredFile | None:
        """Return size and digest of the pack as it was stored; None if it is unknown."""
        row = self._find_row("SELECT size_bytes, sha256 FROM packs WHERE name = ?", name)
        with self._translated():
            return StoredFile(name=name, size_bytes=row[0], sha256=row[1]) if row is not None else None

    def find_plain_sizes(self) -> dict[str, int]:
        """Return the plain size of every pack in bytes."""
        return dict(self._list_rows("SELECT name, plain_bytes FROM packs"))

    def find_undivided(self) -> frozenset[str]:
        """Return the packs of one piece, which are used whole or not at all."""
        rows = self._list_rows("SELECT pack FROM pieces GROUP BY pack HAVING count(*) = 1")
        return frozenset(name for (name,) in rows)

    def add(self, pack: NewPack) -> None:
        """Remember a pack that the store holds now, and its pieces; of a known piece, the new place."""
        stored = pack.file
        with self._writing():
            self._database.execute(
                "INSERT OR REPLACE INTO packs (name, plain_bytes, size_bytes, sha256, is_usable) "
                "VALUES (?, ?, ?, ?, 1)",
                (stored.name, pack.plain_bytes, stored.size_bytes, stored.sha256),
            )
            self._database.executemany(
                "INSERT INTO pieces VALUES (?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET "
                "pack = excluded.pack, start = excluded.start, length = excluded.length, "
                "proof = excluded.proof",
                (
                    (digest, stored.name, offset, length, _make_proof(digest, stored.name, offset, length))
                    for digest, offset, length in pack.pieces
                ),
            )
            if (inside := pack.encryption) is not None:
                self._database.execute(
                    "INSERT OR REPLACE INTO encryptions VALUES (?, ?, ?, ?)",
                    (stored.name, inside.plain_bytes, inside.plain_sha256, inside.readers),
                )

    def find_encryption(self, name: str) -> Encryption | None:
        """Return what an encrypted pack of the backup directory holds; None for others."""
        row = self._find_row(
            "SELECT plain_bytes, plain_sha256, readers FROM encryptions WHERE pack = ?", name
        )
        return Encryption(*row) if row is not None else None

    def state_pack(self, name: str) -> StatedPack | None:
        """Return the pack as a recipe of the backup directory states it; None if it is not known whole."""
        stored, inside = self.find_pack(name), self.find_encryption(name)
        if stored is None or (inside is None) is name.endswith(ENCRYPTED_SUFFIX):
            return None
        return StatedPack(name, stored.size_bytes, stored.sha256, inside)

    def adopt(self, pack: StoredFile) -> None:
        """Remember a pack that the store holds and whose pieces are unknown here; nothing if it is known."""
        with self._writing():
            self._database.execute(
                "INSERT OR IGNORE INTO packs (name, plain_bytes, size_bytes, sha256) VALUES (?, 0, ?, ?)",
                (pack.name, pack.size_bytes, pack.sha256),
            )

    def list_packs(self) -> list[StoredFile]:
        """Return every known pack as it was stored."""
        rows = self._list_rows("SELECT name, size_bytes, sha256 FROM packs")
        with self._translated():
            return [
                StoredFile(name=name, size_bytes=size_bytes, sha256=sha256)
                for name, size_bytes, sha256 in rows
            ]

    def distrust(self, name: str) -> None:
        """Forget the pieces of a pack that was found damaged: later copies are not to rely on it."""
        with self._writing():
            self._database.execute("DELETE FROM pieces WHERE pack = ?", (name,))

    def set_aside(self, name: str) -> None:
        """Use the pieces of a damaged pack no more, but remember where in it they belong."""
        with self._writing():
            for table in ("moved", "pieces"):
                self._database.execute(
                    f"INSERT OR REPLACE INTO set_aside SELECT pack, start, length, digest FROM {table} "  # noqa: S608 - names of our own
                    "WHERE pack = ?",
                    (name,),
                )
            self._database.execute("DELETE FROM pieces WHERE pack = ?", (name,))

    def list_set_aside(self, name: str) -> list[tuple[bytes, int, int]]:
        """Return digest, offset and length of each piece of a pack that was set aside."""
        rows = self._list_rows("SELECT digest, start, length FROM set_aside WHERE pack = ?", name)
        return [(digest, offset, length) for digest, offset, length in rows]

    def list_places(self, digest: bytes) -> list[Segment]:
        """Return where this piece lies, by all that is known: also in packs that are not used any more."""
        rows = self._list_rows(
            "SELECT pack, start, length FROM pieces WHERE digest = ?1 UNION ALL "
            "SELECT pack, start, length FROM moved WHERE digest = ?1",
            digest,
        )
        return [Segment(*row) for row in rows]

    def find_set_aside(self) -> frozenset[str]:
        """Return the packs of which pieces were set aside."""
        return frozenset(name for (name,) in self._list_rows("SELECT DISTINCT pack FROM set_aside"))

    def take_back(self, name: str) -> None:
        """Use the pieces of a pack again that was made whole, as far as no other pack has them."""
        with self._writing():
            self._database.execute(
                "INSERT OR IGNORE INTO pieces "
                "SELECT digest, pack, start, length, make_proof(digest, pack, start, length) "
                "FROM set_aside WHERE pack = ?",
                (name,),
            )
            self._database.execute("DELETE FROM set_aside WHERE pack = ?", (name,))

    def forget(self, packs: Collection[str]) -> None:
        """Forget these packs, with their pieces."""
        gone = [(name,) for name in packs]
        with self._writing():
            self._database.executemany("DELETE FROM packs WHERE name = ?", gone)
            for table in ("set_aside", "moved", "encryptions"):
                self._database.executemany(f"DELETE FROM {table} WHERE pack = ?", gone)  # noqa: S608 - names of our own
            if gone:
                self._database.execute("DELETE FROM pieces WHERE pack NOT IN (SELECT name FROM packs)")

    def record_reread(self, name: str, at: datetime) -> None:
        """Remember that the pack was read back whole, and that its digest was right."""
        with self._writing():
            self._database.execute(
                "UPDATE packs SET reread_at = ? WHERE name = ?",
                (at.astimezone(timezone.utc).isoformat(), name),
            )

    def find_rereads(self) -> dict[str, datetime | None]:
        """Return when each pack was last read back, by its name; None if never."""
        rows = self._list_rows("SELECT name, reread_at FROM packs")
        return {name: _parse_time(at) for name, at in rows}

    def record_file_reread(self, name: str, at: datetime) -> None:
        """Remember that a file of a point, as `ID/NAME`, was read back and that its digest was right."""
        with self._writing():
            self._database.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?)", (name, at.astimezone(timezone.utc).isoformat())
            )

    def find_file_rereads(self) -> dict[str, datetime]:
        """Return when each file of a point was last read back, by `ID/NAME`."""
        rows = self._list_rows("SELECT name, reread_at FROM files")
        return {name: time for name, at in rows if (time := _parse_time(at)) is not None}

    def forget_files(self, names: Collection[str]) -> None:
        """Forget when these files of points were read back."""
        with self._writing():
            self._database.executemany("DELETE FROM files WHERE name = ?", [(name,) for name in names])

    def record_lock(self, key: str, until: datetime) -> None:
        """Remember until when the object is locked."""
        with self._writing():
            self._database.execute(
                "INSERT OR REPLACE INTO locks VALUES (?, ?)",
                (key, until.astimezone(timezone.utc).isoformat()),
            )

    def find_locks(self) -> dict[str, datetime]:
        """Return until when each object is locked, by its key, as far as it was seen."""
        rows = self._list_rows("SELECT key, locked_until FROM locks")
        return {key: time for key, until in rows if (time := _parse_time(until)) is not None}

    def _find_row(self, statement: str, value: object) -> Any:
        with self._translated():
            return self._database.execute(statement, (value,)).fetchone()

    def _list_rows(self, statement: str, *values: object) -> list[Any]:
        with self._translated():
            return self._database.execute(statement, values).fetchall()

    @contextmanager
    def _writing(self) -> Generator[None, None, None]:
        self._ahead.clear()
        with self._translated():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            if self._is_damage(error):
                # The next call makes it again: otherwise each backup would fail here.
                with suppress(OSError):
                    self.path.unlink(missing_ok=True)
            raise StorageError(
                f"{self.path} cannot be used: {error}",
                hint="Check the disk, its free space and the permissions. The file is a cache: delete it if "
                "it is damaged, and it is made again.",
            ) from error

    def _is_damage(self, error: Exception) -> bool:
        """Return whether the file itself is damaged; that does not follow from missing rights or space."""
        text = str(error).lower()
        if isinstance(error, sqlite3.OperationalError):
            is_refused = "readonly" in text and os.access(self.path, os.W_OK)
            return is_refused or any(sign in text for sign in _SIGNS_OF_DAMAGE)
        return isinstance(error, sqlite3.DatabaseError | ValueError)

    def __enter__(self) -> PieceIndex:
        return self

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


def _parse_time(text: str) -> datetime | None:
    """Return the aware time; None if there is none, or if it is damaged: then it counts as unknown."""
    with suppress(ValueError):
        time = datetime.fromisoformat(text)
        return time if time.tzinfo is not None else None
    return None
