"""The command `last`: which recovery point a rollback goes back to, and the commands that do it.

Add here what a deployment script asks. Taking the backup is `backup` in `cli`; what a marker and a rollback look like is in `deployments`.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from schedgen_backups.cli.app import CommandEnd, JsonOption, app, err, out, print_json
from schedgen_backups.cli.deployments import find_last, make_rollback
from schedgen_backups.config.environment import load_environment
from schedgen_backups.config.points import open_catalog
from schedgen_backups.core.catalog.pins import read_pin
from schedgen_backups.core.spans import describe_labels
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE


@app.command()
def last(
    *,
    label: Annotated[str, typer.Option(help="Only points with this label: key, or key=value.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Print the newest verified recovery point and the commands that go back to it; ends with 3 when there is none."""
    catalog = open_catalog()
    point = find_last(catalog, label)
    if point is None or point.manifest is None:
        asked = f" with the label {label}" if label else ""
        err.print(escape(f"there is no verified recovery point{asked} in {catalog.directory}"))
        raise CommandEnd(VERIFICATION_EXIT_CODE)
    rollback = make_rollback(point, load_environment())
    origin, pin = point.manifest.origin, read_pin(catalog, point.point_id)
    pinned_until = pin.expires_at.isoformat() if pin is not None and pin.expires_at is not None else None
    if as_json:
        print_json(
            {
                "id": point.point_id.text,
                "taken_at": point.point_id.taken_at.isoformat(),
                "location": str(catalog.directory),
                "labels": dict(origin.labels),
                "reason": origin.reason,
                "git_commit": origin.git_commit,
                "git_branch": origin.git_branch,
                "is_pinned": pin is not None,
                "pinned_until": pinned_until,
                "rollback": {"database": rollback.database, "bucket": rollback.bucket},
            }
        )
        return
    lines = {
        "taken": f"{point.point_id.taken_at:%Y-%m-%d %H:%M:%S} UTC",
        "in": str(catalog.directory),
        "labels": describe_labels(origin.labels),
        "reason": origin.reason,
        "git": f"{origin.git_commit} {origin.git_branch}".strip(),
        "pinned": f"{pin.reason}, until {pinned_until or 'it is unpinned'}" if pin is not None else "",
    }
    out.print(f"[bold]{point.point_id}[/]")
    for name, value in lines.items():
        if value:
            out.print(f"  {name:7} {escape(value)}", soft_wrap=True)
    out.print("To go back, stop the application and run:", soft_wrap=True)
    for command in (rollback.database, rollback.bucket):
        out.print(f"  {escape(command)}", soft_wrap=True)
