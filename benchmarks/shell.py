"""Run the programs of peers and limits, with their secrets in the environment."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.system.process import make_environment


def run_shell(command: str, environment: Mapping[str, str] | None = None) -> None:
    """Run the command; raise CalledProcessError if it or a part of its pipes fails."""
    subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=make_environment(environment or {}),
        check=True,
        stdout=subprocess.DEVNULL,
    )


def has_program(name: str) -> bool:
    """Return whether the program is installed; peers that are not installed are skipped."""
    return shutil.which(name) is not None


def make_rclone_environment(settings: BucketSettings) -> dict[str, str]:
    """Return the environment in which rclone's remote `s3:` is the server of this bucket."""
    return {
        "RCLONE_CONFIG_S3_TYPE": "s3",
        "RCLONE_CONFIG_S3_PROVIDER": "Other",
        "RCLONE_CONFIG_S3_ENDPOINT": f"http://{settings.endpoint}",
        "RCLONE_CONFIG_S3_ACCESS_KEY_ID": settings.access_key,
        "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY": settings.secret_key,
        "RCLONE_CONFIG_S3_REGION": settings.region,
    }


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a directory."""
    if path.is_dir():
        return sum(found.stat().st_size for found in path.rglob("*") if found.is_file())
    return path.stat().st_size
