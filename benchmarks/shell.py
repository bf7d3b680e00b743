"""Peers and limits are other people's programs: here they are called, with their secrets in the environment."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from schedgen_backups.core.system.process import make_environment


def run_shell(command: str, environment: Mapping[str, str] | None = None) -> None:
    """The command ended with 0, all parts of its pipes too; CalledProcessError otherwise."""
    subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=make_environment(environment or {}),
        check=True,
        stdout=subprocess.DEVNULL,
    )


def has_program(name: str) -> bool:
    """Whether the program is on this machine; a peer that is not is left out."""
    return shutil.which(name) is not None


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(found.stat().st_size for found in path.rglob("*") if found.is_file())
    return path.stat().st_size
