"""Names of objects inside an archive: every key gets one, and a stock tar can unpack all of them together.

The keys are those that S3 allows and file systems do not. `test_archive_file` tests what a real tar does with
them.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.formats.tar_member import RESERVED_FOLDER, MemberNames

PLAIN_KEYS = (
    "uploads/1/timetable.pdf",
    "a b+c.pdf",
    " leading and trailing ",
    "100% sure.pdf",
    "a%20b%2Fc.pdf",
    "課程表 2026.pdf",
    "\u00e9 composed",
    "emoji \U0001f600.pdf",
    "x?y&z=1#h",
    "quo\"te's",
    "*<>|:",
    "-rf",
    ".hidden",
    "...",
    "x" * 255,
    "/".join(["é" * 127, "y" * 255, "z" * 255, "w" * 255]),
)
IMPOSSIBLE_KEYS = (
    "../x",
    "a/../x",
    "a/..",
    "..",
    ".",
    "./x",
    "a/./b",
    "/lead",
    "//lead",
    "trail/",
    "a//b",
    "",
    "/",
    "x" * 256,
    "é" * 128,
    "tab\there",
    "new\nline",
    "\x00",
    "\x1b[31m",
    "back\\slash",
    "C:/x",
    "c:x",
    "z:",
    "c:\\x",
    "\u202egnp.exe",
    "e\u0301 decomposed",
    f"{RESERVED_FOLDER}/x",
    f"{RESERVED_FOLDER}/index.jsonl",
    RESERVED_FOLDER,
)
parts = st.one_of(
    st.sampled_from(
        ["a", "b", "c", "", ".", "..", RESERVED_FOLDER, "keys", "x" * 255, "y" * 256, "é", "ä\n"]
    ),
    st.text(max_size=4),
)
keys_strategy = st.lists(st.lists(parts, min_size=1, max_size=4).map("/".join), max_size=30, unique=True)


def assert_safe(name: str) -> None:
    path = PurePosixPath(name)
    assert str(path) == name
    assert not path.is_absolute()
    assert not {"..", ".", ""} & set(name.split("/"))
    assert all(len(part.encode()) <= 255 for part in path.parts)
    assert name.isprintable()


@pytest.mark.parametrize("key", PLAIN_KEYS)
def test_a_key_that_is_a_valid_path_is_its_own_name(key: str) -> None:
    assert MemberNames().choose(key) == key


@pytest.mark.parametrize("key", IMPOSSIBLE_KEYS)
def test_a_key_that_is_not_a_safe_path_is_named_by_its_digest(key: str) -> None:
    name = MemberNames().choose(key)
    assert name.startswith(f"{RESERVED_FOLDER}/keys/")
    assert_safe(name)


def test_a_key_of_1024_bytes_keeps_its_name_if_its_parts_fit() -> None:
    key = "/".join("p" * 204 for _ in range(5))
    assert len(key) == 1024
    assert MemberNames().choose(key) == key
    assert_safe(MemberNames().choose("k" * 1024))


@pytest.mark.parametrize(
    "keys", [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a"), ("a", "a/b/c"), ("a/b", "a/b/c")]
)
def test_an_object_beside_a_folder_of_its_name_is_renamed(keys: tuple[str, str]) -> None:
    names = MemberNames()
    first, second = map(names.choose, keys)
    assert first == keys[0]
    assert second.startswith(f"{RESERVED_FOLDER}/keys/")


def test_an_escaped_key_displaces_no_other() -> None:
    names = MemberNames()
    chosen = [names.choose(key) for key in ("a", "a/b", "b/c", "a/b/d")]
    assert chosen[0] == "a"
    assert chosen[2] == "b/c"
    assert len(set(chosen)) == 4


def test_no_object_can_replace_the_index() -> None:
    names = MemberNames()
    for key in (
        f"{RESERVED_FOLDER}/index.jsonl",
        f"{RESERVED_FOLDER}/keys/x",
        f"{RESERVED_FOLDER}//index.jsonl",
        RESERVED_FOLDER,
    ):
        assert names.choose(key) != f"{RESERVED_FOLDER}/index.jsonl"


@given(keys_strategy)
def test_names_are_unique_safe_and_never_both_file_and_folder(keys: list[str]) -> None:
    chooser = MemberNames()
    chosen = [chooser.choose(key) for key in keys]
    for name in chosen:
        assert_safe(name)
    assert len(set(chosen)) == len(keys)
    folders = {str(parent) for name in chosen for parent in PurePosixPath(name).parents}
    assert not folders & set(chosen)


@given(keys_strategy)
def test_the_same_keys_in_the_same_order_get_the_same_names(keys: list[str]) -> None:
    first, second = MemberNames(), MemberNames()
    assert list(map(first.choose, keys)) == list(map(second.choose, keys))


def test_a_renamed_key_is_recognized_under_either_name() -> None:
    names = MemberNames()
    names.choose("a/b")
    names.choose("../c")
    assert [names.has_named(key) for key in ("a/b", "../c", "a", "c")] == [True, True, False, False]
