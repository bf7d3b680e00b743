"""Whether copies can be written to the stores and read from them, and what this host could do to them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from schedgen_backups.config.config import Config
from schedgen_backups.config.stores import StoreEntry
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.copies.service import CopyService
from schedgen_backups.core.packs.encryption import read_key
from schedgen_backups.core.store.open import open_store, try_delete_probe
from schedgen_backups.core.store.protocol import Capabilities
from schedgen_backups.core.units import count
from schedgen_backups.doctor.results import PreconditionResult, Verdict, yield_with_errors

FEW_RECIPIENTS = 2
"""With a single key, its loss is the loss of every copy."""


def examine_stores(config: Config, catalog: Catalog) -> Iterator[PreconditionResult]:
    """Yield the results for each store; without any, a note that the backup directory is the only copy."""
    if not config.stores:
        yield PreconditionResult(
            "stores",
            Verdict.NOTE,
            "no store of copies: the backup directory is the only place of the recovery points",
            "Describe one in BACKUP_STORES_FILE (docs/stores.md).",
        )
    for entry in config.stores:
        yield from yield_with_errors(f"store {entry.name}", partial(_examine, entry, catalog))


def _examine(entry: StoreEntry, catalog: Catalog) -> Iterator[PreconditionResult]:
    subject, settings = f"store {entry.name}", entry.require()
    if not settings.is_encrypted:
        yield PreconditionResult(
            subject,
            Verdict.NOTE,
            'copies are not encrypted: it says encryption = "none"',
            "Name recipients if others can read the store.",
        )
    elif (keys := len(set(map(read_key, settings.recipients)))) < FEW_RECIPIENTS:
        yield PreconditionResult(
            subject,
            Verdict.NOTE,
            f"only {count(keys, 'recipient')}: if that key is lost, so is every copy",
            "Add the public key of a second pair whose private half lies elsewhere.",
        )
    site, capabilities = catalog.read_site(), CopyService(catalog, settings).state.capabilities
    if site is None or capabilities is None:
        yield PreconditionResult(
            subject,
            Verdict.NOTE,
            f"{settings.location.url} was not tried yet",
            f"After the first backup: schedgen-backups stores prepare {entry.name}",
        )
        return
    yield from judge_capabilities(subject, settings.location.url, capabilities)
    # With the credentials of this host.
    is_deletable = try_delete_probe(open_store(settings.location, capabilities), site.site_id)
    yield judge_deletion(subject, is_deletable=is_deletable, is_append_only=settings.is_append_only)


def judge_capabilities(subject: str, url: str, capabilities: Capabilities) -> Iterator[PreconditionResult]:
    """Yield what the store was seen to do, and a note if it does not protect two writers from each other."""
    yield PreconditionResult(subject, Verdict.OK, f"{url}: {capabilities}")
    if not capabilities.has_conditional_put:
        yield PreconditionResult(
            subject,
            Verdict.NOTE,
            "it does not keep two hosts from writing the same key at once",
            "Copy to it from this host only.",
        )


def judge_deletion(subject: str, *, is_deletable: bool, is_append_only: bool) -> PreconditionResult:
    """Return whether this host could delete copies, which is a problem if the store should not allow it."""
    if not is_deletable:
        return PreconditionResult(subject, Verdict.OK, "this host cannot delete there")
    return PreconditionResult(
        subject,
        Verdict.PROBLEM if is_append_only else Verdict.NOTE,
        "this copy can be deleted from this host"
        + (", although the store says append_only = true" if is_append_only else ""),
        "Use a bucket with object lock and credentials that cannot delete "
        "(docs/stores.md#against-somebody-who-has-this-host).",
    )
