"""A small disk of its own, which a test can fill without filling the machine's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mount_small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a disk of this size, such as `16k`, on the folder; without root, skip the test."""
    if os.geteuid() != 0:
        pytest.skip(f"it takes root to mount a disk of {size}")
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
