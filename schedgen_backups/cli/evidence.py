"""The commands `receipts` and `report`: signed statements of a backup directory, and a month as one page."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.all_sites import (
    AllSitesOption,
    SiteAnswer,
    print_answer,
    print_answers_of_all_sites,
)
from schedgen_backups.cli.app import (
    CommandEnd,
    JsonOption,
    app,
    get_config,
    get_whole_config,
    out,
    print_json,
)
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import ConfigurationError, PointNotFoundError, VerificationError
from schedgen_backups.core.receipts.keys import (
    find_keys_folder,
    find_public_key,
    list_public_keys,
    read_public_key,
    replace_signer,
    settle_signer,
)
from schedgen_backups.core.receipts.receipts import (
    Receipt,
    list_receipts,
    list_subjects,
    verify_receipt,
)
from schedgen_backups.core.system.files import read_small_file
from schedgen_backups.core.units import be, count
from schedgen_backups.evidence.report import describe_counts, make_report, write_report
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE


class ReceiptAction(str, Enum):
    """What `receipts` does."""

    VERIFY = "verify"
    SHOW_KEY = "show-key"
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
            help="verify: check signatures, and the manifests that still exist. show-key: print the key that "
            "verifies new receipts, after making one if needed. new-key: sign with a new key from now on.",
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
    if action is not ReceiptAction.VERIFY:
        if files or key:
            raise ConfigurationError(
                f"`receipts {action.value}` takes no file", hint="Leave FILE and --key out."
            )
        Catalog(directory).prepare()
        settle = replace_signer if action is ReceiptAction.NEW_KEY else settle_signer
        _print_key(directory, settle(directory).public_key.keyid, as_json=as_json)
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


def _print_key(directory: Path, key_id: str, *, as_json: bool) -> None:
    path = find_public_key(find_keys_folder(directory), key_id)
    read_public_key(path)
    pem = read_small_file(path).decode()
    if as_json:
        print_json({"key_id": key_id, "public_key": pem})
    else:
        out.print(f"Receipts are signed with the key {key_id}. Keep a copy of its public half elsewhere:")
        out.print(pem.strip(), soft_wrap=True)


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
        Path,
        typer.Option(
            metavar="FILE",
            help="File to write: .html for a page, .json for its values. With --all-sites, each site's file "
            "has its name: with report.html, the site shop has report-shop.html.",
        ),
    ],
    month: Annotated[str, typer.Option(metavar="YYYY-MM", help="Month; by default the last whole one.")] = "",
    all_sites: AllSitesOption = False,
) -> None:
    """Write a month's evidence: points, drills, incidents, copies, removals (docs/report.md)."""
    if all_sites:
        print_answers_of_all_sites(
            context,
            lambda config: _write_report(config, month, to.with_stem(f"{to.stem}-{config.site_name}")),
            as_json=False,
        )
    else:
        print_answer(_write_report(get_whole_config(context), month, to), as_json=False)


def _write_report(config: Config, month: str, path: Path) -> SiteAnswer:
    made = make_report(config, month)
    write_report(made, path)
    lines = [escape(f"{path}: {describe_counts(made)}")]
    if number := made.unreadable_lines:
        lines.append(f"{count(number, 'line')} of the history {be(number)} not readable")
    return SiteAnswer({}, lines)
