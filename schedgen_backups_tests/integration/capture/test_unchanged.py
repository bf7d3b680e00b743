"""The next capture requests only what changed, and makes the same archive despite damage to the previous one.

A proxy records the requests. Objects are two seconds old before the first capture: younger ones are read
again.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from minio.commonconfig import Tags

from schedgen_backups.core.capture.capture import take_bucket_archive
from schedgen_backups.core.catalog.catalog import STAGING_NAME, Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.records import ArchiveRecord
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.s3.client import IN_MEMORY_BYTES
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.verify.commit import record_read_back
from schedgen_backups.core.verify.files import select_current, verify_archive, verify_every_object
from schedgen_backups_tests.support.artifacts import damage, make_capture, make_noise, publish_archive
from schedgen_backups_tests.support.faulty_s3 import FaultyS3Proxy
from schedgen_backups_tests.support.servers import client_of

pytestmark = pytest.mark.integration

SECOND, THIRD = "20261123_020000", "20261124_020000"
LARGE_BYTES = IN_MEMORY_BYTES + 4_000_001
WAIT_SECONDS = 120

CAPTURE = """
import sys
from pathlib import Path
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups_tests.support.artifacts import publish_archive
directory, endpoint, bucket = sys.argv[1:]
access_key, secret_key = sys.stdin.read().split()
publish_archive(Catalog(Path(directory)), BucketSettings(endpoint, access_key, secret_key, bucket))
"""


HELD = """
import time
from schedgen_backups.core.formats import archive_writer

def hold(*_arguments, **_options):
    print("reads back", flush=True)
    time.sleep(600)

