"""Read single variables (text, numbers, switches, paths) and collect what is wrong with them.

Problems name the variable and never quote its value: it may be a misplaced secret, and messages reach alerts
and run histories.
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
    """Reader of single values that collects all problems, so that one message names them all."""

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
        """Return the value; an empty one is a problem."""
        value = self.text(name)
        if not value:
            self._problems.append(f"{name} is not set")
        return value

    def parsed(self, name: str, parse: Callable[[str], _Value], expected: str, fallback: _Value) -> _Value:
        """Return the parsed value; if `parse` raises, add a problem and return `fallback`."""
        value = self.text(name)
        try:
            return parse(value)
        except (ValueError, KeyError, OSError):
            self._problems.append(f"{name} is invalid, expected {expected}")
            return fallback

    def host(self, name: str) -> str:
        """Return a host name, an address, or an absolute path (PostgreSQL's socket).

        Anything more, such as a login, is a problem.
        """

        def parse(value: str) -> str:
            if (
                any(sign in value for sign in "@?=")
                or "://" in value
                or any(sign.isspace() for sign in value)
            ):
                raise ValueError
            return value

        return self.parsed(name, parse, "a host name without a login", "")

    def number(self, name: str, lowest: int, highest: int) -> int:
        """Return a whole number from `lowest` to `highest`, or add a problem and return the default."""

        def parse(value: str) -> int:
            if not (value.isascii() and value.isdecimal()):  # int() accepts digits of other scripts too
                raise ValueError(value)
            number = int(value)
            if not lowest <= number <= highest:
                raise ValueError(value)
            return number

        return self.parsed(
            name, parse, f"a whole number from {lowest} to {highest}", int(DEFAULTS[name] or lowest)
        )

    def yes_or_no(self, name: str) -> bool:
        """Return the value of a switch: true, 1, yes or on."""
        return self.parsed(name, parse_switch, "true or false", fallback=False)

    def path(self, name: str) -> Path | None:
        """Return the absolute path, or None without a value.

        A relative path starts at the directory of the environment file.
        """
        value = self.text(name)
        if not value:
            return None
        try:
            return resolve_path(value, self._file)
        except ValueError as error:
            self._problems.append(f"{name} is invalid: {error}")
            return Path(value)

    def check(self) -> None:
        """Raise ConfigurationError if there were problems; it never contains a value."""
        if self._problems:
            raise ConfigurationError("; ".join(dict.fromkeys(self._problems)), hint=self._file.advice)


def parse_switch(text: str) -> bool:
    """Return whether a switch is on; raise ValueError for another text."""
    if text.lower() not in _TRUE_WORDS | _FALSE_WORDS:
        raise ValueError(text)
    return text.lower() in _TRUE_WORDS


def resolve_path(text: str, file: EnvironmentFile) -> Path:
    """Return the absolute path for a value.

    Raise ValueError if it is relative and no directory is known at which it starts.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ValueError("the home directory does not exist") from None
    if path.is_absolute():
        return path
    if file.folder is None:
        raise ValueError("a relative path needs a checkout with a .env file; use an absolute path")
    return (file.folder / path).absolute()


def read_value_files(
    values: Mapping[str, str], file: EnvironmentFile
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the values with the contents of the files that NAME_FILE names, and the problems by name.

    The problems never contain a file's content.
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
            problems[name] = f"{name}{FILE_SUFFIX} names a file that is not UTF-8 text"
        except ValueError as error:
            problems[name] = f"{name}{FILE_SUFFIX} is invalid: {error}"
        except OSError as error:
            problems[name] = (
                f"{name}{FILE_SUFFIX} names a file that cannot be read "
                f"({error.strerror or type(error).__name__})"
            )
    return read, problems


def list_names(name: str) -> set[str]:
    """Return NAME and NAME_FILE for either of them."""
    plain = name.removesuffix(FILE_SUFFIX)
    return {plain, plain + FILE_SUFFIX}
