"""A database or bucket that did not change gives the same bytes again."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from schedgen_backups.core.capture import dump_plan
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.formats.gzip_members import FOOTER_BYTES
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.artifacts import make_noise, publish_archive, publish_dump
from schedgen_backups_tests.support.points import put
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration

FIRST, SECOND, THIRD = "20261122_020000", "20261123_020000", "20261124_020000"
ROWS = 300_000
MANY_ROWS = f"""
CREATE TABLE jobs (id int PRIMARY KEY, name text, payload text);
INSERT INTO jobs SELECT n, 'job ' || n, md5(n::text) || md5((n + 1)::text) || repeat(chr(97 + n % 26), n % 50)
  FROM generate_series(1, {ROWS}) n;
CREATE TABLE plans (id int PRIMARY KEY, body text);
INSERT INTO plans SELECT n, string_agg(md5(n::text || '/' || m), '') FROM generate_series(1, 20) n,
  generate_series(1, 7500) m GROUP BY n;
CREATE TABLE few (a int); INSERT INTO few VALUES (1), (2); SELECT lo_from_bytea(70001, 'large');
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


def split_members(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield each gzip member before the footer, with what it unpacks to."""
    data = path.read_bytes()[:-FOOTER_BYTES]
    while data:
        reader = zlib.decompressobj(31)
        plain = reader.decompress(data)
        assert reader.eof
        yield data[: len(data) - len(reader.unused_data)], plain
        data = reader.unused_data


def find_new(earlier: Path, later: Path) -> list[tuple[bytes, bytes]]:
    """Return the members of the later file that the earlier one does not have."""
    known = {member for member, _plain in split_members(earlier)}
    return [(member, plain) for member, plain in split_members(later) if member not in known]


def dump(catalog: Catalog, database: DatabaseSettings, point_id: str) -> Path:
    publish_dump(catalog, database, point_id)
    [path] = catalog.directory.glob(f"db_*_{point_id}.sql.gz")
    return path


def archive(catalog: Catalog, bucket: BucketSettings, point_id: str) -> Path:
    publish_archive(catalog, bucket, point_id)
    [path] = catalog.directory.glob(f"minio_*_{point_id}.tar.gz")
    return path


@pytest.mark.parametrize("is_parallel", [False, True], ids=["one pg_dump", "several"])
def test_two_dumps_of_an_unchanged_database_differ_in_the_record_only(
    is_parallel: bool, catalog: Catalog, database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(database, MANY_ROWS)
    if is_parallel:
        monkeypatch.setattr(dump_plan, "LARGE_TABLE_BYTES", 0)
    first, second = dump(catalog, database, FIRST), dump(catalog, database, SECOND)
    [(_member, plain)] = find_new(first, second)
    assert plain.startswith(b'-- schedgen-backups: {"record":')
    assert plain.count(b"\n") == 1


def test_a_dump_has_the_same_pieces_however_many_programs_made_it(
    catalog: Catalog, database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(database, MANY_ROWS)
    first = dump(catalog, database, FIRST)
    monkeypatch.setattr(dump_plan, "LARGE_TABLE_BYTES", 0)
    new = find_new(first, dump(catalog, database, SECOND))
    assert not any(plain.startswith(b"COPY ") or b"\tjob " in plain for _member, plain in new)


def test_few_changed_rows_make_few_new_bytes(catalog: Catalog, database: DatabaseSettings) -> None:
    run(database, MANY_ROWS)
    first = dump(catalog, database, FIRST)
    run(database, f"UPDATE jobs SET name = 'changed' WHERE id IN (1000, {ROWS // 2})")
    run(database, "UPDATE plans SET body = 'x' || body WHERE id = 7")
    second = dump(catalog, database, SECOND)
    new = sum(len(member) for member, _plain in find_new(first, second))
    # An updated row moves to the end of its table: at most five pieces of about a megabyte are new.
    assert new < second.stat().st_size * 0.3


def test_two_archives_of_an_unchanged_bucket_differ_in_the_record_only(
    catalog: Catalog, bucket: BucketSettings
) -> None:
    for number in range(200):
        put(bucket, f"uploads/{number:03}.pdf", make_noise(20_000 + 17 * number, number), "application/pdf")
    # Objects that are younger than a second are read again.
    time.sleep(3.2)
    first = archive(catalog, bucket, FIRST)
    second = archive(catalog, bucket, SECOND)
    third = archive(catalog, bucket, THIRD)
    for earlier, later in ((first, second), (second, third)):
        [(_member, plain)] = find_new(earlier, later)
        assert b'"finished_at"' in plain
        assert b'"key"' not in plain
