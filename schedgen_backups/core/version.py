"""The version that is written into every file of a recovery point."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _find_version() -> str:
    try:
        return version("schedgen-backups")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "0+unknown"


TOOL_VERSION = _find_version()
