"""The folder of the Dagster instance: where it is, and that it holds a dagster.yaml."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from schedgen_backups.config.env_file import EnvironmentFile, find_checkout
from schedgen_backups.core.errors import ConfigurationError

HOME_VARIABLE = "DAGSTER_HOME"


def prepare_home(file: EnvironmentFile) -> Path:
    """Set DAGSTER_HOME to a folder with a dagster.yaml and return it: the configured one, otherwise `.dagster` in the checkout.

    ConfigurationError when it is not set and the settings are not the checkout's own: two sites must not share a history.
    """
    # Dagster's own variable, which its programs read and hand on: not a setting of ours, and set here for the instance of this process.
    configured = os.environ.get(HOME_VARIABLE)
    checkout = find_checkout()
    if not configured and (checkout is None or file.is_elsewhere):
        raise ConfigurationError(
            "DAGSTER_HOME is not set, and the settings are not those of a checkout", hint="Set it to the folder with the instance's dagster.yaml."
        )
    home = Path(configured).expanduser().absolute() if configured else (checkout or Path()) / ".dagster"
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.exists() and checkout is not None:
        with suppress(FileExistsError):  # another process was as fast
            config.symlink_to(checkout / "dagster.yaml")
    os.environ[HOME_VARIABLE] = str(home)
    return home
