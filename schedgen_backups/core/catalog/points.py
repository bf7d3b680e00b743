"""The state of each recovery point, judged by names, sizes and the small files of the directory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from enum import Enum
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType

from schedgen_backups.core.catalog.check_results import STORED_CHECKS, CheckResult, Verification
from schedgen_backups.core.catalog.part_results import combine_parts, label_results, select_part_results
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.archive_file import ArchiveFile, open_archive
from schedgen_backups.core.formats.dump_file import DumpFile, open_dump
from schedgen_backups.core.formats.gzip_members import read_footer
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys, describe_wrong_size
from schedgen_backups.core.formats.packed_file import is_recipe_name, read_local_recipe
from schedgen_backups.core.formats.recipe import StatedPack
from schedgen_backups.core.formats.records import ArtifactFile, open_artifact
from schedgen_backups.core.model import (
    PARTS_FORMAT_VERSION,
    Artifact,
    ArtifactKind,
    ArtifactName,
    Manifest,
    PartName,
    RecoveryPointId,
    Site,
)

NO_PACKS: Mapping[str, int] = MappingProxyType({})
"""The sizes of the packs in a directory that has none."""
CLOCK_TOLERANCE = timedelta(minutes=5)
"""A point further ahead than this means that a clock is or was wrong: the clock of this machine, or of the
host that took the point."""


class PointState(str, Enum):
    """The state of a recovery point."""

    VERIFIED = "verified"
    UNVERIFIED = "unverified"
    FAILED = "failed"
    """Checked, and at least one check failed."""
    PARTIAL = "partial"
    """Without a manifest: one half of the backup failed, or the point was never committed."""
    FOREIGN = "foreign"
    """From another site's backup directory. Restored only by its id, until an operator adopts it."""
    AHEAD = "ahead of the clock"
    """Taken later than this machine's current time: this clock, or that of the taking host, is wrong."""
    DAMAGED = "damaged"
    """One of its files is missing, has another size or cannot be read. The point does not count as verified,
    does not hide other points, and is never removed."""


@dataclass(frozen=True)
class FoundArtifact:
    """One file in the directory that belongs to a point."""

    name: ArtifactName
    path: Path
    size_bytes: int
    modified_ns: int = 0
    """Nanoseconds since 1970, from the file system."""


