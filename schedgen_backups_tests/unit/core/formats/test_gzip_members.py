"""Gzip files of many members: stock tools read them, their parts are found again, and damage is detected.

Files here are small and made in memory. `test_archive_file` and `test_dump_file` test what members of real
artifacts hold; the integration tests run stock tools on whole artifacts.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import subprocess
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.gzip_members import (
    BLOCK_BYTES,
    FOOTER_BYTES,
    compress_member,
    is_compressible,
    read_footer,
    read_members,
    store_member,
)
from schedgen_backups.core.formats.gzip_writer import DigestedMemberWriter, MemberWriter
from schedgen_backups_tests.support.artifacts import damage, make_noise

PACKERS: dict[str, Callable[..., bytes]] = {"compressed": compress_member, "stored": store_member}
Block = tuple[bytes, str]
blocks_strategy = st.lists(
    st.tuples(st.binary(max_size=2000), st.sampled_from(sorted(PACKERS))), min_size=1, max_size=12
)


def write_file(blocks: list[Block], *, threads: int = 2) -> tuple[bytes, list[int], str]:
    """Return the file, the start of each block's member, and the writer's digest of the file."""
    file = io.BytesIO()
    offsets: list[int] = []
    with DigestedMemberWriter(file, threads=threads) as writer:
        for data, packer in blocks:
            writer.call_at_position(offsets.append)
            writer.write_block(data, PACKERS[packer])
        writer.flush()
        sha256 = writer.finish(offsets[-1])
    return file.getvalue(), offsets, sha256


def is_damage_seen(data: bytes) -> bool:
    """Return whether footer, members or digest show that the bytes differ from what was written."""
    file = io.BytesIO(data)
    try:
        footer = read_footer(file)
        for _block in read_members(file, 0, footer.footer_offset):
            pass
    except VerificationError:
        return True
    return hashlib.sha256(data[: footer.footer_offset]).hexdigest() != footer.content_sha256


@given(blocks_strategy)
def test_the_standard_library_unpacks_it_unchanged(blocks: list[Block]) -> None:
    data, _offsets, sha256 = write_file(blocks)
    assert gzip.decompress(data) == b"".join(block for block, _packer in blocks)
    assert sha256 == hashlib.sha256(data).hexdigest()


@given(blocks_strategy)
@settings(max_examples=15, deadline=None)
def test_the_gzip_program_tests_and_unpacks_it_without_a_warning(blocks: list[Block]) -> None:
    data, _offsets, _sha256 = write_file(blocks)
    tested = subprocess.run(["gzip", "-t"], input=data, capture_output=True, check=False)
    unpacked = subprocess.run(["gunzip", "-c"], input=data, capture_output=True, check=False)
    assert (tested.returncode, tested.stdout, tested.stderr) == (0, b"", b"")
    assert (unpacked.returncode, unpacked.stderr) == (0, b"")
    assert unpacked.stdout == b"".join(block for block, _packer in blocks)


@given(blocks_strategy)
def test_each_block_is_read_alone_from_its_own_range(blocks: list[Block]) -> None:
    data, offsets, _sha256 = write_file(blocks)
    ends = [*offsets[1:], len(data) - FOOTER_BYTES]
    for (block, _packer), start, end in zip(blocks, offsets, ends, strict=True):
        assert b"".join(read_members(io.BytesIO(data), start, end - start)) == block


@given(blocks_strategy)
def test_the_footer_gives_the_offset_of_the_index_and_what_precedes_it(blocks: list[Block]) -> None:
    data, offsets, _sha256 = write_file(blocks)
    footer = read_footer(io.BytesIO(data))
    assert footer.index_offset == offsets[-1]
    assert footer.footer_offset == len(data) - FOOTER_BYTES
    assert footer.content_sha256 == hashlib.sha256(data[: footer.footer_offset]).hexdigest()


@given(blocks_strategy)
def test_observers_get_every_compressed_byte_once_and_in_order(blocks: list[Block]) -> None:
    data, _offsets, _sha256 = write_file(blocks)
    length = len(data) - FOOTER_BYTES
    seen: list[bytes] = []
    for _block in read_members(io.BytesIO(data), 0, length, on_progress=seen.append):
        pass
    assert b"".join(seen) == data[:length]


def test_blocks_larger_than_a_stored_piece_are_read_back() -> None:
    """Deflate's stored blocks hold 65,535 bytes, so a longer one is several of them."""
    for size_bytes in (65534, 65535, 65536, 3 * 65535, BLOCK_BYTES + 1):
        content = make_noise(size_bytes, size_bytes)
        assert gzip.decompress(store_member(content)) == content
        assert gzip.decompress(compress_member(content)) == content


