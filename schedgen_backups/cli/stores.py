"""The commands for copies elsewhere: `stores` with its actions, and `fetch`."""

from __future__ import annotations

from datetime import datetime, timezone
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import (
    CommandEnd,
    JsonOption,
    PointArgument,
    app,
    err,
    get_config,
    get_whole_config,
    out,
    print_json,
)
from schedgen_backups.cli.copies import (
    CopySource,
    FromOption,
    IdentityOption,
    SiteOption,
    VersionTimeOption,
    open_store_access,
)
from schedgen_backups.cli.progress import show_progress, show_work
from schedgen_backups.cli.text import escape, escape_value
from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.selection import resolve_point
from schedgen_backups.core.copies.service import CopyService, list_pins
from schedgen_backups.core.errors import ConfigurationError, StorageError, VerificationError
from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.encryption import make_key_pair
from schedgen_backups.core.store.open import open_store
from schedgen_backups.core.store.protocol import MadeStore
from schedgen_backups.core.units import format_bytes
from schedgen_backups.core.verify.files import verify_archive, verify_dump
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE


class StoreAction(str, Enum):
    """What `stores` does."""

    LIST = "list"
    PREPARE = "prepare"
    COPY = "copy"
    PROVE = "prove"
    PRUNE = "prune"
    FORGET_WRITER = "forget-writer"
    MAKE_KEY = "make-key"


@app.command()
def stores(
    context: typer.Context,
    action: Annotated[
        StoreAction,
        typer.Argument(
            metavar="[ACTION]",
            help="list: what is known of every store. prepare: make a folder a store, probe what a store is "
            "capable of. copy: copy the points that are due. prove: list the store and read packs back. "
            "prune: remove what the store's retention does not keep. forget-writer: stop waiting for a "
            "decommissioned host. make-key: print a new key pair.",
        ),
    ] = StoreAction.LIST,
    store: Annotated[str, typer.Argument(metavar="[STORE]", help="Name in the file of stores.")] = "",
    writer: Annotated[str, typer.Argument(metavar="[WRITER]", help="With forget-writer: its id.")] = "",
    *,
    as_json: JsonOption = False,
) -> None:
    """Show and manage copies of recovery points in stores elsewhere.

    Exit code 3 if a proof fails.
    """
    config = get_config(context)
    if action is StoreAction.MAKE_KEY:
        _make_key(as_json=as_json)
        return
    if action is StoreAction.LIST:
        _list_stores(config, store, as_json=as_json)
        return
    if writer and action is not StoreAction.FORGET_WRITER:
        raise ConfigurationError(
            f"`stores {action.value}` needs nothing but the name of a store", hint=f"Leave out {writer!r}."
        )
    if not store or bool(writer) != (action is StoreAction.FORGET_WRITER):
        raise ConfigurationError(
            f"`stores {action.value}` needs the name of a store"
            + (" and the id of a writer" if action is StoreAction.FORGET_WRITER else ""),
            hint="`schedgen-backups stores` lists them.",
        )
    answer, is_good = _ACTIONS[action](get_whole_config(context), store, writer)
    if as_json:
        print_json({"store": store, **answer})
    else:
        for name, value in answer.items():
            text = (
                format_bytes(value) if isinstance(value, int) and name.endswith("_bytes") else _to_text(value)
            )
            out.print(f"{name.removesuffix('_bytes').replace('_', ' ')}: {escape_value(text)}")
    raise CommandEnd(0 if is_good else VERIFICATION_EXIT_CODE)


