"""Lines of an archive's index, moved to another place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.formats.index_lines import move_line, place_line, to_line
from schedgen_backups_tests.support.artifacts import make_entry

KEYS = st.one_of(
    st.text(min_size=1, max_size=40),
    st.sampled_from(
        ['a","length":7}', ',"offset":5,"length":6}', '"', "\\", '\\","length":1,"offset":2}', "length", "}"]
    ),
)
PLACES = st.integers(min_value=0, max_value=2**50)


@given(key=KEYS, name=KEYS, value=KEYS, old=st.tuples(PLACES, PLACES), new=st.tuples(PLACES, PLACES))
def test_a_moved_line_is_the_one_that_would_be_written_again(
    key: str, name: str, value: str, old: tuple[int, int], new: tuple[int, int]
) -> None:
    entry = make_entry(key, b"x", metadata={name: value, "length": "3}"}, tags={value: name})
    before = entry.model_copy(update={"offset": old[0], "length": old[1]})
    after = entry.model_copy(update={"offset": new[0], "length": new[1]})
    with_offset = to_line(before.model_dump_json(exclude_defaults=True))
    without = to_line(before.model_dump_json(exclude_defaults=True, exclude={"offset"}))
    for line in (with_offset, without, place_line(without, old[0])):
        assert move_line(line, offset=new[0], length=new[1]) == to_line(
            after.model_dump_json(exclude_defaults=True)
        )
        assert move_line(line, length=new[1]) == to_line(
            after.model_dump_json(exclude_defaults=True, exclude={"offset"})
        )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b'{"key":"a"}',
        b'{"key":"a","length":"3"}',
        b'{"key":"a","length":3',
        b'{"key":"a","length":-3}',
        b'{"key":"a","length":3,"more":4}',
        b'{"key":"a","length":3,"offset":4,"offset":5}',
    ],
)
def test_a_line_that_does_not_end_with_its_place_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        move_line(line, length=1)