def test_every_truncation_of_a_file_is_found() -> None:
    data, _offsets, _sha256 = write_file(
        [(b"first " * 40, "compressed"), (b"second", "stored"), (b"", "compressed")]
    )
    assert not is_damage_seen(data)
    for length in range(len(data)):
        assert is_damage_seen(data[:length]), length


def test_every_flipped_bit_of_a_file_is_found() -> None:
    data, _offsets, _sha256 = write_file(
        [(b"first " * 40, "compressed"), (b"second", "stored"), (b"", "compressed")]
    )
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        assert is_damage_seen(bytes(changed)), bit


@pytest.mark.parametrize("extra", [b"\0", b"\n", compress_member(b"more")])
def test_bytes_after_the_footer_are_found(extra: bytes) -> None:
    data, _offsets, _sha256 = write_file([(b"content", "compressed")])
    with pytest.raises(VerificationError, match="does not end with the footer"):
        read_footer(io.BytesIO(data + extra))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\0" * FOOTER_BYTES, gzip.compress(b"from the old script" * 100, mtime=0)]
)
def test_other_files_have_no_footer(data: bytes) -> None:
    with pytest.raises(VerificationError, match="does not end with the footer"):
        read_footer(io.BytesIO(data))


def test_a_range_that_ends_inside_a_member_is_refused() -> None:
    member = compress_member(b"some text that is compressed" * 50)
    for length in range(1, len(member)):
        with pytest.raises(VerificationError, match="ends inside a gzip member"):
            list(read_members(io.BytesIO(member), 0, length))
    with pytest.raises(VerificationError, match="ends too early"):
        list(read_members(io.BytesIO(member), 0, len(member) + 1))


@pytest.mark.parametrize("size_bytes", [5_000, 300_000, 3 * BLOCK_BYTES])
def test_nothing_of_a_damaged_piece_is_read(size_bytes: int) -> None:
    whole, piece = b"whole" * 1000, make_noise(size_bytes, 7)
    file = compress_member(whole) + compress_member(piece)
    found: list[bytes] = []
    # The last eight bytes are a checksum and the length.
    damaged = io.BytesIO(damage(file, 8 * (len(file) - 5)))
    with pytest.raises(VerificationError):
        found.extend(read_members(damaged, 0, len(file)))
    assert b"".join(found) == whole
    assert b"".join(read_members(io.BytesIO(file), 0, len(file))) == whole + piece


def test_rollback_discards_what_came_after_the_offset() -> None:
    file = io.BytesIO()
    with MemberWriter(file, threads=2) as writer:
        writer.write_block(b"kept" * 1000)
        start = writer.flush()
        for _ in range(5):
            writer.write_block(make_noise(5000, 1), store_member)
        writer.rollback(start)
        writer.write_block(b"after")
        length = writer.flush()
    expected, _offsets, _sha256 = write_file([(b"kept" * 1000, "compressed"), (b"after", "compressed")])
    assert file.getvalue() == expected[:-FOOTER_BYTES]
    assert length == len(file.getvalue())


def test_rollback_to_one_offset_works_more_than_once() -> None:
    file = io.BytesIO()
    with MemberWriter(file, threads=1) as writer:
        writer.write_block(b"kept")
        start = writer.flush()
        for attempt in (b"first", b"second", b"third"):
            writer.write_block(attempt)
            writer.rollback(start)
        writer.write_block(b"last")
        writer.flush()
    assert gzip.decompress(file.getvalue()) == b"keptlast"