@dataclass(frozen=True)
class PointListing:
    """One recovery point as found in the directory."""

    point_id: RecoveryPointId
    artifacts: tuple[FoundArtifact, ...]
    manifest: Manifest | None
    verification: Verification
    problems: tuple[str, ...] = ()
    """What is currently wrong with its files, judging by names, sizes and the small files."""
    unread_files: tuple[str, ...] = ()
    """Names of committed files that were not read since their last modification: after a copy, a move to
    another host, or a change of content.

    The point keeps its state until they are read again."""
    is_foreign: bool = False
    is_ahead: bool = False
    recorded: Verification | None = None
    """The results as they are stored, if the point has several parts: `verification` combines them."""
    part: PartName | None = None
    """Which part of a point this is; None for a whole point."""
    keys: PackKeys = field(default=NO_KEYS, repr=False, compare=False)
    """What opens its packs, if they are encrypted."""

    @property
    def parts(self) -> tuple[PointListing, ...]:
        """Return each part as a point of at most one database and one bucket; the point itself if it is one.

        A point that was not committed has no known parts: `divide` does it.
        """
        if self.manifest is None or not self.manifest.parts:
            return (self,)
        return self.divide([part.name for part in self.manifest.parts])

    def divide(self, names: Sequence[PartName]) -> tuple[PointListing, ...]:
        """Return the parts of these names, which the manifest has if there is one."""
        return tuple(
            replace(
                self,
                artifacts=tuple(
                    artifact
                    for artifact in self.artifacts
                    if artifact.name.source_name == name.get_source(artifact.name.kind)
                ),
                manifest=self.manifest.select_part(name) if self.manifest is not None else None,
                verification=select_part_results(self.recorded or self.verification, name),
                recorded=None,
                part=name,
            )
            for name in names
        )

    def with_results(self, results: Sequence[CheckResult]) -> PointListing:
        """Return the point with these results, as they are stored, instead of older ones."""
        if self.recorded is None or self.manifest is None:
            return replace(self, verification=self.verification.with_results(tuple(results)))
        recorded = self.recorded.with_results(tuple(results))
        names = [part.name for part in self.manifest.parts]
        return replace(self, recorded=recorded, verification=combine_parts(recorded, names))

    def label_results(self, results: Sequence[CheckResult]) -> tuple[CheckResult, ...]:
        """Return results of checks of this point, or of this part of one, as they are stored."""
        return tuple(results) if self.part is None else label_results(results, self.part)

    def find_reading(self, name: ArtifactName) -> CheckResult | None:
        """Return the newest result of reading this artifact whole, or None when it never was."""
        verification = self.recorded or self.verification
        check = STORED_CHECKS[name.kind]
        return verification.result(check, name.source_name) or verification.result(check)

    def list_sources(self, kind: ArtifactKind) -> tuple[FoundArtifact, ...]:
        """Return every artifact of this kind."""
        return tuple(artifact for artifact in self.artifacts if artifact.name.kind is kind)

    def measure_kind(self, kind: ArtifactKind) -> int | None:
        """Return the total size of the artifacts of this kind in bytes; None if there is none."""
        found = self.list_sources(kind)
        return sum(self.measure(artifact) for artifact in found) if found else None

    @property
    def size_bytes(self) -> int:
        """Total size of its artifacts, with what other points use of the same packs."""
        return sum(self.measure(found) for found in self.artifacts)

    def measure(self, found: FoundArtifact) -> int:
        """Return the size of the artifact in bytes: of what is in packs, not of the recipe."""
        named = self.manifest.artifacts if self.manifest is not None else ()
        return next(
            (
                each.whole_bytes
                for each in named
                if each.file_name == found.path.name and each.content_bytes is not None
            ),
            found.size_bytes,
        )

    @cached_property
    def state(self) -> PointState:
        """The state of the point; unverified when never checked, or checked on other content."""
        if self.is_foreign:
            return PointState.FOREIGN
        if self.problems:
            return PointState.DAMAGED
        if self.is_ahead:
            return PointState.AHEAD
        if self.verification.is_failed:
            return PointState.FAILED
        if self.manifest is None:
            return PointState.PARTIAL
        is_bound = all(part.is_bound for part in self.parts)
        return PointState.VERIFIED if is_bound and self.verification.is_verified else PointState.UNVERIFIED

    @property
    def is_bound(self) -> bool:
        """Whether the results are of the bytes that the manifest names; of one part."""
        named = self.manifest.artifacts if self.manifest is not None else ()
        committed = {artifact.kind: artifact.sha256 for artifact in named}
        return all(
            committed.get(kind) == sha256
            for result in self.verification.results
            for kind, sha256 in result.artifacts.items()
        )

    def artifact(self, kind: ArtifactKind) -> FoundArtifact | None:
        """Return the file of this kind, or None when there is none; for a part of a point."""
        return next((artifact for artifact in self.artifacts if artifact.name.kind is kind), None)

    def get_path(self, kind: ArtifactKind) -> Path:
        """Return the path of the file of this kind; raise VerificationError when the point has none."""
        found = self.list_sources(kind)
        if len(found) > 1:
            names = ", ".join(artifact.name.source_name for artifact in found)
            raise VerificationError(
                f"recovery point {self.point_id} has several {kind.value}s: {names}",
                hint="Name one of them with the site: schedgen-backups --site SITE/NAME ...",
            )
        artifact = self.artifact(kind)
        if artifact is None:
            raise VerificationError(
                f"recovery point {self.point_id} has no {kind.value} file",
                hint="It is a partial point, or the file was removed. `schedgen-backups list` shows the "
                "others.",
            )
        return artifact.path

    def open_file(self, kind: ArtifactKind) -> ArtifactFile:
        """Return the file of this kind, to be read; errors as in `get_path`."""
        return ArtifactFile(self.get_path(kind), self.keys)

    def open_dump(self) -> AbstractContextManager[DumpFile]:
        """Open the dump within the block; errors as in `get_path` and `dump_file.open_dump`."""
        return open_dump(self.get_path(ArtifactKind.DATABASE), self.keys)

    def open_archive(self) -> AbstractContextManager[ArchiveFile]:
        """Open the archive within the block; errors as in `get_path` and `archive_file.open_archive`."""
        return open_archive(self.get_path(ArtifactKind.BUCKET), self.keys)


def is_ours(artifact: FoundArtifact) -> bool:
    """Return whether the file is a recipe or has the footer of this tool; files of the shell script do not.

    False for a file that cannot be read.
    """
    try:
        if is_recipe_name(artifact.path.name):
            read_local_recipe(artifact.path)
        else:
            with open_artifact(artifact.path, read_footer):
                pass
    except VerificationError:
        return False
    return True


