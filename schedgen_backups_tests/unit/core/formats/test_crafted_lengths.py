"""Files with false lengths are refused at once, without reading or holding what they claim."""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.archive_file import INDEX_NAME, ArchiveFile
from schedgen_backups.core.formats.dump_file import DumpFile
from schedgen_backups.core.formats.gzip_members import compress_member, footer_member, read_members
from schedgen_backups_tests.support.artifacts import make_entry, make_tar_header

LONG = 300
"""Mebibytes; compressed, they take less than one."""


def make_file(*members: bytes) -> io.BytesIO:
    content = b"".join(members)
    return io.BytesIO(content + footer_member(0, hashlib.sha256(content).digest()))


@contextmanager
def cheap_refusal(message: str) -> Iterator[None]:
    """Assert a VerificationError with this message, raised soon and with little memory used."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(VerificationError, match=message):
            yield
        assert time.monotonic() - started < 5
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "read",
    [lambda file: ArchiveFile(file).record, lambda file: DumpFile(file).record],
    ids=["archive", "dump"],
)
def test_an_index_that_is_one_long_line_is_refused(read: Callable[[io.BytesIO], object]) -> None:
    file = make_file(make_tar_header(INDEX_NAME, LONG << 20), *[compress_member(b"x" * (1 << 20))] * LONG)
    with cheap_refusal("too long"):
        read(file)


def test_an_oversized_header_is_refused() -> None:
    members = (
        make_tar_header("././@PaxHeader", LONG << 20, tarfile.XHDTYPE),
        *[compress_member(b"1" * (1 << 20))] * LONG,
    )
    file = make_file(*members)
    entry = make_entry("key", b"").model_copy(update={"length": sum(map(len, members))})
    with cheap_refusal("header of an object is too long"):
        list(ArchiveFile(file).read_object(entry))


def test_endless_bytes_after_an_object_are_refused() -> None:
    entry = make_entry("key", b"")
    info = tarfile.TarInfo("key")
    info.pax_headers = {"comment": '{"key":"key"}'}
    members = (compress_member(info.tobuf(tarfile.PAX_FORMAT)), *[compress_member(bytes(1 << 20))] * LONG)
    with cheap_refusal("unexpected data after"):
        list(
            ArchiveFile(make_file(*members)).read_object(
                entry.model_copy(update={"length": sum(map(len, members))})
            )
        )


def test_an_index_with_a_negative_size_is_refused() -> None:
    with cheap_refusal("no index"):
        _ = ArchiveFile(make_file(make_tar_header(INDEX_NAME, -1))).record


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, -1), (1 << 63, 1), (0, 1 << 63)])
def test_an_invalid_offset_is_refused(offset: int, length: int) -> None:
    with cheap_refusal("position in the file"):
        list(read_members(io.BytesIO(compress_member(b"x")), offset, length))


@pytest.mark.parametrize("field", ["size_bytes", "offset", "length"])
@pytest.mark.parametrize("value", [-1, 1 << 63])
def test_an_entry_with_an_impossible_number_is_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        make_entry("key", b"", **{field: value})