def test_blocks_stay_in_order_when_a_later_one_is_compressed_first() -> None:
    later_is_done = threading.Event()

    def compress_last(data: bytes) -> bytes:
        assert later_is_done.wait(30)
        return compress_member(data)

    def compress_first(data: bytes) -> bytes:
        later_is_done.set()
        return compress_member(data)

    file = io.BytesIO()
    with DigestedMemberWriter(file, threads=2) as writer:
        writer.write_block(b"1", compress_last)
        writer.write_block(b"2", compress_first)
        writer.write_member(store_member(b"3"))
        writer.write_block(b"4")
        writer.finish(writer.flush() - 1)
    assert gzip.decompress(file.getvalue()) == b"1234"


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_many_blocks_stay_in_order_with_few_of_them_waiting(threads: int) -> None:
    blocks = [make_noise(number * 37 % 4000, number) for number in range(300)]
    file = io.BytesIO()
    with DigestedMemberWriter(file, threads=threads) as writer:
        for number, block in enumerate(blocks):
            writer.write_block(block, store_member if number % 3 else compress_member)
            assert len(writer._waiting) <= 2 * threads + 2
        writer.finish(writer.flush() - 1)
    assert gzip.decompress(file.getvalue()) == b"".join(blocks)


@pytest.mark.parametrize("threads", [1, 2])
def test_no_more_threads_compress_than_requested(threads: int) -> None:
    seen: set[int] = set()

    def compress(data: bytes) -> bytes:
        seen.add(threading.get_ident())
        time.sleep(0.001)
        return compress_member(data)

    with DigestedMemberWriter(io.BytesIO(), threads=threads) as writer:
        for _block in range(20):
            writer.write_block(b"x", compress)
    assert 0 < len(seen) <= threads


def test_an_error_in_a_compressing_thread_is_raised_by_the_writer() -> None:
    def fail(_data: bytes) -> bytes:
        raise OSError(28, "No space left on device")

    with DigestedMemberWriter(io.BytesIO(), threads=2) as writer:
        writer.write_block(b"x", fail)
        with pytest.raises(OSError, match="No space left"):
            writer.flush()


def test_reading_gives_pieces_of_a_few_mebibytes_at_any_compression_ratio() -> None:
    """A member of zeros shrinks a thousandfold, and must not be unpacked into memory at once."""
    member = compress_member(bytes(64 << 20))
    pieces = [len(piece) for piece in read_members(io.BytesIO(member), 0, len(member))]
    assert sum(pieces) == 64 << 20
    assert max(pieces) <= 4 << 20


@pytest.mark.parametrize(
    "size_bytes", [0, 1, 0xFFFF - 1, 0xFFFF, 0xFFFF + 1, 2 * 0xFFFF - 100, 2 * 0xFFFF, 200_000]
)
@pytest.mark.parametrize("end", [b"", b"\0", b"\0" * 511])
def test_a_stored_member_with_an_end_equals_both_joined(size_bytes: int, end: bytes) -> None:
    data = make_noise(size_bytes, 1)
    assert store_member(bytearray(data), end) == store_member(data + end)
    assert gzip.decompress(store_member(data, end)) == data + end


def test_only_data_that_shrinks_is_compressed() -> None:
    assert is_compressible(b"a timetable is text " * 1000)
    assert not is_compressible(make_noise(100_000, 1))
    assert not is_compressible(gzip.compress(make_noise(50_000, 2), mtime=0))
    assert not is_compressible(
        memoryview(b"<< /Type /Page >>\n" * 200 + make_noise(100_000, 1) + b"0000000000 65535 n\n" * 200)
    )
    assert is_compressible(make_noise(3000, 1) + b"a timetable is text " * 5000)
    assert is_compressible(make_noise(1000, 1) + b"text" * 300)


def test_each_quarter_is_sampled_in_its_middle() -> None:
    """A quarter with text at both ends may hold noise in between, and vice versa."""
    zeros, middles = bytes((64 << 10) - 2048), [make_noise(4096, seed) for seed in range(4)]
    assert not is_compressible(b"".join(zeros + middle + zeros for middle in middles))
    noise = make_noise((64 << 10) - 2048, 9)
    assert is_compressible((noise + bytes(4096) + noise) * 4)
    assert is_compressible(zeros + middles[0] + zeros + (noise + bytes(4096) + noise) * 3)


def test_the_operators_programs_are_installed() -> None:
    assert shutil.which("gzip")
    assert shutil.which("gunzip")
