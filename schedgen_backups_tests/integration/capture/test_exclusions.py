"""Excluded tables and objects: absent from the files, named there, and everything else is restored equal.

An exclusion that would break a restore is refused.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.drill.drill import drill_point
from schedgen_backups.core.drill.pdf_sample import open_referenced_pdfs
from schedgen_backups.core.errors import ConfigurationError, DatabaseError, RestoreError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.model import LeftOut, Manifest, Origin, ReferenceVerdict
from schedgen_backups.core.postgres.exclusions import check_exclusions, find_tables, find_views_of
from schedgen_backups.core.postgres.snapshot import open_snapshot
from schedgen_backups.core.restore.objects import prepare_objects
from schedgen_backups.core.restore.point import RestoreRequest, prepare_restore, restore_point
from schedgen_backups.core.restore.tables import TableRequest, prepare_tables
from schedgen_backups.core.settings import (
    BucketSettings,
    DatabaseSettings,
    DrillSettings,
    Exclusions,
    References,
)
from schedgen_backups.core.verify.commit import commit_point, verify_point
from schedgen_backups_tests.support.artifacts import (
    get_status,
    get_summary,
    make_live,
    make_transfer,
    publish_archive,
    publish_dump,
)
from schedgen_backups_tests.support.points import ID, put
from schedgen_backups_tests.support.servers import client_of, run

pytestmark = pytest.mark.integration

TABLES = """
CREATE TABLE users (id int PRIMARY KEY);
CREATE TABLE jobs (id int PRIMARY KEY, user_id int REFERENCES users, s3_key text);
CREATE TABLE "audit log" (id bigserial PRIMARY KEY, user_id int REFERENCES users, line text);
CREATE TABLE events (at date, what text) PARTITION BY RANGE (at);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')
    PARTITION BY LIST (what);
