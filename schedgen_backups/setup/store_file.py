"""The texts of a store that `setup` adds: its table in the file of stores, and the files beside it.

Pure functions from values to texts. Everything else in the file of stores is kept byte for byte.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schedgen_backups.config.stores import StoreTable
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.system.files import read_small_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_HEADER = re.compile(r"[^\S\n]*\[\[?[^\S\n]*(?P<name>[^\]\n]*?)[^\S\n]*\]")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_DELETE = "\x7f"
"""The only character that TOML escapes and JSON does not."""
_WAY_OUT = "Edit the file yourself: docs/stores.md shows how stores are described."


@dataclass(frozen=True)
class NewStore:
    """A store that setup adds."""

    name: str
    table: Mapping[str, str | int | Sequence[str]]
    """The settings of its table, without secrets."""
    files: Mapping[str, bytes] = field(repr=False)
    """Its secrets: name of a file beside the file of stores → contents."""

    @property
    def url(self) -> str:
        """Where the store is, for those who copy to it."""
        return str(self.table["url"])

    @property
    def text(self) -> str:
        """Its table as TOML."""
        lines = [f"{name} = {format_value(value)}" for name, value in self.table.items()]
        return "\n".join([f"[stores.{self.name}]", *lines, ""])


def list_names(text: str) -> list[str]:
    """Return the names of the stores that the file describes; ConfigurationError if it cannot be read."""
    return list(_parse(text))


def list_urls(text: str) -> list[str]:
    """Return the URLs of the stores; ConfigurationError if the file cannot be read."""
    return [str(table["url"]) for table in _parse(text).values() if "url" in table]


def add_store(text: str, store: NewStore) -> str:
    """Return the file of stores with this one added, or in the place of the one of its name.

    ConfigurationError if the file says anything else afterwards, as with tables in an unusual notation.
    """
    before = _parse(text)
    kept = _remove(text, store.name) if store.name in before else text
    if kept and not kept.endswith("\n"):
        kept += "\n"
    merged = f"{kept}\n{store.text}" if kept.strip() else kept + store.text
    expected = {**before, store.name: _parse(store.text)[store.name]}
    try:
        found = _parse(merged)
    except ConfigurationError:
        found = {}
    if found != expected:
        raise ConfigurationError(f"the store {store.name} cannot be replaced in this file", hint=_WAY_OUT)
    StoreTable.model_validate(expected[store.name])
    return merged


def format_value(value: str | int | Sequence[str]) -> str:
    """Return a value as TOML."""
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace(_DELETE, "\\u007f")
    return f"[{', '.join(format_value(each) for each in value)}]"


def read_tables_file(path: Path, *, variable: str) -> str:
    """Return the text of the file that this setting names; ConfigurationError if it is not text."""
    try:
        return read_small_file(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{variable} {path} cannot be read", hint="It must be a UTF-8 text file that you can read."
        ) from error


def parse_tables(text: str, *, kind: str, hint: str) -> dict[str, Any]:
    """Return the tables [KIND.NAME] of a file of stores or of sites; ConfigurationError if there are none."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the file of {kind} is not TOML: {error}", hint=hint) from error
    found: Any = tables.get(kind, {})
    if not isinstance(found, dict):
        raise ConfigurationError(f"the file of {kind} has no tables [{kind}.NAME]", hint=hint)
    return found  # pyright: ignore[reportUnknownVariableType] - from TOML


def _parse(text: str) -> dict[str, Any]:
    return parse_tables(text, kind="stores", hint=_WAY_OUT)


def _remove(text: str, name: str) -> str:
    """Return the text without `[stores.NAME]` and the tables in it; comments above the next table stay."""
    kept: list[str] = []
    comments: list[str] = []
    is_inside = False
    for line in _LINE.findall(text):
        header = _HEADER.match(line)
        if header is not None:
            path = [part.strip().strip("\"'") for part in header["name"].split(".")]
            is_inside = path[:2] == ["stores", name]
            if not is_inside:
                kept += comments
            comments = []
        if not is_inside:
            kept.append(line)
        elif line.lstrip().startswith("#") or not line.strip():
            comments.append(line)
        else:
            comments = []
    return "".join(kept)
