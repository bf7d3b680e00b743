"""Keys and plain files of a store: what its listing shows, and what can be checked without a private key.

    SITE/packs/PACK                     members of artifacts, one behind the other; never changed
    SITE/points/ID/NAME.recipe.gz       where the pieces of an artifact lie; encrypted like the packs
    SITE/points/ID/NAME.local-recipe.gz the recipe of the backup directory, of an artifact in packs; encrypted
    SITE/points/ID/manifest.json, verification.json                           encrypted like the packs
    SITE/points/ID/packs.json           sizes and digests of all these stored files; plain
    SITE/points/ID/committed.json       written last; a copy without it does not count; plain
    SITE/writers/WRITER                 a backup directory that writes here
    SITE/condemned/PACK or ID           what pruning will remove
    SITE/receipts/NAME.json             signed receipts; encrypted like the packs
    SITE/receipts/keys/KEY.pub.pem      the keys that verify them; plain
    SITE/RESTORE.txt, SITE/restore.sh   how to restore without this program

SITE is the site id of the backup directory. Encrypted files end with `.age`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from schedgen_backups.core.errors import ConfigurationError, KeyMissingError, VerificationError
from schedgen_backups.core.formats.packed_file import RECIPE_SUFFIX
from schedgen_backups.core.model import FORMAT_VERSION, FrozenModel, RecoveryPointId
from schedgen_backups.core.packs.pack_files import PACK_PATTERN, StoredFile
from schedgen_backups.core.store.protocol import Store, StoredObject

PACK_LIST_NAME = "packs.json"
COMMIT_NAME = "committed.json"
MANIFEST_NAME = "manifest.json"
VERIFICATION_NAME = "verification.json"
GUIDE_NAMES = ("RESTORE.txt", "restore.sh")
SMALL_FILE_LIMIT_BYTES = 64 << 20
"""Many times what the list of a million packs takes."""
_ID = r"[0-9]{8}_[0-9]{6}"
_SITE_PATTERN = re.compile(r"[0-9a-f]{32}")
_KEY_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"packs/{PACK_PATTERN.pattern}",
        rf"points/{_ID}/[^/]+",
        r"writers/[0-9a-f]{32}",
        rf"condemned/({_ID}|{_ID}-[0-9]{{4,9}}(\.age)?)",
        r"probes/[0-9a-f]+",
        r"receipts/[^/]+\.json(\.age)?",
        r"receipts/keys/[0-9a-f]+\.pub\.pem",
        *map(re.escape, GUIDE_NAMES),
    )
)


class PackList(FrozenModel):
    """`packs.json`: everything that a copy consists of."""

    format_version: int = FORMAT_VERSION
    tool_version: str
    point_id: str
    site_id: str
    packs: tuple[StoredFile, ...]
    files: tuple[StoredFile, ...]
    """Recipes, manifest and verification, in the folder of the point."""

    @property
    def size_bytes(self) -> int:
        """Total size in the store, with packs that other copies use too."""
        return sum(each.size_bytes for each in (*self.packs, *self.files))


class CopyCommit(FrozenModel):
    """`committed.json`: the commit mark of a copy."""

    format_version: int = FORMAT_VERSION
    tool_version: str
    point_id: str
    site_id: str
    writer_id: str
    packs_sha256: str
    """Digest of `packs.json`."""
    copied_at: AwareDatetime
    """By the clock of the writer."""


@dataclass(frozen=True)
class SiteKeys:
    """The keys of one site in a store."""

    site_id: str

    @property
    def packs(self) -> str:
        """Prefix of all packs."""
        return f"{self.site_id}/packs/"

    @property
    def points(self) -> str:
        """Prefix of all points."""
        return f"{self.site_id}/points/"

    @property
    def receipts(self) -> str:
        """Prefix of all receipts and their public keys."""
        return f"{self.site_id}/receipts/"

    @property
    def condemned(self) -> str:
        """Prefix of the marks of pruning."""
        return f"{self.site_id}/condemned/"

    @property
    def writers(self) -> str:
        """Prefix of the writers."""
        return f"{self.site_id}/writers/"

    def pack(self, name: str) -> str:
        """Return the key of a pack."""
        return f"{self.packs}{name}"

    def file(self, point_id: RecoveryPointId, name: str) -> str:
        """Return the key of a file in a point's folder."""
        return f"{self.points}{point_id}/{name}"

    def is_known(self, key: str) -> bool:
        """Return whether this program writes keys of this form."""
        rest = key.removeprefix(f"{self.site_id}/")
        return any(pattern.fullmatch(rest) for pattern in _KEY_PATTERNS)


