"""Archives with hostile keys: stock tars list and unpack them, and altered ones are refused.

Archives are written through the writer that a capture uses, without a server. Objects from real buckets are
in the integration tests.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schedgen_backups.core.catalog.check_results import Check, CheckStatus
from schedgen_backups.core.errors import ObjectError, ReadBackError, VerificationError
from schedgen_backups.core.formats.archive_file import INDEX_NAME, ArchiveFile, open_archive
from schedgen_backups.core.formats.archive_writer import ArchiveFileWriter
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.formats.index_lines import read_object_key, to_line
from schedgen_backups.core.formats.read_back import Tail, read_back
from schedgen_backups.core.formats.records import ObjectEntry
from schedgen_backups.core.formats.tar_member import make_header, pack_object
from schedgen_backups.core.verify.files import verify_archive
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    TableText,
    get_status,
    make_entry,
    make_noise,
    make_record,
    run_tool,
    write_archive,
    write_dump,
)
from schedgen_backups_tests.unit.core.formats.test_member_name import IMPOSSIBLE_KEYS, PLAIN_KEYS

TARS = {
    "tar": ("tar",),
    **({"bsdtar": ("bsdtar",)} if shutil.which("bsdtar") else {}),
    **({"busybox": ("busybox", "tar")} if shutil.which("busybox") else {}),
}
KEYS = (*PLAIN_KEYS, *(key for key in IMPOSSIBLE_KEYS if key), "folder/a", "folder")


def make_bytes(number: int) -> bytes:
    """Return some text, some noise, some zeros, or exactly one tar block."""
    return (b"text %d " % number * 300, make_noise(3000 + number, number), b"", b"x" * 512)[number % 4]


def make_objects(folder: Path) -> list[tuple[ObjectEntry, bytes]]:
    keys = (*KEYS, str(folder / "outside.txt"), "../outside.txt", "../../outside.txt")
    return [(make_entry(key, make_bytes(number)), make_bytes(number)) for number, key in enumerate(keys)]


@pytest.fixture
def objects(tmp_path: Path) -> list[tuple[ObjectEntry, bytes]]:
    return make_objects(tmp_path)


@pytest.fixture
def path(tmp_path: Path, objects: list[tuple[ObjectEntry, bytes]]) -> Path:
    path = tmp_path / ARCHIVE_NAME
    write_archive(path, objects)
    return path


def test_hostile_keys_and_their_bytes_are_read_back(
    path: Path, objects: list[tuple[ObjectEntry, bytes]]
) -> None:
    with open_archive(path) as archive:
        entries = list(archive.read_entries())
        assert [entry.key for entry in entries] == [entry.key for entry, _data in objects]
        for entry, (_entry, data) in zip(entries, objects, strict=True):
            assert b"".join(archive.read_object(entry)) == data


def test_entries_are_found_by_their_keys(path: Path, objects: list[tuple[ObjectEntry, bytes]]) -> None:
    with open_archive(path) as archive:
        entries = list(archive.read_entries())
        assert [list(archive.find_entries({entry.key})) for entry in entries] == [
            [entry] for entry in entries
        ]
        assert list(archive.find_entries({entry.key for entry, _data in objects[3:6]})) == entries[3:6]
        assert list(archive.find_entries({"", "other", entries[0].key + " "})) == []


def test_a_written_archive_verifies(path: Path) -> None:
    results = verify_archive(path)
    assert [(result.check, result.status) for result in results] == [
        (Check.ARCHIVE_IS_STORED, CheckStatus.PASSED),
        (Check.ARCHIVE_IS_READABLE, CheckStatus.PASSED),
    ]


text = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@given(
    key=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=200),
    metadata=st.dictionaries(text, text, max_size=4),
    headers=st.dictionaries(text, text, max_size=4),
    tags=st.dictionaries(text, text, max_size=4),
    content_type=text,
    version_id=st.none() | text,
    data=st.binary(max_size=3000),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_everything_that_s3_knows_of_an_object_is_read_back(
    tmp_path: Path, key: str, data: bytes, **fields: object
) -> None:
    entry = make_entry(key, data, **fields)
    write_archive(tmp_path / ARCHIVE_NAME, [(entry, data)])
    with open_archive(tmp_path / ARCHIVE_NAME) as archive:
        (found,) = archive.read_entries()
        assert b"".join(archive.read_object(found)) == data
    place = {"member_name", "offset", "length"}
    assert found.model_dump(exclude=place) == entry.model_dump(exclude=place)


@pytest.mark.parametrize("tar", sorted(TARS))
def test_a_stock_tar_lists_and_unpacks_every_object_without_a_warning(
    tar: str, path: Path, objects: list[tuple[ObjectEntry, bytes]], tmp_path: Path
) -> None:
    target = tmp_path / "outer" / "target"
    target.mkdir(parents=True)
    before = {found for found in tmp_path.rglob("*") if target not in found.parents}
    code, listed, stderr = run_tool(*TARS[tar], "-tzf", path, cwd=target)
    assert (code, stderr) == (0, "")
    assert len(listed.splitlines()) == len(objects) + 1
    assert run_tool(*TARS[tar], "xzf", path, cwd=target) == (0, b"", "")
    with open_archive(path) as archive:
        expected = {
            target / entry.member_name: data
            for entry, (_entry, data) in zip(archive.read_entries(), objects, strict=True)
        }
    unpacked = {found: found.read_bytes() for found in target.rglob("*") if found.is_file()}
    index = unpacked.pop(target / INDEX_NAME)
    assert unpacked == expected
    assert index.count(b"\n") == len(objects) + 1
    assert {found for found in tmp_path.rglob("*") if target not in found.parents} == before


def test_tar_unpacks_one_object_with_private_permissions(path: Path, tmp_path: Path) -> None:
    assert run_tool("tar", "xzf", path, "uploads/1/timetable.pdf", cwd=tmp_path)[0] == 0
    assert (tmp_path / "uploads/1/timetable.pdf").stat().st_mode & 0o777 == 0o600


def test_tarfile_reads_the_archive_and_finds_the_key_in_the_header(path: Path) -> None:
    with tarfile.open(path, "r:gz") as tar:
        info = tar.getmember("uploads/1/timetable.pdf")
        assert '"key":"uploads/1/timetable.pdf"' in info.pax_headers["comment"]
        assert tar.getnames()[-1] == INDEX_NAME


def test_an_archive_without_objects_is_readable(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE_NAME
    write_archive(path, [])
    assert get_status(verify_archive(path), Check.ARCHIVE_IS_READABLE) is CheckStatus.PASSED
    assert run_tool("tar", "-tzf", path, cwd=tmp_path) == (0, f"{INDEX_NAME}\n".encode(), "")


@pytest.mark.parametrize("gibibytes", [6, 9])
def test_the_header_of_a_very_large_object_gives_its_size(gibibytes: int) -> None:
    """From 8 GiB on, the size no longer fits the plain header and is in a pax record."""
    entry = make_entry("large.bin", b"").model_copy(update={"size_bytes": gibibytes << 30})
    with tarfile.open(fileobj=io.BytesIO(make_header(entry) + bytes(1024)), mode="r|") as tar:
        info = tar.next()
    assert info is not None
    assert (info.name, info.size) == ("large.bin", gibibytes << 30)


@given(
    name=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=120)
    | st.text("ab/. ~", min_size=95, max_size=105),
    key=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=1100),
    size_bytes=st.integers(0, 2 * 8**11) | st.sampled_from([0, 8**11 - 1, 8**11]),
    modified=st.integers(-(10**9), 9 * 10**9) | st.sampled_from([-1, 0, 8**11 - 1, 8**11]),
)
@settings(deadline=None)
def test_headers_are_byte_for_byte_those_of_tarfile(
    name: str, key: str, size_bytes: int, modified: int
) -> None:
    """Plain headers are made without it.

    An object is only copied from an older archive if its header there is the one we would write.
    """
    entry = make_entry(
        key,
        b"",
        member_name=name,
        size_bytes=size_bytes,
        modified_at=datetime.fromtimestamp(modified, timezone.utc),
    )
    written = make_header(entry)
    with tarfile.open(fileobj=io.BytesIO(written + bytes(1024)), mode="r|") as tar:
        found = tar.next()
    assert found is not None
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size_bytes, modified, 0o600
    info.pax_headers = {"comment": found.pax_headers["comment"]}
    assert written == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class CountingFile(io.FileIO):
    """Counts the bytes read from the disk."""

    count = 0

    def read(self, size: int = -1, /) -> bytes:
        data = super().read(size) or b""
        self.count += len(data)
        return data


def test_only_an_objects_own_bytes_are_read_for_it(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE_NAME
    contents = [make_noise(200_000, number) for number in range(30)]
    write_archive(path, [(make_entry(f"{number}.pdf", data), data) for number, data in enumerate(contents)])
    with open_archive(path) as archive:
        entry = list(archive.read_entries())[17]
    with CountingFile(path) as file:
        archive = ArchiveFile(file)
        file.count = 0
        assert b"".join(archive.read_object(entry)) == contents[17]
        assert file.count == entry.length
        assert entry.length < 210_000


def place_entries(path: Path) -> list[ObjectEntry]:
    with open_archive(path) as archive:
        return list(archive.read_entries())


@pytest.mark.parametrize(
    "alter",
    [
        lambda entry, other: entry.model_copy(update={"offset": other.offset, "length": other.length}),
        lambda entry, _other: entry.model_copy(update={"sha256": "0" * 64}),
        lambda entry, _other: entry.model_copy(update={"size_bytes": entry.size_bytes - 1}),
        lambda entry, _other: entry.model_copy(update={"key": "another"}),
        lambda entry, _other: entry.model_copy(update={"length": entry.length - 1}),
        lambda entry, other: entry.model_copy(update={"length": entry.length + other.length}),
        lambda entry, _other: entry.model_copy(update={"offset": entry.offset + 1}),
    ],
    ids=["swapped", "other digest", "other size", "other key", "shorter", "longer", "shifted"],
)
def test_an_entry_that_does_not_match_its_bytes_is_refused(
    tmp_path: Path, alter: Callable[[ObjectEntry, ObjectEntry], ObjectEntry]
) -> None:
    path = tmp_path / ARCHIVE_NAME
    write_archive(
        path, [(make_entry(key, data), data) for key, data in (("a", b"one " * 90), ("b", b"two " * 90))]
    )
    first, second = place_entries(path)
    with open_archive(path) as archive, pytest.raises(VerificationError):
        list(archive.read_object(alter(first, second)))


@pytest.mark.takes_seconds
def test_every_flipped_byte_of_a_small_archive_is_found(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE_NAME
    write_archive(path, [(make_entry("a", b"one"), b"one"), (make_entry("../b", b""), b"")])
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(
            data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :]
        )
        assert get_status(verify_archive(path), Check.ARCHIVE_IS_STORED) is CheckStatus.FAILED, position


def test_every_truncation_of_a_small_archive_is_found(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE_NAME
    write_archive(path, [(make_entry("a", b"one"), b"one")])
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        statuses = {result.status for result in verify_archive(path)}
        assert statuses == {CheckStatus.FAILED}, length


def test_two_objects_with_exchanged_bytes_are_found(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE_NAME
    write_archive(path, [(make_entry(key, data), data) for key, data in (("a", b"one"), ("b", b"two"))])
    first, second = place_entries(path)
    data = path.read_bytes()
    one = data[first.offset : first.offset + first.length]
    two = data[second.offset : second.offset + second.length]
    path.write_bytes(two + one + data[second.offset + second.length :])
    assert {result.status for result in verify_archive(path)} == {CheckStatus.FAILED}


def test_a_dump_is_not_accepted_as_an_archive_nor_vice_versa(tmp_path: Path) -> None:
    dump_path, archive_path = tmp_path / "some.sql.gz", tmp_path / "some.tar.gz"
    write_dump(dump_path, [TableText("jobs", (b"1",))])
    write_archive(archive_path, [])
    with pytest.raises(VerificationError, match=r"^some\.sql\.gz: "), open_archive(dump_path) as archive:
        assert archive.record
    with pytest.raises(VerificationError, match=r"^some\.tar\.gz: "), open_dump(archive_path) as dump:
        assert dump.record


def write_streamed(path: Path, entry: ObjectEntry, blocks: list[bytes]) -> None:
    with path.open("w+b") as file, ArchiveFileWriter(file, threads=2, folder=path.parent) as writer:  # type: ignore[arg-type]
        writer.add_packed(pack_object(make_entry("before", b"1"), b"1"))
        try:
            writer.add_stream(entry, blocks)
        except ObjectError:
            writer.add_stream(entry, [b"x" * entry.size_bytes])
        writer.add_packed(pack_object(make_entry("behind", b"2"), b"2"))
        empty = write_archive(path.with_name("empty.tar.gz"), []).record
        writer.finish(
            empty.model_copy(
                update={"listed_count": 3, "object_count": 3, "size_bytes": entry.size_bytes + 2}
            )
        )


@pytest.mark.parametrize("kind", ["noise", "text"])
def test_a_streamed_object_is_read_back(tmp_path: Path, kind: str) -> None:
    data = make_noise(3_000_001, 3) if kind == "noise" else b"a line of text\n" * 200_000
    pieces = [data[start : start + 700_001] for start in range(0, len(data), 700_001)]
    path = tmp_path / ARCHIVE_NAME
    write_streamed(path, make_entry("large", data), pieces)
    entries = place_entries(path)
    assert [entry.key for entry in entries] == ["before", "large", "behind"]
    with open_archive(path) as archive:
        assert b"".join(archive.read_object(entries[1])) == data
    assert {result.status for result in verify_archive(path)} == {CheckStatus.PASSED}


@pytest.mark.parametrize("size_bytes", [2_500_000, 2_500_002, 0])
def test_a_stream_of_another_size_leaves_nothing_behind(tmp_path: Path, size_bytes: int) -> None:
    """The server broke off, and the next try of the same object follows in the same archive."""
    data = b"x" * 2_500_001
    path = tmp_path / ARCHIVE_NAME
    write_streamed(path, make_entry("large", data), [b"y" * size_bytes])
    entries = place_entries(path)
    assert [entry.key for entry in entries] == ["before", "large", "behind"]
    with open_archive(path) as archive:
        for entry, expected in zip(entries, (b"1", data, b"2"), strict=True):
            assert b"".join(archive.read_object(entry)) == expected
    assert run_tool("tar", "-tzf", path, cwd=tmp_path)[0] == 0


@pytest.mark.parametrize("size_bytes", [3000, 3_000_000], ids=["in a group", "alone"])
@pytest.mark.parametrize("wrong", ["sha256", "content_type"])
def test_an_object_that_is_not_what_its_entry_states_gets_no_footer(
    tmp_path: Path, size_bytes: int, wrong: str
) -> None:
    path, data = tmp_path / ARCHIVE_NAME, make_noise(size_bytes)
    packed = pack_object(make_entry("a.pdf", data), data)
    other = packed.entry.model_copy(update={wrong: "0" * 64})
    with (
        path.open("w+b") as file,
        ArchiveFileWriter(cast("BinaryIO", file), threads=2, folder=tmp_path) as writer,
    ):
        writer.add_packed(pack_object(make_entry("before", b"1"), b"1"))
        writer.add_packed(replace(packed, entry=other))
        with pytest.raises(ReadBackError) as raised:
            writer.finish(make_record(writer))
    assert raised.value.keys == ("a.pdf",)
    with pytest.raises(VerificationError), open_archive(path):
        pass


def test_an_index_that_the_disk_returns_otherwise_gets_no_footer(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE_NAME
    write_archive(path, [(make_entry("a.pdf", b"1"), b"1")])
    with open_archive(path) as archive:
        [entry] = archive.read_entries()
        footer = archive.footer
    with path.open("rb") as file, pytest.raises(ReadBackError, match="index"):
        read_back(
            file.fileno(), [entry], Tail(footer.index_offset, footer.footer_offset, "0" * 64), threads=1
        )


def test_what_the_journal_names_is_in_the_file_if_the_capture_is_killed(tmp_path: Path) -> None:
    path, journal = tmp_path / ARCHIVE_NAME, tmp_path / "entries.jsonl"
    with (
        path.open("w+b") as file,
        ArchiveFileWriter(
            cast("BinaryIO", file), threads=2, folder=tmp_path, journal_name=journal.name
        ) as writer,
    ):
        for number in range(3):
            body = make_noise(2000, number)
            writer.add_packed(pack_object(make_entry(f"{number}.pdf", body), body))
            # As seen by a process that resumes it: nothing is in our buffers.
            entries = [ObjectEntry.model_validate_json(line) for line in journal.read_bytes().splitlines()]
            assert [entry.key for entry in entries] == [f"{each}.pdf" for each in range(number + 1)]
            assert path.stat().st_size == sum(entry.length for entry in entries)


def test_the_header_holds_what_s3_knows_of_an_object_and_not_its_offset(tmp_path: Path) -> None:
    known = {
        "version_id": "7",
        "content_type": "text/plain",
        "headers": {"Cache-Control": "no-store"},
        "metadata": {"owner": "me"},
        "tags": {"kind": "exam"},
    }
    entry = make_entry("a.pdf", b"abc", is_changed=True, unproven="no checksum", **known)
    write_archive(tmp_path / ARCHIVE_NAME, [(entry, b"abc")])
    with tarfile.open(tmp_path / ARCHIVE_NAME) as tar:
        described = json.loads(tar.getmembers()[0].pax_headers["comment"])
    assert described == {"key": "a.pdf", "etag": entry.etag, **known}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
@example('x","size_bytes":1,"y')
@example('\\","size_bytes":')
@example('e\u0301\n\0"')
def test_the_key_of_a_line_is_read_without_the_rest(key: str) -> None:
    entry = make_entry(key, b"data")
    assert read_object_key(to_line(entry.model_dump_json(exclude_defaults=True))) == key
    assert read_object_key(json.dumps({"size_bytes": 4, "key": key}).encode()) == key


@pytest.mark.parametrize("line", [b"", b"{}", b'{"key":"a', b'{"key":"\xff","size_bytes":1}', b"[1]"])
def test_a_line_without_a_key_is_refused(line: bytes) -> None:
    with pytest.raises(VerificationError, match="a line of its index is damaged"):
        read_object_key(line)
