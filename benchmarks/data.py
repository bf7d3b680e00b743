"""Make the benchmark data: tables of large JSON and of small rows, buckets of PDFs and small objects.

Sizes are arguments; the shapes follow the operators' figures (5,000 jobs with large results, PDFs of some
megabytes).
"""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject

from schedgen_backups.core.settings import BucketSettings, DatabaseSettings

_WORDS = [
    "lecture",
    "test",
    "exam",
    "venue",
    "building",
    "module",
    "semester",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "group",
    "practical",
    "tutorial",
    "lab",
    "engineering",
    "law",
]
_THREADS = 8


def fill_database(settings: DatabaseSettings, *, job_count: int, events_per_job: int, row_count: int) -> int:
    """Add jobs with large JSON results and a table of small rows; return the database's size in bytes.

    The size is that of pg_database_size.
    """
    with _connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE jobs (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), s3_key text, status text, "
            "result jsonb)"
        )
        with cursor.copy("COPY jobs (s3_key, status, result) FROM STDIN") as copy:
            for number in range(job_count):
                copy.write_row((None, "completed", json.dumps(_make_events(number, events_per_job))))
        cursor.execute(
            "CREATE TABLE event AS SELECT i AS id, md5(i::text) AS token, timestamptz '2026-01-01' + i * "
            "interval '7 seconds' AS at, "
            f"(i::bigint * 7919) % 1000 AS amount "
            f"FROM generate_series(1, {row_count}) AS i"
        )
        cursor.execute("ALTER TABLE event ADD PRIMARY KEY (id)")
        cursor.execute("CREATE INDEX ON event (token)")
        cursor.execute("CREATE INDEX ON event (at)")
        cursor.execute("CREATE INDEX ON jobs (status)")
        cursor.execute(
            "CREATE TABLE users AS SELECT i AS id, md5(i::text) AS name FROM generate_series(1, 1000) AS i"
        )
        connection.commit()
        row = cursor.execute("SELECT pg_database_size(current_database())").fetchone()
    return int(row[0]) if row else 0


def add_rows(settings: DatabaseSettings, *, row_count: int) -> None:
    """Add a table with `row_count` small rows."""
    with _connect(settings) as connection:
        connection.execute(
            "CREATE TABLE event AS SELECT i AS id, md5(i::text) AS token, md5((-i)::text) AS other FROM "
            f"generate_series(1, {row_count}) AS i"
        )
        connection.execute("ALTER TABLE event ADD PRIMARY KEY (id)")
        connection.commit()


def make_pdf_like_files(folder: Path, *, count: int, size_bytes: int) -> None:
    """Write files like PDFs of scanned pages into the directory: a little text, then incompressible bytes."""
    folder.mkdir(parents=True)
    generator = random.Random(1)
    for number in range(count):
        head = b"%PDF-1.7\n" + b"<< /Type /Page /Contents 4 0 R >>\n" * 40
        (folder / f"{number:06}.pdf").write_bytes(head + generator.randbytes(size_bytes - len(head)))


def upload_folder(settings: BucketSettings, folder: Path) -> None:
    """Create the bucket again, and upload every file of the directory."""
    with _client(settings) as client:
        client.make_bucket(settings.bucket)
        with ThreadPoolExecutor(_THREADS) as pool:
            list(
                pool.map(
                    lambda path: client.fput_object(settings.bucket, f"uploads/{path.name}", str(path)),
                    folder.iterdir(),
                )
            )


def change_files(folder: Path, settings: BucketSettings, *, share: float, first: int = 0) -> None:
    """Replace the bytes of this share of the files, on the disk and in the bucket; sizes stay the same.

    `first` is the first file that changes; others change with another value.
    """
    step = max(1, int(1 / share))
    replace_files(sorted(folder.iterdir())[first % step :: step], settings)


def replace_files(paths: Iterable[Path], settings: BucketSettings) -> None:
    """Replace the last bytes of these files, on the disk and in the bucket."""
    with _client(settings) as client:
        for path in paths:
            data = path.read_bytes()
            path.write_bytes(data[:-64] + os.urandom(64))
            client.fput_object(settings.bucket, f"uploads/{path.name}", str(path))


def presign(settings: BucketSettings) -> Iterator[str]:
    """Yield a presigned URL for each object, for programs without S3 support."""
    with _client(settings) as client:
        for entry in client.list_objects(settings.bucket, recursive=True):
            yield client.presigned_get_object(settings.bucket, entry.object_name or "")


def renew_bucket(settings: BucketSettings) -> None:
    """Create the bucket, or empty it."""
    with _client(settings) as client:
        if client.bucket_exists(settings.bucket):
            names = [
                DeleteObject(entry.object_name or "")
                for entry in client.list_objects(settings.bucket, recursive=True)
            ]
            assert list(client.remove_objects(settings.bucket, names)) == []
        else:
            client.make_bucket(settings.bucket)


def upload_small_objects(settings: BucketSettings, *, count: int, size_bytes: int) -> None:
    """Create the bucket again, and upload `count` objects of random bytes."""
    with _client(settings) as client:
        client.make_bucket(settings.bucket)
        with ThreadPoolExecutor(_THREADS) as pool:

            def upload(number: int) -> None:
                client.put_object(
                    settings.bucket,
                    f"uploads/{number % 100:02}/{number:08}.pdf",
                    io.BytesIO(os.urandom(size_bytes)),
                    size_bytes,
                )

            for start in range(0, count, 10_000):
                list(pool.map(upload, range(start, min(count, start + 10_000))))


@contextmanager
def _client(settings: BucketSettings) -> Generator[Minio, None, None]:
    pool = urllib3.PoolManager(maxsize=_THREADS, timeout=urllib3.Timeout(connect=10, read=120))
    yield Minio(
        settings.endpoint,
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        secure=False,
        region=settings.region,
        http_client=pool,
    )
    pool.clear()


def _make_events(number: int, count: int) -> dict[str, object]:
    generator = random.Random(number)
    return {"events": list(_iterate_events(generator, count)), "parser": "2.3.1"}


def _iterate_events(generator: random.Random, count: int) -> Iterator[dict[str, object]]:
    for index in range(count):
        yield {
            "id": f"{generator.getrandbits(64):016x}",
            "title": " ".join(generator.choices(_WORDS, k=4)),
            "venue": f"{generator.choice(_WORDS)} {generator.randrange(300)}",
            "start": f"2026-{1 + index % 12:02}-{1 + index % 28:02}T{8 + index % 9:02}:30:00+02:00",
            "minutes": generator.choice((50, 110, 170)),
        }


def _connect(settings: DatabaseSettings) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        password=settings.password,
        dbname=settings.database,
    )
