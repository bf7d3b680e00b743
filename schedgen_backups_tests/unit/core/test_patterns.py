"""Patterns for tables and objects, in a restore and in exclusions."""

from __future__ import annotations

import pytest

from schedgen_backups.core.patterns import matches_any_key, matches_key, matches_table


@pytest.mark.parametrize(
    ("pattern", "schema_name", "name"),
    [
        ("log", "public", "log"),
        ("log", "audit", "log"),
        ("audit.log", "audit", "log"),
        ("audit.*", "audit", "log"),
        ("log_*", "audit", "log_2026"),
        ("*.log_?", "audit", "log_1"),
        ("a.b", "x", "a.b"),
        ("log_[a]", "public", "log_[a]"),
    ],
)
def test_a_pattern_matches_a_table(pattern: str, schema_name: str, name: str) -> None:
    assert matches_table(pattern, schema_name, name)


@pytest.mark.parametrize(
    ("pattern", "schema_name", "name"),
    [
        ("log", "public", "log_2026"),
        ("audit.log", "public", "log"),
        ("LOG", "public", "log"),
        ("audit.*", "public", "audit"),
        ("", "public", "log"),
    ],
)
def test_a_pattern_matches_no_other_table(pattern: str, schema_name: str, name: str) -> None:
    assert not matches_table(pattern, schema_name, name)


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("a/b.pdf", "a/b.pdf"),
        ("thumbs/", "thumbs/a/b.png"),
        ("*.tmp", "a/b.tmp"),
        ("a?c", "a/c"),
        ("[x]", "[x]"),
        ("[xy].pdf", "y.pdf"),
    ],
)
def test_a_pattern_matches_an_object(pattern: str, key: str) -> None:
    assert matches_key(pattern, key)


@pytest.mark.parametrize(
    ("pattern", "key"),
    [("a", "a/b"), ("thumbs", "thumbs/a"), ("*.tmp", "a.tmpx"), ("A", "a"), ("thumbs/", "thumbs")],
)
def test_a_pattern_matches_no_other_object(pattern: str, key: str) -> None:
    assert not matches_key(pattern, key)


def test_one_of_several_patterns_is_enough() -> None:
    assert matches_any_key(("x/", "*.tmp"), "a.tmp")
    assert not matches_any_key((), "a.tmp")
