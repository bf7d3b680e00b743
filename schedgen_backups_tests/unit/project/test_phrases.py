"""The check for retired phrases finds them in prose and in names, and accepts other words."""

from __future__ import annotations

import pytest

from tools.check_phrases import find_phrases


@pytest.mark.parametrize(
    "text",
    [
        "Each failure is told once.",
        "def test_a_killed_run_is_told_once() -> None:",
        "The sensor looks at every point.",
        "What pg_dump writes is another module's business.",
        "BACKUP_DIR x is no folder",
        "so many verified points are kept",
        "The newest verified point never goes.",
        "its process ended without a word",
    ],
)
def test_a_retired_phrase_is_found(text: str) -> None:
    assert list(find_phrases(text)) != []


@pytest.mark.parametrize(
    "text",
    ["It is no longer there.", "This tells two columns apart.", "BACKUP_DIR x is not a directory", "nobody"],
)
def test_other_words_are_accepted(text: str) -> None:
    assert list(find_phrases(text)) == []
