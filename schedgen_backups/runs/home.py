"""The folder of the Dagster instance: where it is, that it is private, and that it holds a dagster.yaml.

Makes it under a lock of its own.

Dagster makes its SQLite files at the first use and stamps their schema; two processes that do so at once
leave files that no process can use again.
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
    """Prepare DAGSTER_HOME; within the block no other process of ours opens an instance there.

    Errors as of `prepare_home`.
    """
    home = prepare_home(file)
    if not os.access(home, os.W_OK):
        # In a container it holds a dagster.yaml only, and the instance lies in a database. Where it should
        # not be so, Dagster says it next.
        yield home
        return
    with FileLock(home / _LOCK_NAME).waited_for():
        yield home


def prepare_home(file: EnvironmentFile) -> Path:
    """Set DAGSTER_HOME to a folder with a dagster.yaml and return it: the configured one, otherwise that of
    the environment file's place.

    That is `.dagster` in the checkout for the checkout's own file, /var/lib/schedgen-backups for the
    machine's, ~/.local/state/schedgen-backups for the user's. ConfigurationError when it is not set and the
    settings are another file's: two sites must not share a history. StorageError when it cannot be made or
    written.
    """
    # Dagster's own variable, which its programs read and hand on: not a setting of ours, and set here for the
    # instance of this process.
    configured = os.environ.get(HOME_VARIABLE)
    chosen = Path(configured) if configured else _find_default(file)
    if chosen is None:
        raise ConfigurationError(
            "DAGSTER_HOME is not set, and the settings are those of a file that has no place of its own "
            "for it",
            hint="Set it to the folder of the Dagster instance; it is made when it is not there.",
        )
    home = chosen.expanduser().absolute()
    project = find_project()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = home / "dagster.yaml"
        if not config.exists() and project is not None:
            if config.is_symlink():  # to a checkout that has moved, or is gone after an upgrade
                config.unlink(missing_ok=True)
            with suppress(FileExistsError):  # another process was as fast
                config.symlink_to(project / "dagster.yaml")
    except OSError as error:
        raise StorageError(
            f"DAGSTER_HOME {home} cannot be used: {error.strerror or type(error).__name__}",
            hint="Make room on its disk, or give the folder and its files to the user that runs the backups.",
        ) from error
    os.environ[HOME_VARIABLE] = str(home)
    return home
