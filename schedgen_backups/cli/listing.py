"""The command `list`: the recovery points of a site, or of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated

import typer
from rich.console import RenderableType

from schedgen_backups.cli.all_sites import (
    AllSitesOption,
    SiteAnswer,
    print_answer,
    print_answers_of_all_sites,
)
from schedgen_backups.cli.app import JsonOption, app, get_config
from schedgen_backups.cli.copies import (
    CopySource,
    FromOption,
    IdentityOption,
    SiteOption,
    VersionTimeOption,
    print_copies,
)
from schedgen_backups.cli.copy_status import KnownCopies
from schedgen_backups.cli.points import point_to_json
from schedgen_backups.cli.progress import draw_points
from schedgen_backups.cli.text import escape, escape_value
from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.pins import describe_pin
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.catalog.selection import has_label
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.units import parse_span


@dataclass(frozen=True)
class _Filter:
    """Which points are listed."""

    label: str
    begins_at: datetime | None
    state: PointState | None

    def accepts(self, point: PointListing) -> bool:
        return (
            has_label(point, self.label)
            and (self.begins_at is None or point.point_id.taken_at >= self.begins_at)
            and self.state in {None, point.state}
        )

    @property
    def is_set(self) -> bool:
        return bool(self.label or self.begins_at or self.state)


@app.command(name="list")
def list_points(
    context: typer.Context,
    *,
    label: Annotated[str, typer.Option(help="Only points with this label: key, or key=value.")] = "",
    since: Annotated[
        str,
        typer.Option(metavar="DURATION", help="Only points taken within this time, such as 36h, 30d or 4w."),
    ] = "",
    state: Annotated[PointState | None, typer.Option(help="Only points in this state.")] = None,
    from_store: FromOption = "",
    identity: IdentityOption = None,
    version_time: VersionTimeOption = "",
    site: SiteOption = "",
    all_sites: AllSitesOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the recovery points, oldest first, with state, copies, pin, labels and reason."""
    source = CopySource.from_options(from_store, identity, version_time, site)
    now = datetime.now(timezone.utc)
    wanted = _Filter(label, now - parse_span(since) if since else None, state)
    if all_sites:
        if source.store:
            raise ConfigurationError(
                "--from and --all-sites exclude each other",
                hint="Each site has stores of its own: add --site NAME before the command.",
            )
        print_answers_of_all_sites(context, lambda config: _answer(config, wanted, now), as_json=as_json)
    elif source.store:
        print_copies(get_config(context), source, as_json=as_json)
    else:
        print_answer(_answer(get_config(context), wanted, now), as_json=as_json)


def _answer(config: Config, wanted: _Filter, now: datetime) -> SiteAnswer:
    catalog, copies = config.open_catalog(), KnownCopies(config)
    points = [point for point in catalog.list_points() if wanted.accepts(point)]
    unmanaged = [path.name for path in catalog.list_unmanaged()]
    return SiteAnswer(
        {
            "points": [point_to_json(catalog, point, copies) for point in points],
            "unmanaged": unmanaged,
            "copies": [],
        },
        tuple(_describe(catalog, points, copies, unmanaged, wanted, now)),
    )


def _describe(
    catalog: Catalog,
    points: list[PointListing],
    copies: KnownCopies,
    unmanaged: list[str],
    wanted: _Filter,
    now: datetime,
) -> Iterator[RenderableType]:
    if points:
        holders = {
            point.point_id: ", ".join(status.name for status, _copied in copies.list_holders(point.point_id))
            for point in points
        }
        pins = {point.point_id: describe_pin(catalog, point.point_id) for point in points}
        yield draw_points(points, now, pins, holders if copies.stores else None)
    else:
        matching = "matching " if wanted.is_set else ""
        yield f"no {matching}recovery points in {escape(str(catalog.directory))}"
    if copies.error:
        yield f"copies are unknown: {escape(copies.error)}"
    if unmanaged:
        yield (
            f"unmanaged (not made by schedgen-backups, never touched): {escape_value(', '.join(unmanaged))}"
        )
