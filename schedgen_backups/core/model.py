"""Values that are written to and read from the files of a recovery point.

Add a field here when it must be stored in a file. Give it a default, so that older files can still be read.
Every model is frozen and survives a round trip through JSON unchanged. No I/O and no decisions here:
`catalog` reads and writes the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Annotated
from urllib.parse import quote, unquote

from pydantic import AliasChoices, AwareDatetime, BaseModel, ConfigDict, Field

from schedgen_backups.core.errors import ConfigurationError


def _find_version() -> str:
    try:
        return version("schedgen-backups")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "0+unknown"


TOOL_VERSION = _find_version()
OWN_VERSION: Mapping[str, str] = MappingProxyType({"schedgen-backups": TOOL_VERSION})
"""This program among the servers and programs that took part in something."""


FORMAT_VERSION = 2
PARTS_FORMAT_VERSION = 3
"""Of a manifest that does not name exactly one database and one bucket: what knows format 2 only would
restore one of several, and take it for all."""
READABLE_FORMAT_VERSIONS = frozenset({1, FORMAT_VERSION, PARTS_FORMAT_VERSION})
"""In format 1 (0.1.0 until 2026-11-26) some fields have other names, and an archive does not count its
unproven objects."""
_ID_FORMAT = "%Y%m%d_%H%M%S"
_ID_PATTERN = re.compile(r"[0-9]{8}_[0-9]{6}")
_FILE_PATTERN = re.compile(
    r"(?P<prefix>db|minio)_(?P<name>.+)_(?P<id>[0-9]{8}_[0-9]{6})\.(?P<suffix>sql|tar)\.gz(\.recipe\.gz)?"
)


class FrozenModel(BaseModel):
    """A value stored in a file: frozen, and tolerant of fields added by newer versions."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True, order=True)
class RecoveryPointId:
    """The UTC second at which a recovery point was started, as `YYYYMMDD_HHMMSS`."""

    text: str

    @classmethod
    def from_time(cls, taken_at: datetime) -> RecoveryPointId:
        """Return the id of a point started at this aware time."""
        return cls(taken_at.astimezone(timezone.utc).strftime(_ID_FORMAT))

    @classmethod
    def parse(cls, text: str) -> RecoveryPointId:
        """Return the id that this text spells; raise ConfigurationError when it is not an id."""
        if _ID_PATTERN.fullmatch(text):
            with suppress(ValueError):
                _read_id(text)
                return cls(text)
        raise ConfigurationError(
            f"{text!r} is not the id of a recovery point",
            hint="Ids look like 20261122_020000; `schedgen-backups list` shows the existing ones.",
        )

    @property
    def taken_at(self) -> datetime:
        """Aware UTC."""
        return _read_id(self.text)

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=4096)
def _read_id(text: str) -> datetime:
    """Return the time of an id; ValueError if such a time does not exist."""
    # Ten times as fast as strptime, and a listing of 400 points reads 2,800 ids (2026-11-30).
    day, clock = int(text[:8]), int(text[9:])
    return datetime(
        day // 10000,
        day // 100 % 100,
        day % 100,
        clock // 10000,
        clock // 100 % 100,
        clock % 100,
        tzinfo=timezone.utc,
    )


class ArtifactKind(str, Enum):
    """Which half of a recovery point a file holds."""

    DATABASE = "database"
    BUCKET = "bucket"

    @property
    def file_prefix(self) -> str:
        """The first part of the file's name."""
        return "db" if self is ArtifactKind.DATABASE else "minio"

    @property
    def file_suffix(self) -> str:
        """The last part of the file's name."""
        return ".sql.gz" if self is ArtifactKind.DATABASE else ".tar.gz"


