"""Where the files lie that are no Python: Dagster's settings, units, compose files.

In the checkout, or where the wheel has installed them.
"""

from __future__ import annotations

import site
import sysconfig
from pathlib import Path

from schedgen_backups.config.env_file import find_checkout

_SHARE = Path("share") / "schedgen-backups"


def find_project() -> Path | None:
    """Return the folder with dagster.yaml, workspace.yaml, deploy/ and docker/.

    None where the package was copied without them.
    """
    checkout = find_checkout()
    if checkout is not None:
        return checkout
    # As data-files of the wheel (pyproject.toml), in an environment of its own, or below the user's home.
    places = (Path(sysconfig.get_path("data")) / _SHARE, Path(site.getuserbase()) / _SHARE)
    return next((place for place in places if (place / "workspace.yaml").is_file()), None)
