"""Check whether the bytes of an artifact, a file or in packs, are those that were written and committed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial

from schedgen_backups.core.errors import PackKeyError, VerificationError
from schedgen_backups.core.formats.archive_file import ArchiveFile
from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.formats.gzip_members import BLOCK_BYTES, FOOTER_BYTES, Footer
from schedgen_backups.core.formats.records import ArtifactFile, ObjectEntry, TableEntry
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.system.files import read_small_file
from schedgen_backups.core.units import count, name_some

OnProgress = Callable[[int], object]
"""Gets the number of bytes read since the last call."""


class FileDigest:
    """Digest of a file's bytes before its footer, updated while they are read."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._digest = hashlib.sha256()
        self._on_progress = on_progress
        self.is_finished = False

    def update(self, data: bytes) -> None:
        """Add the next bytes."""
        self._digest.update(data)
        self._on_progress(len(data))

    def finish(self, read_rest: Callable[[Callable[[bytes], object]], object]) -> None:
        """Add the bytes that were not read yet, up to the footer."""
        read_rest(self.update)
        self.is_finished = True

    @property
    def content_sha256(self) -> str:
        """Digest of the bytes so far."""
        return self._digest.hexdigest()

    def with_footer(self, footer: bytes) -> str:
        """Return the digest of the whole file."""
        whole = self._digest.copy()
        whole.update(footer)
        return whole.hexdigest()


def check_stored(
    file: ArtifactFile, kind: ArtifactKind, digest: FileDigest, expected_sha256: str | None
) -> tuple[str, str]:
    """Return the digest of the whole file, and what is wrong with its bytes; empty when nothing is.

    Of an artifact in packs, the file is its recipe, and every pack is read.
    """
    try:
        if file.is_packed:
            return _check_packs(file, kind, expected_sha256)
        footer = _read_footer(file, kind)
    except VerificationError as error:
        return "", error.message
    if footer.index_sha256:
        return _check_put_together(file, footer, expected_sha256)
    if not digest.is_finished:
        # Parsing stopped early, but the bytes may still be as written.
        digest = FileDigest(lambda _size_bytes: None)
        digest.finish(partial(read_range, file, 0, footer.footer_offset))
    reader = file.open_reader()
    reader.seek(footer.footer_offset)
    whole_sha256 = digest.with_footer(reader.read())
    if digest.content_sha256 != footer.content_sha256:
        return whole_sha256, f"the bytes of {file.path.name} are not those that were written"
    return whole_sha256, _compare_with_manifest(file, whole_sha256, expected_sha256)


def _read_footer(file: ArtifactFile, kind: ArtifactKind) -> Footer:
    with file.read_as(DumpFile if kind is ArtifactKind.DATABASE else ArchiveFile) as opened:
        return opened.footer


def _check_packs(file: ArtifactFile, kind: ArtifactKind, expected_sha256: str | None) -> tuple[str, str]:
    """Check every pack and the recipe; without a key for encrypted packs, their stored bytes."""
    recipe_sha256 = hashlib.sha256(read_small_file(file.path)).hexdigest()
    packs = LocalPacks(file.path.parent)
    problems = {
        pack.name: problem
        for pack in file.open_packed().recipe.stated_packs
        if (problem := packs.read_again(pack))
    }
    if problems:
        said = name_some([*problems.values()])
        return recipe_sha256, "; ".join(filter(None, (said, _name_contents(file, kind, problems.keys()))))
    # Without a key, the packs prove it: the recipe states their digests.
    with suppress(PackKeyError):
        footer = _read_footer(file, kind)
        if footer.index_sha256 and _digest_index(file, footer) != footer.index_sha256:
            return recipe_sha256, f"the index of {file.path.name} is not the one that was written"
    return recipe_sha256, _compare_with_manifest(file, recipe_sha256, expected_sha256)


def _name_contents(file: ArtifactFile, kind: ArtifactKind, packs: Collection[str]) -> str:
    """Return which objects or tables lie in these packs; empty if the index lies there, too."""
    packed = file.open_packed()

    def is_touched(place: ObjectEntry | TableEntry) -> bool:
        return any(segment.pack in packs for segment in packed.find_segments(place.offset, place.length))

    with suppress(VerificationError, PackKeyError):
        if kind is ArtifactKind.DATABASE:
            tables = [
                table.qualified_name for table in DumpFile(file.open_reader()).tables if is_touched(table)
            ]
            return f"{count(len(tables), 'table')}: {name_some(tables)}" if tables else ""
        keys = [entry.key for entry in ArchiveFile(file.open_reader()).read_entries() if is_touched(entry)]
        return f"{count(len(keys), 'object')}: {name_some(keys)}" if keys else ""
    return ""


def _check_put_together(file: ArtifactFile, footer: Footer, expected_sha256: str | None) -> tuple[str, str]:
    """Check a file that was put together from packs: its own digest is that of the index."""
    digest = hashlib.sha256()
    read_range(file, 0, footer.footer_offset + FOOTER_BYTES, digest.update)
    whole_sha256 = digest.hexdigest()
    if _digest_index(file, footer) != footer.index_sha256:
        return whole_sha256, f"the index of {file.path.name} is not the one that was written"
    return whole_sha256, _compare_with_manifest(file, whole_sha256, expected_sha256)


def _compare_with_manifest(file: ArtifactFile, sha256: str, expected_sha256: str | None) -> str:
    if expected_sha256 in {None, sha256}:
        return ""
    return f"{file.path.name} is not the file that the manifest names: it was exchanged"


def _digest_index(file: ArtifactFile, footer: Footer) -> str:
    digest = hashlib.sha256()
    read_range(file, footer.index_offset, footer.footer_offset, digest.update)
    return digest.hexdigest()


def read_range(file: ArtifactFile, start: int, end: int, on_progress: Callable[[bytes], object]) -> None:
    """Give these bytes of the artifact to `on_progress`, in blocks."""
    reader = file.open_reader()
    reader.seek(start)
    remaining = end - start
    while remaining > 0 and (block := reader.read(min(BLOCK_BYTES, remaining))):
        on_progress(block)
        remaining -= len(block)