@dataclass(frozen=True)
class ArtifactName:
    """The name of an artifact's file: its kind, its database or bucket, and its point."""

    kind: ArtifactKind
    source_name: str
    """The database's or the bucket's name."""
    point_id: RecoveryPointId

    def to_file_name(self) -> str:
        """Return `db_NAME_ID.sql.gz` or `minio_NAME_ID.tar.gz`.

        Characters that a path cannot contain are percent-encoded.
        """
        name = quote(self.source_name, safe=" +@,=")
        return f"{self.kind.file_prefix}_{name}_{self.point_id}{self.kind.file_suffix}"

    def to_recipe_name(self) -> str:
        """Return the name of the file that stands for an artifact in packs."""
        return f"{self.to_file_name()}.recipe.gz"

    # Each scrape and each tick asks for the same names again.
    @classmethod
    @lru_cache(maxsize=4096)
    def from_file_name(cls, file_name: str) -> ArtifactName | None:
        """Return the parts of the name of such a file, or of its recipe; None for any other name."""
        match = _FILE_PATTERN.fullmatch(file_name)
        if match is None:
            return None
        kind = ArtifactKind.DATABASE if match["prefix"] == "db" else ArtifactKind.BUCKET
        if f".{match['suffix']}.gz" != kind.file_suffix:
            return None
        try:
            point_id = RecoveryPointId.parse(match["id"])
        except ConfigurationError:
            return None
        return cls(kind, unquote(match["name"]), point_id)


class ReferenceState(str, Enum):
    """Whether the object keys that the database refers to were read."""

    READ = "read"
    NOT_CONFIGURED = "not configured"


class ReferenceVerdict(str, Enum):
    """Why an object that the snapshot refers to is not in the archive."""

    EXCLUDED = "excluded"
    DELETED = "deleted during the backup"
    MISSING = "already missing in the live system"
    LOST = "lost by us"
    UNKNOWN = "unknown"


class MissingReference(FrozenModel):
    """A key that the database refers to and that is not in the archive."""

    key: str
    verdict: ReferenceVerdict


class ReferenceSummary(FrozenModel):
    """How the database's references match the archive's objects."""

    state: ReferenceState
    reference_count: int = 0
    resolved_count: int = 0
    verdict_counts: dict[ReferenceVerdict, int] = {}
    missing: tuple[MissingReference, ...] = ()
    """At most a thousand, the most serious first."""
    newly_missing_count: int = 0
    """Missing in the live system, but not at the site's first point and not accepted since."""
    missing_sha256: str = ""
    """Digest of all missing keys: a later check compares it to see whether the same keys are missing."""
    note: str = ""

    @property
    def lost_count(self) -> int:
        """Missing objects that a backup could have captured, or for which that is unknown."""
        return self.verdict_counts.get(ReferenceVerdict.LOST, 0) + self.verdict_counts.get(
            ReferenceVerdict.UNKNOWN, 0
        )

    @property
    def is_coherent(self) -> bool:
        """Whether the references were read and no object is lost or unknown."""
        return self.state is ReferenceState.READ and not self.lost_count


class Artifact(FrozenModel):
    """One file of a recovery point as recorded in its manifest."""

    kind: ArtifactKind
    file_name: str
    source_name: str
    size_bytes: int
    """Size of the file that is named: of the recipe, if the artifact lies in packs."""
    sha256: str
    content_bytes: int | None = None
    """Size of an artifact that lies in packs; None for one that is a file."""

    @property
    def whole_bytes(self) -> int:
        """Size of the artifact, in packs or not."""
        return self.size_bytes if self.content_bytes is None else self.content_bytes


class Origin(FrozenModel):
    """Who took a recovery point, where and why."""

    reason: str = ""
    labels: dict[str, str] = {}
    git_commit: str = ""
    git_branch: str = ""
    user: str = ""
    host: str = ""
    run_id: str = ""


class Adoption(FrozenModel):
    """Why a point of another site is accepted in this backup directory."""

    point_id: str
    reason: str
    adopted_by: str = ""
    adopted_at: AwareDatetime


class Site(FrozenModel):
    """Identity of a backup directory: a random id, created once, that moves with the directory."""

    site_id: str
    made_at: AwareDatetime
    adopted: tuple[Adoption, ...] = ()
    older_points: tuple[str, ...] = ()
    """Ids of points without a site id that existed when the directory got its id."""

    def owns(self, manifest: Manifest) -> bool:
        """Return whether the point is this site's own or was adopted."""
        is_older = not manifest.site_id and manifest.point_id in self.older_points
        return (
            manifest.site_id == self.site_id
            or is_older
            or any(each.point_id == manifest.point_id for each in self.adopted)
        )


