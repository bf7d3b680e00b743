"""How operators name tables and objects: a name as it is, a folder of keys, or a glob.

The same words choose what is restored and what is left out of a backup. A name that holds the characters of a
glob still means itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

_GLOB_CHARACTERS = frozenset("*?[")


def matches_table(pattern: str, schema_name: str, name: str) -> bool:
    """Return whether the pattern means this table: `schema.table`, `table` in any schema, or a glob of
    either.
    """
    qualified_name = f"{schema_name}.{name}"
    if pattern in {name, qualified_name}:
        return True
    return _is_glob(pattern) and fnmatchcase(qualified_name if "." in pattern else name, pattern)


def matches_key(pattern: str, key: str) -> bool:
    """Return whether the pattern means this object: its key, a prefix that ends in `/`, or a glob, in which
    `*` stands for slashes, too.
    """
    if key == pattern or (pattern.endswith("/") and key.startswith(pattern)):
        return True
    return _is_glob(pattern) and fnmatchcase(key, pattern)


def matches_any_key(patterns: Iterable[str], key: str) -> bool:
    """Return whether one of the patterns means this object."""
    return any(matches_key(pattern, key) for pattern in patterns)


def _is_glob(pattern: str) -> bool:
    return not _GLOB_CHARACTERS.isdisjoint(pattern)
