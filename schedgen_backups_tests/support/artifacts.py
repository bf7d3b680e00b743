"""Small artifacts made without a server: entries, archives and dumps with chosen content.

They use the same writers as a capture. Add a helper when a second file needs it; servers and their fixtures
belong to `conftest` and `servers`.
"""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import BinaryIO, cast

from schedgen_backups.core.capture.capture import take_bucket_archive, take_database_dump
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus
from schedgen_backups.core.formats.archive_writer import ArchiveFileWriter, CapturedArchive
from schedgen_backups.core.formats.dump_file import CapturedDump, DumpFileWriter
from schedgen_backups.core.formats.dump_text import DumpDigest, DumpFacts, split_dump
from schedgen_backups.core.formats.gzip_members import compress_member
from schedgen_backups.core.formats.records import ArchiveRecord, DumpRecord, ObjectEntry
from schedgen_backups.core.formats.tar_member import MemberNames, pack_object
from schedgen_backups.core.model import ArtifactKind, ArtifactName, RecoveryPointId, ReferenceState
from schedgen_backups.core.settings import (
    SCHEDGEN_KEYS,
    BucketSettings,
    CaptureSettings,
    DatabaseSettings,
    References,
    TransferSettings,
)
from schedgen_backups.core.verify.live_system import LiveApplication

POINT = "20261122_020000"
_OF_THE_DIRECTORY = frozenset({".lock", ".records.lock", "site.json", "missing_objects.json"})
"""Files that belong to no point."""
TAKEN_AT = datetime(2026, 11, 22, 2, 0, tzinfo=timezone.utc)
DUMP_NAME = f"db_schedgen_{POINT}.sql.gz"
ARCHIVE_NAME = f"minio_schedgen-pdfs_{POINT}.tar.gz"
DUMP_HEAD = (
    b"--\n-- PostgreSQL database dump\n--\n\n\\restrict abc123\n\n-- Dumped from database version 18.6\n"
    b"-- Dumped by pg_dump version 18.6\n\nSET statement_timeout = 0;\n\n"
)
DUMP_TAIL = b"--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc123\n\n"


@dataclass(frozen=True)
class TableText:
    """A table for a dump: `columns` without quotes, `rows` in COPY's text form without newlines."""

    name: str
    rows: tuple[bytes, ...]
    schema_name: str = "public"
    columns: tuple[str, ...] = ("a",)

    @property
    def row_data(self) -> bytes:
        return b"".join(row + b"\n" for row in self.rows)

    @property
    def text(self) -> bytes:
        """Return pg_dump's text for it; pg_dump writes a space for a newline in its comments."""
        spoken = self.name.replace("\n", " ").replace("\r", " ")
        columns = f"({', '.join(map(quote_name, self.columns))}) " if self.columns else ""
        statement = f"COPY {quote_name(self.schema_name)}.{quote_name(self.name)} {columns}FROM stdin;\n"
        comment = f"--\n-- Data for Name: {spoken}; Type: TABLE DATA; Schema: x; Owner: x\n--\n\n"
        return (comment + statement).encode() + self.row_data + b"\\.\n\n\n"


