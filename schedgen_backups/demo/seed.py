"""Fill an empty database and an empty bucket with application data, and destroy both again.

Add here what the demo data should contain: odd keys, tags, states of jobs. `timetable` makes the PDFs.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.resources import files
from io import BytesIO
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import quote
from uuid import UUID

import urllib3
from minio import Minio
from minio.commonconfig import Tags
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from psycopg import sql

from schedgen_backups.core.errors import BucketError, ConfigurationError
from schedgen_backups.core.postgres.connection import connect_database
from schedgen_backups.core.settings import LOOPBACK_HOSTS
from schedgen_backups.demo.timetable import make_events, make_picture, make_timetable, with_title

if TYPE_CHECKING:
    from collections.abc import Iterable

    from schedgen_backups.core.settings import BucketSettings, DatabaseSettings

UPLOAD_THREADS = 8
DEFAULT_SEED = 20_260_202
DISTINCT_TIMETABLES = 240
PICTURES = 24
SHARE_WITH_A_FILE = 0.95
SHARE_WITH_TAGS = 0.1
PDF_TYPES = ("lecture", "test", "exam")
# File names as users choose them; most keys use the plain first one.
FILE_NAMES = (
    *("timetable.pdf",) * 12,
    *("My timetable (final).pdf", "Stundenplan Übersicht.pdf", "100% sure.pdf", "a%20b+c.pdf"),
    *("課程表 2026.pdf", "rooster & toetse.pdf", "week#3?.pdf", "Zoë's exams.pdf"),
)


@dataclass(frozen=True)
class SeedSummary:
    """Numbers of rows and objects, and the objects' size."""

    users: int
    jobs: int
    objects: int
    object_bytes: int


@dataclass(frozen=True)
class _Job:
    id: UUID
    user_id: UUID
    status: str
    pdf_type: str
    file_name: str
    has_file: bool
    has_tags: bool
    event_count: int
    created_at: datetime

    @property
    def s3_key(self) -> str | None:
        return f"uploads/{self.user_id}/{self.id}/{self.file_name}" if self.has_file else None


def seed_application(
    database: DatabaseSettings,
    bucket: BucketSettings,
    *,
    user_count: int = 1000,
    job_count: int = 2000,
    seed: int = DEFAULT_SEED,
) -> SeedSummary:
    """Fill the database with the application's tables, and the bucket with a PDF for every job with a key.

    The database must be empty; a missing bucket is created. The same `seed` gives the same rows and bytes.
    Errors of psycopg and of the minio SDK are raised unchanged.
    """
    random = Random(seed)
    users = [UUID(int=random.getrandbits(128), version=4) for _ in range(user_count)]
    jobs = [_make_job(random, random.choice(users)) for _ in range(job_count)]
    with_files = [job for job in jobs if job.has_file]
    pictures = [make_picture(random) for _ in range(min(PICTURES, job_count))]
    timetables = [make_timetable(random, pictures) for _ in range(min(DISTINCT_TIMETABLES, job_count))]

    with _pool() as pool:
        client = _client(bucket, pool)
        if not client.bucket_exists(bucket.bucket):
            client.make_bucket(bucket.bucket)

        # The application uploads first and inserts the row afterwards.
        def upload(index: int) -> int:
            job = with_files[index]
            return _upload(
                client, bucket.bucket, job, with_title(timetables[index % len(timetables)], job.id)
            )

        with ThreadPoolExecutor(UPLOAD_THREADS) as executor:
            object_bytes = sum(executor.map(upload, range(len(with_files))))
    _fill_database(database, random, users, jobs)
    return SeedSummary(len(users), len(jobs), len(with_files), object_bytes)


def destroy_application(database: DatabaseSettings, bucket: BucketSettings) -> None:
    """Replace the database and the bucket by empty ones; terminate sessions on the database.

    Raise ConfigurationError if either is not on the loopback address, so that a demo cannot destroy
    production data.
    """
    host = bucket.endpoint.rpartition(":")[0]
    if not database.is_local or host not in LOOPBACK_HOSTS:
        raise ConfigurationError(
            f"refused to destroy {database.label} and {bucket.label}: not on this machine's loopback address",
            hint="This works only with the demo's own servers.",
        )
    name = sql.Identifier(database.database)
    with connect_database(database.with_database("postgres")) as connection:
        connection.autocommit = True
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
    with _pool() as pool:
        client = _client(bucket, pool)
        if not client.bucket_exists(bucket.bucket):
            client.make_bucket(bucket.bucket)
        found = [entry.object_name for entry in client.list_objects(bucket.bucket, recursive=True)]
        doomed = [DeleteObject(key) for key in found if key is not None]
        for error in client.remove_objects(bucket.bucket, doomed):
            raise BucketError(
                f"{bucket.label}: {error.name} was not removed: {error.message}", hint="Run it again."
            )


