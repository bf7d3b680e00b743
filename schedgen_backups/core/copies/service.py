"""Copies in one store, from the command line and from Dagster: copy what is due, prove, prune.

What was seen is kept in the backup directory, so that the state of every copy is known without asking a
store.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event

from pydantic import ValidationError

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.pins import pin_temporarily, read_pin
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.copies.copier import Copier, CopyReport
from schedgen_backups.core.copies.layout import PACK_LIST_NAME, PackList, SiteKeys, list_copies
from schedgen_backups.core.copies.local_folder import CopiedPoint, CopyState, LocalFolder, now_utc
from schedgen_backups.core.copies.locks import LockProof, extend_locks
from schedgen_backups.core.copies.proof import (
    ListingProof,
    RereadProof,
    prove_listing,
    prove_new_packs,
    reread_packs,
)
from schedgen_backups.core.copies.prune import Pruner, PruneReport, forget_writer
from schedgen_backups.core.copies.settings import StoreSettings
from schedgen_backups.core.errors import (
    BackupError,
    ConfigurationError,
    KeyExistsError,
    LockHeldError,
    StorageError,
    StoreError,
    StoreUnreachableError,
    VerificationError,
)
from schedgen_backups.core.history.events import (
    CopiesProved,
    CopyFailed,
    PointsCopied,
    PointsRemoved,
    RemovedPoint,
)
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.packs.encryption import Encryptor
from schedgen_backups.core.packs.pack_files import StoredFile, parse_pack_point
from schedgen_backups.core.packs.piece_index import PieceIndex
from schedgen_backups.core.receipts.keys import PUBLIC_SUFFIX, find_keys_folder
from schedgen_backups.core.receipts.receipts import list_receipts, list_subjects, record_with_receipt
from schedgen_backups.core.retention.plan import Candidate, plan_retention
from schedgen_backups.core.store.open import open_store, probe_store
from schedgen_backups.core.store.protocol import UNPROBED, Capabilities, Store
from schedgen_backups.core.system.files import read_small_file

_MOST_RECEIPTS = 2000
"""Receipts that are copied at once; each is a request. The rest follows with the next copy."""
_MAX_DURATION = timedelta(days=3)
"""How long a killed copy keeps its point from retention."""


@dataclass(frozen=True)
class CopyProof:
    """What was proved of a store's copies at one time."""

    listing: ListingProof
    reread: RereadProof
    lock: LockProof | None
    """None for a store without locks."""


