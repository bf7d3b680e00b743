"""The fault-injecting proxy and the failing pg_dumps: each fault really happens, and nothing else does."""

from __future__ import annotations

import io
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
import urllib3
from minio import Minio
from minio.error import S3Error, ServerError

from schedgen_backups_tests.support import fake_pg_dump
from schedgen_backups_tests.support.fake_pg_dump import make_pg_bin_dir
from schedgen_backups_tests.support.faulty_s3 import FaultyS3Proxy
from schedgen_backups_tests.support.servers import client_of, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from schedgen_backups.core.settings import BucketSettings, DatabaseSettings

pytestmark = pytest.mark.integration

BODY = bytes(range(256)) * 1200
KEY = "a folder/é 100%.pdf"


@pytest.fixture
def proxy(bucket: BucketSettings) -> Iterator[FaultyS3Proxy]:
    client_of(bucket).put_object(bucket.bucket, KEY, io.BytesIO(BODY), len(BODY))
    with FaultyS3Proxy(bucket) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultyS3Proxy, bucket: BucketSettings) -> Iterator[Minio]:
    """Yield a client of the proxy that tries once and waits two seconds at most, so that faults are seen."""
    settings = proxy.settings(bucket)
    with urllib3.PoolManager(timeout=urllib3.Timeout(connect=2, read=2), retries=False) as pool:
        yield Minio(
            settings.endpoint,
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            secure=False,
            region=settings.region,
            http_client=pool,
        )


def fetch(client: Minio, bucket: BucketSettings, key: str = KEY) -> bytes:
    with client.get_object(bucket.bucket, key) as response:
        return response.read()


def test_without_faults_everything_passes_unchanged(
    client: Minio, proxy: FaultyS3Proxy, bucket: BucketSettings
) -> None:
    assert fetch(client, bucket) == BODY
    client.put_object(bucket.bucket, "x?y&z", io.BytesIO(BODY), len(BODY), metadata={"Owner": "me"})
    metadata = client.stat_object(bucket.bucket, "x?y&z").metadata
    assert metadata is not None
    assert metadata["x-amz-meta-owner"] == "me"
    assert {entry.object_name for entry in client.list_objects(bucket.bucket, recursive=True)} == {
        KEY,
        "x?y&z",
    }
    with client.get_object(bucket.bucket, KEY, offset=10, length=5) as response:
        assert response.read() == BODY[10:15]
    client.remove_object(bucket.bucket, "x?y&z")
    with pytest.raises(S3Error, match="NoSuchKey"):
        fetch(client, bucket, "x?y&z")
    assert proxy.requests(method="DELETE", matching="x%3Fy")[0].path == f"/{bucket.bucket}/x%3Fy%26z"
    assert [entry.range_header for entry in proxy.requests(method="GET", matching="100%25")] == [
        None,
        "bytes=10-14",
    ]


def test_large_objects_stream_both_ways(client: Minio, bucket: BucketSettings) -> None:
    size = 24 * 1024 * 1024
    client.put_object(bucket.bucket, "large", io.BytesIO(bytes(size)), size, part_size=8 * 1024 * 1024)
    assert fetch(client, bucket, "large") == bytes(size)


def test_chunked_uploads_arrive_whole(client: Minio, bucket: BucketSettings) -> None:
    url = client.presigned_put_object(bucket.bucket, "chunked")
    with urllib3.PoolManager() as pool:
        answer = pool.request("PUT", url, body=iter([b"one ", b"two ", b"three"]), chunked=True)
    assert answer.status == 200
    assert fetch(client, bucket, "chunked") == b"one two three"


def test_requests_fail_as_often_as_requested(
    client: Minio, proxy: FaultyS3Proxy, bucket: BucketSettings
) -> None:
    proxy.fail_next(2, matching="100%25", method="GET")
    proxy.fail_next(1, status=500, method="PUT")
    client.stat_object(bucket.bucket, KEY)
    for _ in range(2):
        with pytest.raises(S3Error, match="SlowDown"):
            fetch(client, bucket)
    assert fetch(client, bucket) == BODY
    with pytest.raises(S3Error, match="InternalError"):
        client.put_object(bucket.bucket, "new", io.BytesIO(BODY), len(BODY))
    with pytest.raises(S3Error, match="NoSuchKey"):
        client.stat_object(bucket.bucket, "new")


def test_a_failed_head_has_no_body(client: Minio, proxy: FaultyS3Proxy, bucket: BucketSettings) -> None:
    proxy.fail_next(1, status=503, method="HEAD")
    with pytest.raises((S3Error, ServerError)):
        client.stat_object(bucket.bucket, KEY)
    assert client.stat_object(bucket.bucket, KEY).size == len(BODY)


@pytest.mark.parametrize("after_bytes", [0, 1, 100_000])
def test_a_body_is_cut(client: Minio, proxy: FaultyS3Proxy, bucket: BucketSettings, after_bytes: int) -> None:
    proxy.cut_body(after_bytes, matching="100%25")
    with client.get_object(bucket.bucket, KEY) as response:
        assert response.headers["Content-Length"] == str(len(BODY))
        assert response.read(after_bytes) == BODY[:after_bytes]
        with pytest.raises(urllib3.exceptions.ProtocolError, match="IncompleteRead"):
            response.read(1)
    assert fetch(client, bucket) == BODY


