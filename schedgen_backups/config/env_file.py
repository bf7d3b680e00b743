"""The environment file: which one is used, whether it can be trusted, and what it sets.

It is given by name, or found in one of three fixed places. The current directory is not one of them: a
command must not run the programs that a file in another user's directory names.
"""

from __future__ import annotations

import io
import os
import pwd
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from dotenv import dotenv_values

from schedgen_backups.config.variables import ENV_FILE_VARIABLE, NAMES
from schedgen_backups.core.errors import ConfigurationError

FILE_NAME = ".env"
OF_THE_MACHINE = Path("/etc/schedgen-backups/env")
OF_THE_USER = Path("~/.config/schedgen-backups/env")


def _set_nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True)
class EnvironmentFile:
    """The environment file in use, or the fact that there is none."""

    path: Path | None
    places: tuple[Path, ...]
    """Places that were searched."""
    folder: Path | None
    """Absolute directory at which relative paths start; None if they are an error."""
    values: Mapping[str, str] = field(default_factory=_set_nothing, repr=False)
    """The variables of this project that it sets."""
    error: ConfigurationError | None = None
    """Why the file cannot be used."""
    warning: str = ""
    """What should be changed in a file that can be used."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether the file was given by name and is outside the checkout, so that its site is unrelated."""
        return self.folder is not None and self.folder.resolve() != find_checkout()

    @property
    def advice(self) -> str:
        """Hint for a setting that is missing or invalid."""
        if self.path is not None:
            return (
                f"Set it in {self.path} or in the environment; `schedgen-backups doctor` checks all settings."
            )
        searched = ", ".join(str(place) for place in self.places)
        return (
            f"Set it in the environment or in an environment file (none exists at {searched}). "
            "`schedgen-backups doctor` checks all settings."
        )


def find_checkout() -> Path | None:
    """Return the checkout that contains this package, directly or in its virtual environment, or None."""
    package = _find_package()
    prefix = Path(sys.prefix).resolve()
    folders = [package.parent, *([prefix.parent] if package.is_relative_to(prefix) else [])]
    return next(
        (
            folder
            for folder in folders
            if all((folder / name).is_file() for name in ("workspace.yaml", "dagster.yaml"))
        ),
        None,
    )


def find_environment_file(named: Path | None) -> EnvironmentFile:
    """Return the named file, otherwise the first one in the fixed places; never raise, but set `error`."""
    checkout = find_checkout()
    if named is not None:
        path = named.absolute()
        return _read(path, (path,), path.parent)
    own = checkout / FILE_NAME if checkout is not None else None
    places = tuple(place for place in (own, OF_THE_MACHINE, expand_home(OF_THE_USER)) if place is not None)
    path = next((place for place in places if _exists(place)), None)
    if path is None:
        return EnvironmentFile(None, places, checkout)
    return _read(path, places, checkout if path == own else None)


def choose_file_to_write() -> Path:
    """Return the path for a new environment file.

    It is in the checkout; without one, in /etc for root and in the home directory for other users.
    """
    checkout = find_checkout()
    if checkout is not None:
        return checkout / FILE_NAME
    return OF_THE_MACHINE if os.geteuid() == 0 else expand_home(OF_THE_USER) or OF_THE_MACHINE


def _read(path: Path, places: tuple[Path, ...], folder: Path | None) -> EnvironmentFile:
    try:
        with path.open(encoding="utf-8") as opened:
            status = os.fstat(opened.fileno())
            refusal = find_refusal("environment file", path, status)
            if refusal is not None:
                return EnvironmentFile(path, places, folder, error=refusal)
            found = dotenv_values(stream=io.StringIO(opened.read()))
    except FileNotFoundError:
        hint = f"Correct the path in --env-file or {ENV_FILE_VARIABLE}, or create the file."
        return EnvironmentFile(
            path,
            places,
            folder,
            error=ConfigurationError(f"the environment file {path} does not exist", hint=hint),
        )
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "it is not UTF-8 text") or type(
            error
        ).__name__
        return EnvironmentFile(
            path,
            places,
            folder,
            error=ConfigurationError(
                f"the environment file {path} cannot be read: {reason}", hint=_explain_access(path)
            ),
        )
    values = MappingProxyType(
        {name: value for name, value in found.items() if name in NAMES and value is not None}
    )
    warning = f"{path} is writable by its group" if status.st_mode & stat.S_IWGRP else ""
    return EnvironmentFile(path, places, folder, values, warning=warning)


def find_refusal(what: str, path: Path, status: os.stat_result) -> ConfigurationError | None:
    """Return why this file cannot be trusted: it decides which programs run and where data is sent.

    `what` names the kind of file.
    """
    if status.st_mode & stat.S_IWOTH and not stat.S_ISCHR(status.st_mode):
        return ConfigurationError(f"the {what} {path} is writable by every user", hint=f"chmod o-w {path}")
    installation = find_checkout() or _find_package()
    if status.st_uid not in {0, os.geteuid(), installation.stat().st_uid}:
        owner = _name_user(status.st_uid)
        return ConfigurationError(
            f"the {what} {path} belongs to {owner}, who is neither root, nor you, nor the owner "
            f"of {installation}",
            hint=f"Run the command as {owner}, or change the owner: chown root {path}",
        )
    return None


def _explain_access(path: Path) -> str:
    try:
        return (
            f"Run the command as {_name_user(path.stat().st_uid)}, who owns the file, or as a member of "
            "its group."
        )
    except OSError:
        return "Run the command as a user who can read it."


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:  # missing, or in a directory that this user cannot enter
        return False
    return True


def expand_home(path: Path) -> Path | None:
    """Return the path with `~` as this user's home directory; None for a user without one."""
    try:
        return path.expanduser()
    except RuntimeError:  # a user without a home directory, as in a container
        return None


def _name_user(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return f"user {user_id}"


def _find_package() -> Path:
    return Path(__file__).resolve().parent.parent