class CopyService:
    """The copies of one backup directory in one store. Writing methods hold the store's lock on this host.

    Every method raises the errors of the store, after the state was recorded.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: StoreSettings,
        *,
        stop: Event | None = None,
        on_progress: Callable[[int], object] = lambda _size_bytes: None,
    ) -> None:
        self.settings = settings
        self._catalog = catalog
        self._folder = LocalFolder(catalog.directory, settings.name)
        self._history = History(catalog.directory)
        self._stop = stop or Event()
        self._on_progress = on_progress

    @property
    def state(self) -> CopyState:
        """What was last seen of the store."""
        return self._folder.read_state(self.settings.location.place)

    def copy_due(self) -> tuple[CopyReport, ...]:
        """Copy the verified points that the store lacks and its retention keeps, the newest first.

        A point that cannot be copied does not keep the others from it; its error is raised at the end.
        """
        with self._recording("copy"):
            encryptor = self.settings.make_encryptor()
            store, keys = self._open(), self._find_keys()
            copier = Copier(
                self._catalog,
                store,
                keys,
                encryptor,
                self._folder,
                stop=self._stop,
                on_progress=self._on_progress,
            )
            reports: list[CopyReport] = []
            errors: list[BackupError] = []
            for point in self._list_due(store, keys):
                try:
                    report = self._copy_pinned(copier, point)
                except (StoreUnreachableError, StorageError):
                    raise
                except (ConfigurationError, StoreError, VerificationError) as error:
                    errors.append(error)
                    continue
                reports.append(report)
                self._note_copy(report)
            self._copy_receipts(store, keys, encryptor)
            new = [report for report in reports if report.is_new]
            if new:
                self._history.record(
                    PointsCopied(
                        at=now_utc(),
                        store=self.settings.name,
                        point_ids=tuple(report.point_id.text for report in new),
                        uploaded_bytes=sum(report.uploaded_bytes for report in new),
                    )
                )
            self._check_new(store, keys, [pack for report in reports for pack in report.new_packs])
            if errors:
                raise errors[0]
            return tuple(reports)

    def _copy_pinned(self, copier: Copier, point: PointListing) -> CopyReport:
        """Copy the point; retention must not remove it meanwhile. ConfigurationError if it just did."""
        try:
            read_pin(self._catalog, point.point_id)
        except VerificationError:
            # Retention keeps a point whose pin cannot be read.
            return copier.copy(point)
        with pin_temporarily(
            self._catalog,
            point.point_id,
            reason=f"it is being copied to {self.settings.name}",
            pinned_by="copies",
            max_duration=_MAX_DURATION,
        ) as pinned:
            return copier.copy(pinned)

    def _copy_receipts(self, store: Store, keys: SiteKeys, encryptor: Encryptor) -> None:
        """Copy the receipts and public keys that the store lacks, the oldest first."""
        held = {stored.key.removesuffix(encryptor.suffix) for stored in store.list(keys.receipts)}
        folder = find_keys_folder(self._catalog.directory)
        for path in sorted(folder.glob(f"*{PUBLIC_SUFFIX}")):
            key = f"{keys.receipts}{folder.name}/{path.name}"
            if key not in held:
                _put_once(store, key, _read_own(path))
        missing = [
            path
            for path in list_receipts(self._catalog.directory)
            if f"{keys.receipts}{path.name}" not in held
        ]
        for path in missing[:_MOST_RECEIPTS]:
            data = encryptor.encrypt(_read_own(path))
            _put_once(store, f"{keys.receipts}{path.name}{encryptor.suffix}", data)

    def copy_and_prove(self) -> tuple[tuple[CopyReport, ...], CopyProof]:
        """Copy what is due, then prove what the store holds.

        A store that refuses new copies is proved all the same, before its error is raised.
        """
        try:
            reports = self.copy_due()
        except (ConfigurationError, LockHeldError, StoreUnreachableError):
            raise
        except BackupError as error:
            with suppress(BackupError):
                self.prove()
            self._write(problem=error.message, problem_work="copy")
            raise
        return reports, self.prove()

    def list_due(self) -> list[PointListing]:
        """Return the points that `copy_due` would copy now, judging by what was last seen."""
        return self._choose_due(self._find_known())

    def prove(self, *, now: datetime | None = None) -> CopyProof:
        """List the store, read back the packs that are due, check the locks; record what was seen."""
        now = now or now_utc()
        with self._recording("prove"):
            store, keys = self._open(), self._find_keys()
            listing = prove_listing(store, keys)
            with PieceIndex(self._folder.index_path) as index:
                index.settle_place(self.settings.location.place)
                reread = reread_packs(
                    store, keys, listing, index, reread_days=self.settings.reread_days, now=now
                )
                lock = self._prove_locks(store, keys, listing, index, now)
            committed = set(listing.committed)
            lost = self._find_lost(committed, now)
            for point_id in self._folder.list_points():
                # What is kept of a lost copy lets it be committed again, if only its commit mark was deleted.
                if point_id in self._find_once_held() - committed and point_id not in lost:
                    self._folder.remove_point(point_id)
            problems = (
                *listing.problems,
                *self._find_replaced(listing),
                *(f"the copy of {point_id} is missing, although retention keeps it" for point_id in lost),
            )
            listing = replace(listing, problems=problems)
            self._write(
                lost_points=tuple(point_id.text for point_id in lost),
                points=tuple(
                    CopiedPoint(
                        point_id=point_id.text,
                        copied_at=stored.modified_at,
                        size_bytes=listing.copies[point_id].size_bytes if point_id in listing.copies else 0,
                    )
                    for point_id, stored in listing.committed.items()
                ),
                listed_at=now,
                listing_problems=listing.problems,
                stranger_count=listing.stranger_count,
                reread_at=now,
                reread_problems=reread.problems,
                pack_count=len(listing.packs),
                unread_count=reread.unread_count,
                oldest_reread_at=reread.oldest_at,
                oldest_unread_at=_find_oldest_sending(listing, reread.unread),
                locked_until=lock.locked_until if lock is not None else None,
            )
            record_with_receipt(
                self._catalog.directory,
                CopiesProved(
                    at=now,
                    store=self.settings.name,
                    copy_count=len(listing.committed),
                    pack_count=len(listing.packs),
                    read_count=reread.read_count,
                    unread_count=reread.unread_count,
                    locked_until=lock.locked_until if lock is not None else None,
                    problems=(*listing.problems, *reread.problems, *(lock.problems if lock else ())),
                ),
                list_subjects(self._catalog.directory, [point.text for point in listing.copies]),
                site_id=keys.site_id,
            )
            return CopyProof(listing, reread, lock)

    def prune(self, *, pinned: Mapping[RecoveryPointId, str] | None = None) -> PruneReport:
        """Remove what the store's retention does not keep, with the credentials that may delete.

        VerificationError, and nothing is removed, while a copy is known to be damaged.
        """
        location = self.settings.prune_location or self.settings.location
        with self._recording("prune"):
            store = open_store(location, self.settle_capabilities())
            report = Pruner(store, self._find_keys(), self.settings.retention).prune(
                pinned=pinned,
                find_damages=lambda listing: (*self.state.reread_problems, *self._find_replaced(listing)),
            )
            removed = set(report.removed_points)
            self._history.record(
                PointsRemoved(
                    at=now_utc(),
                    removed=tuple(
                        RemovedPoint(point_id=decision.candidate.point_id.text, reasons=decision.reasons)
                        for decision in report.plan.removed
                        if decision.candidate.point_id in removed
                    ),
                    kept_count=len(report.plan.kept),
                    freed_bytes=report.freed_bytes,
                    refusal=report.plan.refusal,
                    store=self.settings.name,
                )
            )
            return report

    def forget_writer(self, writer_id: str) -> None:
        """Stop waiting for a decommissioned writer, with the credentials that may delete."""
        location = self.settings.prune_location or self.settings.location
        store = open_store(location, self.settle_capabilities())
        forget_writer(store, self._find_keys(), writer_id)

    def settle_capabilities(self) -> Capabilities:
        """Return what the store was seen to do; probe it if that is not recorded."""
        return self.state.capabilities or self.probe()

    def probe(self) -> Capabilities:
        """Find out what the store does, and record it: versions and locks may have been turned on since."""
        self._folder.prepare()
        capabilities = probe_store(open_store(self.settings.location, UNPROBED), self._find_keys().site_id)
        self._write(capabilities=capabilities)
        return capabilities

    def record_opened(self, point_id: RecoveryPointId, at: datetime) -> None:
        """Remember that a drill restored this point from the store."""
        self._folder.prepare()
        self._write(opened_at=at, opened_point_id=point_id.text)

    def _open(self) -> Store:
        return open_store(self.settings.location, self.settle_capabilities())

    def _find_keys(self) -> SiteKeys:
        return SiteKeys(self._catalog.settle_site().site_id)

    def _find_known(self) -> set[RecoveryPointId]:
        return {RecoveryPointId.parse(point.point_id) for point in self.state.points}

    def _find_once_held(self) -> set[RecoveryPointId]:
        """Return the copies that the store holds as far as is known, and those that it lost."""
        return self._find_known() | set(map(RecoveryPointId.parse, self.state.lost_points))

    def _find_lost(self, committed: set[RecoveryPointId], now: datetime) -> list[RecoveryPointId]:
        """Return the copies that the store once held and that nobody may have pruned.

        Without versions, a deletion leaves no trace in the store. Each is reported until retention would have
        removed it, or until it is copied again.
        """
        known = self._find_once_held()
        candidates = [Candidate(point_id, PointState.VERIFIED) for point_id in known | committed]
        plan = plan_retention(candidates, self.settings.retention, now)
        kept = {decision.candidate.point_id for decision in plan.kept}
        return sorted((known - committed) & kept)

    def _find_replaced(self, listing: ListingProof) -> list[str]:
        """Return which copies are not the ones that were sent.

        Whoever can write to the store can make pack list and commit mark fit each other, and altered packs.
        """
        problems: list[str] = []
        for point_id, pack_list in listing.copies.items():
            sent = self._folder.read_plain(point_id, PACK_LIST_NAME)
            with suppress(ValidationError):  # damaged on this host
                if sent is not None and PackList.model_validate_json(sent) != pack_list:
                    problems.append(
                        f"the copy of {point_id} is not the one that this host sent: somebody replaced it, "
                        "or this is another store"
                    )
        return problems

    def _list_due(self, store: Store, keys: SiteKeys) -> list[PointListing]:
        return self._choose_due(set(list_copies(store, keys)))

    def _choose_due(self, copied: set[RecoveryPointId]) -> list[PointListing]:
        local = {
            point.point_id: point
            for point in self._catalog.list_points()
            if point.state is PointState.VERIFIED and point.point_id not in copied
        }
        candidates = [Candidate(point_id, PointState.VERIFIED) for point_id in (*copied, *local)]
        plan = plan_retention(candidates, self.settings.retention, now_utc())
        kept = {decision.candidate.point_id for decision in plan.kept}
        return [local[point_id] for point_id in sorted(local, reverse=True) if point_id in kept]

    def _prove_locks(
        self, store: Store, keys: SiteKeys, listing: ListingProof, index: PieceIndex, now: datetime
    ) -> LockProof | None:
        if not (self.settings.lock_days or self.settle_capabilities().has_lock):
            return None
        return extend_locks(store, keys, listing, index, lock_days=self.settings.lock_days, now=now)

    def _check_new(self, store: Store, keys: SiteKeys, packs: list[StoredFile]) -> None:
        problems = prove_new_packs(store, keys, packs)
        if problems:
            raise StoreError(
                f"{store.label} does not hold what was just sent: {'; '.join(problems)}",
                hint="Do not rely on this store. `schedgen-backups stores prove NAME` checks all of it.",
            )

    def _note_copy(self, report: CopyReport) -> None:
        if report.pack_list is not None:
            copied = CopiedPoint(
                point_id=report.point_id.text, copied_at=now_utc(), size_bytes=report.pack_list.size_bytes
            )
            state = self.state
            others = [point for point in state.points if point.point_id != copied.point_id]
            self._write(points=(*others, copied))
            if report.new_packs:
                # Nothing of it was read back, whatever is known of the packs before it.
                self._write(
                    pack_count=state.pack_count + len(report.new_packs),
                    unread_count=state.unread_count + len(report.new_packs),
                    oldest_reread_at=None,
                    oldest_unread_at=state.oldest_unread_at or copied.copied_at,
                )

    @contextmanager
    def _recording(self, work: str) -> Generator[None, None, None]:
        """Hold the lock, and record the attempt and why it failed.

        That a store can be proved does not show that points can be copied to it.
        """
        with self._folder.held():
            self._write(attempted_at=now_utc())
            try:
                yield
            except BackupError as error:
                self._write(problem=error.message, problem_work=work)
                self._history.record(
                    CopyFailed(at=now_utc(), store=self.settings.name, problem=error.message)
                )
                raise
            if self.state.problem_work in {"", work}:
                self._write(problem="", problem_work="")

    def _write(self, **values: object) -> None:
        place = self.settings.location.place
        self._folder.write_state(self.state.model_copy(update={"place": place, **values}))


def list_pins(catalog: Catalog, now: datetime) -> dict[RecoveryPointId, str]:
    """Return the reason of every valid pin in the backup directory by its point.

    A pin that cannot be read counts: what it says is unknown.
    """
    found: dict[RecoveryPointId, str] = {}
    for point in catalog.list_points():
        try:
            pin = read_pin(catalog, point.point_id)
        except VerificationError:
            found[point.point_id] = "its pin cannot be read"
            continue
        if pin is not None and pin.is_valid(now):
            found[point.point_id] = pin.reason
    return found


def _put_once(store: Store, key: str, data: bytes) -> None:
    # Another host with the same points may have been faster.
    with suppress(KeyExistsError):
        store.put_new(key, data)


def _read_own(path: Path) -> bytes:
    try:
        return read_small_file(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror}", hint="Check the disk and the permissions."
        ) from error


def _find_oldest_sending(listing: ListingProof, packs: Iterable[str]) -> datetime | None:
    """Return when the first of these packs was sent: with the copy whose point is in its name.

    For a copy that was pruned since, it is the time of the point, which is earlier.
    """
    points = [point_id for name in packs if (point_id := parse_pack_point(name)) is not None]
    times = [
        listing.committed[point_id].modified_at if point_id in listing.committed else point_id.taken_at
        for point_id in points
    ]
    return min(times, default=None)
