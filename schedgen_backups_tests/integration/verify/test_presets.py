"""Presets of well-known applications: their tables name exactly the bucket's objects.

The tables are created from the applications' documentation.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from schedgen_backups.config.presets import PRESETS
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.drill.pdf_sample import open_referenced_pdfs
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.postgres.object_keys import read_references
from schedgen_backups.core.postgres.snapshot import open_snapshot
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.core.verify.live_system import check_consistency
from schedgen_backups.core.verify.references import verify_references
from schedgen_backups_tests.support.artifacts import make_live, make_transfer, publish_archive, publish_dump
from schedgen_backups_tests.support.points import ID, put
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration


def make_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


PNG = make_png()
ACTIVE_STORAGE = """
CREATE TABLE active_storage_blobs (id bigserial PRIMARY KEY, key varchar NOT NULL, filename varchar NOT NULL,
    content_type varchar, metadata text,
    service_name varchar NOT NULL, byte_size bigint NOT NULL, checksum varchar,
        created_at timestamp(6) NOT NULL);
CREATE UNIQUE INDEX index_active_storage_blobs_on_key ON active_storage_blobs (key);
CREATE TABLE active_storage_attachments (id bigserial PRIMARY KEY, name varchar NOT NULL,
    record_type varchar NOT NULL, record_id bigint NOT NULL,
    blob_id bigint NOT NULL REFERENCES active_storage_blobs, created_at timestamp(6) NOT NULL);
CREATE TABLE active_storage_variant_records (id bigserial PRIMARY KEY,
    blob_id bigint NOT NULL REFERENCES active_storage_blobs,
    variation_digest varchar NOT NULL);
INSERT INTO active_storage_blobs (key, filename, content_type, service_name, byte_size, created_at)
VALUES ('4ohxqqtz1mlzfm6lyzwb7t5vrj0e', 'cat.png', 'image/png', 'amazon', 67, now()),
    ('xtapjjcjiudrlk3tmwyjgpuobabd', 'a.txt', 'text/plain', 'amazon', 4, now());
"""
SUPABASE = """
CREATE SCHEMA storage;
CREATE TABLE storage.buckets (id text PRIMARY KEY, name text NOT NULL UNIQUE, owner uuid,
    created_at timestamptz DEFAULT now(), public boolean);
CREATE TABLE storage.objects (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    bucket_id text REFERENCES storage.buckets, name text, owner uuid,
    created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(),
        last_accessed_at timestamptz DEFAULT now(), metadata jsonb,
    path_tokens text[] GENERATED ALWAYS AS (string_to_array(name, '/')) STORED, version text, owner_id text,
        user_metadata jsonb);
ALTER TABLE storage.objects ENABLE ROW LEVEL SECURITY;
INSERT INTO storage.buckets (id, name) VALUES ('avatars', 'avatars');
INSERT INTO storage.objects (bucket_id, name, version)
VALUES ('avatars', E'folder/cat\\t1.png', '0b4a7d9e'), ('avatars', 'old.txt', NULL), ('avatars', NULL, 'x');
"""
APPLICATIONS = {
    "active-storage": (ACTIVE_STORAGE, ("4ohxqqtz1mlzfm6lyzwb7t5vrj0e", "xtapjjcjiudrlk3tmwyjgpuobabd")),
    "supabase": (SUPABASE, ("stub/avatars/folder/cat\t1.png/0b4a7d9e", "stub/avatars/old.txt")),
}


@pytest.mark.parametrize("preset", APPLICATIONS)
def test_each_row_has_its_object_and_a_drill_opens_it(
    database: DatabaseSettings, bucket: BucketSettings, tmp_path: Path, preset: str
) -> None:
    script, keys = APPLICATIONS[preset]
    run(database, script)
    put(bucket, keys[0], PNG, "image/png")
    put(bucket, keys[1], b"text", "text/plain")
    live = replace(make_live(database, bucket), references=PRESETS[preset])
    found = check_consistency(live)
    assert (found.reference_count, found.rows_without_object, found.objects_without_row) == (2, (), ())
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    dump = publish_dump(catalog, database, references=PRESETS[preset])
    result, summary = verify_references(dump, publish_archive(catalog, bucket), live=live)
    assert (result.status, summary.reference_count, summary.resolved_count) == (CheckStatus.PASSED, 2, 2)
    opened = open_referenced_pdfs(catalog.get_point(ID), database, bucket, make_transfer())
    assert (opened.status, opened.figures["images_opened"], opened.figures["objects_compared_only"]) == (
        CheckStatus.PASSED,
        1,
        1,
    )


@pytest.mark.parametrize("preset", APPLICATIONS)
def test_the_columns_are_those_that_the_query_reads(database: DatabaseSettings, preset: str) -> None:
    """The dump keeps the query, and a drill runs it unchanged."""
    run(database, APPLICATIONS[preset][0])
    references = PRESETS[preset]
    with open_snapshot(database) as snapshot:
        by_columns = [key for page in read_references(snapshot, references) for key in page]
        by_query = [
            key for page in read_references(snapshot, replace(references, built_in=None)) for key in page
        ]
    assert by_columns == by_query == sorted(APPLICATIONS[preset][1])


def test_a_damaged_image_has_the_captured_bytes_and_is_not_an_image(
    database: DatabaseSettings, bucket: BucketSettings, tmp_path: Path
) -> None:
    script, keys = APPLICATIONS["active-storage"]
    run(database, script)
    for key in keys:
        put(bucket, key, PNG[:-20], "image/png")
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    publish_dump(catalog, database, references=PRESETS["active-storage"])
    publish_archive(catalog, bucket)
    opened = open_referenced_pdfs(catalog.get_point(ID), database, bucket, make_transfer())
    assert (opened.status, "cannot be read as their content type" in opened.summary) == (
        CheckStatus.UNKNOWN,
        True,
    )


def test_without_a_preset_the_references_are_unknown(
    database: DatabaseSettings, bucket: BucketSettings, tmp_path: Path
) -> None:
    run(database, "CREATE TABLE t AS SELECT 1 AS i")
    live = replace(make_live(database, bucket), references=PRESETS["none"])
    with pytest.raises(ConfigurationError, match="BACKUP_PRESET=none"):
        check_consistency(live)
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    dump = publish_dump(catalog, database, references=PRESETS["none"])
    result, _summary = verify_references(dump, publish_archive(catalog, bucket), live=live)
    assert (result.status, "BACKUP_PRESET=none" in result.summary) == (CheckStatus.NOT_CONFIGURED, True)
