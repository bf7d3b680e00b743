"""Flipped bits and truncation at random places: the stand-alone script always finds them and writes nothing.

Places come from a seed, so that a failure can be repeated. `integration/verify/test_damage` tests the
package's own reader the same way.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.formats.gzip_members import packed_footer_member, read_footer
from schedgen_backups.core.model import Origin, RecoveryPointId
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.core.verify.commit import commit_point
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.support.artifacts import POINT, damage, make_live, publish_archive, publish_dump
from schedgen_backups_tests.support.recover import SCRIPT, Recovery, run_script
from schedgen_backups_tests.support.servers import S3Server, client_of, run

pytestmark = pytest.mark.integration

FEW, MANY = 12, 40
ID = RecoveryPointId(POINT)


@pytest.fixture(scope="module")
def committed(
    postgres_server: EmbeddedPostgres, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """Return the dump and the archive of a committed point."""
    name = f"test_{uuid4().hex}"
    source, source_bucket = postgres_server.create_database(name), s3_server.settings(f"test-{uuid4().hex}")
    seed_application(source, source_bucket, user_count=20, job_count=40)
    catalog = Catalog(tmp_path_factory.mktemp("damage") / "backups")
    catalog.prepare()
    paths = publish_dump(catalog, source), publish_archive(catalog, source_bucket)
    commit_point(catalog, ID, origin=Origin(run_id="run"), live=make_live(source, source_bucket))
    yield paths
    postgres_server.drop_database(name)


def spoil(data: bytes, way: str, random: Random) -> bytes:
    if way == "flipped":
        return damage(data, random.randrange(len(data) * 8))
    return data[: random.randrange(len(data))]


@pytest.mark.parametrize("place_count", [FEW, pytest.param(MANY, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("is_committed", [True, False], ids=["committed", "alone"])
@pytest.mark.parametrize("half", [0, 1], ids=["dump", "archive"])
@pytest.mark.parametrize("way", ["flipped", "cut"])
def test_damage_at_random_places_is_found_and_nothing_is_written(
    committed: tuple[Path, Path],
    database: DatabaseSettings,
    s3_server: S3Server,
    postgres_bin_dir: Path,
    tmp_path: Path,
    half: int,
    place_count: int,
    way: str,
    *,
    is_committed: bool,
) -> None:
    """Without a manifest, the file's own digests must suffice."""
    bucket = s3_server.settings(f"test-{uuid4().hex}")
    recovery = Recovery(committed[half].parent, database, bucket, postgres_bin_dir, tmp_path)
    path = committed[half]
    manifest = path.parent / f"manifest_{POINT}.json"
    whole, commit = path.read_bytes(), manifest.read_bytes()
    if not is_committed:
        manifest.unlink()
    try:
        for seed in range(place_count):
            path.write_bytes(spoil(whole, way, Random(f"{half} {way} {seed}")))  # noqa: S311 - places, not secrets
            done = recovery.run("restore", POINT, *recovery.to_bucket)
            assert done.returncode == 3 or (not is_committed and "no recovery point" in done.stderr), (
                seed,
                done,
            )
            assert len(done.stderr.splitlines()) == 2, (seed, done)
            assert "Traceback" not in done.stderr
    finally:
        path.write_bytes(whole)
        manifest.write_bytes(commit)
    assert run(database, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [
        (0,)
    ]
    assert not client_of(bucket).bucket_exists(bucket.bucket)
    assert recovery.run("verify").returncode == 0


def test_a_footer_of_packs_spares_no_file_the_comparison_with_its_manifest(
    committed: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copy(SCRIPT, tmp_path)
    folder = tmp_path / "exchanged"
    shutil.copytree(committed[1].parent, folder)
    path = folder / committed[1].name
    data = path.read_bytes()
    with path.open("rb") as file:
        footer = read_footer(file)
    index = data[footer.index_offset : footer.footer_offset]
    end = packed_footer_member(footer.index_offset, hashlib.sha256(index).digest())
    path.write_bytes(data[: footer.footer_offset] + end)
    done = run_script(tmp_path, ["verify", str(folder)], {}, sys.executable)
    assert (done.returncode, "does not match the manifest" in done.stdout + done.stderr) == (3, True)
    # On its own, it is a whole archive.
    assert run_script(tmp_path, ["verify", str(path)], {}, sys.executable).returncode == 0
