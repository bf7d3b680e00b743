"""The commands of docs/restore.md, run verbatim and in order, restore both halves equal.

Blocks marked `console` cannot run here; each is listed with the reason. Other tests cover what the commands
do in other cases.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.model import Origin, RecoveryPointId
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.core.verify.commit import commit_point
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.support.artifacts import (
    POINT,
    make_live,
    make_transfer,
    publish_archive,
    publish_dump,
)
from schedgen_backups_tests.support.recover import SCRIPT
from schedgen_backups_tests.support.restores import compare_bucket, compare_database
from schedgen_backups_tests.support.servers import S3Server, client_of, run

pytestmark = pytest.mark.integration

DOCUMENT = SCRIPT.parents[1] / "docs" / "restore.md"
SECTION = "The whole system on a new host"
PARTS = "Parts of a recovery point"
NOT_RUN = {
    "docker compose stop": "Docker is not installed here",
    "docker compose up -d postgres minio": "Docker is not installed here; fixtures' servers take its place",
    "git clone": "the project is installed already; edge/packaging/test_wheel.py runs these lines",
    "python3 recover.py list SITE": "needs a downloaded store: integration/recover/test_downloaded_store.py",
    "mc mirror": "mc is in no package that the tests install",
    "docker compose up -d &&": "Docker is not installed here",
}


def read_blocks(language: str, *headings: str, section: str = SECTION) -> list[str]:
    """Return the blocks of this language below these headings of the section, in order."""
    sections = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = next(part for part in sections if part.startswith(section))
    parts = [
        part
        for part in re.split(r"^### ", text, flags=re.MULTILINE)
        if not headings or part.startswith(headings)
    ]
    return [
        block
        for part in parts
        for block in re.findall(rf"^```{language}\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)
    ]


class NewHost:
    """A folder as the text requires it, and empty servers."""

    def __init__(
        self, folder: Path, database: DatabaseSettings, bucket: BucketSettings, bin_dir: Path
    ) -> None:
        self.folder, self.database, self.bucket = folder, database, bucket
        self._path = f"{Path(sys.executable).parent}:{bin_dir}:/usr/local/bin:/usr/bin:/bin"
        shutil.copy(SCRIPT, folder)
        self.values = {
            "BACKUP_DIR": "backups",
            "ID": POINT,
            "PGHOST": database.host,
            "PGPORT": str(database.port),
            "PGUSER": database.user,
            "PGPASSWORD": database.password,
            "PGDATABASE": database.database,
            "MINIO_ENDPOINT": bucket.endpoint,
            "MINIO_ACCESS_KEY": bucket.access_key,
            "MINIO_SECRET_KEY": bucket.secret_key,
            "MINIO_BUCKET": bucket.bucket,
        }
        (folder / "restore.env").write_text(
            "".join(f"{name}='{value}'\n" for name, value in self.values.items()), encoding="utf-8"
        )

    def follow(self, *headings: str) -> str:
        """Run every command below these headings in one shell, each successfully; return the output."""
        return self.run("".join(read_blocks("bash", *headings)))

    def run(self, commands: str, **variables: str) -> str:
        """Run the commands in one shell, each successfully; return the output."""
        script = f"set -eo pipefail\n{commands}"
        environment = {"PATH": self._path, "LC_ALL": "C.UTF-8", "HOME": str(self.folder), **variables}
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def host(
    database: DatabaseSettings,
    bucket: BucketSettings,
    postgres_server: EmbeddedPostgres,
    s3_server: S3Server,
    postgres_bin_dir: Path,
    tmp_path: Path,
) -> Iterator[NewHost]:
    """Return a host with a committed point of a small application in its `backups/`."""
    seed_application(database, bucket, user_count=20, job_count=40)
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    (publish_dump(catalog, database), publish_archive(catalog, bucket))
    commit_point(
        catalog, RecoveryPointId(POINT), origin=Origin(run_id="run"), live=make_live(database, bucket)
    )
    name = f"test_{uuid4().hex}"
    yield NewHost(
        tmp_path, database.with_database(name), s3_server.settings(f"test-{uuid4().hex}"), postgres_bin_dir
    )
    postgres_server.drop_database(name)


def find_file(host: NewHost, pattern: str) -> Path:
    return next((host.folder / "backups").glob(pattern))


def assert_database_is_equal(host: NewHost) -> None:
    results = compare_database(find_file(host, "db_*"), host.database, make_transfer())
    assert [result.summary for result in results if not result.is_passed] == []


@pytest.mark.parametrize(("way", "last"), [("Way 1", "bucket_is_equal"), ("Way 2", "restored")])
def test_following_the_text_restores_both_halves_equal(host: NewHost, way: str, last: str) -> None:
    assert last in host.follow("Before you begin", way, "Afterwards")
    assert_database_is_equal(host)
    results = compare_bucket(find_file(host, "minio_*"), host.bucket, make_transfer())
    assert [result.summary for result in results if not result.is_passed] == []
    client = client_of(host.bucket)
    for listed in client.list_objects(host.bucket.bucket, recursive=True):
        client.remove_object(host.bucket.bucket, listed.object_name or "")
    client.remove_bucket(host.bucket.bucket)


def test_the_stock_tools_of_the_text_restore_rows_and_bytes(host: NewHost) -> None:
    assert host.follow("Before you begin", "Way 3", "Afterwards").count("is whole") == 2
    assert_database_is_equal(host)
    with open_archive(find_file(host, "minio_*")) as archive:
        entries = list(archive.read_entries())
    found = {
        entry.key: hashlib.sha256((host.folder / "objects" / entry.member_name).read_bytes()).hexdigest()
        for entry in entries
    }
    assert found == {entry.key: entry.sha256 for entry in entries}
    assert len(found) > 10


def test_following_the_text_restores_parts(
    host: NewHost, database: DatabaseSettings, bucket: BucketSettings
) -> None:
    """In the application that was backed up, after rows and objects were deleted."""
    before = run(database, "SELECT count(*), count(*) FILTER (WHERE status = 'completed') FROM jobs")
    keys = [
        key
        for (key,) in run(
            database, "SELECT s3_key FROM jobs WHERE status = 'completed' AND s3_key IS NOT NULL"
        )
    ]
    run(database, "DELETE FROM jobs WHERE status = 'completed'")
    for key in keys:
        client_of(bucket).remove_object(bucket.bucket, key)
    live = {
        "POSTGRES_HOST": database.host,
        "POSTGRES_PORT": str(database.port),
        "POSTGRES_USER": database.user,
        "POSTGRES_PASSWORD": database.password,
        "POSTGRES_DB": database.database,
        "MINIO_ENDPOINT": bucket.endpoint,
        "MINIO_ACCESS_KEY": bucket.access_key,
        "MINIO_SECRET_KEY": bucket.secret_key,
        "MINIO_BUCKET": bucket.bucket,
        "BACKUP_DIR": str(host.folder / "backups"),
        **{name: host.values[name] for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD")},
    }
    said = host.run("".join(read_blocks("bash", section=PARTS)), **live)
    [(_all, deleted)] = before
    assert f"{deleted} rows and {len(keys)} objects restored" in said
    assert "0 rows without their object" in said
    assert run(database, "SELECT count(*), count(*) FILTER (WHERE status = 'completed') FROM jobs") == before
    assert len([path for path in (host.folder / "recovered").rglob("*") if path.is_file()]) > len(keys)
    run(database.with_database("postgres"), f'DROP DATABASE "{database.database}_old_{POINT}"')


def test_the_text_names_the_variables_that_its_commands_use(host: NewHost) -> None:
    example = next(block for block in read_blocks("ini") if "PGHOST" in block)
    assert re.findall(r"^([A-Z_]+)=", example, flags=re.MULTILINE) == list(host.values)


def test_every_block_that_is_not_run_has_a_reason() -> None:
    blocks = read_blocks("console")
    assert [next(start for start in NOT_RUN if start in block) for block in blocks] == list(NOT_RUN)
    fences = re.findall(r"^```(\w*)$", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {fence for fence in fences if fence} == {"bash", "console", "ini", "sql"}
