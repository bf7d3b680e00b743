"""The commands `receipts` and `report`: signed statements of a backup directory, and a month as one page."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import CommandEnd, JsonOption, app, get_config, out, print_json
from schedgen_backups.cli.text import escape
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import ConfigurationError, PointNotFoundError, VerificationError
from schedgen_backups.core.receipts.keys import (
    find_keys_folder,
    list_public_keys,
    read_public_key,
    replace_signer,
)
from schedgen_backups.core.receipts.receipts import (
    Receipt,
    list_receipts,
    list_subjects,
    verify_receipt,
)
from schedgen_backups.core.units import be, count
from schedgen_backups.evidence.report import describe_counts, make_report, write_report
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE


class ReceiptAction(str, Enum):
    """What `receipts` does."""

    VERIFY = "verify"
    NEW_KEY = "new-key"


@dataclass(frozen=True)
class _Verdict:
    """Whether a receipt is valid, and what is wrong otherwise."""

    name: str
    problem: str
    event: str = ""
    subjects: tuple[str, ...] = ()


@app.command()
def receipts(
    context: typer.Context,
    action: Annotated[
        ReceiptAction,
        typer.Argument(
            metavar="[ACTION]",
            help="verify: check signatures, and the manifests that still exist. new-key: sign with a new key "
            "from now on.",
        ),
    ] = ReceiptAction.VERIFY,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...", help="Receipts to verify; by default all of the backup directory."
        ),
    ] = None,
    *,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Public key that must have signed them, instead of those beside the receipts.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify the receipts of recovery points, drills, copies and restores (docs/receipts.md).

    Exit code 3 if one is not valid, 8 if there is none.
    """
    directory = get_config(context).backup_directory
    if action is ReceiptAction.NEW_KEY:
        if files or key:
            raise ConfigurationError("`receipts new-key` takes no file", hint="Leave FILE and --key out.")
        Catalog(directory).prepare()
        key_id = replace_signer(directory).public_key.keyid
        if as_json:
            print_json({"key_id": key_id})
        else:
            out.print(
                f"receipts are signed with {key_id} from now on; keep a copy of its public key elsewhere"
            )
        return
    folder = find_keys_folder(directory)
    keys = {found.keyid: found for found in map(read_public_key, key)} if key else list_public_keys(folder)
    paths = files or list_receipts(directory)
    if not paths:
        raise PointNotFoundError(
            f"no receipts in {directory}",
            hint="The next recovery point leaves one. Is it the right BACKUP_DIR?",
        )
    verdicts: list[_Verdict] = []
    for path in paths:
        try:
            verdicts.append(_judge(verify_receipt(path, keys), directory))
        except VerificationError as error:
            verdicts.append(_Verdict(path.name, error.message))
    problems = [verdict for verdict in verdicts if verdict.problem]
    if as_json:
        print_json(
            {
                "receipts": [
                    {
                        "name": verdict.name,
                        "valid": not verdict.problem,
                        "problem": verdict.problem,
                        "event": verdict.event,
                        "subjects": list(verdict.subjects),
                    }
                    for verdict in verdicts
                ]
            }
        )
    else:
        for verdict in problems:
            out.print(escape(f"{verdict.name}: {verdict.problem}"))
        out.print(f"{count(len(verdicts) - len(problems), 'valid receipt')}, {len(problems)} not valid")
    raise CommandEnd(VERIFICATION_EXIT_CODE if problems else 0)


def _judge(receipt: Receipt, directory: Path) -> _Verdict:
    """Compare the digests with the manifests that still exist."""
    subjects = receipt.statement.subject
    names = tuple(subject.name for subject in subjects)
    point_ids = [name.removeprefix("manifest_").removesuffix(".json") for name in names]
    existing = {subject.name: subject.digest for subject in list_subjects(directory, point_ids)}
    changed = [each.name for each in subjects if existing.get(each.name, each.digest) != each.digest]
    problem = f"signed, but {', '.join(changed)} is now another file" if changed else ""
    return _Verdict(receipt.path.name, problem, str(receipt.event.get("event", "")), names)


@app.command()
def report(
    context: typer.Context,
    *,
    to: Annotated[
        Path, typer.Option(metavar="FILE", help="File to write: .html for a page, .json for its values.")
    ],
    month: Annotated[str, typer.Option(metavar="YYYY-MM", help="Month; by default the last whole one.")] = "",
) -> None:
    """Write a month's evidence: points, drills, incidents, copies, removals (docs/report.md)."""
    made = make_report(get_config(context), month)
    write_report(made, to)
    out.print(escape(f"{to}: {describe_counts(made)}"))
    if made.unreadable_lines:
        number = made.unreadable_lines
        out.print(f"{count(number, 'line')} of the history {be(number)} not readable")
