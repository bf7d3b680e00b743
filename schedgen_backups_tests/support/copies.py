"""Verified points made without a server, and their copies in a store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timedelta, timezone
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import COMMIT_CHECKS, STORED_CHECKS, Verification
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.copies.copier import Copier, CopyReport
from schedgen_backups.core.copies.layout import SiteKeys
from schedgen_backups.core.copies.local_folder import LocalFolder
from schedgen_backups.core.copies.reader import CopyReader
from schedgen_backups.core.formats.packed_file import RECIPE_SUFFIX, read_local_recipe
from schedgen_backups.core.formats.recipe import Segments, write_recipe
from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.model import (
    Artifact,
    ArtifactKind,
    ArtifactName,
    Manifest,
    RecoveryPointId,
    ReferenceState,
    ReferenceSummary,
    ReferenceVerdict,
)
from schedgen_backups.core.packs.encryption import AgeEncryptor, Decryptor, Encryptor, KeyPair, make_key_pair
from schedgen_backups.core.packs.local_encryption import LocalEncryption, make_local_encryption
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.pack_shelf import PackShelf
from schedgen_backups.core.packs.pieces import cut_artifact
from schedgen_backups.core.settings import Layout
from schedgen_backups.core.store.protocol import Store
from schedgen_backups_tests.support.artifacts import (
    TableText,
    make_entry,
    make_noise,
    make_result,
    write_archive,
    write_dump,
)

SITE_ID = "5" * 32
KEYS = SiteKeys(SITE_ID)
KEY_PAIR: KeyPair = make_key_pair()
LAYOUT = ContextVar("layout", default=Layout.FILES)
"""How points are written by tests that say nothing about it."""
HOST_KEY_PAIR: KeyPair = make_key_pair()
HOST_KEYS = Decryptor([HOST_KEY_PAIR.private])
"""With which the host reads its own packs; the stores have other recipients."""
ENCRYPTION: ContextVar[LocalEncryption | None] = ContextVar("encryption", default=None)
"""How packs in the backup directory are encrypted by tests that say nothing about it."""
LOCAL_PACK_BYTES = 5_000
FIRST_NIGHT = datetime(2026, 10, 1, 2, 0, tzinfo=timezone.utc)


def make_point_id(night: float) -> RecoveryPointId:
    return RecoveryPointId.from_time(FIRST_NIGHT + timedelta(days=night))


def make_point(
    catalog: Catalog,
    night: float,
    objects: Mapping[str, bytes],
    tables: tuple[TableText, ...] = (),
    *,
    duration: timedelta = timedelta(0),
    reused_count: int = 0,
    missing_counts: Mapping[ReferenceVerdict, int] | None = None,
    layout: Layout | None = None,
) -> PointListing:
    """Write a verified point of these objects and tables into the directory."""
    layout = layout or LAYOUT.get()
    point_id = make_point_id(night)
    committed_at = point_id.taken_at + duration
    catalog.prepare()
    dump = catalog.directory / ArtifactName(ArtifactKind.DATABASE, "schedgen", point_id).to_file_name()
    archive = catalog.directory / ArtifactName(ArtifactKind.BUCKET, "schedgen-pdfs", point_id).to_file_name()
    captured_dump = write_dump(dump, tables, point_id=point_id.text)
    captured_archive = write_archive(
        archive,
        [(make_entry(key, data), data) for key, data in sorted(objects.items())],
        point_id=point_id.text,
        reused_count=reused_count,
    )
    assert (captured_dump.size_bytes, captured_archive.size_bytes) == (
        dump.stat().st_size,
        archive.stat().st_size,
    )
    paths = {ArtifactKind.DATABASE: dump, ArtifactKind.BUCKET: archive}
    contents: dict[ArtifactKind, int | None] = dict.fromkeys(paths)
    if layout is Layout.PACKS:
        contents = {kind: path.stat().st_size for kind, path in paths.items()}
        paths = {kind: put_in_packs(catalog, kind, path, point_id) for kind, path in paths.items()}
    artifacts = tuple(
        Artifact(
            kind=kind,
            file_name=path.name,
            source_name="source",
            size_bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            content_bytes=contents[kind],
        )
        for kind, path in paths.items()
    )
    catalog.write_manifest(
        Manifest(
            tool_version="test",
            point_id=point_id.text,
            site_id=SITE_ID,
            snapshot_at=point_id.taken_at,
            committed_at=committed_at,
            artifacts=artifacts,
            references=ReferenceSummary(state=ReferenceState.READ, verdict_counts=dict(missing_counts or {})),
        )
    )
    catalog.settle_site()
    modified = {STORED_CHECKS[kind]: path.stat().st_mtime_ns for kind, path in paths.items()}
    digests = {artifact.kind: artifact.sha256 for artifact in artifacts}
    catalog.write_verification(
        Verification(
            point_id=point_id.text,
            results=tuple(
                make_result(
                    check,
                    artifacts=digests,
                    file_modified_ns=modified.get(check),
                    checked_at=committed_at,
                )
                for check in COMMIT_CHECKS
            ),
        )
    )
    return catalog.get_point(point_id)


def put_in_packs(catalog: Catalog, kind: ArtifactKind, path: Path, point_id: RecoveryPointId) -> Path:
    """Write the packs and the recipe of an artifact in place of its file; return the recipe's path."""
    packs = LocalPacks(catalog.directory, HOST_KEYS)
    packs.prepare()
    recipes = [read_local_recipe(recipe) for recipe in catalog.find_recipes()]
    with ArtifactFile(path) as artifact, packs.open_index() as index:
        shelf = PackShelf(
            packs, index, recipes, others=(), suspects=(), reread_days=30, encryption=ENCRYPTION.get()
        )
        with shelf.open_writer(point_id, pack_bytes=LOCAL_PACK_BYTES) as writer:
            segments = Segments()
            for piece in cut_artifact(kind, artifact):
                segments.join(writer.place(piece))
            writer.finish_artifact()
            recipe = shelf.make_recipe(segments, writer.new_packs)
    path.unlink()
    target = path.with_name(f"{path.name}{RECIPE_SUFFIX}")
    target.write_bytes(write_recipe(recipe))
    return target


