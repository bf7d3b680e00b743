"""Check the backup directory: whether it is writable, and for how many points of which layout it has room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from schedgen_backups.config.config import Config
from schedgen_backups.config.cron import measure_ticks_per_day
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.catalog.space import SpaceForecast, forecast_space, measure_stored
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.retention.layout_advice import LayoutAdvice, Situation, advise_on_layout
from schedgen_backups.core.settings import Layout
from schedgen_backups.core.system.reflink import shares_blocks
from schedgen_backups.core.units import count, format_bytes
from schedgen_backups.doctor.results import PreconditionResult, Verdict

_FEW_POINTS = 7
_SPACE_FACTOR = 1.5
"""Free space wanted, relative to what the next backup is expected to need: points grow."""


def examine_directory(config: Config) -> Iterator[PreconditionResult]:
    """Check the directory without creating it: the first backup does."""
    directory = config.backup_directory
    existing = _find_existing(directory)
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        fix = "Create the directory and make the user that runs the backups its owner."
        yield PreconditionResult(
            "backup directory",
            Verdict.PROBLEM,
            f"{existing} is not a directory that this user can write to",
            fix,
        )
        return
    state = "is writable" if existing == directory else "does not exist yet: the first backup creates it"
    yield PreconditionResult("backup directory", Verdict.OK, f"{directory} {state}")
    points, pack_sizes = _list_points(directory)
    forecast = forecast_space(points, pack_sizes, config.capture.layout)
    yield _judge_space(forecast, shutil.disk_usage(existing).free)
    advice = find_layout_advice(config)
    if advice is not None:
        yield PreconditionResult("layout", Verdict.NOTE, advice.detail, advice.fix)


def find_layout_advice(config: Config, *, least_bytes: int = 0) -> LayoutAdvice | None:
    """Return why points in packs are advised here; None if they are in use, or not needed.

    `least_bytes` is the size of a point as far as it is known while there is none.
    """
    directory, schedule = config.backup_directory, config.schedule
    existing = _find_existing(directory)
    points, pack_sizes = _list_points(directory)
    whole = forecast_space(points, pack_sizes, Layout.FILES)
    return advise_on_layout(
        Situation(
            config.capture.layout,
            shares_blocks=shares_blocks(existing),
            points_per_day=measure_ticks_per_day(schedule.cron, schedule.timezone),
            policy=config.retention,
            point_bytes=whole.added_bytes if whole is not None else least_bytes,
            room_bytes=shutil.disk_usage(existing).free + measure_stored(points, pack_sizes),
        )
    )


def _find_existing(directory: Path) -> Path:
    """Return the directory, or the next one above it that exists."""
    return next(path for path in (directory, *directory.parents) if path.exists())


def _list_points(directory: Path) -> tuple[tuple[PointListing, ...], dict[str, int]]:
    """Return the points and the sizes of the packs; none of a directory that is missing."""
    points = Catalog(directory).list_points() if directory.is_dir() else ()
    return points, LocalPacks(directory).find_sizes()


def _judge_space(forecast: SpaceForecast | None, free_bytes: int) -> PreconditionResult:
    detail, verdict = f"{format_bytes(free_bytes)} free", Verdict.OK
    if forecast is not None:
        fitting = forecast.count_fitting(free_bytes)
        detail += (
            f", enough for {count(fitting, 'more point')}: the newest ones added up to "
            f"{format_bytes(forecast.added_bytes)} each"
        )
        if free_bytes <= forecast.needed_bytes * _SPACE_FACTOR:
            verdict = Verdict.PROBLEM
        elif fitting < _FEW_POINTS:
            verdict = Verdict.NOTE
    fix = "Free disk space, or move BACKUP_DIR to a larger disk."
    return PreconditionResult("free space", verdict, detail, "" if verdict is Verdict.OK else fix)
