"""Find where a database keeps the keys of a bucket's objects: by the tables of presets, or by column values.

Only some rows are read, without planning a query on their tables. The result is a suggestion that `setup`
then tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from psycopg import sql

from schedgen_backups.config.presets import NO_PRESET, PRESETS
from schedgen_backups.config.reader import DEFAULTS
from schedgen_backups.core.postgres.object_keys import find_reference_problem
from schedgen_backups.core.postgres.snapshot import TextColumn, open_snapshot
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, TransferSettings

_KEYS_LIMIT = 100_000
"""Maximum number of keys that are listed: 10 MB of memory, and a few seconds."""
_ROWS_LIMIT = 2000
_CHARACTERS_LIMIT = 4_000_000
_OFFERS_LIMIT = 5


@dataclass(frozen=True)
class Offer:
    """A possible source of the keys."""

    text: str
    """Text of the choice, with the number of matching values."""
    preset: str = NO_PRESET
    query: str = ""
    """Empty for the query of the preset."""

    @property
    def values(self) -> dict[str, str]:
        """The variables that select it."""
        return {
            "BACKUP_PRESET": self.preset if not self.query else DEFAULTS["BACKUP_PRESET"],
            "BACKUP_REFERENCE_QUERY": self.query,
        }


def _take(values: Iterator[str]) -> list[str]:
    """Return the first values; fewer if they are long, because keys are short."""
    taken: list[str] = []
    size = 0
    for value in islice(values, _ROWS_LIMIT):
        taken.append(value)
        size += len(value)
        if size > _CHARACTERS_LIMIT:
            break
    return taken


def find_offers(
    database: DatabaseSettings, bucket: BucketSettings, transfer: TransferSettings
) -> tuple[Offer, ...]:
    """Return possible sources of the keys, likeliest first; empty if no column contains a key.

    Raise the errors of database and bucket.
    """
    with BucketClient(bucket, threads=1, stall_timeout_seconds=transfer.stall_timeout_seconds) as client:
        keys = {listed.key for listed in islice(client.list_objects(), _KEYS_LIMIT)}
    offers: list[Offer] = []
    found: list[tuple[int, int, TextColumn]] = []
    with open_snapshot(database, stall_timeout_seconds=transfer.stall_timeout_seconds) as snapshot:
        for name, preset in PRESETS.items():
            if preset.built_in is not None and not find_reference_problem(snapshot, preset):
                offers.append(Offer(f"the tables of the preset {name}: {preset.query}", preset=name))
        for column in snapshot.list_text_columns():
            with snapshot.open_text_column(column) as read:
                values = _take(filter(None, read))
            if hits := sum(value in keys for value in values):
                found.append((hits, len(values), column))
    found.sort(key=lambda each: (each[0] / each[1], each[0]), reverse=True)
    for hits, count, column in found[:_OFFERS_LIMIT]:
        query = sql.SQL("SELECT {} FROM {}").format(
            sql.Identifier(column.name), sql.Identifier(column.table.schema_name, column.table.name)
        )
        offers.append(
            Offer(
                f"{query.as_string(None)}: {hits} of the first {count} values are keys of the bucket",
                query=query.as_string(None),
            )
        )
    return tuple(offers)
