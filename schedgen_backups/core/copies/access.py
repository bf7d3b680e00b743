"""Find copies in a store and choose one of them to read, also on a machine that has nothing but the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone, tzinfo

from schedgen_backups.core.catalog.selection import LATEST, parse_time
from schedgen_backups.core.copies.layout import SiteKeys, list_copies, list_sites
from schedgen_backups.core.copies.reader import CopyReader
from schedgen_backups.core.copies.settings import StoreSettings
from schedgen_backups.core.errors import ConfigurationError, PointNotFoundError
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.encryption import Decryptor
from schedgen_backups.core.store.as_of import StoreAsOf
from schedgen_backups.core.store.open import open_store
from schedgen_backups.core.store.protocol import UNPROBED, Store

_NO_VERSIONS = frozenset({"", "null"})
"""S3 calls the only version `null` in a bucket that keeps none (Amazon S3 API, ListObjectVersions)."""


@dataclass(frozen=True)
class CopyAccess:
    """The copies of one site in a store, with the keys that open them."""

    store: Store
    keys: SiteKeys
    decryptor: Decryptor

    def list_ids(self) -> list[RecoveryPointId]:
        """Return the points of all committed copies, oldest first."""
        return list(list_copies(self.store, self.keys))

    def open_copy(
        self,
        point: str,
        *,
        as_of: str = "",
        zone: tzinfo = timezone.utc,
        on_progress: Callable[[int], object] = lambda _size_bytes: None,
    ) -> CopyReader:
        """Return a reader of the copy of this point, or for `latest` of the newest one.

        With `as_of`, `latest` means the newest point whose snapshot is not later; an ISO 8601 time, in `zone`
        when it has no offset. PointNotFoundError (permanent) when there is none.
        """
        ids = self.list_ids()
        if as_of:
            ids = self._list_until(ids, point, as_of, zone)
        wanted = ids[-1:] if point == LATEST else [RecoveryPointId.parse(point)]
        for point_id in wanted:
            if point_id in ids:
                return CopyReader(self.store, self.keys, point_id, self.decryptor, on_progress)
        raise PointNotFoundError(
            f"{self.store.label} holds no such copy of site {self.keys.site_id}",
            hint="`schedgen-backups list --from STORE` shows the copies.",
        )

    def _list_until(
        self, ids: list[RecoveryPointId], point: str, text: str, zone: tzinfo
    ) -> list[RecoveryPointId]:
        if point != LATEST:
            raise ConfigurationError(
                f"both {point} and a time are given", hint="Use `latest` instead of an id with --as-of."
            )
        moment = parse_time(text, zone)
        early = [point_id for point_id in ids if point_id.taken_at <= moment]
        # The snapshot is a little later than the id says.
        while early:
            reader = CopyReader(self.store, self.keys, early[-1], self.decryptor)
            if reader.manifest.snapshot_at <= moment:
                break
            early.pop()
        return early


def open_access(
    settings: StoreSettings,
    identities: list[str],
    *,
    own_site_id: str = "",
    site_id: str = "",
    version_time: datetime | None = None,
) -> CopyAccess:
    """Open a store for reading, at an aware time by its own clock if one is given.

    The site is the one that is asked for, otherwise the own one, and on a machine that has none the only one
    that the store holds. ConfigurationError when that is not one, or when a time is given and the store keeps
    no versions.
    """
    capabilities = replace(UNPROBED, has_versions=version_time is not None)
    store: Store = open_store(settings.location, capabilities)
    if version_time is not None:
        if all(stored.version_id in _NO_VERSIONS for stored in store.list("")):
            raise ConfigurationError(
                f"{store.label} keeps no versions: what it was at an earlier time is unknown",
                hint="Leave out --as-of-version-time.",
            )
        store = StoreAsOf(store, version_time)
    sites = list_sites(store)
    if site_id:
        chosen = site_id
    elif own_site_id or len(sites) != 1:
        chosen = own_site_id
    else:
        (chosen,) = sites
    if chosen not in sites:
        raise ConfigurationError(
            f"{store.label} holds no copies of {f'site {chosen}' if chosen else 'a site of this machine'}"
            if sites
            else f"{store.label} holds no copies",
            hint=f"It holds the sites {', '.join(sites)}: add --site ID."
            if sites
            else "Is it the right store?",
        )
    return CopyAccess(store, SiteKeys(chosen), Decryptor(identities))
