"""Points in packs: each pack of the backup directory becomes a pack of the store, under a name of its own.

Two recipes of each artifact are stored: the one of the backup directory, which the manifest names, and one
with the names of the store's packs, which leads to the artifact without this program. Both have the same
places in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.packed_file import parse_local_recipe
from schedgen_backups.core.formats.recipe import Recipe, Segment, Segments
from schedgen_backups.core.model import Artifact
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.pack_writer import PackWriter
from schedgen_backups.core.system.files import read_small_file

_HINT = "`schedgen-backups verify ID` shows what is wrong with it."


def read_named_recipe(directory: Path, artifact: Artifact) -> tuple[bytes, Recipe]:
    """Return the recipe that the manifest names, and its bytes; VerificationError if they are others."""
    try:
        data = read_small_file(directory / artifact.file_name)
    except OSError as error:
        raise VerificationError(
            f"{artifact.file_name} cannot be read: {error.strerror}", hint=_HINT
        ) from error
    return data, parse_named_recipe(artifact, data)


def parse_named_recipe(artifact: Artifact, data: bytes) -> Recipe:
    """Return the recipe; VerificationError (permanent) unless it is the one that the manifest names."""
    if (len(data), hashlib.sha256(data).hexdigest()) != (artifact.size_bytes, artifact.sha256):
        raise VerificationError(f"{artifact.file_name} has changed since it was verified", hint=_HINT)
    recipe = parse_local_recipe(artifact.file_name, data)
    if recipe.size_bytes != artifact.content_bytes:
        raise VerificationError(f"{artifact.file_name} belongs to another manifest", hint=_HINT)
    return recipe


def hand_on(packs: LocalPacks, writer: PackWriter, local: Recipe, on_pack: Callable[[int], object]) -> Recipe:
    """Store the packs that the store lacks; return the artifact's recipe for the store.

    `on_pack` gets the size of each pack that is in the store or on its way. VerificationError (permanent)
    when a pack that must be read is damaged, PackKeyError when one for other readers cannot be decrypted;
    errors of the writer.
    """
    places: dict[str, Segment] = {}
    for pack in local.stated_packs:
        if pack.encryption is not None and pack.readers == writer.readers and packs.has_stored_form(pack):
            places[pack.name] = writer.place_encrypted(pack, partial(packs.read_stored, pack))
        else:
            places[pack.name] = writer.place_alone(pack.plain_sha256, partial(packs.read_pack, pack))
        on_pack(pack.size_bytes)
    writer.finish_artifact()
    return Recipe(
        Segments(Segment(places[each.pack].pack, each.offset, each.length) for each in local.segments)
    )


def match_packs(local: Recipe, stored: Recipe) -> dict[str, str]:
    """Return the name in the store of each pack of the backup directory.

    VerificationError (permanent) when the two recipes are not of the same artifact.
    """
    names: dict[str, str] = {}
    is_same = len(local.segments) == len(stored.segments) and all(
        (ours.offset, ours.length) == (theirs.offset, theirs.length)
        and names.setdefault(ours.pack, theirs.pack) == theirs.pack
        for ours, theirs in zip(local.segments, stored.segments, strict=True)
    )
    if not is_same:
        raise VerificationError(
            "the two recipes of an artifact describe different ones", hint="Use another copy."
        )
    return names