class AcceptedObject(FrozenModel):
    """An object that the database refers to and that no longer exists, and why that is acceptable."""

    key: str
    reason: str
    accepted_by: str = ""
    accepted_at: AwareDatetime
    was_missing: bool = False
    """Whether a backup has found it missing since then."""


class MissingBaseline(FrozenModel):
    """Objects whose absence from the live system is known and raises no alert.

    Those missing at the site's first point, and those accepted since.
    """

    first_missing: tuple[str, ...] | None = None
    """None until the site's first point, while only accepted objects are known."""
    accepted: tuple[AcceptedObject, ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        """All known missing keys."""
        return frozenset((*(self.first_missing or ()), *(each.key for each in self.accepted)))

    def keep_only(self, missing: frozenset[str]) -> MissingBaseline:
        """Return the baseline without the objects that exist again: their next loss is new."""
        first_missing = (
            tuple(key for key in self.first_missing if key in missing)
            if self.first_missing is not None
            else None
        )
        accepted = [
            each.model_copy(update={"was_missing": each.was_missing or each.key in missing})
            for each in self.accepted
        ]
        # An object that was accepted in advance and still exists stays accepted.
        return MissingBaseline(
            first_missing=first_missing,
            accepted=tuple(each for each in accepted if each.key in missing or not each.was_missing),
        )


class LeftOut(FrozenModel):
    """What a recovery point lacks because the operator excluded it (`core.patterns`)."""

    table_patterns: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    """`schema.table` of each table whose rows are not in the dump."""
    object_patterns: tuple[str, ...] = ()
    object_count: int = 0
    size_bytes: int = 0
    """Total size of these objects according to the listing."""


@dataclass(frozen=True)
class PartName:
    """A database and the bucket to which it refers, by their names; empty where there is none."""

    database: str
    bucket: str

    def get_source(self, kind: ArtifactKind) -> str:
        """Return the name of the database or of the bucket."""
        return self.database if kind is ArtifactKind.DATABASE else self.bucket

    @property
    def kinds(self) -> frozenset[ArtifactKind]:
        """What it has."""
        return frozenset(kind for kind in ArtifactKind if self.get_source(kind))

    def __str__(self) -> str:
        return " and ".join(filter(None, (self.database, self.bucket)))


class ManifestPart(FrozenModel):
    """One database, one bucket, or one of each that belong together, of a point that has several."""

    database: str = ""
    """Its name in the point; empty for a bucket to which no database refers."""
    bucket: str = ""
    references: ReferenceSummary

    @property
    def name(self) -> PartName:
        """The names of both."""
        return PartName(self.database, self.bucket)


class Manifest(FrozenModel):
    """The commit mark of a recovery point: written last and never rewritten."""

    format_version: int = FORMAT_VERSION
    tool_version: str
    point_id: str
    site_id: str = ""
    """The random id of the backup directory in which the point was committed."""
    snapshot_at: AwareDatetime
    committed_at: Annotated[AwareDatetime, Field(validation_alias=AliasChoices("committed_at", "sealed_at"))]
    artifacts: Annotated[tuple[Artifact, ...], Field(min_length=1)]
    references: ReferenceSummary
    """Of all parts together."""
    left_out: LeftOut = LeftOut()
    origin: Origin = Origin()
    parts: tuple[ManifestPart, ...] = ()
    """What belongs together in a point of several databases or buckets; empty for at most one of each."""
    snapshot_spread_seconds: float = 0.0
    """Between the first and the last snapshot of its databases."""

    def artifact(self, kind: ArtifactKind) -> Artifact | None:
        """Return the artifact of this kind, or None when the point has none.

        Of several, the first: a part has at most one.
        """
        return next((artifact for artifact in self.artifacts if artifact.kind is kind), None)

    def find_artifact(self, kind: ArtifactKind, source_name: str) -> Artifact | None:
        """Return the artifact of this database or bucket, or None when the point has none."""
        found = (each for each in self.artifacts if (each.kind, each.source_name) == (kind, source_name))
        return next(found, None)

    def select_part(self, name: PartName) -> Manifest:
        """Return what it says of one part."""
        references = next((part.references for part in self.parts if part.name == name), self.references)
        return self.model_copy(
            update={
                "artifacts": tuple(
                    each for each in self.artifacts if name.get_source(each.kind) == each.source_name
                ),
                "references": references,
                "parts": (),
            }
        )
