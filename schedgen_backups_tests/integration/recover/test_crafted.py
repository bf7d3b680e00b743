"""Crafted files: the stand-alone script refuses false lengths and takes no text for structure."""

from __future__ import annotations

import hashlib
import io
import resource
import runpy
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.formats.archive_file import INDEX_NAME
from schedgen_backups.core.formats.dump_sections import LargeObjectFilter
from schedgen_backups.core.formats.gzip_members import compress_member, footer_member
from schedgen_backups_tests.support.artifacts import ARCHIVE_NAME, DUMP_NAME, POINT, cut, make_tar_header
from schedgen_backups_tests.support.recover import SCRIPT

LONG = 300
"""Mebibytes; compressed, they take less than one."""
MEMORY_BYTES = 1 << 30
pytestmark = pytest.mark.integration

SCRIPT_NAMES: dict[str, Any] = runpy.run_path(str(SCRIPT))
PIECES = [
    b"BEGIN;\n",
    b"COMMIT;\n",
    b"-- Data for Name: BLOBS; Type: BLOBS; Schema: -\n",
    b"-- Name: x; Type: INDEX; Schema: y\n",
]
QUOTES = [
    b"'",
    b"''",
    b"E'",
    b"\\",
    b"\\'",
    b'"',
    b"$$",
    b"$a$",
    b"a$b",
    b"--",
    b"\n",
    b" ",
    b"x",
    b"/*",
    b"*/",
]


def make_file(path: Path, *members: bytes) -> Path:
    content = b"".join(members)
    path.write_bytes(content + footer_member(0, hashlib.sha256(content).digest()))
    return path


def verify(path: Path) -> subprocess.CompletedProcess[str]:
    """Verify the folder with the script, with little memory."""
    words = [sys.executable, "-I", str(SCRIPT), "verify", str(path.parent), POINT]
    limit: Callable[[], None] = lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))  # noqa: E731 - for preexec_fn
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, preexec_fn=limit)


@pytest.mark.parametrize("name", [ARCHIVE_NAME, DUMP_NAME], ids=["archive", "dump"])
def test_an_index_that_is_one_long_line_is_refused(name: str, tmp_path: Path) -> None:
    header = [make_tar_header(INDEX_NAME, LONG << 20)] if name == ARCHIVE_NAME else []
    done = verify(make_file(tmp_path / name, *header, *[compress_member(b"x" * (1 << 20))] * LONG))
    assert (done.returncode, "a line of the index is too long" in done.stderr) == (3, True), done.stderr


def test_an_oversized_header_is_refused() -> None:
    members = [
        make_tar_header("././@PaxHeader", LONG << 20, tarfile.XHDTYPE),
        *[compress_member(b"1" * (1 << 20))] * LONG,
    ]
    entry = SCRIPT_NAMES["Entry"](
        key="key", size_bytes=0, sha256="", member_name="key", offset=0, length=sum(map(len, members))
    )
    tracemalloc.start()
    try:
        with pytest.raises(SCRIPT_NAMES["RecoverError"], match="too long"):
            list(SCRIPT_NAMES["Archive"].read_object(None, io.BytesIO(b"".join(members)), entry))
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, -5), (1 << 63, 1), (0, 1 << 63)])
def test_an_invalid_offset_is_damage(offset: int, length: int) -> None:
    with pytest.raises(SCRIPT_NAMES["RecoverError"], match="an invalid position"):
        list(SCRIPT_NAMES["read_members"](io.BytesIO(b"x"), offset, length))


@given(st.lists(st.sampled_from(PIECES + QUOTES), max_size=30), st.data())
def test_it_leaves_out_the_same_transactions_as_the_package(pieces: list[bytes], data: st.DataObject) -> None:
    """Except with nested comments, which pg_dump never writes."""
    text = b"".join(pieces).replace(b"/*", b"")
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    own = LargeObjectFilter()
    expected = own.filter_text(text) + own.flush()
    assert b"".join(SCRIPT_NAMES["leave_out_commits"](cut(text, borders))) == expected
