"""Put a dump that was captured as a file into packs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from schedgen_backups.core.errors import DumpError, VerificationError
from schedgen_backups.core.formats.packed_file import RECIPE_SUFFIX, read_local_recipe
from schedgen_backups.core.formats.recipe import Recipe, Segments, write_recipe
from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.packs.local_packs import PACK_BYTES
from schedgen_backups.core.packs.pack_shelf import PackShelf
from schedgen_backups.core.packs.pieces import cut_artifact
from schedgen_backups.core.system.files import create_private

_ATTEMPTS = 3


def pack_dump(shelf: PackShelf, path: Path, point_id: RecoveryPointId) -> Path:
    """Place the pieces of the dump in packs; return its recipe, which lies beside it, and remove the file.

    What lies in a pack that turns out damaged is placed again. DumpError (retryable) when even new packs
    cannot be read back.
    """
    problems: dict[str, str] = {}
    for _attempt in range(_ATTEMPTS):
        recipe = _place(shelf, path, point_id)
        problems = shelf.read_due(recipe)
        if not problems:
            target = path.with_name(f"{path.name}{RECIPE_SUFFIX}")
            with os.fdopen(create_private(target), "wb") as file:
                file.write(write_recipe(recipe))
            path.unlink()
            return target
    raise DumpError(
        f"the dump cannot be read back: {'; '.join(problems.values())}", hint="Check the disk of BACKUP_DIR."
    )


def _place(shelf: PackShelf, path: Path, point_id: RecoveryPointId) -> Recipe:
    segments = Segments()
    with ArtifactFile(path) as artifact, shelf.open_writer(point_id, pack_bytes=PACK_BYTES) as packs:
        for piece in cut_artifact(ArtifactKind.DATABASE, artifact):
            segments.join(packs.place(piece))
        packs.finish_artifact()
        return shelf.make_recipe(segments, packs.new_packs)


def find_recipes_with(recipes: Iterable[Path], packs: Collection[str]) -> tuple[Path, ...]:
    """Return the recipes that name one of these packs."""
    found: list[Path] = []
    for path in recipes:
        with suppress(VerificationError):
            if not set(packs).isdisjoint(read_local_recipe(path).packs):
                found.append(path)
    return tuple(found)
