"""Verify files by reading them again from disk: the levels `stored` and `parsed`.

Each function performs one or two checks and returns results. It never raises for a bad file, which is a
failed check. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus, Figure
from schedgen_backups.core.concurrency.serial_worker import SerialWorker
from schedgen_backups.core.errors import PackKeyError, VerificationError
from schedgen_backups.core.formats.archive_file import ArchiveFile, open_archive
from schedgen_backups.core.formats.archive_writer import CapturedArchive
from schedgen_backups.core.formats.dump_file import DumpFile, open_dump
from schedgen_backups.core.formats.dump_text import DumpDigest, split_dump
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.formats.records import (
    ArchiveRecord,
    ArtifactFile,
    DumpRecord,
    describe_left_out,
)
from schedgen_backups.core.model import ArtifactKind, ArtifactName
from schedgen_backups.core.system.files import FileIdentity, identify_file
from schedgen_backups.core.units import NAMED_LIMIT, count, name_some
from schedgen_backups.core.verify.stored_bytes import FileDigest, OnProgress, check_stored, read_range


def verify_dump(
    path: Path,
    keys: PackKeys = NO_KEYS,
    *,
    expected_sha256: str | None = None,
    on_progress: OnProgress = lambda _size_bytes: None,
) -> tuple[CheckResult, ...]:
    """Verify a dump as `verify_dump_file` does, for a file that is not open yet."""
    with ArtifactFile(path, keys) as file:
        return verify_dump_file(file, expected_sha256=expected_sha256, on_progress=on_progress)


def verify_dump_file(
    file: ArtifactFile,
    *,
    expected_sha256: str | None = None,
    on_progress: OnProgress = lambda _size_bytes: None,
) -> tuple[CheckResult, ...]:
    """Check `dump_is_stored` and `dump_is_complete`: read, unpack and compare every byte with the index.

    `expected_sha256` is the manifest's, if there is one; `on_progress` gets the number of compressed bytes as
    they are read.
    """
    digest = FileDigest(on_progress)

    def read() -> tuple[str, dict[str, Figure]]:
        with (
            file.read_as(DumpFile) as dump,
            SerialWorker("rows") as rows_worker,
            SerialWorker("file") as file_worker,
        ):
            _check_name(file.path, dump.record)
            contents = DumpDigest(rows_worker)
            for segment in split_dump(
                dump.read_contents(on_progress=partial(file_worker.submit, digest.update))
            ):
                contents.add(segment)
            facts = contents.facts()
            if not facts.is_complete:
                raise VerificationError("the last line of pg_dump is missing: the dump is truncated")
            differences = [
                entry.qualified_name
                for entry, table in zip(dump.tables, facts.tables, strict=False)
                if (entry.schema_name, entry.name, entry.rows, entry.size_bytes, entry.sha256)
                != (table.schema_name, table.name, table.rows, table.size_bytes, table.sha256)
            ]
            if differences or len(dump.tables) != len(facts.tables):
                raise VerificationError(
                    f"tables differ from the index: {name_some(differences) or 'their number differs'}"
                )
            if facts.text_sha256 != dump.record.text_sha256 or facts.size_bytes != dump.record.size_bytes:
                raise VerificationError("the schema differs from what was captured")
            _check_tables_lie_right(dump)
            file_worker.wait()
            digest.finish(dump.read_rest)
            figures: dict[str, Figure] = {
                "tables": len(facts.tables),
                "rows": sum(table.rows for table in facts.tables),
            }
            return (
                (
                    f"{count(len(facts.tables), 'table')}, "
                    f"{count(sum(table.rows for table in facts.tables), 'row')}, complete"
                ),
                {
                    **figures,
                    "size_bytes": facts.size_bytes,
                },
            )

    return _verify_file(
        file,
        ArtifactKind.DATABASE,
        (Check.DUMP_IS_STORED, Check.DUMP_IS_COMPLETE),
        digest,
        read,
        expected_sha256,
    )


def verify_dump_against_snapshot(path: Path, keys: PackKeys = NO_KEYS) -> CheckResult:
    """Check `dump_matches_snapshot`: the dump has the snapshot's tables, with the row counts taken in it."""

    def read() -> tuple[str, dict[str, Figure]]:
        with open_dump(path, keys) as dump:
            if dump.record.missing_tables:
                raise VerificationError(
                    f"tables of the snapshot are missing: {name_some(list(dump.record.missing_tables))}"
                )
            counted = [table for table in dump.tables if table.expected_rows is not None]
            differing = [
                f"{table.qualified_name} ({table.rows} of {table.expected_rows})"
                for table in counted
                if table.rows != table.expected_rows
            ]
            if differing:
                raise VerificationError(
                    f"tables have other row counts than the snapshot: {name_some(differing)}"
                )
            present = {(table.schema_name, table.name) for table in dump.tables}
            unwanted = [
                f"{table.schema_name}.{table.name}"
                for table in dump.record.excluded_tables
                if (table.schema_name, table.name) in present
            ]
            if unwanted:
                raise VerificationError(
                    f"the dump contains rows that should be excluded: {name_some(unwanted)}"
                )
            rows = sum(table.rows for table in counted)
            left_out = describe_left_out(dump.record.left_out)
            summary = f"{count(len(counted), 'table')} with {count(rows, 'row')} as counted in the snapshot"
            return f"{summary}; left out: {left_out}" if left_out else summary, {
                "tables": len(counted),
                "rows": rows,
            }

    return _verify_check(Check.DUMP_MATCHES_SNAPSHOT, read)


