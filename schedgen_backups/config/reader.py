"""Reads single variables: text, numbers, switches and files of secrets, and collects what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from schedgen_backups.config.variables import VARIABLES
from schedgen_backups.core.errors import ConfigurationError

DEFAULTS = {variable.name: variable.default for variable in VARIABLES}
_TRUE_WORDS = frozenset({"true", "1", "yes", "on"})
_FALSE_WORDS = frozenset({"false", "0", "no", "off", ""})
_Value = TypeVar("_Value")


class Reader:
    """Reads values one by one and remembers everything that is wrong, so that one message names it all."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._problems: list[str] = []

    def text(self, name: str) -> str:
        """The value, or its default."""
        self._problems += list_file_problems(self._environment, name)
        return self._environment.get(name, "").strip() or DEFAULTS[name]

    def required(self, name: str) -> str:
        """The value; without one, that is a problem."""
        value = self.text(name)
        if not value:
            self._problems.append(f"{name} is not set")
        return value

    def parsed(self, name: str, parse: Callable[[str], _Value], expected: str, fallback: _Value) -> _Value:
        """The parsed value, or `fallback` and a problem where `parse` raises."""
        value = self.text(name)
        try:
            return parse(value)
        except (ValueError, KeyError, OSError):
            self._problems.append(f"{name} is {value!r}, expected {expected}")
            return fallback

    def number(self, name: str, lowest: int, highest: int) -> int:
        """A whole number from `lowest` to `highest`."""

        def parse(value: str) -> int:
            number = int(value)
            if not lowest <= number <= highest:
                raise ValueError(value)
            return number

        return self.parsed(name, parse, f"a whole number from {lowest} to {highest}", lowest)

    def yes_or_no(self, name: str) -> bool:
        """Whether the value is a word for yes."""

        def parse(value: str) -> bool:
            if value.lower() not in _TRUE_WORDS | _FALSE_WORDS:
                raise ValueError(value)
            return value.lower() in _TRUE_WORDS

        return self.parsed(name, parse, "true or false", fallback=False)

    def check(self) -> None:
        """ConfigurationError when anything was wrong; values of secrets are never in it."""
        if self._problems:
            raise ConfigurationError(
                "; ".join(dict.fromkeys(self._problems)), hint="Set it in .env or in the environment; `schedgen-backups doctor` checks all."
            )


FILE_SUFFIX = "_FILE"


def read_value_files(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the files' contents as values. What cannot be used stays as it is, for `list_file_problems` to name."""
    values = dict(environment)
    for variable in VARIABLES:
        path = values.get(variable.name + FILE_SUFFIX, "").strip()
        if path and not values.get(variable.name, "").strip():
            try:
                values[variable.name] = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                continue  # whoever asks for the value is told, by `list_file_problems`
            del values[variable.name + FILE_SUFFIX]
    return values


def list_file_problems(values: Mapping[str, str], name: str) -> list[str]:
    """What is wrong with the file that is to hold this variable's value, after `read_value_files`; never the content."""
    path = values.get(name + FILE_SUFFIX, "").strip()
    if not path:
        return []
    if values.get(name, "").strip():
        return [f"{name} and {name}{FILE_SUFFIX} are both set"]
    try:
        Path(path).read_text(encoding="utf-8")
    except OSError as error:
        return [f"{name}{FILE_SUFFIX} names {path}, which cannot be read ({error.strerror or type(error).__name__})"]
    except UnicodeDecodeError:
        return [f"{name}{FILE_SUFFIX} names {path}, which is no text"]
    return []
