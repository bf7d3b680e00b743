"""The answers of an unfinished setup, kept privately next to the environment file until it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from schedgen_backups.config.variables import NAMES
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.system.files import read_small_file, write_atomically


class Draft:
    """The file with the answers."""

    def __init__(self, env_path: Path) -> None:
        self._env_path = env_path
        self.path = env_path.with_name(f"{env_path.name}.setup")

    def read(self) -> dict[str, str]:
        """Return the answers of the last run of setup.

        Return nothing if it finished, the file is not valid, or the environment file is newer.
        """
        try:
            if self._env_path.exists() and self._env_path.stat().st_mtime_ns > self.path.stat().st_mtime_ns:
                return {}
            answers = json.loads(read_small_file(self.path))
        except (OSError, ValueError):
            return {}
        if not isinstance(answers, dict):
            return {}
        found: dict[object, object] = answers  # pyright: ignore[reportUnknownVariableType] - from JSON
        return {
            name: value
            for name, value in found.items()
            if isinstance(name, str) and isinstance(value, str) and name in NAMES
        }

    def write(self, answers: Mapping[str, str]) -> None:
        """Store the answers.

        Raise ConfigurationError if the directory is not writable: the environment file could not be written
        either.
        """
        try:
            write_atomically(self.path, json.dumps(answers).encode())
        except OSError as error:
            raise ConfigurationError(
                f"{self.path.parent} cannot be written: {error.strerror}",
                hint="Run setup as a user who can write the environment file.",
            ) from error

    def remove(self) -> None:
        """Remove the file."""
        with suppress(FileNotFoundError):
            self.path.unlink()
