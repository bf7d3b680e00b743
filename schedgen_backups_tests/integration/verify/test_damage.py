"""Flipped bits and truncation at random places of real artifacts: always found, and never restored.

Places come from a seed, so that a failure can be repeated. Every place of small artifacts is tried in
`unit/core`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus, VerificationLevel
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.model import ArtifactKind, Origin, RecoveryPointId
from schedgen_backups.core.restore.point import RestoreRequest, restore_point
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.core.verify.commit import commit_point, verify_point
from schedgen_backups.core.verify.files import verify_archive, verify_dump
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.support.artifacts import (
    POINT,
    damage,
    make_live,
    make_transfer,
    publish_archive,
    publish_dump,
)
from schedgen_backups_tests.support.servers import S3Server, client_of, run

pytestmark = pytest.mark.integration

ID = RecoveryPointId(POINT)
CASES = [
    (kind, way, seed)
    for kind in ArtifactKind
    for way in ("flipped", "cut", "zeroed", "swapped blocks")
    for seed in range(12)
]


@dataclass(frozen=True)
class CommittedPoint:
    """A complete recovery point, and empty targets."""

    catalog: Catalog
    contents: dict[ArtifactKind, bytes]
    database: DatabaseSettings
    bucket: BucketSettings

    def path(self, kind: ArtifactKind) -> Path:
        return self.catalog.get_point(ID).get_path(kind)


@pytest.fixture(scope="module")
def committed(
    postgres_server: EmbeddedPostgres, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CommittedPoint]:
    names = [f"test_{uuid4().hex}" for _ in range(2)]
    source, target = map(postgres_server.create_database, names)
    source_bucket, target_bucket = (s3_server.settings(f"test-{uuid4().hex}") for _ in range(2))
    client_of(target_bucket).make_bucket(target_bucket.bucket)
    seed_application(source, source_bucket, user_count=20, job_count=40)
    catalog = Catalog(tmp_path_factory.mktemp("damage") / "backups")
    catalog.prepare()
    paths = {
        ArtifactKind.DATABASE: publish_dump(catalog, source),
        ArtifactKind.BUCKET: publish_archive(catalog, source_bucket),
    }
    live = make_live(source, source_bucket)
    commit_point(catalog, ID, origin=Origin(run_id="run"), live=live)
    yield CommittedPoint(
        catalog, {kind: path.read_bytes() for kind, path in paths.items()}, target, target_bucket
    )
    for name in names:
        postgres_server.drop_database(name)


def spoil(data: bytes, way: str, random: Random) -> bytes:
    if way == "flipped":
        return damage(data, random.randrange(len(data) * 8))
    if way == "cut":
        return data[: random.randrange(len(data))]
    start = random.randrange(len(data) - 2048)
    if way == "zeroed":
        return data[:start] + bytes(512) + data[start + 512 :]
    return data[:start] + data[start + 512 : start + 1024] + data[start : start + 512] + data[start + 1024 :]


@pytest.mark.parametrize(
    ("kind", "way", "seed"),
    CASES,
    ids=lambda value: value.value if isinstance(value, ArtifactKind) else str(value),
)
def test_damage_at_a_random_place_is_found_and_never_restored(
    committed: CommittedPoint, kind: ArtifactKind, way: str, seed: int
) -> None:
    path = committed.path(kind)
    whole = committed.contents[kind]
    spoiled = spoil(whole, way, Random(f"{kind.value} {way} {seed}"))  # noqa: S311 - places, not secrets
    assert spoiled != whole
    path.write_bytes(spoiled)
    try:
        verify = verify_dump if kind is ArtifactKind.DATABASE else verify_archive
        stored, _parsed = verify(path)
        assert stored.status is CheckStatus.FAILED
        request = RestoreRequest(committed.catalog.get_point(ID), committed.database, committed.bucket)
        with pytest.raises(VerificationError):
            restore_point(request, make_transfer())
    finally:
        path.write_bytes(whole)
    assert run(
        committed.database, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    ) == [(0,)]
    assert list(client_of(committed.bucket).list_objects(committed.bucket.bucket, recursive=True)) == []


@pytest.mark.parametrize("kind", ArtifactKind)
def test_a_damaged_point_is_listed_as_failed(committed: CommittedPoint, kind: ArtifactKind) -> None:
    path = committed.path(kind)
    path.write_bytes(damage(committed.contents[kind], 8 * 5000))
    try:
        verification, _summary = verify_point(
            committed.catalog, committed.catalog.get_point(ID), checked_by="test"
        )
        assert verification.level(VerificationLevel.STORED).status is CheckStatus.FAILED
        assert not verification.is_verified
    finally:
        path.write_bytes(committed.contents[kind])
    verification, _summary = verify_point(
        committed.catalog, committed.catalog.get_point(ID), checked_by="test"
    )
    assert verification.is_verified


@pytest.mark.parametrize("kind", ArtifactKind)
def test_a_missing_file_fails_the_point(committed: CommittedPoint, kind: ArtifactKind) -> None:
    path = committed.path(kind)
    path.unlink()
    try:
        verification, _summary = verify_point(
            committed.catalog, committed.catalog.get_point(ID), checked_by="test"
        )
        assert verification.level(VerificationLevel.STORED).status is CheckStatus.FAILED
        with pytest.raises(VerificationError):
            restore_point(
                RestoreRequest(committed.catalog.get_point(ID), committed.database, committed.bucket),
                make_transfer(),
            )
    finally:
        path.write_bytes(committed.contents[kind])