def _pool() -> urllib3.PoolManager:
    return urllib3.PoolManager(
        maxsize=UPLOAD_THREADS,
        timeout=urllib3.Timeout(connect=10, read=60),
        retries=urllib3.Retry(total=5, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
    )


def _client(bucket: BucketSettings, pool: urllib3.PoolManager) -> Minio:
    return Minio(
        bucket.endpoint,
        access_key=bucket.access_key,
        secret_key=bucket.secret_key,
        secure=bucket.is_secure,
        region=bucket.region,
        http_client=pool,
    )


def _make_job(random: Random, user_id: UUID) -> _Job:
    return _Job(
        id=UUID(int=random.getrandbits(128), version=4),
        user_id=user_id,
        status=random.choices(("completed", "failed", "processing", "pending"), (90, 6, 2, 2))[0],
        pdf_type=random.choice(PDF_TYPES),
        file_name=random.choice(FILE_NAMES),
        has_file=random.random() < SHARE_WITH_A_FILE,
        has_tags=random.random() < SHARE_WITH_TAGS,
        event_count=random.randint(4, 30),
        created_at=datetime(2026, 2, 2, tzinfo=timezone.utc)
        + timedelta(seconds=random.randrange(20_000_000)),
    )


def _upload(client: Minio, bucket: str, job: _Job, content: bytes) -> int:
    tags = None
    if job.has_tags:
        tags = Tags.new_object_tags()
        tags["pdf-type"] = job.pdf_type
        tags["term"] = "2026/1"

    def put(tags: Tags | None) -> None:
        client.put_object(
            bucket,
            str(job.s3_key),
            BytesIO(content),
            len(content),
            content_type="application/pdf",
            # The SDK accepts only ASCII.
            metadata={"original-filename": quote(job.file_name), "uploaded-by": str(job.user_id)},
            tags=tags,
        )

    try:
        put(tags)
    except S3Error as error:
        # Some servers do not support tags.
        if tags is None or error.code != "NotImplemented":
            raise
        put(None)
    return len(content)


def _fill_database(
    database: DatabaseSettings, random: Random, users: list[UUID], jobs: Iterable[_Job]
) -> None:
    schema = (files("schedgen_backups.demo") / "schema.sql").read_text(encoding="utf-8")
    with connect_database(database) as connection, connection.cursor() as cursor:
        cursor.execute(schema.encode())
        with cursor.copy(
            "COPY users (id, email, name, password_hash, created_at, updated_at) FROM STDIN"
        ) as copy:
            for number, user_id in enumerate(users):
                registered = datetime(2026, 1, 5, tzinfo=timezone.utc) + timedelta(minutes=number)
                email, name = (
                    f"u{number:08}@tuks.example",
                    f"Student {number} Müller\t({random.randrange(9)})",
                )
                digest = f"$2b$12${random.getrandbits(256):064x}"[:60]
                copy.write_row((user_id, email, name, digest, registered, registered))
        columns = "id, user_id, status, pdf_type, s3_key, result, error, created_at, updated_at"
        with cursor.copy(f"COPY jobs ({columns}) FROM STDIN") as copy:
            for job in jobs:
                events = make_events(random, job.event_count) if job.status == "completed" else None
                result = json.dumps({"events": events, "parser": "2.3.1"}) if events else None
                error = (
                    "No timetable found in the PDF:\n\tpage 1 has no table"
                    if job.status == "failed"
                    else None
                )
                done = job.created_at + timedelta(seconds=job.event_count)
                row = (
                    job.id,
                    job.user_id,
                    job.status,
                    job.pdf_type,
                    job.s3_key,
                    result,
                    error,
                    job.created_at,
                    done,
                )
                copy.write_row(row)
        connection.commit()