def read_guides() -> dict[str, bytes]:
    """Return name and text of what explains a store to somebody without this program."""
    folder = Path(__file__).with_name("guides")
    return {name: (folder / name).read_bytes() for name in GUIDE_NAMES}


def make_recipe_name(file_name: str) -> str:
    """Return the name of an artifact's recipe with the names of the store's packs."""
    return f"{file_name.removesuffix(RECIPE_SUFFIX)}{RECIPE_SUFFIX}"


def make_local_recipe_name(file_name: str) -> str:
    """Return the name of the recipe that was in the backup directory, of an artifact in packs."""
    return f"{file_name.removesuffix(RECIPE_SUFFIX)}.local-recipe.gz"


def list_copies(store: Store, keys: SiteKeys) -> dict[RecoveryPointId, StoredObject]:
    """Return the commit mark of every committed copy by its point, oldest first."""
    return find_commits(keys, store.list(keys.points))


def find_commits(keys: SiteKeys, listing: Iterable[StoredObject]) -> dict[RecoveryPointId, StoredObject]:
    """Return the commit marks in a listing by their points, oldest first."""
    found: dict[RecoveryPointId, StoredObject] = {}
    for stored in listing:
        if not stored.key.startswith(keys.points):
            continue
        folder, _slash, name = stored.key.removeprefix(keys.points).partition("/")
        if name == COMMIT_NAME and stored.is_newest and not stored.is_marker:
            with suppress(ConfigurationError):
                found[RecoveryPointId.parse(folder)] = stored
    return dict(sorted(found.items()))


def list_sites(store: Store) -> list[str]:
    """Return the ids of the sites of which the store holds anything.

    Other folders, such as those that a NAS makes for itself, are left out.
    """
    folders = {stored.key.partition("/")[0] for stored in store.list("") if "/" in stored.key}
    return sorted(filter(_SITE_PATTERN.fullmatch, folders))


def read_whole(store: Store, key: str, limit_bytes: int = SMALL_FILE_LIMIT_BYTES) -> bytes:
    """Return all bytes of the object; KeyMissingError, or VerificationError if it is larger."""
    data = store.get_range(key, 0, limit_bytes + 1)
    if len(data) > limit_bytes:
        raise VerificationError(f"{key} is larger than expected", hint="It was not written by this program.")
    return data


def read_pack_list(store: Store, keys: SiteKeys, point_id: RecoveryPointId) -> tuple[CopyCommit, PackList]:
    """Return commit mark and pack list of a committed copy.

    VerificationError (permanent) when one of them is missing, damaged, or not of this site and point.
    """
    commit_key = keys.file(point_id, COMMIT_NAME)
    list_key = keys.file(point_id, PACK_LIST_NAME)
    try:
        commit = CopyCommit.model_validate_json(read_whole(store, commit_key))
        data = read_whole(store, list_key)
        pack_list = PackList.model_validate_json(data)
    except KeyMissingError as error:
        raise VerificationError(f"{error.message}: the copy is incomplete", hint=_DAMAGED_HINT) from error
    except ValidationError as error:
        raise VerificationError(
            f"the copy of {point_id} is damaged: {error.error_count()} errors in {COMMIT_NAME} or "
            f"{PACK_LIST_NAME}",
            hint=_DAMAGED_HINT,
        ) from error
    if hashlib.sha256(data).hexdigest() != commit.packs_sha256:
        raise VerificationError(f"{list_key} is not the one that was committed", hint=_DAMAGED_HINT)
    stated = {(each.point_id, each.site_id) for each in (commit, pack_list)}
    if stated != {(point_id.text, keys.site_id)}:
        raise VerificationError(f"{commit_key} belongs to another point or site", hint=_DAMAGED_HINT)
    return commit, pack_list


_DAMAGED_HINT = "Use another copy. Nothing is pruned from this store until an operator has checked it."
