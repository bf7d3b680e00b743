"""Which objects are known to be missing in the live system, so that only new losses raise an alert."""

from __future__ import annotations

from collections.abc import Sequence

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.small_files import move_aside, name_baseline
from schedgen_backups.core.errors import UnreadableFileError, VerificationError
from schedgen_backups.core.model import AcceptedObject, MissingBaseline


def settle_baseline(catalog: Catalog, missing: Sequence[str], *, source: str = "") -> frozenset[str]:
    """Return the keys whose absence is already known; update the baseline.

    `missing` is everything that the live system lacks. The first call stores it as the baseline; each
    later call removes the objects that exist again. While the file cannot be read, no key is known.
    `source` is the part of a site of several, each of which has its own baseline.
    """
    name = name_baseline(source)
    with catalog.records_lock.waited_for():
        try:
            baseline = catalog.read_description(name, MissingBaseline)
        except VerificationError:
            return frozenset()
        if baseline is None or baseline.first_missing is None:
            accepted = baseline.accepted if baseline is not None else ()
            baseline = MissingBaseline(first_missing=tuple(missing), accepted=accepted)
        still_missing = baseline.keep_only(frozenset(missing))
        if still_missing != catalog.read_description(name, MissingBaseline):
            catalog.write_description(name, still_missing)
    return still_missing.keys


def accept_missing(catalog: Catalog, accepted: Sequence[AcceptedObject], *, source: str = "") -> None:
    """Record these objects as missing with the operator's consent, until they exist again.

    A damaged baseline file is moved aside. `source` as for `settle_baseline`.
    """
    name = name_baseline(source)
    with catalog.records_lock.waited_for():
        try:
            baseline = catalog.read_description(name, MissingBaseline) or MissingBaseline()
        except UnreadableFileError:
            raise
        except VerificationError:
            move_aside(catalog.directory / name)
            baseline = MissingBaseline()
        keys = {each.key for each in accepted}
        kept = tuple(each for each in baseline.accepted if each.key not in keys)
        catalog.write_description(name, baseline.model_copy(update={"accepted": (*kept, *accepted)}))
