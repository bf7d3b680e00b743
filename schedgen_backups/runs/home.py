"""DAGSTER_HOME: choose it, and create it under a lock, private and with a dagster.yaml.

At the first use, Dagster creates its SQLite files and marks their schema version. Two processes that do so
concurrently leave unusable files.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from schedgen_backups.config.env_file import (
    OF_THE_MACHINE,
    OF_THE_USER,
    EnvironmentFile,
    expand_home,
    find_checkout,
)
from schedgen_backups.config.installation import find_project
from schedgen_backups.core.errors import ConfigurationError, StorageError
from schedgen_backups.core.system.lock import FileLock

HOME_VARIABLE = "DAGSTER_HOME"
_HOME_OF_THE_MACHINE = Path("/var/lib/schedgen-backups")
_HOME_OF_THE_USER = Path("~/.local/state/schedgen-backups")
"""XDG Base Directory Specification 0.8, XDG_STATE_HOME."""
_LOCK_NAME = ".schedgen-backups.lock"


def _find_default(file: EnvironmentFile) -> Path | None:
    checkout = find_checkout()
    if checkout is not None and not file.is_elsewhere:
        return checkout / ".dagster"
    if file.path is None:
        return None
    return {OF_THE_MACHINE: _HOME_OF_THE_MACHINE, expand_home(OF_THE_USER): _HOME_OF_THE_USER}.get(file.path)


@contextmanager
def hold_home(file: EnvironmentFile) -> Generator[Path, None, None]:
    """Prepare DAGSTER_HOME; during the block no other process of ours opens an instance there.

    Raise the errors of `prepare_home`.
    """
    home = prepare_home(file)
    if not os.access(home, os.W_OK):
        # In a container it contains only a dagster.yaml, and the instance is in a database. Anywhere else,
        # Dagster reports the error next.
        yield home
        return
    with FileLock(home / _LOCK_NAME).waited_for():
        yield home


def prepare_home(file: EnvironmentFile) -> Path:
    """Set DAGSTER_HOME to a directory with a dagster.yaml and return it.

    If it is not set, it depends on the environment file: `.dagster` in the checkout for the checkout's file,
    /var/lib/schedgen-backups for the file in /etc, ~/.local/state/schedgen-backups for the file in ~/.config.
    For any other file, raise ConfigurationError: two sites must not share a history. Raise StorageError if it
    cannot be created or written.
    """
    # Dagster's own variable, not a setting of ours: Dagster's programs read it and pass it on.
    configured = os.environ.get(HOME_VARIABLE)
    chosen = Path(configured) if configured else _find_default(file)
    if chosen is None:
        raise ConfigurationError(
            "DAGSTER_HOME is not set, and the environment file in use has no default for it",
            hint="Set it to the directory of the Dagster instance; a missing directory is created.",
        )
    home = chosen.expanduser().absolute()
    project = find_project()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = home / "dagster.yaml"
        if not config.exists() and project is not None:
            if config.is_symlink():  # to a checkout that was moved, or removed by an upgrade
                config.unlink(missing_ok=True)
            with suppress(FileExistsError):  # another process created it
                config.symlink_to(project / "dagster.yaml")
    except OSError as error:
        raise StorageError(
            f"DAGSTER_HOME {home} cannot be used: {error.strerror or type(error).__name__}",
            hint="Free disk space, or make the user that runs the backups the owner of the directory and its "
            "files.",
        ) from error
    os.environ[HOME_VARIABLE] = str(home)
    return home
