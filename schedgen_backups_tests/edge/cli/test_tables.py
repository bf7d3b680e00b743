"""What a terminal would obey in somebody's rows is written out."""

from __future__ import annotations

import pytest

from schedgen_backups.cli.tables import show_unprintable

pytestmark = [pytest.mark.edge]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢", "plain é 漢"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u202e", "\\u202e"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_nothing_in_a_value_moves_the_cursor_or_turns_the_text(text: str, shown: str) -> None:
    assert show_unprintable(text) == shown