archive_writer.read_back = hold
"""
"""What holds a capture at its last step before the footer."""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


@pytest.fixture
def bodies(bucket: BucketSettings) -> dict[str, bytes]:
    """Fill the bucket with small objects, an odd key and a streamed one; all are settled."""
    bodies = {f"uploads/{number:03}.pdf": make_noise(2000 + number, number) for number in range(60)}
    bodies["text.txt"] = b"a line of text\n" * 9000
    bodies["empty"] = b""
    bodies["e\u0301.pdf"] = make_noise(100, 7)
    bodies["large.bin"] = make_noise(LARGE_BYTES, 8)
    for key, data in bodies.items():
        put(bucket, key, data)
    # Times are whole seconds, and versitygw's Date is up to a second late.
    time.sleep(3.2)
    return bodies


@pytest.fixture
def proxy(bucket: BucketSettings, bodies: dict[str, bytes]) -> Iterator[FaultyS3Proxy]:
    del bodies
    with FaultyS3Proxy(bucket) as proxy:
        yield proxy


def put(bucket: BucketSettings, key: str, data: bytes) -> None:
    client_of(bucket).put_object(
        bucket.bucket, key, io.BytesIO(data), len(data), metadata={"author": "somebody"}
    )


def assert_holds(path: Path, expected: dict[str, bytes]) -> ArchiveRecord:
    assert {result.status for result in (*verify_archive(path), verify_every_object(path))} == {
        CheckStatus.PASSED
    }
    with open_archive(path) as archive:
        entries = list(archive.read_entries())
        assert {entry.key: b"".join(archive.read_object(entry)) for entry in entries} == expected
        assert all(entry.metadata == {"author": "somebody"} for entry in entries)
        return archive.record


def list_asked(proxy: FaultyS3Proxy, bucket: BucketSettings, since: int = 0) -> set[str]:
    """Return the keys requested after the first `since` requests."""
    paths = [urlsplit(request.path).path for request in proxy.requests(method="GET")[since:]]
    prefix = f"/{bucket.bucket}/"
    return {
        unquote(path.removeprefix(prefix)) for path in paths if path.startswith(prefix) and path != prefix
    }


def test_the_next_capture_requests_only_what_changed(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, bodies: dict[str, bytes]
) -> None:
    assert assert_holds(publish_archive(catalog, proxy.settings(bucket)), bodies).reused_count == 0
    assert list_asked(proxy, bucket) == set(bodies)
    put(bucket, "uploads/030.pdf", b"another body")
    put(bucket, "uploads/new.pdf", b"a new one")
    client_of(bucket).remove_object(bucket.bucket, "uploads/010.pdf")
    changed = {**bodies, "uploads/030.pdf": b"another body", "uploads/new.pdf": b"a new one"}
    del changed["uploads/010.pdf"]
    since = len(proxy.requests(method="GET"))
    record = assert_holds(publish_archive(catalog, proxy.settings(bucket), SECOND), changed)
    assert list_asked(proxy, bucket, since) == {"uploads/030.pdf", "uploads/new.pdf"}
    assert record.reused_count == len(changed) - 2


def test_a_damaged_older_archive_costs_only_time(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, bodies: dict[str, bytes]
) -> None:
    """One flipped bit in a small object, one in the large one: only these two are requested again."""
    path = publish_archive(catalog, proxy.settings(bucket))
    with open_archive(path) as archive:
        entries = {entry.key: entry for entry in archive.read_entries()}
    data = path.read_bytes()
    for key in ("uploads/017.pdf", "large.bin"):
        data = damage(data, 8 * (entries[key].offset + entries[key].length // 2))
    path.write_bytes(data)
    since = len(proxy.requests(method="GET"))
    assert_holds(publish_archive(catalog, proxy.settings(bucket), SECOND), bodies)
    assert list_asked(proxy, bucket, since) == {"uploads/017.pdf", "large.bin"}
    # The newest is truncated: the previous one is used.
    newest = next(catalog.directory.glob(f"*{SECOND}*"))
    newest.write_bytes(newest.read_bytes()[:5000])
    since = len(proxy.requests(method="GET"))
    assert_holds(publish_archive(catalog, proxy.settings(bucket), THIRD), bodies)
    assert list_asked(proxy, bucket, since) == {"uploads/017.pdf", "large.bin"}


def test_an_unchanged_object_with_unread_tags_is_asked_for_them_again(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, bodies: dict[str, bytes]
) -> None:
    """Its bytes are read again only if there are tags, which its header holds, too."""
    tags = Tags.new_object_tags()
    tags["owner"] = "me"
    tagged = {"uploads/007.pdf", "large.bin"}
    for key in tagged:
        client_of(bucket).set_object_tags(bucket.bucket, key, tags)
    proxy.fail_next(None, status=403, matching=r"\?tagging")
    assert assert_holds(publish_archive(catalog, proxy.settings(bucket)), bodies).unread_tags_count == 2
    since = len(proxy.requests())
    record = assert_holds(publish_archive(catalog, proxy.settings(bucket), SECOND), bodies)
    assert (record.unread_tags_count, record.reused_count) == (2, len(bodies))
    assert len(proxy.requests(matching=r"\?tagging")) == 4
    assert [
        request.path
        for request in proxy.requests()[since:]
        if "pdf" in request.path and "tagging" not in request.path
    ] == []
    proxy.heal()
    path = publish_archive(catalog, proxy.settings(bucket), THIRD)
    record = assert_holds(path, bodies)
    assert (record.unread_tags_count, record.reused_count) == (0, len(bodies) - 2)
    with open_archive(path) as archive:
        assert {entry.key: entry.tags for entry in archive.read_entries() if entry.tags} == {
            key: {"owner": "me"} for key in tagged
        }


def test_a_killed_capture_is_resumed(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, bodies: dict[str, bytes], tmp_path: Path
) -> None:
    """It is killed while the last object's answer hangs: the next capture requests only that one."""
    last = max(bodies)
    proxy.hang(WAIT_SECONDS, matching=last)
    settings = proxy.settings(bucket)
    words = [sys.executable, "-c", CAPTURE, str(catalog.directory), settings.endpoint, settings.bucket]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log) as process,
    ):
        assert process.stdin is not None
        process.stdin.write(f"{settings.access_key} {settings.secret_key}".encode())
        process.stdin.close()
        try:
            wait_for_lines(catalog.directory / STAGING_NAME, len(bodies) - 1, process)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    proxy.heal()
    assert catalog.sweep_staging() == ()
    since = len(proxy.requests(method="GET"))
    record = assert_holds(publish_archive(catalog, settings, SECOND), bodies)
    assert list_asked(proxy, bucket, since) == {last}
    assert record.reused_count == len(bodies) - 1
    assert list((catalog.directory / STAGING_NAME).iterdir()) == []


