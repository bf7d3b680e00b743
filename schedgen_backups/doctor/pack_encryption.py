"""Check the encryption of packs: whether this host can read what it writes, and what lies there already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from schedgen_backups.config.config import Config
from schedgen_backups.config.variables import STAGING_VARIABLE
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import ConfigurationError, VerificationError
from schedgen_backups.core.formats.pack_reader import OpenPack
from schedgen_backups.core.formats.packed_file import PACKS_NAME, is_recipe_name, read_local_recipe
from schedgen_backups.core.formats.recipe import StatedPack
from schedgen_backups.core.packs.encryption import read_key
from schedgen_backups.core.packs.local_encryption import make_local_encryption
from schedgen_backups.core.units import count
from schedgen_backups.doctor.results import PreconditionResult, Verdict

_SUBJECT = "encryption of packs"
_FEW_RECIPIENTS = 2
"""With the key of this host only, its loss is the loss of every point."""


def examine_pack_encryption(config: Config, catalog: Catalog) -> Iterator[PreconditionResult]:
    """Yield the results; none where packs are not encrypted, and none lies there that is."""
    recipients = config.capture.pack_recipients
    if recipients:
        try:
            make_local_encryption(recipients, catalog.keys)
        except ConfigurationError as error:
            yield PreconditionResult(_SUBJECT, Verdict.PROBLEM, error.message, error.hint)
            return
        number = len(set(map(read_key, recipients)))
        yield PreconditionResult(
            _SUBJECT, Verdict.OK, f"packs are encrypted for {count(number, 'key')}, and this host reads them"
        )
        if number < _FEW_RECIPIENTS:
            yield PreconditionResult(
                _SUBJECT,
                Verdict.NOTE,
                "only the key of this host opens its packs: if this host is lost, so are they",
                "Add the public key of a second pair whose private half lies elsewhere, or keep a copy of "
                "BACKUP_PACK_IDENTITY_FILE in a safe.",
            )
        yield from _examine_places(config, catalog)
    for pack in _list_newest(catalog):
        try:
            with closing(OpenPack(catalog.directory / PACKS_NAME, pack, catalog.keys)) as opened:
                opened.read_into(memoryview(bytearray(1)), 0)
        except (ConfigurationError, VerificationError) as error:
            yield PreconditionResult(
                _SUBJECT,
                Verdict.PROBLEM,
                f"the newest point cannot be read: {error.message}",
                error.hint,
            )
            return


def _examine_places(config: Config, catalog: Catalog) -> Iterator[PreconditionResult]:
    """Yield a note for each setting with which plain files lie in the backup directory for a while."""
    for variable, path, what in (
        (STAGING_VARIABLE, catalog.staging, "the dump of a running backup"),
        ("DRILL_DIR", config.drill.directory, "what a drill restores"),
    ):
        if catalog.directory in path.parents:
            yield PreconditionResult(
                _SUBJECT,
                Verdict.NOTE,
                f"{what} lies in BACKUP_DIR for a while, not encrypted",
                f"Set {variable} to a directory on a disk of this host (docs/packs.md#encryption).",
            )


def _list_newest(catalog: Catalog) -> list[StatedPack]:
    """Return the encrypted packs of the newest committed point, one for each of its recipes and readers."""
    committed = [point for point in catalog.list_points() if point.manifest is not None]
    found: dict[tuple[str, str], StatedPack] = {}
    for artifact in committed[-1].artifacts if committed else ():
        if is_recipe_name(artifact.path.name):
            for pack in read_local_recipe(artifact.path).stated_packs:
                if pack.encryption is not None:
                    found[(artifact.path.name, pack.readers)] = pack
    return list(found.values())
