"""The command that makes damaged packs whole again."""

from __future__ import annotations

import typer

from schedgen_backups.cli.app import CommandEnd, JsonOption, app, err, get_whole_config, out, print_json
from schedgen_backups.cli.copies import (
    CopySource,
    FromOption,
    IdentityOption,
    SiteOption,
    VersionTimeOption,
    open_store_access,
)
from schedgen_backups.cli.progress import show_work
from schedgen_backups.cli.text import escape
from schedgen_backups.core.copies.heal import WRONG_STATES, heal_packs
from schedgen_backups.core.units import count
from schedgen_backups.core.verify.commit import verify_point
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE

_HOLDER = "heal on the command line"


@app.command()
def heal(
    context: typer.Context,
    *,
    from_store: FromOption = "",
    identity: IdentityOption = None,
    version_time: VersionTimeOption = "",
    site: SiteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make the damaged packs of damaged recovery points whole again.

    From equal objects in other packs and, with --from, from the copies in a store. Each pack is compared with
    the digest that was written down when it was new, and the points are verified afterwards. Exit code 3 if a
    pack stays damaged, or a point in packs.
    """
    config = get_whole_config(context)
    source = CopySource.from_options(from_store, identity, version_time, site)
    access = open_store_access(config, source, needs_key=True) if from_store else None
    catalog = config.open_catalog()
    with catalog.lock.held(_HOLDER), show_work(err, "heal"):
        report = heal_packs(catalog, access)
        for point in report.list_whole():
            verify_point(catalog, point, checked_by="heal")
    states = {point.point_id.text: catalog.get_point(point.point_id).state for point in report.points}
    if as_json:
        print_json(
            {
                "healed": report.healed,
                "damaged": report.damaged,
                "points": states,
                "problems": report.problems,
            }
        )
    else:
        for name in report.healed:
            out.print(f"healed {escape(name)}")
        for name in report.damaged:
            out.print(f"still damaged: {escape(name)}")
        for problem in report.problems:
            out.print(f"[yellow]in the store:[/] {escape(problem)}")
        for point_id, state in states.items():
            out.print(f"{point_id} is {state.value}")
        out.print(
            f"{count(len(report.healed), 'pack')} healed, {count(len(report.damaged), 'pack')} still damaged"
        )
    is_whole = not report.damaged and set(states.values()).isdisjoint(WRONG_STATES)
    raise CommandEnd(0 if is_whole else VERIFICATION_EXIT_CODE)