@pytest.mark.parametrize("change", ["truncated", "overwritten", "replaced", "removed"])
def test_an_older_archive_that_changes_while_it_is_copied_spoils_nothing(
    catalog: Catalog, bucket: BucketSettings, bodies: dict[str, bytes], change: str
) -> None:
    path = publish_archive(catalog, bucket)
    changes = {
        "truncated": lambda: os.truncate(path, path.stat().st_size // 2),
        "overwritten": lambda: overwrite_middle(path),
        "replaced": lambda: write_again(path, b"another file"),
        "removed": path.unlink,
    }

    def change_once(_key: str) -> bool:
        if changes:
            changes.pop(change)()
            changes.clear()
        return True

    captured = take_bucket_archive(
        catalog, bucket, make_capture(), RecoveryPointId(SECOND), is_wanted=change_once
    )
    assert captured.damaged_sources == ((path,) if change in {"truncated", "overwritten"} else ())
    record = assert_holds(next(catalog.directory.glob(f"*{SECOND}*.tar.gz")), bodies)
    assert (record.reused_count < len(bodies)) is bool(captured.damaged_sources)
    assert list((catalog.directory / STAGING_NAME).iterdir()) == []


def overwrite_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(1000))


def write_again(path: Path, data: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(data)
    other.replace(path)


def test_an_unchanged_byte_is_read_once_by_the_kernel_and_once_by_us(
    catalog: Catalog, bucket: BucketSettings, bodies: dict[str, bytes]
) -> None:
    """Neither for its copy nor for its check does our code read it another time."""
    publish_archive(catalog, bucket)
    before = count_read_bytes()
    captured = take_bucket_archive(catalog, bucket, make_capture(), RecoveryPointId(SECOND))
    path = next(catalog.directory.glob(f"*{SECOND}*.tar.gz"))
    record_read_back(catalog, RecoveryPointId(SECOND), path, captured, checked_by="run")
    results = select_current(catalog.read_verification(RecoveryPointId(SECOND)).results, path)
    read_bytes = count_read_bytes() - before
    assert captured.record.reused_count == len(bodies)
    assert [result.status for result in results] == [CheckStatus.PASSED, CheckStatus.PASSED]
    assert results[0].artifacts == {ArtifactKind.BUCKET: hashlib.sha256(path.read_bytes()).hexdigest()}
    size_bytes = path.stat().st_size
    assert 1.95 * size_bytes < read_bytes < 2.1 * size_bytes


def count_read_bytes() -> int:
    """Return the bytes that this process read or let the kernel copy, from files and sockets (proc(5))."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_a_capture_killed_while_it_reads_back_publishes_nothing_and_is_resumed(
    catalog: Catalog, bucket: BucketSettings, proxy: FaultyS3Proxy, bodies: dict[str, bytes]
) -> None:
    settings = proxy.settings(bucket)
    words = [sys.executable, "-c", HELD + CAPTURE]
    with subprocess.Popen(
        [*words, str(catalog.directory), settings.endpoint, settings.bucket],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{settings.access_key} {settings.secret_key}".encode())
        process.stdin.close()
        try:
            assert process.stdout.readline() == b"reads back\n"
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert catalog.list_points() == ()
    assert list(catalog.directory.glob("*.tar.gz")) == []
    since = len(proxy.requests(method="GET"))
    record = assert_holds(publish_archive(catalog, settings, SECOND), bodies)
    assert list_asked(proxy, bucket, since) == set()
    assert record.reused_count == len(bodies)


def wait_for_lines(staging: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the journal of the running capture names this many objects."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        if sum(path.read_bytes().count(b"\n") for path in staging.glob("*/entries.jsonl")) == count:
            return
        assert process.poll() is None
        time.sleep(0.05)
    pytest.fail("the capture did not come so far")
