"""Back up a PostgreSQL database and its S3 bucket as one recovery point.

This package holds the Dagster edge: definitions, assets, checks, resources, jobs, schedules and the command
line. The work is done in `core`, which does not import Dagster. This file imports nothing, so that importing
one part loads only that part; the component is loaded when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schedgen_backups.defs.component import BackupSite

__all__ = ["BackupSite"]


def __getattr__(name: str) -> object:
    """Return the Dagster component, which `type: schedgen_backups.BackupSite` names."""
    if name == "BackupSite":
        from schedgen_backups.defs.component import BackupSite  # noqa: PLC0415 Dagster takes a second to load

        return BackupSite
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what Dagster is to find in this module (entry point `dagster_dg_cli.registry_modules`)."""
    return sorted({*globals(), *__all__})
