"""Find the files that are not Python: Dagster's settings, systemd units, compose files."""

from __future__ import annotations

import site
import sysconfig
from pathlib import Path

from schedgen_backups.config.env_file import find_checkout

_SHARE = Path("share") / "schedgen-backups"


def find_project() -> Path | None:
    """Return the directory with dagster.yaml, workspace.yaml, deploy/ and docker/.

    It is the checkout, or where the wheel installed them. None if the package was copied without them.
    """
    checkout = find_checkout()
    if checkout is not None:
        return checkout
    # Data files of the wheel (pyproject.toml): in a virtual environment, or below the user's home directory.
    places = (Path(sysconfig.get_path("data")) / _SHARE, Path(site.getuserbase()) / _SHARE)
    return next((place for place in places if (place / "workspace.yaml").is_file()), None)