def make_tar_header(name: str, size_bytes: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a gzip member with a tar header that claims this length."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size_bytes, kind
    return compress_member(info.tobuf(tarfile.GNU_FORMAT))


def quote_name(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def make_dump_text(tables: Iterable[TableText], *, head: bytes = DUMP_HEAD, tail: bytes = DUMP_TAIL) -> bytes:
    return head + b"".join(table.text for table in tables) + tail


def read_facts(blocks: Iterable[bytes]) -> DumpFacts:
    digest = DumpDigest()
    for segment in split_dump(blocks):
        digest.add(segment)
    return digest.facts()


def make_noise(size_bytes: int, seed: int = 1) -> bytes:
    """Return bytes that do not compress, the same for the same seed."""
    return Random(seed).randbytes(size_bytes)  # noqa: S311 - nothing secret


def cut(data: bytes, borders: Iterable[int]) -> list[bytes]:
    """Return the data in pieces, cut at these positions; a repeated position gives an empty piece."""
    positions = [0, *sorted(borders), len(data)]
    return [data[start:end] for start, end in pairwise(positions)]


def write_dump(
    path: Path, tables: Sequence[TableText], *, point_id: str = POINT, references: Sequence[str] = ()
) -> CapturedDump:
    counted = {(table.schema_name, table.name): len(table.rows) for table in tables}
    return write_dump_text(path, make_dump_text(tables), counted, point_id=point_id, references=references)


def write_dump_text(
    path: Path,
    text: bytes,
    counted: dict[tuple[str, str], int] | None = None,
    *,
    point_id: str = POINT,
    references: Sequence[str] = (),
    roles: str = 'CREATE ROLE "schedgen";',
    **fields: object,
) -> CapturedDump:
    """Write a dump of any text, sound in itself, as anyone who can write files could create it.

    `fields` belong to its record.
    """
    with path.open("wb") as file, DumpFileWriter(cast("BinaryIO", file), threads=2) as writer:
        for segment in split_dump([text]):
            writer.add(segment)
        writer.add_references(list(references))
        contents = writer.facts()
        record = DumpRecord(
            tool_version="test",
            point_id=point_id,
            database="schedgen",
            server_version="18.6",
            server_major=18,
            client_version="18.6",
            snapshot_at=TAKEN_AT,
            finished_at=TAKEN_AT,
            encoding="UTF8",
            table_count=len(contents.tables),
            row_count=sum(table.rows for table in contents.tables),
            relation_count=len(contents.tables),
            large_object_count=0,
            size_bytes=contents.size_bytes,
            text_sha256=contents.text_sha256,
            comparable_sha256=contents.comparable_sha256,
            content_length=writer.content_length,
            reference_state=ReferenceState.READ,
            reference_query="SELECT s3_key FROM jobs",
            reference_count=writer.reference_count,
            role_count=0,
        )
        return writer.finish(record.model_copy(update=fields), counted or {}, roles)


def make_entry(key: str, data: bytes, *, member_name: str | None = None, **fields: object) -> ObjectEntry:
    """Return an entry that fits the data; its offset in a file is not set yet."""
    values: dict[str, object] = {
        "key": key,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "etag": hashlib.md5(data, usedforsecurity=False).hexdigest(),
        "modified_at": TAKEN_AT,
        "content_type": "application/pdf",
        "member_name": key if member_name is None else member_name,
        "offset": 0,
        "length": 0,
    }
    return ObjectEntry.model_validate({**values, **fields})


def write_archive(
    path: Path, objects: Iterable[tuple[ObjectEntry, bytes]], *, point_id: str = POINT, **fields: object
) -> CapturedArchive:
    """Write an archive; member names are chosen as in a capture. `fields` belong to its record."""
    names = MemberNames()
    with (
        path.open("w+b") as file,
        ArchiveFileWriter(cast("BinaryIO", file), threads=2, folder=path.parent) as writer,
    ):
        for entry, data in objects:
            writer.add_packed(
                pack_object(entry.model_copy(update={"member_name": names.choose(entry.key)}), data)
            )
        return writer.finish(make_record(writer, point_id).model_copy(update=fields))


def make_record(writer: ArchiveFileWriter, point_id: str = POINT) -> ArchiveRecord:
    """Return the record of a successful capture that ends here."""
    return ArchiveRecord(
        tool_version="test",
        point_id=point_id,
        bucket="schedgen-pdfs",
        endpoint="127.0.0.1:9000",
        listed_at=TAKEN_AT,
        finished_at=TAKEN_AT,
        listed_count=writer.object_count,
        object_count=writer.object_count,
        size_bytes=writer.size_bytes,
        changed_count=0,
        deleted_count=0,
        failed_count=0,
        unproven_count=writer.unproven_count,
        unread_tags_count=writer.unread_tags_count,
    )


def make_result(check: Check, status: CheckStatus = CheckStatus.PASSED, **fields: object) -> CheckResult:
    values: dict[str, object] = {"check": check, "status": status, "summary": "seen", "checked_at": TAKEN_AT}
    return CheckResult.model_validate({**values, **fields})


def make_transfer(**fields: object) -> TransferSettings:
    """Return settings with few threads and short time limits, so that tests of hangs end soon."""
    values: dict[str, object] = {"compression_threads": 2, "download_threads": 4, "stall_timeout_seconds": 60}
    return TransferSettings(**{**values, **fields})  # type: ignore[arg-type]


def make_capture(**values: object) -> CaptureSettings:
    """Return the settings of a capture; fields of the transfer and the references may be given by name."""
    own = {field.name for field in fields(CaptureSettings)}
    capture = {name: value for name, value in values.items() if name in own}
    if "reference_query" in values:
        capture["references"] = References(
            str(values["reference_query"]),
            built_in=SCHEDGEN_KEYS if values.get("is_reference_query_default", True) else None,
        )
    others = {
        name: value for name, value in values.items() if name not in own and "reference_query" not in name
    }
    return CaptureSettings(transfer=make_transfer(**others), **capture)  # type: ignore[arg-type]


def make_live(database: DatabaseSettings, bucket: BucketSettings, **values: object) -> LiveApplication:
    """Return the live system to query."""
    capture = make_capture(**values)
    return LiveApplication(database, bucket, capture.transfer, capture.references)


def publish_dump(
    catalog: Catalog, database: DatabaseSettings, point_id: str = POINT, **fields: object
) -> Path:
    """Publish a real dump in the directory."""
    take_database_dump(catalog, database, make_capture(**fields), RecoveryPointId(point_id))
    return (
        catalog.directory
        / ArtifactName(ArtifactKind.DATABASE, database.database, RecoveryPointId(point_id)).to_file_name()
    )


def publish_archive(
    catalog: Catalog, bucket: BucketSettings, point_id: str = POINT, **fields: object
) -> Path:
    """Publish a real archive in the directory."""
    take_bucket_archive(catalog, bucket, make_capture(**fields), RecoveryPointId(point_id))
    return (
        catalog.directory
        / ArtifactName(ArtifactKind.BUCKET, bucket.bucket, RecoveryPointId(point_id)).to_file_name()
    )


def get_status(results: Iterable[CheckResult], check: Check) -> CheckStatus:
    return next(result.status for result in results if result.check is check)


def get_summary(results: Iterable[CheckResult], check: Check) -> str:
    return next(result.summary for result in results if result.check is check)


def is_refused(results: Iterable[CheckResult]) -> bool:
    return any(result.status is CheckStatus.FAILED for result in results)


def run_tool(*words: str | Path, cwd: Path, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """Return exit code, stdout and stderr of a stock tool, run in a UTF-8 locale."""
    finished = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        check=False,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "LC_ALL": "C.UTF-8"},
    )
    return finished.returncode, finished.stdout, finished.stderr.decode("utf-8", "replace")


def list_files(folder: Path) -> list[str]:
    """Return every file below the folder except staging, lock and history, as sorted relative paths."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name not in _OF_THE_DIRECTORY and not path.match("history*.jsonl")
    )


def damage(data: bytes, position: int) -> bytes:
    """Return the data with one bit flipped; `position` counts bits."""
    changed = bytearray(data)
    changed[position // 8] ^= 1 << (position % 8)
    return bytes(changed)


def spoken_by(error: BaseException) -> str:
    """Return every text that an error and its causes would show, in a traceback too."""
    return "".join(traceback.format_exception(error))
