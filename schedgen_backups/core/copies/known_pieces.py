"""What earlier copies stored, for an index of pieces that was lost: without it, all is uploaded once more."""

from __future__ import annotations

import hashlib
from contextlib import suppress

from pydantic import ValidationError

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.copies.layout import PACK_LIST_NAME, PackList, make_recipe_name
from schedgen_backups.core.copies.local_folder import READERS_NAME, LocalFolder
from schedgen_backups.core.copies.packed_points import match_packs, read_named_recipe
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.recipe import Recipe, read_recipe
from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.model import Artifact
from schedgen_backups.core.packs.pack_files import StoredFile
from schedgen_backups.core.packs.piece_index import NewPack, PieceIndex, make_pack_key
from schedgen_backups.core.packs.pieces import cut_artifact

_Places = dict[str, list[tuple[bytes, int, int]]]
"""Digest, offset and length of each piece, by the pack that holds it."""


def restore_index(index: PieceIndex, catalog: Catalog, folder: LocalFolder, readers: str) -> None:
    """Fill a new index from the plain recipes that are kept here, as far as the artifacts still exist.

    Only from copies that the keys of `readers` open.
    """
    points = {point.point_id: point for point in catalog.list_points()}
    for point_id in folder.list_points():
        data = folder.read_plain(point_id, PACK_LIST_NAME)
        point = points.get(point_id)
        if data is None or point is None or point.manifest is None:
            continue
        if folder.read_plain(point_id, READERS_NAME) != readers.encode():
            continue
        for artifact in point.manifest.artifacts:
            kept = folder.read_plain(point_id, make_recipe_name(artifact.file_name))
            # What is damaged costs an upload, not the copy.
            with suppress(VerificationError, ValidationError):
                packs = {each.name: each for each in PackList.model_validate_json(data).packs}
                _add(
                    index,
                    packs,
                    _find_places(catalog, artifact, read_recipe(artifact.file_name, kept or b"")),
                )


def _find_places(catalog: Catalog, artifact: Artifact, stored: Recipe) -> _Places:
    if artifact.content_bytes is not None:
        local = read_named_recipe(catalog.directory, artifact)[1]
        names = match_packs(local, stored)
        return {
            names[pack.name]: [(make_pack_key(pack.plain_sha256), 0, pack.plain_bytes)]
            for pack in local.stated_packs
        }
    with ArtifactFile(catalog.directory / artifact.file_name) as file:
        return _find_pieces(artifact, file, stored)


def _find_pieces(artifact: Artifact, file: ArtifactFile, recipe: Recipe) -> _Places:
    """Return the pieces in each pack of the recipe.

    Nothing if the artifact is not the one of the recipe: a wrong place would spoil later copies.
    """
    whole = hashlib.sha256()
    found: _Places = {}
    segments = iter(recipe.segments)
    segment = next(segments, None)
    done = 0
    for piece in cut_artifact(artifact.kind, file):
        length = len(piece.data)
        whole.update(piece.data)
        if segment is not None and done == segment.length:
            segment, done = next(segments, None), 0
        if segment is None or done + length > segment.length:
            # Cut by another version of this program.
            return {}
        found.setdefault(segment.pack, []).append(
            (hashlib.sha256(piece.data).digest(), segment.offset + done, length)
        )
        done += length
    return found if whole.hexdigest() == recipe.sha256 else {}


def _add(index: PieceIndex, packs: dict[str, StoredFile], places: _Places) -> None:
    for name, found in places.items():
        if name in packs:
            plain_bytes = max(offset + length for _digest, offset, length in found)
            index.add(NewPack(packs[name], plain_bytes, tuple(found)))