CREATE TABLE events_2_rest PARTITION OF events_2 DEFAULT;
CREATE SCHEMA cache; CREATE TABLE cache.pages (id int PRIMARY KEY);
CREATE TABLE cache.parts (page_id int REFERENCES cache.pages);
INSERT INTO users SELECT generate_series(1, 5);
INSERT INTO jobs VALUES (1, 1, 'jobs/1.pdf'), (2, 2, 'thumbs/1.png'), (3, 3, 'gone.pdf');
INSERT INTO "audit log" (user_id, line) SELECT 1, 'x' FROM generate_series(1, 100);
INSERT INTO events SELECT date '2026-01-31' + n, 'x' FROM generate_series(0, 9) n;
INSERT INTO cache.pages SELECT generate_series(1, 7); INSERT INTO cache.parts SELECT generate_series(1, 7);
"""
PATTERNS = ("audit log", "public.events", "cache.*")
EXCLUDED = ("cache.pages", "cache.parts", "public.audit log", "public.events_1", "public.events_2_rest")
EXCLUSIONS = Exclusions(tables=PATTERNS, objects=("thumbs/", "*.tmp"))


@pytest.fixture
def catalog(tmp_path: Path, database: DatabaseSettings, bucket: BucketSettings) -> Catalog:
    """Return the catalog of a point that leaves out tables and objects."""
    run(database, TABLES)
    for key in ("jobs/1.pdf", "thumbs/1.png", "thumbs/2.png", "a/b.tmp", "kept.txt"):
        put(bucket, key, key.encode(), "text/plain")
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    publish_dump(catalog, database, exclusions=EXCLUSIONS)
    publish_archive(catalog, bucket, exclusions=EXCLUSIONS)
    return catalog


def commit(catalog: Catalog, database: DatabaseSettings, bucket: BucketSettings) -> Manifest:
    return commit_point(catalog, ID, origin=Origin(run_id="run"), live=make_live(database, bucket))[0]


def test_the_manifest_names_what_is_excluded_and_its_references_are_not_lost(
    catalog: Catalog, database: DatabaseSettings, bucket: BucketSettings
) -> None:
    manifest = commit(catalog, database, bucket)
    size_bytes = sum(map(len, ("thumbs/1.png", "thumbs/2.png", "a/b.tmp")))
    assert manifest.left_out == LeftOut(
        table_patterns=PATTERNS,
        tables=EXCLUDED,
        object_patterns=EXCLUSIONS.objects,
        object_count=3,
        size_bytes=size_bytes,
    )
    references = manifest.references
    assert (references.reference_count, references.resolved_count) == (3, 1)
    assert references.verdict_counts == {ReferenceVerdict.EXCLUDED: 1, ReferenceVerdict.MISSING: 1}
    assert [missing.key for missing in references.missing] == ["gone.pdf"]
    verification = catalog.read_verification(ID)
    assert "left out: the rows of cache.pages, cache.parts" in get_summary(
        verification.results, Check.DUMP_MATCHES_SNAPSHOT
    )
    assert "left out: 3 objects (31 B) by thumbs/, *.tmp" in get_summary(
        verification.results, Check.EVERY_OBJECT_IS_ARCHIVED
    )


def test_a_new_verification_reuses_the_recorded_verdicts(
    catalog: Catalog, database: DatabaseSettings, bucket: BucketSettings
) -> None:
    """The live system is not asked once the point is committed: it may be another one by then."""
    known = commit(catalog, database, bucket).references
    verification, summary = verify_point(catalog, catalog.get_point(ID), checked_by="later")
    assert (get_status(verification.results, Check.REFERENCES_RESOLVE), summary) == (
        CheckStatus.PASSED,
        known,
    )


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_rest_is_restored_equal_and_the_result_names_what_is_excluded(
    catalog: Catalog,
    database: DatabaseSettings,
    bucket: BucketSettings,
    second_database: DatabaseSettings,
    second_bucket: BucketSettings,
    jobs: int,
) -> None:
    commit(catalog, database, bucket)
    request = RestoreRequest(catalog.get_point(ID), second_database, second_bucket, jobs=jobs)
    with prepare_restore(request, make_transfer()) as prepared:
        assert any(
            "note that the recovery point does not contain the rows of cache.pages" in line
            for line in prepared.describe()
        )
    report = restore_point(request, make_transfer())
    assert report.is_equal
    assert "left out: the rows of cache.pages" in get_summary(report.results, Check.DATABASE_IS_EQUAL)
    assert "left out: 3 objects" in get_summary(report.results, Check.BUCKET_IS_EQUAL)
    counts = (
        'SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM "audit log"), (SELECT count(*) '
        "FROM events), (SELECT count(*) FROM cache.parts)"
    )
    assert run(second_database, counts) == [(5, 0, 0, 0)]
    # Definitions are present, and a sequence continues at its value.
    run(
        second_database,
        "INSERT INTO \"audit log\" (user_id) VALUES (1); INSERT INTO events VALUES ('2026-02-02', 'y')",
    )
    assert run(second_database, 'SELECT id FROM "audit log"') == [(101,)]
    restored = client_of(second_bucket).list_objects(second_bucket.bucket, recursive=True)
    assert sorted(str(each.object_name) for each in restored) == ["jobs/1.pdf", "kept.txt"]


def test_a_row_lost_in_a_kept_table_is_still_found(
    catalog: Catalog, second_database: DatabaseSettings, second_bucket: BucketSettings
) -> None:
    request = RestoreRequest(catalog.get_point(ID), second_database, second_bucket)
    with prepare_restore(request, make_transfer()) as prepared:
        prepared.execute()
        run(second_database, "DELETE FROM users WHERE id = 5")
        results = prepared.compare()
    assert get_status(results, Check.DATABASE_IS_EQUAL) is CheckStatus.FAILED


def test_a_drill_passes_and_samples_only_what_is_there(
    catalog: Catalog, database: DatabaseSettings, bucket: BucketSettings, tmp_path: Path
) -> None:
    commit(catalog, database, bucket)
    report = drill_point(
        catalog,
        None,
        make_transfer(),
        DrillSettings(tmp_path / "scratch"),
        source=database,
        drilled_by="a test",
    )
    unlike = {result.check for result in report.results if not result.is_passed}
    assert unlike == {Check.OPERATOR_CHECKS_HOLD}
    sampled = open_referenced_pdfs(catalog.get_point(ID), database, bucket, make_transfer())
    assert (
        sampled.figures["references"],
        sampled.figures["sampled"],
        sampled.figures["references_missing_as_recorded"],
    ) == (3, 2, 1)


def test_where_every_reference_is_excluded_nothing_is_proven(
    database: DatabaseSettings, bucket: BucketSettings, tmp_path: Path
) -> None:
    """The operator chose this, and it is still not green."""
    run(database, "CREATE TABLE jobs AS SELECT 'a' AS s3_key")
    put(bucket, "a", b"a", "text/plain")
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    publish_dump(catalog, database, exclusions=Exclusions(objects=("*",)))
    publish_archive(catalog, bucket, exclusions=Exclusions(objects=("*",)))
    commit(catalog, database, bucket)
    results = catalog.read_verification(ID).results
    assert get_status(results, Check.REFERENCES_RESOLVE) is CheckStatus.NOT_CONFIGURED
    assert (
        get_summary(results, Check.REFERENCES_RESOLVE) == "0 of 1 references are in the archive; 1 excluded"
    )
    assert (
        open_referenced_pdfs(catalog.get_point(ID), database, bucket, make_transfer()).status
        is CheckStatus.NOT_CONFIGURED
    )


def test_tables_dumped_in_parallel_are_excluded_too(database: DatabaseSettings, tmp_path: Path) -> None:
    run(
        database,
        "CREATE TABLE big_1 (x text); CREATE TABLE big_2 (x text); CREATE TABLE big_3 (x text); CREATE "
        "TABLE big_log (x text)",
    )
    for name in ("big_1", "big_2", "big_3", "big_log"):
        run(
            database,
            f"ALTER TABLE {name} ALTER x SET STORAGE EXTERNAL; INSERT INTO {name} SELECT repeat('x', "
            "1000000) FROM generate_series(1, 70)",
        )
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    with open_dump(
        publish_dump(catalog, database, exclusions=Exclusions(tables=("*_log",)), dump_jobs=2)
    ) as dump:
        assert [table.name for table in dump.tables] == ["big_1", "big_2", "big_3"]
        assert dump.record.left_out.tables == ("public.big_log",)
    verification, _summary = verify_point(catalog, catalog.get_point(ID), checked_by="a test")
    assert get_status(verification.results, Check.DUMP_MATCHES_SNAPSHOT) is CheckStatus.PASSED


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        (("users",), "public.audit log refers to public.users"),
        (("cache.pages",), "cache.parts refers to cache.pages"),
        (("jobs",), "object keys are read from public.jobs"),
        (("*",), "object keys are read from public.jobs"),
    ],
)
def test_rows_that_others_need_cannot_be_excluded(
    database: DatabaseSettings, tmp_path: Path, patterns: tuple[str, ...], named: str
) -> None:
    """A dump without them could not be loaded, or its drill would never pass: no backup is taken."""
    run(database, TABLES)
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    with pytest.raises(ConfigurationError, match=named) as refused:
        publish_dump(catalog, database, exclusions=Exclusions(tables=patterns))
    assert "BACKUP_EXCLUDE_TABLE_DATA" in refused.value.message
    assert catalog.list_points() == ()


def test_a_partition_that_a_foreign_key_needs_cannot_be_excluded(database: DatabaseSettings) -> None:
    run(
        database,
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p_1 PARTITION OF p "
        "DEFAULT;"
        " CREATE TABLE c (p_id int REFERENCES p) PARTITION BY RANGE (p_id); CREATE TABLE c_1 PARTITION OF "
        "c DEFAULT",
    )
    with open_snapshot(database) as snapshot:
        for patterns in (("p",), ("p_1",)):
            with pytest.raises(ConfigurationError, match=r"public\.c refers to public\.p "):
                check_exclusions(snapshot, find_tables(snapshot, patterns), References(query=""))
        check_exclusions(snapshot, find_tables(snapshot, ("p", "c")), References(query=""))
        check_exclusions(snapshot, find_tables(snapshot, ("c_1",)), References(query=""))


def test_partitions_of_a_hash_partitioned_table_cannot_be_excluded_individually(
    database: DatabaseSettings,
) -> None:
    """pg_dump loads their rows through the parent table.

    Kept rows may land in the partition that is not compared.
    """
    run(
        database,
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE p (m mood) PARTITION BY HASH (m);"
        " CREATE TABLE p_0 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        " CREATE TABLE p_1 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    )
    with open_snapshot(database) as snapshot:
        with pytest.raises(ConfigurationError, match=r"public\.p is partitioned by hash"):
            check_exclusions(snapshot, find_tables(snapshot, ("p_1",)), References(query=""))
        check_exclusions(snapshot, find_tables(snapshot, ("p",)), References(query=""))


def test_materialized_views_over_excluded_tables_are_found(database: DatabaseSettings) -> None:
    run(
        database,
        "CREATE TABLE log (i int); CREATE VIEW v AS SELECT * FROM log; CREATE MATERIALIZED VIEW m AS "
        "SELECT count(*) FROM v",
    )
    run(database, "CREATE TABLE kept (i int); CREATE MATERIALIZED VIEW other AS SELECT * FROM kept")
    with open_snapshot(database) as snapshot:
        assert find_views_of(snapshot, find_tables(snapshot, ("log",))) == ("public.m",)
        assert find_views_of(snapshot, find_tables(snapshot, ("nothing",))) == ()


def test_a_database_with_everything_excluded_says_so(database: DatabaseSettings, tmp_path: Path) -> None:
    run(database, "CREATE TABLE log AS SELECT 1 AS i; CREATE TABLE empty_table (i int)")
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    with pytest.raises(DatabaseError, match="except those that BACKUP_EXCLUDE_TABLE_DATA excludes"):
        publish_dump(catalog, database, exclusions=Exclusions(tables=("log",)))


def test_what_is_excluded_cannot_be_restored_alone_and_the_error_says_why(
    catalog: Catalog, database: DatabaseSettings, bucket: BucketSettings
) -> None:
    point = catalog.get_point(ID)
    for name in ("audit log", "cache.pages", "cache.p*"):
        with (
            pytest.raises(RestoreError, match="BACKUP_EXCLUDE_TABLE_DATA excluded them"),
            prepare_tables(TableRequest(point, (name,), database), make_transfer()),
        ):
            pass
    with (
        pytest.raises(RestoreError, match="BACKUP_EXCLUDE_OBJECTS excluded such objects"),
        prepare_objects(point, ("thumbs/1.png",), bucket, make_transfer()),
    ):
        pass


def test_a_glob_that_also_matches_kept_tables_names_the_excluded_ones(
    catalog: Catalog, database: DatabaseSettings
) -> None:
    with prepare_tables(
        TableRequest(catalog.get_point(ID), ("public.*",), database), make_transfer()
    ) as prepared:
        assert [table.name for table in prepared.tables] == ["jobs", "users"]
        assert prepared.left_out == ("public.audit log", "public.events_1", "public.events_2_rest")


def test_objects_that_are_no_longer_excluded_return(catalog: Catalog, bucket: BucketSettings) -> None:
    later = "20261123_020000"
    with open_archive(publish_archive(catalog, bucket, later)) as archive:
        assert {entry.key for entry in archive.read_entries()} == {
            "jobs/1.pdf",
            "thumbs/1.png",
            "thumbs/2.png",
            "a/b.tmp",
            "kept.txt",
        }
        assert archive.record.left_out == LeftOut()
