"""Reads single variables (text, numbers, switches, paths) and collects what is wrong with them.

What is wrong is named and never quoted: the value may be a secret that stands in the wrong place, and
messages reach alerts and run histories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from schedgen_backups.config.env_file import EnvironmentFile
from schedgen_backups.config.variables import FILE_SUFFIX, VARIABLES
from schedgen_backups.core.errors import ConfigurationError

DEFAULTS = {variable.name: variable.default for variable in VARIABLES}
_TRUE_WORDS = frozenset({"true", "1", "yes", "on"})
_FALSE_WORDS = frozenset({"false", "0", "no", "off", ""})
_Value = TypeVar("_Value")


class Reader:
    """Reads values one by one and remembers everything that is wrong, so that one message names it all."""

    def __init__(
        self, values: Mapping[str, str], file_problems: Mapping[str, str], file: EnvironmentFile
    ) -> None:
        self._values = values
        self._file_problems = file_problems
        self._file = file
        self._problems: list[str] = []

    def text(self, name: str) -> str:
        """Return the value, or its default."""
        if name in self._file_problems:
            self._problems.append(self._file_problems[name])
        return self._values.get(name, "").strip() or DEFAULTS.get(name, "")

    def required(self, name: str) -> str:
        """Return the value; a problem when there is none."""
        value = self.text(name)
        if not value:
            self._problems.append(f"{name} is not set")
        return value

    def parsed(self, name: str, parse: Callable[[str], _Value], expected: str, fallback: _Value) -> _Value:
        """Return the parsed value, or `fallback` and a problem where `parse` raises."""
        value = self.text(name)
        try:
            return parse(value)
        except (ValueError, KeyError, OSError):
            self._problems.append(f"{name} is wrong, expected {expected}")
            return fallback

    def host(self, name: str) -> str:
        """Return a host's name or address, or an absolute path (PostgreSQL's socket); a problem when it holds
        more than that, such as a login.
        """

        def parse(value: str) -> str:
            if (
                any(sign in value for sign in "@?=")
                or "://" in value
                or any(sign.isspace() for sign in value)
            ):
                raise ValueError
            return value

        return self.parsed(name, parse, "a host's name without a login", "")

    def number(self, name: str, lowest: int, highest: int) -> int:
        """Return a whole number from `lowest` to `highest`; a problem and the default when it is not one."""

        def parse(value: str) -> int:
            if not (value.isascii() and value.isdecimal()):  # int() takes digits of other scripts, too
                raise ValueError(value)
            number = int(value)
            if not lowest <= number <= highest:
                raise ValueError(value)
            return number

        return self.parsed(
            name, parse, f"a whole number from {lowest} to {highest}", int(DEFAULTS[name] or lowest)
        )

    def yes_or_no(self, name: str) -> bool:
        """Return whether the value is a word for yes."""

        def parse(value: str) -> bool:
            if value.lower() not in _TRUE_WORDS | _FALSE_WORDS:
                raise ValueError(value)
            return value.lower() in _TRUE_WORDS

        return self.parsed(name, parse, "true or false", fallback=False)

    def path(self, name: str) -> Path | None:
        """Return the absolute path, None without a value; a relative one starts at the folder of the
        environment file.
        """
        value = self.text(name)
        if not value:
            return None
        try:
            return resolve_path(value, self._file)
        except ValueError as error:
            self._problems.append(f"{name} is wrong: {error}")
            return Path(value)

    def check(self) -> None:
        """Raise ConfigurationError when anything was wrong; no value is ever in it."""
        if self._problems:
            raise ConfigurationError("; ".join(dict.fromkeys(self._problems)), hint=self._file.advice)


def resolve_path(text: str, file: EnvironmentFile) -> Path:
    """Return the absolute path that a value means.

    ValueError when it is relative and there is nothing that it could be relative to.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ValueError("there is no such home") from None
    if path.is_absolute():
        return path
    if file.folder is None:
        raise ValueError("a relative path has nowhere to start: there is no checkout with a .env here")
    return (file.folder / path).absolute()


def read_value_files(
    values: Mapping[str, str], file: EnvironmentFile
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the values with the contents of the files that NAME_FILE names; and for each name whose file is
    wrong why, never the content.
    """
    read = dict(values)
    problems: dict[str, str] = {}
    for variable in VARIABLES:
        name = variable.name
        text = values.get(name + FILE_SUFFIX, "").strip()
        if not text:
            continue
        if values.get(name, "").strip():
            problems[name] = f"{name} and {name}{FILE_SUFFIX} are both set"
            continue
        try:
            read[name] = resolve_path(text, file).read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            problems[name] = f"{name}{FILE_SUFFIX} names a file that is no text"
        except ValueError as error:
            problems[name] = f"{name}{FILE_SUFFIX} is wrong: {error}"
        except OSError as error:
            problems[name] = (
                f"{name}{FILE_SUFFIX} names a file that cannot be read "
                f"({error.strerror or type(error).__name__})"
            )
    return read, problems