def verify_archive(
    path: Path,
    keys: PackKeys = NO_KEYS,
    *,
    expected_sha256: str | None = None,
    on_progress: OnProgress = lambda _size_bytes: None,
) -> tuple[CheckResult, ...]:
    """Verify an archive as `verify_archive_file` does, for a file that is not open yet."""
    with ArtifactFile(path, keys) as file:
        return verify_archive_file(file, expected_sha256=expected_sha256, on_progress=on_progress)


def verify_archive_file(
    file: ArtifactFile,
    *,
    expected_sha256: str | None = None,
    on_progress: OnProgress = lambda _size_bytes: None,
) -> tuple[CheckResult, ...]:
    """Check `archive_is_stored` and `archive_is_readable`: read every byte, unpack and compare every object.

    `expected_sha256` is the manifest's, if there is one; `on_progress` gets the number of compressed bytes as
    they are read.
    """
    digest = FileDigest(on_progress)

    def read() -> tuple[str, dict[str, Figure]]:
        with file.read_as(ArchiveFile) as archive:
            _check_name(file.path, archive.record)
            object_count = size_bytes = unproven_count = unread_tags_count = 0
            position = 0
            index = ArchiveFile(file.open_reader())
            for entry in index.read_entries():
                if entry.offset != position:
                    raise VerificationError(
                        f"there is data before object {entry.key!r} that the index does not name"
                    )
                for block in archive.read_object(entry, on_progress=digest.update):
                    size_bytes += len(block)
                position += entry.length
                object_count += 1
                unproven_count += bool(entry.unproven or entry.is_etag_verified is False)
                unread_tags_count += bool(entry.tags_note)
            if position != archive.footer.index_offset:
                raise VerificationError("there is data between the objects and the index")
            record = archive.record
            stated_unproven_count = unproven_count if record.unproven_count is None else record.unproven_count
            if (object_count, size_bytes, unproven_count) != (
                record.object_count,
                record.size_bytes,
                stated_unproven_count,
            ):
                raise VerificationError(
                    f"the index names {count(object_count, 'object')} with {size_bytes} bytes, "
                    f"{unproven_count} of them unproven, but the record states other numbers"
                )
            if unread_tags_count != record.unread_tags_count:
                raise VerificationError(
                    f"the index names {count(unread_tags_count, 'object')} whose tags could not be read, but "
                    "the record states another number"
                )
            digest.finish(partial(read_range, file, position, archive.footer.footer_offset))
            return _describe_objects(object_count, size_bytes)

    return _verify_file(
        file,
        ArtifactKind.BUCKET,
        (Check.ARCHIVE_IS_STORED, Check.ARCHIVE_IS_READABLE),
        digest,
        read,
        expected_sha256,
    )


