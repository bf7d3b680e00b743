"""Packs and the other files of a copy as they lie in a folder or a store, and the names of packs."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated

from pydantic import Field

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.model import FrozenModel, RecoveryPointId

LARGEST_FILE_BYTES = 256 << 20
"""Four times the largest pack. Whole files are held in memory, and a store can hold anything."""
PACK_PATTERN = re.compile(r"(?P<id>[0-9]{8}_[0-9]{6})-(?P<number>[0-9]{4,9})(\.age)?")


class StoredFile(FrozenModel):
    """A pack, or another file of a copy, as it lies in the store."""

    name: str
    size_bytes: Annotated[int, Field(ge=0, le=LARGEST_FILE_BYTES)]
    sha256: str
    """Digest of the stored bytes, which are encrypted ones if the name ends with `.age`."""


def make_pack_name(point_id: RecoveryPointId, number: int, suffix: str) -> str:
    """Return the name of a pack: of the point with which it was written, and its number there."""
    return f"{point_id}-{number:04d}{suffix}"


def parse_pack_number(name: str, point_id: RecoveryPointId) -> int | None:
    """Return the number of a pack that was written with this point, otherwise None."""
    match = PACK_PATTERN.fullmatch(name)
    return int(match["number"]) if match is not None and match["id"] == point_id.text else None


def parse_pack_point(name: str) -> RecoveryPointId | None:
    """Return the point with which a pack was written; None for other names."""
    match = PACK_PATTERN.fullmatch(name)
    with suppress(ConfigurationError):
        return RecoveryPointId.parse(match["id"]) if match is not None else None
    return None