def list_objects(
    number: int, *, size_bytes: int = 300, changed: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """Return objects that do not compress, the same each time but for the changed ones."""
    objects = {f"pdf/{index:04d}.pdf": make_noise(size_bytes, seed=index) for index in range(number)}
    return {**objects, **(changed or {})}


class CopiedSite:
    """A backup directory, and one store of its copies."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        *,
        encryptor: Encryptor | None = None,
        pack_bytes: int = 4000,
        points: Path | None = None,
    ) -> None:
        self.catalog = Catalog(points or folder, HOST_KEYS)
        self.catalog.prepare()
        self.store = store
        self.encryptor = encryptor or AgeEncryptor([KEY_PAIR.public])
        folder.mkdir(exist_ok=True)
        self.folder = LocalFolder(folder, "nas")
        self.pack_bytes = pack_bytes
        self.decryptor = Decryptor([KEY_PAIR.private])

    def make_copier(self, **fields: object) -> Copier:
        values: dict[str, object] = {"pack_bytes": self.pack_bytes, **fields}
        return Copier(self.catalog, self.store, KEYS, self.encryptor, self.folder, **values)  # type: ignore[arg-type]

    def copy(self, night: float, **fields: object) -> CopyReport:
        with self.folder.held():
            return self.make_copier(**fields).copy(self.catalog.get_point(make_point_id(night)))

    def open_reader(self, night: float) -> CopyReader:
        return CopyReader(self.store, KEYS, make_point_id(night), self.decryptor)

    def assert_equal(self, night: float, directory: Path) -> None:
        """Read the copy back whole, and compare each artifact with the local one."""
        directory.mkdir()
        fetched = self.open_reader(night).fetch(directory)
        local = self.catalog.get_point(make_point_id(night))
        copied = fetched.get_point(make_point_id(night))
        for artifact in local.artifacts:
            path = copied.get_path(artifact.name.kind)
            assert path.read_bytes() == artifact.path.read_bytes()
            kind = artifact.name.kind
            with copied.open_file(kind) as ours, local.open_file(kind) as theirs:
                assert ours.open_reader().read() == theirs.open_reader().read()
        assert copied.manifest == local.manifest


def encrypt_for_host(*others: KeyPair) -> LocalEncryption:
    """Return how packs are encrypted for the host and the owners of these keys."""
    recipients = [HOST_KEY_PAIR.public, *(pair.public for pair in others)]
    encryption = make_local_encryption(recipients, HOST_KEYS)
    assert encryption is not None
    return encryption