def report_read_back(path: Path, captured: CapturedArchive) -> tuple[CheckResult, ...]:
    """Return what `verify_archive` would, from the capture's own reading of the file that it has published.

    No results when the file at `path` is not the one that was read.
    """
    try:
        identity = identify_file(path.stat())
    except OSError:
        return ()
    # Without the time of the last change, which renaming sets.
    if identity._replace(changed_ns=0) != captured.file_identity._replace(changed_ns=0):
        return ()
    record = captured.record
    summary, figures = _describe_objects(record.object_count, record.size_bytes)
    results = _make_file_results(
        path,
        (Check.ARCHIVE_IS_STORED, Check.ARCHIVE_IS_READABLE),
        {ArtifactKind.BUCKET: captured.sha256},
        identity,
        (CheckStatus.PASSED, summary, figures),
        "",
    )
    oldest = captured.oldest_reading_at
    if oldest is None:
        return results
    said = f"what is new was read back, and every other pack at {oldest:%Y-%m-%d %H:%M} UTC or later"
    objects = f"{count(record.object_count, 'object')} with {record.size_bytes} bytes"
    return tuple(
        result.model_copy(
            update={
                "oldest_reading_at": oldest,
                "summary": f"{objects}; {said}"
                if result.check is Check.ARCHIVE_IS_READABLE
                else f"{path.name}: {said}",
            }
        )
        for result in results
    )


def select_current(results: Iterable[CheckResult], path: Path) -> tuple[CheckResult, ...]:
    """Return the results of reading the whole file at `path` that still apply to it: it was not touched."""
    try:
        identity = identify_file(path.stat())
    except OSError:
        return ()
    return tuple(result for result in results if result.file_identity == identity)


def verify_every_object(path: Path, keys: PackKeys = NO_KEYS) -> CheckResult:
    """Check `every_object_is_archived`: each listed object is archived or was deleted before its read."""

    def read() -> tuple[str, dict[str, Figure]]:
        with open_archive(path, keys) as archive:
            record = archive.record
            if record.failed_count:
                first = "; ".join(f"{missed.key}: {missed.reason}" for missed in record.failed[:NAMED_LIMIT])
                raise VerificationError(f"{count(record.failed_count, 'object')} could not be read: {first}")
            if record.listed_count != record.object_count + record.deleted_count:
                raise VerificationError(
                    f"{record.listed_count} objects were listed, but {record.object_count} are in the archive"
                )
            figures: dict[str, Figure] = {
                "objects": record.object_count,
                "changed": record.changed_count,
                "deleted": record.deleted_count,
                "reused": record.reused_count,
                "unread_tags": record.unread_tags_count,
            }
            summary = (
                f"{record.object_count} of {record.listed_count} listed objects, "
                f"{record.deleted_count} deleted meanwhile"
            )
            if left_out := describe_left_out(record.left_out):
                summary += f"; left out: {left_out}"
            if record.unproven_count is None:
                summary += (
                    "; an older version created the archive and did not count objects that it could not "
                    "compare with a checksum of the server"
                )
            else:
                figures["unproven"] = record.unproven_count
            if record.unproven_count:
                summary += f"; {record.unproven_count} could not be compared with a checksum of the server"
            if record.unread_tags_count:
                summary += f"; the tags of {record.unread_tags_count} could not be read"
            return summary, figures

    return _verify_check(Check.EVERY_OBJECT_IS_ARCHIVED, read)