def find_pack_problems(artifact: FoundArtifact, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return which packs an artifact needs and lacks, given the sizes of those that exist.

    Empty for an artifact that is a file; what is wrong with a recipe itself is found by its size and digest.
    """
    if not is_recipe_name(artifact.path.name):
        return ()
    try:
        packs = _read_stated_packs(artifact.path, artifact.size_bytes, artifact.modified_ns)
    except VerificationError as error:
        return (error.message,)
    return tuple(filter(None, (describe_wrong_size(pack, sizes) for pack in packs)))


# Read again when the file has changed: a daemon asks for every point again and again.
@lru_cache(maxsize=2048)
def _read_stated_packs(path: Path, size_bytes: int, modified_ns: int) -> tuple[StatedPack, ...]:
    _ = size_bytes, modified_ns
    return read_local_recipe(path).stated_packs


def judge_point(
    point_id: RecoveryPointId,
    artifacts: Sequence[FoundArtifact],
    manifest: Manifest | None,
    verification: Verification,
    site: Site | None,
    *,
    unreadable: Sequence[str] = (),
    pack_sizes: Mapping[str, int] = NO_PACKS,
    keys: PackKeys = NO_KEYS,
) -> PointListing:
    """Return the point with what is wrong with it.

    `unreadable` says which of its small files cannot be read; `site` is the identity of the directory,
    `pack_sizes` are those of its packs in bytes, and `keys` open them.
    """
    ordered = tuple(
        sorted(_choose_files(artifacts, manifest), key=lambda found: found.name.kind.value, reverse=True)
    )
    problems, unread = (
        [*unreadable, *(_find_part_problems(manifest) if manifest is not None else ())],
        list[str](),
    )
    part_names = [part.name for part in manifest.parts] if manifest is not None else []

    def find_reading(artifact: Artifact) -> CheckResult | None:
        return verification.result(STORED_CHECKS[artifact.kind], artifact.source_name if part_names else "")

    found_files = {artifact.path.name: artifact for artifact in ordered}
    for artifact in manifest.artifacts if manifest is not None else ():
        found = found_files.get(artifact.file_name)
        reading = find_reading(artifact)
        if found is None:
            problems.append(f"{artifact.file_name} is missing")
        elif found.size_bytes != artifact.size_bytes:
            problems.append(
                f"{artifact.file_name} has {found.size_bytes} bytes, the manifest says {artifact.size_bytes}"
            )
        elif packs := find_pack_problems(found, pack_sizes):
            problems += packs
        elif reading is None or reading.file_modified_ns != found.modified_ns:
            unread.append(artifact.file_name)
    is_foreign = manifest is not None and site is not None and not site.owns(manifest)
    is_ahead = point_id.taken_at > datetime.now(timezone.utc) + CLOCK_TOLERANCE
    # A manifest of an older format has both: what it does not name is missing.
    if manifest is not None and not part_names and manifest.format_version >= PARTS_FORMAT_VERSION:
        kinds = frozenset(artifact.kind for artifact in manifest.artifacts)
        verification = verification.model_copy(update={"kinds": kinds})
    return PointListing(
        point_id,
        ordered,
        manifest,
        combine_parts(verification, part_names) if part_names else verification,
        tuple(problems),
        tuple(unread),
        is_foreign=is_foreign,
        is_ahead=is_ahead,
        recorded=verification if part_names else None,
        keys=keys,
    )


def _find_part_problems(manifest: Manifest) -> tuple[str, ...]:
    """Return why its parts do not prove everything that the manifest names; empty if they do.

    Checks of a point are those of its parts: an artifact of none of them would never be missed.
    """
    named = Counter((each.kind, each.source_name) for each in manifest.artifacts)
    if not manifest.parts:
        kinds = Counter(each.kind for each in manifest.artifacts)
        return tuple(
            f"the manifest names several {kind.value}s and no parts" for kind in kinds if kinds[kind] > 1
        )
    wanted = {(kind, part.name.get_source(kind)) for part in manifest.parts for kind in part.name.kinds}
    misnamed = [
        each.file_name
        for each in manifest.artifacts
        if (name := ArtifactName.from_file_name(each.file_name)) is None
        or (name.kind, name.source_name) != (each.kind, each.source_name)
    ]
    return (
        *(
            f"the {kind.value} {source} of the manifest belongs to none of its parts"
            for kind, source in named
            if (kind, source) not in wanted
        ),
        *(
            f"the manifest names no file of the {kind.value} {source}"
            for kind, source in sorted(wanted - named.keys())
        ),
        *(
            f"the manifest names several files of the {kind.value} {source}"
            for (kind, source), count in named.items()
            if count > 1
        ),
        *(f"{name} is not named after its database or bucket" for name in misnamed),
    )


def _choose_files(artifacts: Sequence[FoundArtifact], manifest: Manifest | None) -> list[FoundArtifact]:
    """Return the files without those that lie beside another of the same artifact.

    Somebody may have put the whole file beside its recipe: the one that the manifest names counts, or else
    the recipe.
    """
    named = {each.file_name for each in manifest.artifacts} if manifest is not None else set[str]()
    chosen: dict[ArtifactName, FoundArtifact] = {}
    for found in artifacts:
        other = chosen.setdefault(found.name, found)
        is_recipe = is_recipe_name(found.path.name)
        if other is not found and (found.path.name in named or (is_recipe and other.path.name not in named)):
            chosen[found.name] = found
    return list(chosen.values())
