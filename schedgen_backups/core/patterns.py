"""Patterns with which operators name tables and objects: an exact name, a key prefix or a glob.

The same patterns select what is restored and what is excluded from a backup. A name that contains glob
characters still matches itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

_GLOB_CHARACTERS = frozenset("*?[")


def matches_table(pattern: str, schema_name: str, name: str) -> bool:
    """Return whether the pattern matches this table.

    A pattern is `schema.table`, `table` in any schema, or a glob of either.
    """
    qualified_name = f"{schema_name}.{name}"
    if pattern in {name, qualified_name}:
        return True
    return _is_glob(pattern) and fnmatchcase(qualified_name if "." in pattern else name, pattern)


def matches_key(pattern: str, key: str) -> bool:
    """Return whether the pattern matches this object.

    A pattern is a key, a prefix that ends in `/`, or a glob in which `*` also matches slashes.
    """
    if key == pattern or (pattern.endswith("/") and key.startswith(pattern)):
        return True
    return _is_glob(pattern) and fnmatchcase(key, pattern)


def matches_any_key(patterns: Iterable[str], key: str) -> bool:
    """Return whether one of the patterns matches this object."""
    return any(matches_key(pattern, key) for pattern in patterns)


def _is_glob(pattern: str) -> bool:
    return not _GLOB_CHARACTERS.isdisjoint(pattern)
