"""The plan of a restore, described from files and the servers' answers before anything is done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.check_results import Check, CheckStatus, Verification
from schedgen_backups.core.catalog.points import FoundArtifact, PointListing
from schedgen_backups.core.errors import RestoreError, TargetNotEmptyError, VerificationError
from schedgen_backups.core.formats.archive_file import ArchiveFile
from schedgen_backups.core.formats.database_properties import DatabaseProperties
from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.formats.gzip_members import FOOTER_BYTES
from schedgen_backups.core.formats.records import ArtifactFile, DumpRecord
from schedgen_backups.core.model import (
    Artifact,
    ArtifactKind,
    ArtifactName,
    Manifest,
    RecoveryPointId,
    ReferenceState,
    ReferenceSummary,
)
from schedgen_backups.core.postgres.client_programs import ClientPrograms
from schedgen_backups.core.postgres.connection import SessionFacts
from schedgen_backups.core.postgres.session import DatabaseSession
from schedgen_backups.core.restore.bucket import (
    ObjectWriter,
    PreparedBucket,
    RemovedObjects,
    check_bucket_empty,
)
from schedgen_backups.core.restore.database import (
    LoadWay,
    PreparedDatabase,
    TargetFacts,
    can_load_in_parallel,
    check_empty,
    check_encoding,
    choose_way,
    describe_load,
)
from schedgen_backups.core.restore.point import PreparedRestore, RestoreReport, RestoreRequest
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    DUMP_NAME,
    POINT,
    TAKEN_AT,
    TableText,
    damage,
    make_entry,
    make_result,
    make_transfer,
    write_archive,
    write_dump,
)

DATABASE = DatabaseSettings("host", 5432, "user", "canary", "fresh")
BUCKET = BucketSettings("host:9000", "key", "canary", "pdfs")
FACTS = TargetFacts(
    session=SessionFacts(server_major=18),
    encoding="UTF8",
    relation_count=0,
    lock_capacity=6400,
    roles=frozenset({"schedgen", '"schedgen"'}),
)


@pytest.fixture
def record(tmp_path: Path) -> DumpRecord:
    return write_dump(
        tmp_path / DUMP_NAME, [TableText("jobs", (b"1", b"2")), TableText("users", (b"1",))]
    ).record


@pytest.fixture
def prepared(record: DumpRecord, tmp_path: Path) -> Iterator[PreparedRestore]:
    """Return both halves of a point, with connections that are never opened."""
    assert record.table_count == 2
    write_archive(tmp_path / ARCHIVE_NAME, [(make_entry("a.pdf", b"abc"), b"abc")])
    names = [(tmp_path / name, ArtifactName.from_file_name(name)) for name in (DUMP_NAME, ARCHIVE_NAME)]
    found = tuple(FoundArtifact(name, path, path.stat().st_size) for path, name in names if name is not None)
    point = PointListing(RecoveryPointId(POINT), found, None, Verification(point_id=POINT))
    transfer = make_transfer()
    with ExitStack() as stack:
        dump_file, archive_file = (stack.enter_context(ArtifactFile(path)) for path, _name in names)
        dump = DumpFile(dump_file.open_reader())
        session = stack.enter_context(DatabaseSession(DATABASE))
        database = PreparedDatabase(
            dump_file, dump, session, ClientPrograms(Path("/bin"), 18, "18.6"), FACTS, transfer
        )
        client = stack.enter_context(BucketClient(BUCKET, threads=1, stall_timeout_seconds=1))
        writer = stack.enter_context(ObjectWriter(archive_file, client, threads=1))
        archive = ArchiveFile(archive_file.open_reader())
        bucket = PreparedBucket(
            archive_file, archive.record, client, writer, is_empty=True, transfer=transfer
        )
        yield PreparedRestore(RestoreRequest(point, DATABASE, BUCKET), database, bucket)


def test_a_restore_into_empty_targets_is_described_in_order(prepared: PreparedRestore) -> None:
    assert prepared.describe() == (
        f"verify the files of recovery point {POINT}, taken 2026-11-22 02:00:00 UTC",
        "load 2 tables with 3 rows into user@host:5432/fresh, in one transaction, committed last",
        "write 1 object with 3 B into http://host:9000/pdfs",
        "compare every table and every object with what was captured",
    )


def test_a_half_that_is_left_out_is_not_described(prepared: PreparedRestore) -> None:
    lines = replace(prepared, database=None, request=replace(prepared.request, database=None)).describe()
    assert not any("tables with" in line for line in lines)
    assert any("write 1 object " in line for line in lines)


def test_what_would_be_replaced_is_named_first(prepared: PreparedRestore) -> None:
    database = prepared.get_database()
    assert prepared.bucket is not None
    full = replace(
        prepared,
        database=replace(database, facts=replace(FACTS, relation_count=7)),
        bucket=replace(prepared.bucket, is_empty=False),
    )
    lines = full.describe()
    assert (
        "remove everything that user@host:5432/fresh contains now, in the same transaction as the load"
        in lines
    )
    assert "overwrite objects of the same keys in http://host:9000/pdfs; others stay" in lines


def test_roles_that_the_server_lacks_are_named(prepared: PreparedRestore) -> None:
    database = prepared.get_database()
    without = replace(
        prepared, database=replace(database, facts=replace(FACTS, roles=frozenset({"postgres"})))
    )
    assert 'create the roles "schedgen", which the server lacks, without passwords' in without.describe()
    assert not any("roles" in line for line in prepared.describe())


def test_a_swap_names_the_renamed_old_database(prepared: PreparedRestore) -> None:
    lines = replace(prepared, request=replace(prepared.request, is_swap=True)).describe()
    assert any(
        line.startswith("load 2 tables with 3 rows into a new database next to user@host:5432/fresh")
        for line in lines
    )
    assert any(line.endswith(f"the old one remains as fresh_old_{POINT}") for line in lines)


def test_no_description_holds_a_secret(prepared: PreparedRestore) -> None:
    assert "canary" not in "\n".join(prepared.describe()) + repr(prepared.request)


def test_the_name_to_confirm_is_the_databases_or_the_buckets(prepared: PreparedRestore) -> None:
    request = prepared.request
    assert request.target_name == "fresh"
    assert replace(request, database=None).target_name == "pdfs"
    assert [
        replace(request, **change).needs_confirmation
        for change in ({}, {"replace_contents": True}, {"is_swap": True})
    ] == [False, True, True]


@pytest.mark.parametrize(
    ("relations", "held", "jobs", "way"),
    [
        (10, 0, 1, LoadWay.ONE_TRANSACTION),
        (10, 5, 1, LoadWay.ONE_TRANSACTION),
        (10, 0, 4, LoadWay.SEVERAL_SESSIONS),
        (10, 5, 4, LoadWay.ONE_TRANSACTION),
        (3200, 0, 1, LoadWay.NO_TRANSACTION),
        (3199, 0, 1, LoadWay.ONE_TRANSACTION),
        (3200, 0, 4, LoadWay.SEVERAL_SESSIONS),
    ],
)
def test_the_load_mode_depends_on_locks_and_an_empty_target(
    record: DumpRecord, relations: int, held: int, jobs: int, way: LoadWay
) -> None:
    facts = replace(FACTS, relation_count=held)
    assert choose_way(record.model_copy(update={"relation_count": relations}), facts, jobs=jobs) is way
    shared = record.model_copy(update={"relation_count": relations - 5, "large_object_count": 5})
    assert choose_way(shared, facts, jobs=jobs) is way


def test_a_load_that_is_not_one_transaction_is_announced(record: DumpRecord) -> None:
    [several] = describe_load(record, FACTS, "there", LoadWay.SEVERAL_SESSIONS, jobs=4)
    assert "in 4 sessions and NOT in one transaction" in several
    removed, plain = describe_load(
        record, replace(FACTS, relation_count=3), "there", LoadWay.NO_TRANSACTION, jobs=1
    )
    assert removed == "remove everything that there contains now, permanently, before the load begins"
    assert "WITHOUT a transaction, after everything else was written" in plain
    assert "an error leaves part of the database" in plain
    _load, fewer = describe_load(record, FACTS, "there", LoadWay.ONE_TRANSACTION, jobs=4)
    assert fewer.startswith("use one session instead of 4")


def test_a_dump_with_large_objects_or_uncounted_tables_is_not_shared(
    prepared: PreparedRestore, tmp_path: Path
) -> None:
    assert can_load_in_parallel(prepared.get_database().dump)
    path = tmp_path / "other.sql.gz"
    write_dump(path, [TableText("jobs", (b"1",))])
    with ArtifactFile(path) as file:
        dump = DumpFile(file.open_reader())
        uncounted = [table.model_copy(update={"expected_rows": None}) for table in dump.tables]
        dump.__dict__["_index"] = (dump.record, tuple(uncounted), "")
        assert not can_load_in_parallel(dump)
        dump.__dict__["_index"] = (dump.record.model_copy(update={"large_object_count": 1}), (), "")
        assert not can_load_in_parallel(dump)


def test_targets_that_are_not_empty_are_refused() -> None:
    check_empty(DATABASE, 0)
    check_bucket_empty(BUCKET, is_empty=True)
    with pytest.raises(TargetNotEmptyError, match="it contains 2 tables"):
        check_empty(DATABASE, 2)
    with pytest.raises(TargetNotEmptyError, match="pdfs is not empty"):
        check_bucket_empty(BUCKET, is_empty=False)


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        (RemovedObjects(), "The bucket b is unchanged."),
        (RemovedObjects(3), "Removed 3 objects that the restore had written into b."),
        (
            RemovedObjects(3, ("k (changed)",)),
            "Of 4 objects written into b, 3 were removed again; remaining: k (changed).",
        ),
    ],
)
def test_the_contents_of_a_bucket_after_an_error_are_reported(removed: RemovedObjects, said: str) -> None:
    assert removed.describe("b") == said


def test_a_dump_of_another_encoding_is_refused_with_the_statement_that_helps(record: DumpRecord) -> None:
    check_encoding(record, FACTS, DATABASE)
    with pytest.raises(RestoreError, match="the dump's encoding is UTF8, the target's is LATIN1") as caught:
        check_encoding(record, replace(FACTS, encoding="LATIN1"), DATABASE)
    assert "CREATE DATABASE fresh ENCODING 'UTF8' TEMPLATE template0;" in caught.value.hint


def test_another_collation_of_the_target_is_named_where_both_are_known(prepared: PreparedRestore) -> None:
    german = DatabaseProperties(owner="app", collate="de_DE.UTF-8", ctype="de_DE.UTF-8")
    database = prepared.get_database()
    assert database.collation_note == ""
    unknown = replace(database, facts=replace(FACTS, properties=german))
    assert unknown.collation_note == ""
    captured = german.model_copy(update={"collate": "C", "ctype": "C"})
    for properties, is_named in ((captured, True), (german, False)):
        database.dump.__dict__["_index"] = (
            database.record.model_copy(update={"properties": properties}),
            database.dump.tables,
            "",
        )
        assert ("is libc de_DE.UTF-8, the captured one's was libc C:" in unknown.collation_note) is is_named
    database.dump.__dict__["_index"] = (
        database.record.model_copy(update={"properties": captured}),
        database.dump.tables,
        "",
    )
    assert database.collation_note == ""
    lines = replace(prepared, database=unknown).describe()
    assert any(line.startswith("note that the database's collation is libc de_DE.UTF-8") for line in lines)


@pytest.mark.parametrize(
    ("encoding", "name", "can"),
    [("UTF8", "jobs", True), ("UTF8", "jöbs", True), ("LATIN1", "jobs", True), ("LATIN1", "jöbs", False)],
)
def test_names_that_another_encoding_writes_differently_are_loaded_in_one_session(
    prepared: PreparedRestore,
    encoding: str,
    name: str,
    can: bool,
) -> None:
    database = prepared.get_database()
    tables = tuple(table.model_copy(update={"name": name}) for table in database.dump.tables)
    database.dump.__dict__["_index"] = (database.record.model_copy(update={"encoding": encoding}), tables, "")
    assert can_load_in_parallel(database.dump) is can
    assert database.choose_way(4) is (LoadWay.SEVERAL_SESSIONS if can else LoadWay.ONE_TRANSACTION)
    assert database.choose_way(1) is LoadWay.ONE_TRANSACTION


def test_rows_of_a_hash_partition_are_loaded_in_one_session(prepared: PreparedRestore) -> None:
    database = prepared.get_database()
    first, second = database.dump.tables
    database.dump.__dict__["_index"] = (
        database.record,
        (first, second.model_copy(update={"root": "public.log"})),
        "",
    )
    assert not can_load_in_parallel(database.dump)


def test_files_are_read_completely_before_anything_is_written(prepared: PreparedRestore) -> None:
    passed: dict[str, int] = {}

    def note(phase: str, size_bytes: int) -> None:
        passed[phase] = passed.get(phase, 0) + size_bytes

    prepared.verify(note)
    assert passed == {
        "verify": sum(artifact.size_bytes - FOOTER_BYTES for artifact in prepared.request.point.artifacts)
    }


@pytest.mark.parametrize("place", [0, 1], ids=["dump", "archive"])
def test_a_damaged_file_is_named_and_nothing_is_written(prepared: PreparedRestore, place: int) -> None:
    path = prepared.request.point.artifacts[place].path
    whole = path.read_bytes()
    path.write_bytes(damage(whole, 8 * (len(whole) // 3)))
    with pytest.raises(VerificationError, match=f"recovery point {POINT} is damaged, nothing was written"):
        prepared.verify()
    # The half that is damaged is not requested.
    half = replace(prepared, database=None) if place == 0 else replace(prepared, bucket=None)
    half.verify()


@pytest.mark.parametrize("kind", ArtifactKind)
def test_a_sound_file_that_is_not_the_manifests_is_refused(
    prepared: PreparedRestore, kind: ArtifactKind
) -> None:
    """It is another file of the same point, such as one that was captured a second time."""
    point = prepared.request.point
    artifacts = tuple(
        Artifact(
            kind=artifact.name.kind,
            file_name=artifact.path.name,
            source_name="x",
            size_bytes=artifact.size_bytes,
            sha256=hashlib.sha256(artifact.path.read_bytes()).hexdigest(),
        )
        for artifact in point.artifacts
    )
    manifest = Manifest(
        tool_version="test",
        point_id=POINT,
        snapshot_at=TAKEN_AT,
        committed_at=TAKEN_AT,
        artifacts=artifacts,
        references=ReferenceSummary(state=ReferenceState.READ),
    )

    def verify(*artifacts: Artifact) -> None:
        changed = replace(point, manifest=manifest.model_copy(update={"artifacts": artifacts}))
        replace(prepared, request=replace(prepared.request, point=changed)).verify()

    verify(*artifacts)
    verify()
    with pytest.raises(VerificationError, match="damaged, nothing was written"):
        verify(
            *(
                each.model_copy(update={"sha256": "0" * 64}) if each.kind is kind else each
                for each in artifacts
            )
        )


def test_unknown_is_not_equal() -> None:
    passed, unknown = (
        make_result(Check.DATABASE_IS_EQUAL, status) for status in (CheckStatus.PASSED, CheckStatus.UNKNOWN)
    )
    assert RestoreReport((passed, passed), {}, 0, ()).is_equal
    assert not RestoreReport((passed, unknown), {}, 0, ()).is_equal


def test_a_restore_without_a_database_cannot_return_one(prepared: PreparedRestore) -> None:
    with pytest.raises(RestoreError, match="has no database"):
        replace(prepared, database=None).get_database()
    assert replace(prepared.request, database=None, bucket=None).target_name == ""
