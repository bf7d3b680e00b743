"""A capture into packs that was killed: the next one goes on with the packs that were complete."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.capture.capture import take_bucket_archive
from schedgen_backups.core.catalog.catalog import STAGING_NAME, Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.packed_file import open_packed_file
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.encryption import KeyPair, make_key_pair
from schedgen_backups.core.packs.identity_file import IdentityFile
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.retention.prune import remove_unused_packs
from schedgen_backups.core.settings import BucketSettings, Layout
from schedgen_backups.core.verify.files import verify_archive
from schedgen_backups_tests.support.artifacts import damage, make_capture, make_noise
from schedgen_backups_tests.support.faulty_s3 import FaultyS3Proxy
from schedgen_backups_tests.support.servers import client_of

pytestmark = pytest.mark.integration

SECOND = RecoveryPointId("20261123_020000")
OBJECT_COUNT, OBJECT_BYTES = 90, 1_000_000
WAIT_SECONDS = 120
CAPTURE = """
import sys
from pathlib import Path
from schedgen_backups.core.settings import BucketSettings, Layout
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups_tests.support.artifacts import publish_archive
from schedgen_backups.core.packs.identity_file import IdentityFile
directory, endpoint, bucket, identity, *recipients = sys.argv[1:]
access_key, secret_key = sys.stdin.read().split()
settings = BucketSettings(endpoint, access_key, secret_key, bucket)
catalog = Catalog(Path(directory), IdentityFile(Path(identity)))
publish_archive(catalog, settings, layout=Layout.PACKS, pack_recipients=tuple(recipients))
"""
HOST = make_key_pair()


@pytest.fixture
def recipients() -> tuple[str, ...]:
    """Return for whom packs are encrypted; overridden by a test that encrypts."""
    return ()


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    identity = tmp_path / "packs.key"
    identity.touch(mode=0o600)
    identity.write_text(HOST.private)
    catalog = Catalog(tmp_path / "backups", IdentityFile(identity))
    catalog.prepare()
    return catalog


@pytest.fixture
def bodies(bucket: BucketSettings) -> dict[str, bytes]:
    bodies = {f"uploads/{number:03}.pdf": make_noise(OBJECT_BYTES, number) for number in range(OBJECT_COUNT)}
    for key, data in bodies.items():
        client_of(bucket).put_object(bucket.bucket, key, io.BytesIO(data), len(data))
    time.sleep(3.2)
    return bodies


@pytest.fixture
def proxy(bucket: BucketSettings, bodies: dict[str, bytes]) -> Iterator[FaultyS3Proxy]:
    """Return a server whose answer with the last object hangs, and a capture that was killed then."""
    with FaultyS3Proxy(bucket) as proxy:
        proxy.hang(WAIT_SECONDS, matching=max(bodies))
        yield proxy


@pytest.fixture
def settings(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, recipients: tuple[str, ...]
) -> BucketSettings:
    """Return the bucket behind the proxy, after a capture of it was killed."""
    settings = proxy.settings(bucket)
    assert isinstance(catalog.keys, IdentityFile)
    arguments = (str(catalog.directory), settings.endpoint, settings.bucket, str(catalog.keys.path))
    words = [sys.executable, "-c", CAPTURE, *arguments, *recipients]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(f"{settings.access_key} {settings.secret_key}".encode())
        process.stdin.close()
        end = time.monotonic() + WAIT_SECONDS
        while count_lines(catalog) < OBJECT_COUNT - 1:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    proxy.heal()
    assert len(LocalPacks(catalog.directory).find_sizes()) >= 2
    return settings


def count_lines(catalog: Catalog) -> int:
    staging = catalog.directory / STAGING_NAME
    return sum(path.read_bytes().count(b"\n") for path in staging.glob("*/entries.jsonl"))


def take(
    catalog: Catalog,
    settings: BucketSettings,
    bodies: dict[str, bytes],
    recipients: tuple[str, ...] = (),
) -> tuple[int, set[str]]:
    """Take the next archive; return how many objects it reused, and its packs."""
    capture = make_capture(layout=Layout.PACKS, pack_recipients=recipients)
    captured = take_bucket_archive(catalog, settings, capture, SECOND)
    [path] = catalog.find_recipes()
    assert {result.status for result in verify_archive(path, catalog.keys)} == {CheckStatus.PASSED}
    with open_archive(path, catalog.keys) as archive:
        found = {entry.key: b"".join(archive.read_object(entry)) for entry in archive.read_entries()}
    assert found == bodies
    assert list((catalog.directory / STAGING_NAME).iterdir()) == []
    return captured.record.reused_count, {*open_packed_file(path).recipe.packs}


def test_a_killed_capture_is_resumed(
    catalog: Catalog, settings: BucketSettings, bodies: dict[str, bytes]
) -> None:
    before = {*LocalPacks(catalog.directory).find_sizes()}
    reused_count, packs = take(catalog, settings, bodies)
    assert reused_count >= OBJECT_COUNT // 6
    assert packs & before


@pytest.mark.parametrize("recipients", [(HOST.public,)], ids=["encrypted"])
@pytest.mark.parametrize("after", [HOST, make_key_pair()], ids=["the same key", "another key"])
def test_a_killed_capture_into_encrypted_packs_is_resumed(
    catalog: Catalog,
    settings: BucketSettings,
    bodies: dict[str, bytes],
    recipients: tuple[str, ...],
    after: KeyPair,
) -> None:
    packs = LocalPacks(catalog.directory)
    before = {*packs.find_sizes()}
    assert {name.endswith(".age") for name in before} == {True}
    assert remove_unused_packs(catalog).names == ()
    if after is HOST:
        reused_count, used = take(catalog, settings, bodies, recipients)
        assert used & before
    else:
        reused_count, used = take(catalog, settings, bodies, (*recipients, after.public))
        assert not used & before, "what the other key cannot open is written again"
    assert reused_count >= OBJECT_COUNT // 6


def test_pruning_keeps_the_packs_of_a_killed_capture(
    catalog: Catalog, settings: BucketSettings, bodies: dict[str, bytes]
) -> None:
    assert remove_unused_packs(catalog).names == ()
    assert take(catalog, settings, bodies)[0] >= OBJECT_COUNT // 6
    remove_unused_packs(catalog)
    [path] = catalog.find_recipes()
    assert {*LocalPacks(catalog.directory).find_sizes()} == {*open_packed_file(path).recipe.packs}


@pytest.mark.parametrize("how", ["altered", "shortened", "removed", "no index", "cut journal"])
def test_what_is_damaged_of_a_killed_capture_is_read_from_the_bucket(
    catalog: Catalog, settings: BucketSettings, bodies: dict[str, bytes], how: str
) -> None:
    packs = LocalPacks(catalog.directory)
    pack = packs.folder / min(packs.find_sizes())
    data = pack.read_bytes()
    if how == "altered":
        pack.write_bytes(damage(data, 8 * (len(data) // 2)))
    elif how == "shortened":
        pack.write_bytes(data[:-1])
    elif how == "removed":
        pack.unlink()
    elif how == "no index":
        (packs.folder / ".pieces.sqlite").unlink()
    else:
        [journal] = catalog.directory.glob(f"{STAGING_NAME}/*/places.txt")
        journal.write_bytes(journal.read_bytes()[:50])
    reused_count, used = take(catalog, settings, bodies)
    assert reused_count < OBJECT_COUNT
    # Of a cut journal, so little is used of the pack that it goes into a new one.
    assert pack.name not in used


def test_places_that_changed_in_the_journal_spoil_nothing_even_in_packs_that_were_read_again(
    catalog: Catalog, settings: BucketSettings, bodies: dict[str, bytes]
) -> None:
    packs = LocalPacks(catalog.directory)
    with packs.open_index() as index:
        for name in packs.find_sizes():
            index.record_reread(name, datetime.now(timezone.utc))
    [journal] = catalog.directory.glob(f"{STAGING_NAME}/*/places.txt")
    pack, offset, length = journal.read_text().splitlines()[0].split()
    _first, _end, rest = journal.read_text().partition("\n")
    # As long as before, and in another order.
    journal.write_text(f"{pack} {int(offset) + 1} {int(length) - 1}\n{pack} {offset} 1\n{rest}")
    take(catalog, settings, bodies)