@app.command()
def fetch(
    context: typer.Context,
    point_id: PointArgument,
    *,
    to: Annotated[
        Path, typer.Option("--to", metavar="DIRECTORY", help="Write the files into this directory.")
    ],
    from_store: FromOption = "",
    identity: IdentityOption = None,
    version_time: VersionTimeOption = "",
    site: SiteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Fetch a recovery point as files that stock tools open.

    With --from, from a store: the same files as in the backup directory, byte for byte. Without it, from the
    backup directory: what lies in packs is put together (docs/packs.md).
    """
    config = get_config(context)
    source = CopySource.from_options(from_store, identity, version_time, site)
    if not from_store:
        _put_together(config.make_catalog(), point_id, to.absolute(), as_json=as_json)
        return
    access = open_store_access(config, source, needs_key=True)
    with show_progress(err, {"fetch": (f"fetch from {from_store}", None)}) as bars:
        reader = access.open_copy(point_id, on_progress=lambda size_bytes: bars.advance("fetch", size_bytes))
        point = reader.fetch_into(to.absolute()).get_point(reader.point_id)
    paths = [str(artifact.path) for artifact in point.artifacts]
    if as_json:
        print_json({"id": reader.point_id.text, "files": paths})
        return
    for path in paths:
        out.print(escape(path))


def _put_together(catalog: Catalog, point_id: str, to: Path, *, as_json: bool) -> None:
    point = resolve_point(catalog, point_id)
    try:
        to.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{to} cannot be made: {error.strerror}", hint="Use a directory in an existing one."
        ) from error
    paths: list[Path] = []
    for found in point.artifacts:
        path = to / found.name.to_file_name()
        with (
            show_progress(err, {"fetch": (found.name.to_file_name(), None)}) as bars,
            ArtifactFile(found.path, point.keys) as file,
        ):
            file.write_to(path, on_progress=partial(bars.advance, "fetch"))
        verify = verify_dump if found.name.kind is ArtifactKind.DATABASE else verify_archive
        problems = [result.summary for result in verify(path) if not result.is_passed]
        if problems:
            path.unlink()
            raise VerificationError(f"{found.path.name} is damaged: {problems[0]}", hint="Use another point.")
        paths.append(path)
    if as_json:
        print_json({"id": point.point_id.text, "files": [str(path) for path in paths]})
        return
    for path in paths:
        out.print(escape(str(path)))


def _make_key(*, as_json: bool) -> None:
    pair = make_key_pair()
    if as_json:
        print_json({"public": pair.public, "private": pair.private})
        return
    out.print(f"public key, for `recipients`: {pair.public}")
    out.print(f"private key, shown only now: {pair.private}")
    err.print(
        "Keep the private key away from this host, twice: in a password manager and on paper, for example. "
        "Without it no copy can be read."
    )


def _list_stores(config: Config, name: str, *, as_json: bool) -> None:
    statuses = [status for status in config.read_store_statuses() if name in {"", status.name}]
    if name and not statuses:
        raise ConfigurationError(f"unknown store {name!r}", hint="`schedgen-backups stores` lists them.")
    if as_json:
        print_json(
            {
                "stores": [
                    {
                        "name": status.name,
                        "url": status.settings.location.url if status.settings else None,
                        "error": status.error or None,
                        "state": status.state.model_dump(mode="json"),
                    }
                    for status in statuses
                ]
            }
        )
        return
    if not statuses:
        out.print("no stores: BACKUP_STORES_FILE names none, and the backup directory holds the only copy")
    # Lines instead of a table: on a narrow screen, its cells would wrap ids and problems.
    for status in statuses:
        out.print(f"[bold]{status.name}[/]  {escape(status.describe(datetime.now(timezone.utc)))}")
        for problem in status.problems:
            out.print(f"  [bold red]problem[/]  {escape_value(problem)}")


def _prepare(config: Config, store: str, _writer: str) -> tuple[dict[str, object], bool]:
    opened = open_store(config.find_store(store).location)
    if isinstance(opened, MadeStore):
        opened.prepare()
    capabilities = CopyService(config.open_catalog(), config.find_store(store)).probe()
    return {"url": opened.label, "capabilities": str(capabilities)}, True


def _copy(config: Config, store: str, _writer: str) -> tuple[dict[str, object], bool]:
    with show_progress(err, {"copy": (f"copy to {store}", None)}) as bars:
        service = CopyService(
            config.open_catalog(),
            config.find_store(store),
            on_progress=lambda size_bytes: bars.advance("copy", size_bytes),
        )
        reports = service.copy_due()
    return {
        "copied": [report.point_id.text for report in reports],
        "uploaded_bytes": sum(report.uploaded_bytes for report in reports),
        "reused_bytes": sum(report.reused_bytes for report in reports),
    }, True


def _prove(config: Config, store: str, _writer: str) -> tuple[dict[str, object], bool]:
    with show_work(err, f"listing {store} and reading packs back"):
        proof = CopyService(config.open_catalog(), config.find_store(store)).prove()
    problems = [
        *proof.listing.problems,
        *proof.reread.problems,
        *(proof.lock.problems if proof.lock is not None else ()),
    ]
    answer: dict[str, object] = {
        "copies": len(proof.listing.committed),
        "packs": len(proof.listing.packs),
        "packs_read": proof.reread.read_count,
        "packs_never_read": proof.reread.unread_count,
        "locked_until": proof.lock.locked_until.isoformat()
        if proof.lock is not None and proof.lock.locked_until is not None
        else None,
        "problems": problems,
    }
    return answer, not problems


def _prune(config: Config, store: str, _writer: str) -> tuple[dict[str, object], bool]:
    catalog = config.open_catalog()
    service = CopyService(catalog, config.find_store(store))
    with show_work(err, f"pruning {store}"):
        report = service.prune(pinned=list_pins(catalog, datetime.now(timezone.utc)))
    return {
        "removed": [point.text for point in report.removed_points],
        "removed_packs": report.removed_packs,
        "removed_unfinished_files": report.unfinished_count,
        "freed_bytes": report.freed_bytes,
        "condemned": report.condemned,
        "waits_for": list(report.waits_for),
        "locked": {name: until.isoformat() if until else None for name, until in report.locked_until.items()},
    }, True


def _forget_writer(config: Config, store: str, writer: str) -> tuple[dict[str, object], bool]:
    CopyService(config.open_catalog(), config.find_store(store)).forget_writer(writer)
    return {"forgotten": writer}, True


_ACTIONS = {
    StoreAction.PREPARE: _prepare,
    StoreAction.COPY: _copy,
    StoreAction.PROVE: _prove,
    StoreAction.PRUNE: _prune,
    StoreAction.FORGET_WRITER: _forget_writer,
}


def _to_text(value: object) -> str:
    if value is None or value in ([], {}):
        return "none"
    # A list of texts, by the actions above.
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
