"""Points from a store instead of the backup directory: the options that name them, and fetching them.

A command takes these options, and works on the fetched files as it does on those of the backup directory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import err, out, print_json
from schedgen_backups.cli.progress import show_progress
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.catalog.selection import parse_time, resolve_point
from schedgen_backups.core.copies.access import CopyAccess, open_access
from schedgen_backups.core.copies.layout import list_copies
from schedgen_backups.core.copies.local_folder import open_fetch_folder
from schedgen_backups.core.copies.reader import CopyReader
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.model import Artifact, ArtifactKind
from schedgen_backups.core.restore.objects import select_objects
from schedgen_backups.core.restore.tables import select_tables
from schedgen_backups.core.system.files import read_small_file

FromOption = Annotated[
    str,
    typer.Option(
        "--from", metavar="STORE", help="Use the copy in this store instead of the backup directory."
    ),
]
IdentityOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--identity",
        metavar="FILE",
        help="With --from: file with the private key of a recipient; without it, the file of "
        "BACKUP_PACK_IDENTITY_FILE is used, or the key is asked for.",
    ),
]
VersionTimeOption = Annotated[
    str,
    typer.Option(
        "--as-of-version-time",
        metavar="TIME",
        help="With --from: read the store as it was at this time, before somebody changed it; only where the "
        "store keeps versions.",
    ),
]
SiteOption = Annotated[
    str,
    typer.Option(
        "--site", metavar="ID", help="With --from: the site whose copies are used, if there are several."
    ),
]
Fetch = Callable[[CopyReader, Path], object]
"""Writes what a command needs of the copy into the folder."""


@dataclass(frozen=True)
class CopySource:
    """Where a command takes its points from; an empty store is the backup directory."""

    store: str = ""
    identities: tuple[Path, ...] = ()
    version_time: str = ""
    site_id: str = ""

    @classmethod
    def from_options(
        cls, store: str, identities: list[Path] | None, version_time: str, site_id: str
    ) -> CopySource:
        """Return the source; ConfigurationError for options that only make sense with a store."""
        if not store and (identities or version_time or site_id):
            raise ConfigurationError(
                "--identity, --as-of-version-time and --site need --from", hint="Add --from STORE."
            )
        return cls(store, tuple(identities or ()), version_time, site_id)


def open_store_access(config: Config, source: CopySource, *, needs_key: bool) -> CopyAccess:
    """Open the store of the source for reading; ask for the private key if that is needed and not given."""
    settings = config.find_store(source.store)
    own_site_id = ""
    if config.backup_directory.is_dir():
        site = config.make_catalog().read_site()
        own_site_id = site.site_id if site is not None else ""
    return open_access(
        settings,
        _read_identities(config, source) if needs_key and settings.is_encrypted else [],
        own_site_id=own_site_id,
        site_id=source.site_id,
        version_time=parse_time(source.version_time) if source.version_time else None,
    )


def print_copies(config: Config, source: CopySource, *, as_json: bool) -> None:
    """Print the copies in the store, for which no private key is needed."""
    access = open_store_access(config, source, needs_key=False)
    copies = list_copies(access.store, access.keys)
    if as_json:
        print_json(
            {
                "points": [],
                "unmanaged": [],
                "copies": [
                    {"id": point_id.text, "copied_at": stored.modified_at.isoformat()}
                    for point_id, stored in copies.items()
                ],
            }
        )
        return
    for point_id, stored in copies.items():
        out.print(f"{point_id}  copied {stored.modified_at:%Y-%m-%d %H:%M} UTC")
    if not copies:
        out.print(f"no copies in {escape(access.store.label)}")


@contextmanager
def open_point(
    config: Config, source: CopySource, point_id: str, fetch: Fetch, *, as_of: str = ""
) -> Generator[tuple[Config, PointListing], None, None]:
    """Yield the point and the configuration of the directory that holds it, within the block.

    From a store, what `fetch` writes is in a new folder below the backup directory, which is removed at the
    end.
    """
    if not source.store:
        yield config, resolve_point(config.open_catalog(), point_id, as_of=as_of)
        return
    access = open_store_access(config, source, needs_key=True)
    config.make_catalog().prepare()
    with open_fetch_folder(config.backup_directory) as folder:
        with show_progress(err, {"fetch": (f"fetch from {source.store}", None)}) as bars:
            copy = access.open_copy(
                point_id, as_of=as_of, on_progress=lambda size_bytes: bars.advance("fetch", size_bytes)
            )
            reader = replace(copy, part=config.part)
            fetch(reader, folder)
        fetched = config.with_points_in(folder, store=source.store, keys=access.decryptor)
        yield fetched, fetched.open_catalog().get_point(reader.point_id)


def fetch_whole(reader: CopyReader, folder: Path) -> None:
    """Fetch all files of the point."""
    reader.fetch(folder)


def fetch_indexes(reader: CopyReader, folder: Path) -> None:
    """Fetch what describes the point: manifest, check results and the index of each file."""
    reader.fetch_descriptions(folder)
    for artifact in reader.manifest.artifacts:
        reader.fetch_index(folder, artifact)


def fetch_objects(patterns: tuple[str, ...]) -> Fetch:
    """Return how the objects that match are fetched, without the others."""

    def fetch(reader: CopyReader, folder: Path) -> None:
        fetch_indexes(reader, folder)
        artifact = _get_artifact(reader, ArtifactKind.BUCKET)
        with open_archive(folder / artifact.file_name, reader.decryptor) as archive:
            entries = select_objects(archive, patterns)
        reader.fetch_ranges(folder, artifact, ((entry.offset, entry.length) for entry in entries))

    return fetch


def fetch_tables(names: tuple[str, ...]) -> Fetch:
    """Return how the matching tables and the schema are fetched, without the rows of other tables."""

    def fetch(reader: CopyReader, folder: Path) -> None:
        fetch_indexes(reader, folder)
        artifact = _get_artifact(reader, ArtifactKind.DATABASE)
        with open_dump(folder / artifact.file_name, reader.decryptor) as dump:
            wanted = set(select_tables(dump, names))
            borders = [0]
            for table in dump.tables:
                if table not in wanted:
                    borders += [table.offset, table.offset + table.length]
        borders.append(artifact.whole_bytes)
        ranges = [(start, end - start) for start, end in zip(borders[::2], borders[1::2], strict=True)]
        reader.fetch_ranges(folder, artifact, ranges)

    return fetch


def fetch_rows_and_archive(names: tuple[str, ...]) -> Fetch:
    """Return how the matching tables and all objects are fetched: which objects are needed is in the rows."""
    fetch_rows = fetch_tables(names)

    def fetch(reader: CopyReader, folder: Path) -> None:
        fetch_rows(reader, folder)
        artifact = _get_artifact(reader, ArtifactKind.BUCKET)
        reader.fetch_ranges(folder, artifact, [(0, artifact.whole_bytes)])

    return fetch


def _get_artifact(reader: CopyReader, kind: ArtifactKind) -> Artifact:
    found = [
        each
        for each in reader.manifest.artifacts
        if each.kind is kind and (reader.part is None or reader.part.get_source(kind) == each.source_name)
    ]
    if len(found) > 1:
        raise ConfigurationError(
            f"the point has several {kind.value}s: {', '.join(each.source_name for each in found)}",
            hint="Name one of them with the site: schedgen-backups --site SITE/NAME ...",
        )
    artifact = found[0] if found else None
    if artifact is None:
        raise ConfigurationError(f"the point has no {kind.value} file", hint="Use another point.")
    return artifact


def _read_identities(config: Config, source: CopySource) -> list[str]:
    if source.identities:
        return [_read_identity(path) for path in source.identities]
    if (own := config.pack_identity_file) is not None:
        # The recipients of the store may be those of the packs.
        own.load()
        return [_read_identity(own.path)]
    if not sys.stdin.isatty():
        return []
    return [typer.prompt(f"Private key for {source.store} (AGE-SECRET-KEY-…)", hide_input=True)]


def _read_identity(path: Path) -> str:
    try:
        # Editors of Windows put a mark before the text.
        return read_small_file(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(
            f"--identity {path} cannot be read: {reason}", hint="Check path and permissions."
        ) from error
