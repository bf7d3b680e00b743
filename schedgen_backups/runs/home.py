"""The folder of the Dagster instance: where it is, and that it holds a dagster.yaml.

Only the folder; what runs against the instance is the business of `instance`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from schedgen_backups.config.environment import find_project_folder
from schedgen_backups.core.errors import ConfigurationError

HOME_VARIABLE = "DAGSTER_HOME"


def prepare_home() -> Path:
    """DAGSTER_HOME is set and holds a dagster.yaml: the configured folder, otherwise `.dagster` in the project.

    ConfigurationError (permanent) when there is neither.
    """
    configured = os.environ.get(HOME_VARIABLE)
    project = find_project_folder()
    home = Path(configured).expanduser().absolute() if configured else project / ".dagster"
    if not configured and not (project / "dagster.yaml").is_file():
        raise ConfigurationError(
            "DAGSTER_HOME is not set, and this is no checkout of the project", hint="Set it to the folder with the instance's dagster.yaml."
        )
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.exists() and (project / "dagster.yaml").is_file():
        with suppress(FileExistsError):  # another process was as fast
            config.symlink_to(project / "dagster.yaml")
    os.environ[HOME_VARIABLE] = str(home)
    return home
