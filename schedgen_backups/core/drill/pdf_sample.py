"""Open a sample of objects as the application does: key from the restored database, object from the bucket.

PDFs and images are parsed; for other types only the bytes are compared. The sample differs for each recovery
point. The comparison of all objects is in `restore`; verdicts on missing keys are in `verify.references`.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import IO

from PIL import Image
from pypdf import PdfReader

from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus, Figure
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.model import Manifest, ReferenceState, ReferenceVerdict
from schedgen_backups.core.patterns import matches_any_key
from schedgen_backups.core.postgres.connection import STALL_TIMEOUT_SECONDS
from schedgen_backups.core.postgres.object_keys import read_references
from schedgen_backups.core.postgres.snapshot import open_snapshot
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.s3.refusals import ObjectGoneError
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, References, TransferSettings
from schedgen_backups.core.verify.files import make_result, name_some

# pypdf warns of every oddity that it can handle.
logging.getLogger("pypdf").setLevel(logging.ERROR)

SAMPLE_SIZE = 20
_IN_MEMORY_BYTES = 8 << 20
_PDF_TYPE = "application/pdf"
_IMAGE_TYPE = "image/"
_DRAWINGS = frozenset(
    {"image/svg+xml", "image/heic", "image/heif", "image/avif", "image/vnd.dwg", "image/x-icon"}
)
"""Images that Pillow cannot read, or not everywhere; their bytes are only compared."""
_HARMLESS_VERDICTS = frozenset({ReferenceVerdict.DELETED, ReferenceVerdict.MISSING})


@dataclass
class _Tally:
    """Counts of the sample so far."""

    opened: int = 0
    compared: int = 0
    missing: int = 0
    images: int = 0
    unreadable: list[str] = field(default_factory=list[str])
    """Objects with the recorded bytes that cannot be read as their type."""

    def figures(self) -> dict[str, Figure]:
        return {
            "pdfs_opened": self.opened,
            "images_opened": self.images,
            "objects_compared_only": self.compared,
            "references_missing_as_recorded": self.missing,
            "pdfs_unreadable": len(self.unreadable),
        }


def open_referenced_pdfs(
    point: PointListing,
    database: DatabaseSettings,
    bucket: BucketSettings,
    transfer: TransferSettings,
    *,
    on_progress: Callable[[int], object] = lambda _size_bytes: None,
) -> CheckResult:
    """Check `referenced_pdfs_open` on a sample of the objects to which the restored database refers.

    Each must be in the restored bucket with the recorded bytes, and parse as PDF or image. Objects of another
    content type are compared but not parsed; a key recorded as missing with a harmless verdict is counted.
    The result is unknown when recorded bytes cannot be read as their type, and not configured when the point
    has no references. Raises errors of database and bucket. `on_progress` gets each object's size in bytes.
    """
    with point.open_dump() as dump:
        record = dump.record
    if record.reference_state is ReferenceState.NOT_CONFIGURED:
        return make_result(Check.REFERENCED_PDFS_OPEN, CheckStatus.NOT_CONFIGURED, record.reference_note, {})
    references, limit_seconds = (
        References(record.reference_query, built_in=None),
        transfer.stall_timeout_seconds,
    )
    random = Random(point.point_id.text)  # noqa: S311 - a sample
    with point.open_archive() as archive:
        excluded_patterns = archive.record.excluded_patterns
    count, keys = _pick_keys(
        database, references, random, excluded_patterns, stall_timeout_seconds=limit_seconds
    )
    figures: dict[str, Figure] = {"references": count, "sampled": len(keys)}
    if (refusal := _judge_keys(count, keys, record.reference_count, figures)) is not None:
        return refusal
    with point.open_archive() as archive:
        entries = {entry.key: entry for entry in archive.find_entries(frozenset(keys))}
    tally = _Tally()
    problems: list[str] = []
    with BucketClient(bucket, threads=1, stall_timeout_seconds=transfer.stall_timeout_seconds) as client:
        for key in keys:
            entry = entries.get(key)
            if entry is not None:
                problem = _find_problem(client, entry, tally)
                on_progress(entry.size_bytes)
            else:
                problem = "" if is_missing_as_recorded(point.manifest, key) else "not in the archive"
                tally.missing += not problem
            if problem:
                problems.append(f"{key} ({problem})")
    figures |= tally.figures()
    if problems:
        summary = (
            f"{len(problems)} of {len(keys)} sampled objects differ from the captured ones: "
            f"{name_some(problems)}"
        )
        return make_result(Check.REFERENCED_PDFS_OPEN, CheckStatus.FAILED, summary, figures)
    if tally.unreadable:
        # Whether the application could ever open it is unknown; the recovery point has the original bytes.
        summary = (
            f"{len(tally.unreadable)} of {len(keys)} sampled objects have the captured bytes but cannot be "
            "read as their content type, so they could not be read when they were backed up: "
            f"{name_some(tally.unreadable)}"
        )
        return make_result(Check.REFERENCED_PDFS_OPEN, CheckStatus.UNKNOWN, summary, figures)
    opened = f"{tally.opened} PDFs and {tally.images} images" if tally.images else f"{tally.opened} PDFs"
    summary = f"{opened} of {count} references were found by key in the database, fetched and opened"
    if tally.compared:
        summary += f"; {tally.compared} objects of another type have the recorded bytes"
    if tally.missing:
        summary += f"; {tally.missing} keys have no object, as recorded"
    return make_result(Check.REFERENCED_PDFS_OPEN, CheckStatus.PASSED, summary, figures)


def pick_referenced_keys(
    point: PointListing, database: DatabaseSettings, sample_count: int, *, stall_timeout_seconds: float
) -> tuple[int, list[str]]:
    """Return the number of the restored database's references, and as many of them at random.

    SAMPLE_SIZE of them are those that `open_referenced_pdfs` opens. (0, []) without a reference query.
    """
    with point.open_dump() as dump:
        record = dump.record
    if record.reference_state is ReferenceState.NOT_CONFIGURED:
        return 0, []
    with point.open_archive() as archive:
        excluded_patterns = archive.record.excluded_patterns
    return _pick_keys(
        database,
        References(record.reference_query, built_in=None),
        Random(point.point_id.text),  # noqa: S311 - a sample
        excluded_patterns,
        sample_count=sample_count,
        stall_timeout_seconds=stall_timeout_seconds,
    )


def _judge_keys(
    count: int, keys: list[str], expected_count: int, figures: dict[str, Figure]
) -> CheckResult | None:
    """Return the result when it is known without opening an object, else None."""
    if count != expected_count:
        summary = (
            f"the restored database refers to {count} objects, but the snapshot refers to {expected_count}"
        )
        return make_result(Check.REFERENCED_PDFS_OPEN, CheckStatus.FAILED, summary, figures)
    if count and not keys:
        summary = (
            f"all {count} references are to objects that BACKUP_EXCLUDE_OBJECTS excludes: none could be "
            "opened"
        )
        return make_result(Check.REFERENCED_PDFS_OPEN, CheckStatus.NOT_CONFIGURED, summary, figures)
    return None


def _pick_keys(
    database: DatabaseSettings,
    references: References,
    random: Random,
    excluded_patterns: Sequence[str] = (),
    *,
    sample_count: int = SAMPLE_SIZE,
    stall_timeout_seconds: float = STALL_TIMEOUT_SECONDS,
) -> tuple[int, list[str]]:
    """Return the number of keys of the query, and a sample of those that are not excluded.

    Reservoir sampling, algorithm R (Knuth, TAOCP 3.4.2).
    """
    picked: list[str] = []
    count = eligible = 0
    with open_snapshot(database, stall_timeout_seconds=stall_timeout_seconds) as snapshot:
        for key in _flatten(read_references(snapshot, references)):
            count += 1
            if matches_any_key(excluded_patterns, key):
                continue
            eligible += 1
            if len(picked) < sample_count:
                picked.append(key)
            elif (place := random.randrange(eligible)) < sample_count:
                picked[place] = key
    return count, picked


def _flatten(pages: Iterator[list[str]]) -> Iterator[str]:
    for page in pages:
        yield from page


def _find_problem(client: BucketClient, entry: ObjectEntry, tally: _Tally) -> str:
    """Return what is wrong with the object in the bucket; empty when nothing is."""
    digest = hashlib.sha256()
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as file:
        try:
            with client.open_object(entry.key) as opened:
                if opened.head.size_bytes != entry.size_bytes:
                    return "not the recorded bytes"
                for block in opened.read_blocks():
                    digest.update(block)
                    file.write(block)
        except ObjectGoneError:
            return "not in the bucket"
        if (file.tell(), digest.hexdigest()) != (entry.size_bytes, entry.sha256):
            return "not the recorded bytes"
        file.seek(0)
        content_type = entry.content_type.lower()
        if content_type.startswith(_PDF_TYPE):
            unreadable = _find_pdf_problem(file)
            tally.opened += not unreadable
        elif content_type.startswith(_IMAGE_TYPE) and content_type not in _DRAWINGS:
            unreadable = _find_image_problem(file)
            tally.images += not unreadable
        else:
            tally.compared += 1
            return ""
        if unreadable:
            tally.unreadable.append(f"{entry.key} ({unreadable})")
        return ""


def _find_pdf_problem(file: IO[bytes]) -> str:
    """Return why the file cannot be read as a PDF; empty when it can."""
    try:
        reader = PdfReader(file)
        # The pages of an encrypted file are not readable here; header, xref table and trailer were read.
        if not reader.is_encrypted and len(reader.pages) == 0:
            return "no pages"
    except Exception as error:  # noqa: BLE001 - a broken file makes pypdf raise whatever its bytes lead to
        return type(error).__name__
    return ""


def _find_image_problem(file: IO[bytes]) -> str:
    """Return why the file cannot be read as an image; empty when it can.

    For a type that Pillow does not support, the reason is Pillow's error.
    """
    try:
        Image.open(file).verify()
    except Exception as error:  # noqa: BLE001 - a broken file makes Pillow raise whatever its bytes lead to
        return type(error).__name__
    return ""


def is_missing_as_recorded(manifest: Manifest | None, key: str) -> bool:
    """Return whether the point's manifest gives a harmless reason why the key has no object."""
    if manifest is None:
        return False
    recorded = next(
        (reference.verdict for reference in manifest.references.missing if reference.key == key), None
    )
    # The manifest lists the first thousand, the most serious first.
    return recorded in _HARMLESS_VERDICTS if recorded is not None else manifest.references.is_coherent
