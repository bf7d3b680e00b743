"""What the next point is expected to add: as much as the largest of the newest ones did, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.check_results import Verification
from schedgen_backups.core.catalog.points import FoundArtifact, PointListing
from schedgen_backups.core.catalog.space import SpaceForecast, forecast_space, measure_stored
from schedgen_backups.core.model import (
    Artifact,
    ArtifactKind,
    ArtifactName,
    Manifest,
    RecoveryPointId,
    ReferenceState,
    ReferenceSummary,
)
from schedgen_backups.core.settings import Layout
from schedgen_backups_tests.support.artifacts import TAKEN_AT

FILES, PACKS = Layout.FILES, Layout.PACKS
HOUR = timedelta(hours=1)
RECIPE_BYTES = 1
DUMP, ARCHIVE = 20, 300


@dataclass(frozen=True)
class Taken:
    """A point as a file or in packs: what it holds, and how much it wrote into packs."""

    layout: Layout = PACKS
    new: int = 0
    dump: int = DUMP
    archive: int = ARCHIVE
    """0: the half failed, so that the point has no manifest."""


FIRST = Taken(new=DUMP + ARCHIVE)
"""The first point in packs."""
FILE = Taken(FILES)


def list_taken(taken: Sequence[Taken], gap: timedelta) -> tuple[tuple[PointListing, ...], dict[str, int]]:
    """Return the points, and the sizes of the packs."""
    points: list[PointListing] = []
    packs: dict[str, int] = {"20200101_000000-0000": 5}
    for number, each in enumerate(taken):
        point_id = RecoveryPointId.from_time(TAKEN_AT + number * gap)
        artifacts: list[FoundArtifact] = []
        for kind, size_bytes in ((ArtifactKind.DATABASE, each.dump), (ArtifactKind.BUCKET, each.archive)):
            name = ArtifactName(kind, "x", point_id)
            if each.layout is FILES:
                artifacts.append(FoundArtifact(name, Path(name.to_file_name()), size_bytes))
            elif size_bytes:
                artifacts.append(FoundArtifact(name, Path(name.to_recipe_name()), RECIPE_BYTES))
        if each.new:
            # In two packs, whose sizes add up.
            packs |= {f"{point_id}-0000": each.new - 1, f"{point_id}-0001": 1}
        manifest = Manifest(
            tool_version="test",
            point_id=point_id.text,
            snapshot_at=point_id.taken_at,
            committed_at=point_id.taken_at,
            artifacts=tuple(
                Artifact(
                    kind=found.name.kind,
                    file_name=found.path.name,
                    source_name="x",
                    size_bytes=found.size_bytes,
                    sha256="",
                    content_bytes=(each.dump if found.name.kind is ArtifactKind.DATABASE else each.archive)
                    if each.layout is PACKS
                    else None,
                )
                for found in artifacts
            ),
            references=ReferenceSummary(state=ReferenceState.READ),
        )
        points.append(
            PointListing(
                point_id,
                tuple(artifacts),
                manifest if each.archive else None,
                Verification(point_id=point_id.text),
            )
        )
    return tuple(points), packs


WHOLE = DUMP + ARCHIVE
RECIPES = 2 * RECIPE_BYTES
FORECASTS: dict[str, tuple[Sequence[Taken], Layout, timedelta, SpaceForecast | None]] = {
    "no point": ((), PACKS, HOUR, None),
    "files": ((FILE, FILE), FILES, 24 * HOUR, SpaceForecast(WHOLE)),
    "files of which the newest lacks a half": (
        (FILE, replace(FILE, archive=0)),
        FILES,
        24 * HOUR,
        SpaceForecast(WHOLE),
    ),
    "files that shrank three nights ago": (
        (FILE, *3 * [replace(FILE, archive=10)]),
        FILES,
        24 * HOUR,
        SpaceForecast(DUMP + 10),
    ),
    # A point in packs costs what it wrote, not what it holds.
    "packs that grow": (
        (FIRST, Taken(new=7), Taken(new=9), Taken(new=8)),
        PACKS,
        24 * HOUR,
        SpaceForecast(9 + RECIPES, DUMP),
    ),
    "packs without news": ((FIRST, Taken(), Taken()), PACKS, HOUR, SpaceForecast(RECIPES, DUMP)),
    "the first point in packs": ((FIRST,), PACKS, HOUR, SpaceForecast(DUMP, DUMP)),
    "the second": ((FIRST, Taken(new=7)), PACKS, HOUR, SpaceForecast(7 + RECIPES, DUMP)),
    "after files": ((FILE, FILE, FIRST, Taken(new=7)), PACKS, HOUR, SpaceForecast(7 + RECIPES, DUMP)),
    "a first point that lacked a half": (
        (Taken(new=DUMP, archive=0), FIRST, Taken(new=7)),
        PACKS,
        HOUR,
        SpaceForecast(7 + RECIPES, DUMP),
    ),
    "only points that lack a half": (
        (FILE, Taken(new=DUMP, archive=0)),
        PACKS,
        HOUR,
        SpaceForecast(WHOLE, DUMP),
    ),
    # By day much is uploaded, at night nothing: every hour of the last day counts.
    "a busy hour yesterday": (
        (FIRST, *5 * [Taken(new=7)], Taken(new=90), *20 * [Taken(new=3)]),
        PACKS,
        HOUR,
        SpaceForecast(90 + RECIPES, DUMP),
    ),
    "a busy hour the day before": (
        (FIRST, Taken(new=90), *24 * [Taken(new=3)]),
        PACKS,
        HOUR,
        SpaceForecast(3 + RECIPES, DUMP),
    ),
    # The next point has the layout that is set, whatever the last ones had.
    "from files to packs": ((FILE, FILE), PACKS, HOUR, SpaceForecast(WHOLE, DUMP)),
    "from packs to files": ((FIRST, Taken(new=7)), FILES, HOUR, SpaceForecast(WHOLE)),
}


@pytest.mark.parametrize("case", FORECASTS)
def test_the_next_point_is_expected_to_add_what_the_newest_ones_did(case: str) -> None:
    taken, layout, gap, expected = FORECASTS[case]
    points, packs = list_taken(taken, gap)
    assert forecast_space(points, packs, layout) == expected


def test_points_of_another_site_or_ahead_of_the_clock_say_nothing() -> None:
    points, packs = list_taken([FIRST, Taken(new=7), Taken(new=200), Taken(new=100)], HOUR)
    points = (*points[:2], replace(points[2], is_foreign=True), replace(points[3], is_ahead=True))
    assert forecast_space(points, packs, PACKS) == SpaceForecast(7 + RECIPES, DUMP)
    assert forecast_space(points[2:], packs, PACKS) is None


@pytest.mark.parametrize(("free_bytes", "count"), [(0, 0), (20, 0), (29, 0), (30, 1), (119, 9), (120, 10)])
def test_what_the_backup_needs_meanwhile_is_left_free(free_bytes: int, count: int) -> None:
    assert SpaceForecast(added_bytes=10, temporary_bytes=20).count_fitting(free_bytes) == count


def test_what_points_share_is_stored_once() -> None:
    points, packs = list_taken([FILE, FIRST, Taken(new=7)], HOUR)
    assert measure_stored(points, packs) == WHOLE + 2 * RECIPES + WHOLE + 7 + 5