def test_one_byte_of_a_body_is_changed(client: Minio, proxy: FaultyS3Proxy, bucket: BucketSettings) -> None:
    proxy.corrupt_body(matching="100%25")
    received = fetch(client, bucket)
    assert len(received) == len(BODY)
    assert [n for n, (a, b) in enumerate(zip(received, BODY, strict=True)) if a != b] == [len(BODY) // 2]
    assert fetch(client, bucket) == BODY


def test_a_body_falls_silent(client: Minio, proxy: FaultyS3Proxy, bucket: BucketSettings) -> None:
    proxy.hang(60, after_bytes=1000, matching="100%25")
    with client.get_object(bucket.bucket, KEY) as response:
        assert response.read(1000) == BODY[:1000]
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            response.read()
    assert fetch(client, bucket) == BODY


def test_stopping_does_not_wait_for_a_silent_answer(bucket: BucketSettings, proxy: FaultyS3Proxy) -> None:
    with FaultyS3Proxy(bucket) as other, urllib3.PoolManager(timeout=30, retries=False) as pool:
        other.hang(60, matching="/")
        started = time.monotonic()
        threading.Timer(0.3, other._stopping.set).start()
        answer = pool.request("GET", f"http://{other.endpoint}/{bucket.bucket}", preload_content=False)
        with pytest.raises(urllib3.exceptions.HTTPError):
            answer.read()
    assert time.monotonic() - started < 5
    assert proxy.errors == []


def test_a_request_is_delayed(client: Minio, proxy: FaultyS3Proxy, bucket: BucketSettings) -> None:
    proxy.delay(0.5, matching="100%25")
    started = time.monotonic()
    assert fetch(client, bucket) == BODY
    assert time.monotonic() - started >= 0.5


def test_a_callback_runs_before_the_request_is_passed_on(
    client: Minio, proxy: FaultyS3Proxy, bucket: BucketSettings
) -> None:
    direct = client_of(bucket)
    proxy.on_request(
        lambda _: direct.remove_object(bucket.bucket, KEY), matching="100%25", method="GET", count=1
    )
    assert client.stat_object(bucket.bucket, KEY).size == len(BODY)
    with pytest.raises(S3Error, match="NoSuchKey"):
        fetch(client, bucket)


def test_an_error_in_a_callback_is_not_lost(bucket: BucketSettings) -> None:
    def fail(_: object) -> None:
        raise AssertionError("from the callback")

    proxy = FaultyS3Proxy(bucket).start()
    proxy.on_request(fail)
    with urllib3.PoolManager(retries=False) as pool, pytest.raises(urllib3.exceptions.ProtocolError):
        pool.request("GET", f"http://{proxy.endpoint}/")
    with pytest.raises(AssertionError, match="from the callback"):
        proxy.stop()


def test_healing_removes_all_faults(client: Minio, proxy: FaultyS3Proxy, bucket: BucketSettings) -> None:
    proxy.fail_next(None)
    with pytest.raises(S3Error, match="SlowDown"):
        fetch(client, bucket)
    proxy.heal()
    assert fetch(client, bucket) == BODY


def dump(
    bin_dir: Path, database: DatabaseSettings, timeout_seconds: float = 30
) -> subprocess.CompletedProcess[bytes]:
    url = f"postgresql://{database.user}@{database.host}:{database.port}/{database.database}"
    return subprocess.run(
        [str(bin_dir / "pg_dump"), "--restrict-key=test", url],
        env={"PGPASSWORD": database.password, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
        timeout=timeout_seconds,
    )


@pytest.fixture
def whole_dump(database: DatabaseSettings, postgres_bin_dir: Path) -> bytes:
    run(
        database,
        "CREATE TABLE numbers AS SELECT n, repeat('x', 100) AS filler FROM generate_series(1, 5000) AS n",
    )
    return dump(postgres_bin_dir, database).stdout


@pytest.mark.parametrize(
    ("script", "share", "code", "word"),
    [
        (fake_pg_dump.WRITES_NOTHING, 0, 0, b""),
        (fake_pg_dump.WRITES_HALF, 0.5, 0, b""),
        (fake_pg_dump.FAILS_AFTER_EVERYTHING, 1, 1, b"pg_dump: error"),
        (fake_pg_dump.IS_KILLED_HALFWAY, 0.5, -9, b""),
        (fake_pg_dump.FLOODS_STANDARD_ERROR, 1, 0, b"circular"),
    ],
    ids=["nothing", "half", "fails", "killed", "floods"],
)
def test_a_fake_pg_dump_fails_as_chosen(
    tmp_path: Path,
    database: DatabaseSettings,
    postgres_bin_dir: Path,
    whole_dump: bytes,
    script: str,
    share: float,
    code: int,
    word: bytes,
) -> None:
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=script)
    result = dump(bin_dir, database)
    assert result.returncode == code
    assert result.stdout == whole_dump[: int(len(whole_dump) * share)]
    assert word in result.stderr
    version = subprocess.run(
        [str(bin_dir / "pg_dump"), "--version"], capture_output=True, text=True, check=True
    )
    assert version.stdout.startswith("pg_dump (PostgreSQL) 18.")
    psql = subprocess.run([str(bin_dir / "psql"), "--version"], capture_output=True, text=True, check=True)
    assert psql.stdout.startswith("psql (PostgreSQL) 18.")


def test_a_hanging_pg_dump_hangs(tmp_path: Path, database: DatabaseSettings, postgres_bin_dir: Path) -> None:
    script = fake_pg_dump.HANGS_AFTER_THE_FIRST_BYTES
    bin_dir = make_pg_bin_dir(tmp_path, postgres_bin_dir, pg_dump_script=script)
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        dump(bin_dir, database, timeout_seconds=1)
    assert (caught.value.stdout or b"").startswith(b"--\n")


def test_a_database_is_fresh_and_empty(database: DatabaseSettings, database_17: DatabaseSettings) -> None:
    for each in (database, database_17):
        assert run(each, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    with pytest.raises(psycopg.OperationalError):
        run(database.with_database("missing"), "SELECT 1")