def _verify_file(
    file: ArtifactFile,
    kind: ArtifactKind,
    checks: tuple[Check, Check],
    digest: FileDigest,
    read: Callable[[], tuple[str, dict[str, Figure]]],
    expected_sha256: str | None,
) -> tuple[CheckResult, ...]:
    # Taken before the first byte is read: a file that changes later must then be read again.
    identity = file.identity
    try:
        summary, figures = read()
        parsed = (CheckStatus.PASSED, summary, figures)
    except VerificationError as error:
        parsed = (CheckStatus.FAILED, error.message, dict[str, Figure]())
    except PackKeyError as error:
        parsed = (CheckStatus.UNKNOWN, error.message, dict[str, Figure]())
    whole_sha256, problem = check_stored(file, kind, digest, expected_sha256)
    artifacts = {kind: whole_sha256} if whole_sha256 else {}
    return _make_file_results(file.path, checks, artifacts, identity, parsed, problem)


def _make_file_results(
    path: Path,
    checks: tuple[Check, Check],
    artifacts: dict[ArtifactKind, str],
    identity: FileIdentity | None,
    parsed: tuple[CheckStatus, str, dict[str, Figure]],
    problem: str,
) -> tuple[CheckResult, ...]:
    """Return the results of both checks; `problem` says what is wrong with the bytes, if anything is."""
    stored_check, parsed_check = checks
    status, summary, figures = parsed
    size_bytes, modified_ns = (
        (identity.size_bytes, identity.modified_ns) if identity is not None else (None, None)
    )
    return (
        CheckResult(
            check=stored_check,
            status=CheckStatus.FAILED if problem else CheckStatus.PASSED,
            summary=problem or f"{path.name} is unchanged",
            figures={"file_bytes": size_bytes} if size_bytes is not None else {},
            checked_at=_now(),
            artifacts=artifacts,
            file_modified_ns=modified_ns,
            file_identity=identity,
        ),
        CheckResult(
            check=parsed_check,
            status=status,
            summary=summary,
            figures=figures,
            checked_at=_now(),
            artifacts=artifacts,
            file_identity=identity,
        ),
    )


def _describe_objects(object_count: int, size_bytes: int) -> tuple[str, dict[str, Figure]]:
    return (
        f"{count(object_count, 'object')} with {size_bytes} bytes, each as captured",
        {"objects": object_count, "size_bytes": size_bytes},
    )


def _verify_check(check: Check, read: Callable[[], tuple[str, dict[str, Figure]]]) -> CheckResult:
    try:
        summary, figures = read()
    except VerificationError as error:
        return make_result(check, CheckStatus.FAILED, error.message, {})
    except PackKeyError as error:
        return make_result(check, CheckStatus.UNKNOWN, error.message, {})
    return make_result(check, CheckStatus.PASSED, summary, figures)


def make_result(check: Check, status: CheckStatus, summary: str, figures: dict[str, Figure]) -> CheckResult:
    """Return the result of a check that has just ended."""
    return CheckResult(check=check, status=status, summary=summary, figures=figures, checked_at=_now())


def _check_name(path: Path, record: DumpRecord | ArchiveRecord) -> None:
    name = ArtifactName.from_file_name(path.name)
    source = record.source_name or (record.database if isinstance(record, DumpRecord) else record.bucket)
    if name is not None and (name.point_id.text, name.source_name) != (record.point_id, source):
        raise VerificationError(
            f"{path.name} contains {source} of point {record.point_id}: the file was exchanged or renamed"
        )


def _check_tables_lie_right(dump: DumpFile) -> None:
    position = 0
    for table in dump.tables:
        if table.offset < position or table.offset + table.length > dump.record.content_length:
            raise VerificationError(f"table {table.qualified_name} is not where the index says")
        position = table.offset + table.length


def _now() -> datetime:
    return datetime.now(timezone.utc)
