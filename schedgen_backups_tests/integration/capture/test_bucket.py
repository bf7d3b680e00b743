"""Buckets with odd keys, metadata, sizes and versions.

Captured, verified, read by stock tar, and restored equal. What a server refuses to store is left out by
asking the server. Faults of servers and networks are in `test_bucket_faults`.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from minio.commonconfig import ENABLED, Tags
from minio.error import S3Error
from minio.versioningconfig import VersioningConfig

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.records import ArchiveRecord, ObjectEntry
from schedgen_backups.core.model import Origin, RecoveryPointId
from schedgen_backups.core.restore.point import RestoreRequest, restore_point
from schedgen_backups.core.s3.client import IN_MEMORY_BYTES
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.core.verify.commit import commit_point
from schedgen_backups.core.verify.files import verify_archive, verify_every_object
from schedgen_backups_tests.support.artifacts import (
    POINT,
    get_status,
    make_live,
    make_noise,
    make_transfer,
    publish_archive,
    publish_dump,
    run_tool,
)
from schedgen_backups_tests.support.restores import compare_bucket, restore_bucket
from schedgen_backups_tests.support.servers import client_of, run

pytestmark = pytest.mark.integration

KEYS = (
    "plain.pdf",
    "folder/plain.pdf",
    "a b+c.pdf",
    "100% sure.pdf",
    "a%20b%2Fc.pdf",
    "課程表/Übersicht é.pdf",
    "e\u0301 decomposed.pdf",
    "\u00e9 composed.pdf",
    "x?y&z=1#h",
    "quo\"te's",
    "*<>:|;$(x)",
    " spaces around ",
    "-rf",
    ".hidden",
    "CAPS.pdf",
    "caps.pdf",
    "a/b",
    "a",
    "folder-object/",
    "back\\slash",
    "tab\there",
    "zero\u200bwidth",
    "deep/" + "/".join("x" * 200 for _ in range(5)),
    "/".join("p" * 204 for _ in range(5)),
    "../escape",
    "double//slash",
    "/leading",
)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


def put(bucket: BucketSettings, key: str, data: bytes, **options: Any) -> None:
    client_of(bucket).put_object(bucket.bucket, key, io.BytesIO(data), len(data), **options)


def read_archive(path: Path) -> tuple[ArchiveRecord, dict[str, ObjectEntry], dict[str, bytes]]:
    with open_archive(path) as archive:
        entries = list(archive.read_entries())
        return (
            archive.record,
            {entry.key: entry for entry in entries},
            {entry.key: b"".join(archive.read_object(entry)) for entry in entries},
        )


def list_contents(bucket: BucketSettings) -> dict[str, bytes]:
    client = client_of(bucket)
    found: dict[str, bytes] = {}
    for listed in client.list_objects(bucket.bucket, recursive=True):
        with client.get_object(bucket.bucket, str(listed.object_name)) as response:
            found[str(listed.object_name)] = response.read()
    return found


def assert_whole(path: Path) -> None:
    results = (*verify_archive(path), verify_every_object(path))
    assert [result.summary for result in results if not result.is_passed] == []


def restore_and_compare(path: Path, target: BucketSettings) -> None:
    backup = make_transfer()
    restore_bucket(path, target, backup, overwrite=False, stop=Event())
    assert [result.summary for result in compare_bucket(path, target, backup) if not result.is_passed] == []


def test_odd_keys_are_restored_and_tar_reads_them(
    bucket: BucketSettings, second_bucket: BucketSettings, catalog: Catalog, tmp_path: Path
) -> None:
    for number, key in enumerate(KEYS):
        try:
            put(bucket, key, f"body {number}".encode() * (number * 50))
        except (S3Error, ValueError):
            assert key in {
                "../escape",
                "double//slash",
                "/leading",
                "folder-object/",
                "back\\slash",
                "a",
                "a/b",
                "tab\there",
            }
    expected = list_contents(bucket)
    assert len(expected) >= 18
    path = publish_archive(catalog, bucket)
    assert_whole(path)
    _record, entries, contents = read_archive(path)
    assert contents == expected
    assert run_tool("tar", "-tzf", path, cwd=tmp_path)[::2] == (0, "")
    target = tmp_path / "unpacked"
    target.mkdir()
    assert run_tool("tar", "xzf", path, cwd=target) == (0, b"", "")
    for key, entry in entries.items():
        assert (target / entry.member_name).read_bytes() == expected[key]
    restore_and_compare(path, second_bucket)
    assert list_contents(second_bucket) == expected


def test_objects_below_each_other_are_all_restored(
    bucket: BucketSettings, second_bucket: BucketSettings, catalog: Catalog
) -> None:
    """Written at the same time, SeaweedFS would lose about one of twenty."""
    for number in range(150):
        for key in (f"{number}", f"{number}/b"):
            # Some servers keep files, and refuse one of the two.
            with suppress(S3Error):
                put(bucket, key, b"body")
    expected = list_contents(bucket)
    restore_and_compare(publish_archive(catalog, bucket), second_bucket)
    assert list_contents(second_bucket) == expected


CONTROL_KEYS = ("a\x01b", "a\x1fb", "a\ufffeb", "a\uffffb")
"""Keys that XML cannot represent."""
URL_KEYS = (
    *("a\x7fb", "line\nbreak", "return\rx", "tab\tx"),
    *(
        "a b",
        " lead",
        "trail ",
        "a  b",
        "a+b",
        "a%b",
        "a%2Bb",
        "a%20b",
        "a%252Fb",
        "100%",
        "%",
        "+",
        "a+%2B b",
        "é+ü ß",
        "e\u0301 x",
        "😀 %F0",
    ),
)
"""Keys that change if an encoding is decoded twice or not at all."""


def assert_key_is_archived(bucket: BucketSettings, catalog: Catalog, key: str) -> None:
    put(bucket, "plain.pdf", b"beside")
    put(bucket, key, b"body")
    try:
        path = publish_archive(catalog, bucket)
    finally:
        # Removed separately: a list of keys to remove is XML, too.
        client_of(bucket).remove_object(bucket.bucket, key)
    assert_whole(path)
    record, _entries, contents = read_archive(path)
    assert (contents, record.deleted_count) == ({key: b"body", "plain.pdf": b"beside"}, 0)


@pytest.mark.parametrize("key", CONTROL_KEYS, ids=ascii)
def test_a_key_that_xml_cannot_name_is_archived(bucket: BucketSettings, catalog: Catalog, key: str) -> None:
    assert_key_is_archived(bucket, catalog, key)


@pytest.mark.parametrize("key", URL_KEYS, ids=ascii)
def test_a_key_that_needs_url_escaping_is_archived(
    bucket: BucketSettings, catalog: Catalog, key: str
) -> None:
    assert_key_is_archived(bucket, catalog, key)


def test_an_object_beside_a_folder_of_its_name_is_kept(bucket: BucketSettings, catalog: Catalog) -> None:
    """MinIO refuses such a pair; SeaweedFS and S3 allow it."""
    put(bucket, "a/b", b"below")
    try:
        put(bucket, "a", b"beside")
    except S3Error:
        assert list_contents(bucket) == {"a/b": b"below"}
    path = publish_archive(catalog, bucket)
    assert_whole(path)
    assert read_archive(path)[2] == list_contents(bucket)


def test_metadata_tags_and_headers_are_restored(
    bucket: BucketSettings, second_bucket: BucketSettings, catalog: Catalog
) -> None:
    tags = Tags.new_object_tags()
    tags["pdf-type"] = "lecture"
    tags["term"] = "2026/1 = first"
    headers: Mapping[str, Any] = {
        "Cache-Control": "max-age=60",
        "Content-Disposition": 'attachment; filename="a b.pdf"',
        "Content-Language": "de, en",
        "original-filename": "%C3%BC%20b.pdf",
        "UPPER": "value with  spaces",
    }
    put(
        bucket,
        "full.pdf",
        b"%PDF-1.7",
        content_type="application/pdf; charset=utf-8",
        metadata=headers,
        tags=tags,
    )
    put(bucket, "plain", b"x")
    path = publish_archive(catalog, bucket)
    entry = read_archive(path)[1]["full.pdf"]
    assert entry.content_type == "application/pdf; charset=utf-8"
    assert entry.tags == {"pdf-type": "lecture", "term": "2026/1 = first"}
    assert entry.metadata["original-filename"] == "%C3%BC%20b.pdf"
    assert entry.headers["Cache-Control"] == "max-age=60"
    restore_and_compare(path, second_bucket)
    there = client_of(second_bucket).stat_object(second_bucket.bucket, "full.pdf")
    assert there.content_type == "application/pdf; charset=utf-8"
    assert there.metadata is not None
    assert there.metadata["Content-Disposition"] == 'attachment; filename="a b.pdf"'
    assert there.metadata["Content-Language"] == "de, en"
    assert there.metadata["x-amz-meta-upper"] == "value with  spaces"
    assert (
        dict(client_of(second_bucket).get_object_tags(second_bucket.bucket, "full.pdf") or {}) == entry.tags
    )


def test_user_metadata_named_like_a_header_stays_user_metadata(
    bucket: BucketSettings, second_bucket: BucketSettings, catalog: Catalog
) -> None:
    put(bucket, "a", b"x", metadata={"x-amz-meta-cache-control": "mine", "Cache-Control": "no-store"})
    path = publish_archive(catalog, bucket)
    entry = read_archive(path)[1]["a"]
    assert (entry.metadata, entry.headers) == ({"cache-control": "mine"}, {"Cache-Control": "no-store"})
    restore_and_compare(path, second_bucket)


def test_a_body_stored_compressed_is_unchanged(
    bucket: BucketSettings, second_bucket: BucketSettings, catalog: Catalog
) -> None:
    body = gzip.compress(b"a page " * 1000, mtime=0)
    put(bucket, "page.html", body, content_type="text/html", metadata={"Content-Encoding": "gzip"})
    path = publish_archive(catalog, bucket)
    _record, entries, contents = read_archive(path)
    assert contents["page.html"] == body
    assert entries["page.html"].headers["Content-Encoding"] == "gzip"
    restore_and_compare(path, second_bucket)


@pytest.mark.parametrize("kind", ["noise", "text"])
def test_objects_of_every_size_are_restored(
    bucket: BucketSettings, second_bucket: BucketSettings, catalog: Catalog, kind: str
) -> None:
    """Sizes: zero, one byte, around a tar block, around the limit for reading whole, and several parts."""
    for size_bytes in (0, 1, 511, 512, 513, 1 << 20, IN_MEMORY_BYTES, IN_MEMORY_BYTES + 1, 17_500_000):
        put(
            bucket,
            f"{size_bytes}.bin",
            make_noise(size_bytes)
            if kind == "noise"
            else (b"line of text\n" * (size_bytes // 13 + 1))[:size_bytes],
        )
    path = publish_archive(catalog, bucket)
    assert_whole(path)
    record, entries, contents = read_archive(path)
    assert record.object_count == record.listed_count == 9
    assert contents == list_contents(bucket)
    assert (path.stat().st_size < record.size_bytes / 20) == (kind == "text")
    assert all(bool(entry.unproven) == ("-" in entry.etag) for entry in entries.values()), entries
    restore_and_compare(path, second_bucket)
    # Restored objects have the MD5 as ETag up to this size, whatever client stored them before.
    restored = client_of(second_bucket).list_objects(second_bucket.bucket, recursive=True)
    assert {str(item.object_name) for item in restored if "-" in str(item.etag)} == {
        f"{IN_MEMORY_BYTES + 1}.bin",
        "17500000.bin",
    }


def test_an_empty_bucket_is_a_complete_archive(
    bucket: BucketSettings, catalog: Catalog, tmp_path: Path
) -> None:
    path = publish_archive(catalog, bucket)
    assert_whole(path)
    assert read_archive(path)[0].object_count == 0
    assert run_tool("tar", "-tzf", path, cwd=tmp_path)[0] == 0


def test_more_objects_than_one_listing_page_are_restored(bucket: BucketSettings, catalog: Catalog) -> None:
    client = client_of(bucket)
    for number in range(1050):
        client.put_object(
            bucket.bucket, f"{number % 7}/{number:05}", io.BytesIO(b"%d" % number), len(str(number))
        )
    path = publish_archive(catalog, bucket)
    assert_whole(path)
    contents = read_archive(path)[2]
    assert {int(key.split("/")[1]) for key in contents} == set(range(1050))
    assert all(int(key.split("/")[1]) == int(data) for key, data in contents.items())


def test_a_versioned_bucket_is_captured_in_its_current_state_with_version_ids(
    bucket: BucketSettings, catalog: Catalog
) -> None:
    client = client_of(bucket)
    client.set_bucket_versioning(bucket.bucket, VersioningConfig(ENABLED))
    put(bucket, "a", b"first")
    put(bucket, "a", b"second")
    put(bucket, "gone", b"x")
    client.remove_object(bucket.bucket, "gone")
    path = publish_archive(catalog, bucket)
    assert_whole(path)
    record, entries, contents = read_archive(path)
    assert contents == {"a": b"second"}
    assert record.is_versioned is True
    assert entries["a"].version_id == client.stat_object(bucket.bucket, "a").version_id
    assert entries["a"].version_id


def test_one_object_is_extracted_with_tar_and_opens(
    bucket: BucketSettings, catalog: Catalog, shared_data: Path, tmp_path: Path
) -> None:
    pdf = (shared_data / "pdfs" / "crazyones-pdfa.pdf").read_bytes()
    put(bucket, "uploads/1/crazy ones.pdf", pdf, content_type="application/pdf")
    path = publish_archive(catalog, bucket)
    assert run_tool("tar", "xzf", path, "uploads/1/crazy ones.pdf", cwd=tmp_path) == (0, b"", "")
    assert (tmp_path / "uploads/1/crazy ones.pdf").read_bytes() == pdf


def test_a_whole_application_is_backed_up_committed_restored_and_equal(
    database: DatabaseSettings,
    second_database: DatabaseSettings,
    bucket: BucketSettings,
    second_bucket: BucketSettings,
    catalog: Catalog,
    shared_data: Path,
) -> None:
    script = (shared_data / "chinook.sql").read_text(encoding="utf-8")
    run(
        database,
        "\n".join(
            line
            for line in script.splitlines()
            if not line.startswith(("\\c", "DROP DATABASE", "CREATE DATABASE"))
        ),
    )
    run(database, "CREATE TABLE jobs (id serial PRIMARY KEY, s3_key text)")
    pdfs = sorted((shared_data / "pdfs").glob("*.pdf"))
    assert pdfs
    for pdf in pdfs:
        put(bucket, f"uploads/{pdf.name}", pdf.read_bytes(), content_type="application/pdf")
        run(database, f"INSERT INTO jobs (s3_key) VALUES ('uploads/{pdf.name}')")
    publish_dump(catalog, database)
    publish_archive(catalog, bucket)
    backup = make_transfer()
    point_id = RecoveryPointId(POINT)
    manifest, verification = commit_point(
        catalog, point_id, origin=Origin(run_id="run"), live=make_live(database, bucket)
    )
    assert verification.is_verified
    assert manifest.references.resolved_count == manifest.references.reference_count == len(pdfs)
    assert catalog.get_point(point_id).state is PointState.VERIFIED
    request = RestoreRequest(catalog.get_point(point_id), second_database, second_bucket)
    report = restore_point(request, backup, catalog=catalog, restored_by="drill")
    assert report.is_equal
    assert report.object_count == len(pdfs)
    results = catalog.read_verification(point_id).results
    for check in (
        Check.DATABASE_IS_RESTORED,
        Check.DATABASE_IS_EQUAL,
        Check.BUCKET_IS_RESTORED,
        Check.BUCKET_IS_EQUAL,
    ):
        assert get_status(results, check) is CheckStatus.PASSED
    assert list_contents(second_bucket) == list_contents(bucket)
    assert catalog.get_point(point_id).state is PointState.VERIFIED
