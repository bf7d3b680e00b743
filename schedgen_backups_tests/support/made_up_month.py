"""A month of a site in made-up time: its files, and the history of what happened to it.

For pictures and tests of what a month looks like. Points, receipts, incidents and removals are made by the
program's own code. Drills and stores leave here what they leave: events, results and states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import (
    CHECKS_BY_LEVEL,
    Check,
    CheckResult,
    CheckStatus,
    VerificationLevel,
)
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.copies.local_folder import CopiedPoint, CopyState, LocalFolder
from schedgen_backups.core.copies.settings import StoreSettings
from schedgen_backups.core.copies.status import StoreStatus
from schedgen_backups.core.history.events import (
    AlertDelivered,
    CopiesProved,
    CopyFailed,
    DrillEnded,
    HistoryEvent,
    Outcome,
    PointChecked,
    PointCommitted,
    PointsCopied,
    RestoreEnded,
    RunFailed,
    RunStarted,
)
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.metrics.exposition import render_metrics
from schedgen_backups.core.metrics.samples import MonitoredSite, measure_site
from schedgen_backups.core.model import ArtifactKind, ReferenceVerdict
from schedgen_backups.core.notify.alert import Alert, Severity
from schedgen_backups.core.notify.incidents import IncidentKey
from schedgen_backups.core.notify.notifier import Notifier
from schedgen_backups.core.notify.ticks import record_tick
from schedgen_backups.core.receipts.receipts import list_receipts, list_subjects, record_with_receipt
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.retention.prune import remove_points
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups_tests.support.artifacts import TableText, damage, make_result
from schedgen_backups_tests.support.copies import FIRST_NIGHT, list_objects, make_point

BEGIN, END = (datetime(2026, month, 1, tzinfo=timezone.utc) for month in (10, 11))
NAME = f"{BEGIN:%Y-%m}"
"""As `schedgen-backups report --month` takes it."""
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
MAX_AGE, MAX_RECOVERY = 26 * HOUR, 4 * HOUR
_SUNDAYS = (4, 11, 18, 25)
_RESTORE_CHECKS = (
    *CHECKS_BY_LEVEL[VerificationLevel.RESTORED],
    *CHECKS_BY_LEVEL[VerificationLevel.EQUAL],
)
_POLICY = RetentionPolicy(keep_days=7, keep_last=3, keep_weeks=2)


@dataclass(frozen=True)
class _Trouble:
    """An incident: what its alert says, and who was alerted."""

    key: IncidentKey
    severity: Severity
    title: str
    cause: str


class MadeUpMonth:
    """A site whose deeds of a month are planned, and done when time reaches them."""

    def __init__(
        self, directory: Path, name: str, stores: Sequence[StoreSettings] = (), *, object_count: int = 120
    ) -> None:
        self.directory = directory
        self._object_count = object_count
        self.name = name
        self.catalog = Catalog(directory)
        self.catalog.prepare()
        self._notifier = Notifier((), directory)
        self._history = History(directory)
        self._stores = {store.name: store for store in stores}
        self._planned: list[tuple[datetime, Callable[[datetime], None]]] = []

    def plan(self, at: datetime, deed: Callable[[datetime], None]) -> None:
        """Do this at that time."""
        self._planned = sorted([*self._planned, (at, deed)], key=lambda planned: planned[0])

    def advance(self, now: datetime) -> None:
        """Do everything that is due by now; the daemon ticked three minutes ago."""
        while self._planned and self._planned[0][0] <= now:
            at, deed = self._planned.pop(0)
            deed(at)
        record_tick(self.directory, "alert_outbox", now - 3 * MINUTE)

    def measure(self, now: datetime) -> str:
        """Return the exposition of the site's metrics at this time."""
        site = MonitoredSite(
            name=self.name,
            catalog=self.catalog,
            max_age=MAX_AGE,
            schedule_gap=DAY,
            drill_max_age=7 * DAY + 12 * HOUR,
            drill_max_duration=MAX_RECOVERY,
            stores=tuple(
                StoreStatus(name, self._folder(name).read_state(), settings)
                for name, settings in self._stores.items()
            ),
        )
        return render_metrics({self.name: measure_site(site, now)}).decode()

    def back_up(self, at: datetime) -> None:
        """Take a verified point; the application grows from day to day."""
        day = (at - BEGIN).days
        run_id = f"backup-{day}"
        self._history.record(RunStarted(at=at, kind="run", run_id=run_id))
        number = self._object_count + 4 * day
        point = make_point(
            self.catalog,
            (at - FIRST_NIGHT) / DAY,
            list_objects(number, size_bytes=3000),
            (TableText("jobs", tuple(b"%d" % row for row in range(20 * number))),),
            duration=timedelta(seconds=20 + number + 40 * (day % 7 == 0)),
            reused_count=number - 4 if day else 0,
            missing_counts={ReferenceVerdict.MISSING: 3, ReferenceVerdict.DELETED: day % 3},
        )
        assert point.manifest is not None
        subjects = list_subjects(self.directory, [point.point_id.text])
        event = PointCommitted(
            at=point.manifest.committed_at,
            point_id=point.point_id.text,
            snapshot_at=point.manifest.snapshot_at,
            manifest_sha256=subjects[0].digest["sha256"],
            size_bytes=point.size_bytes,
            run_id=run_id,
            outcomes=_as_outcomes(point.verification.results),
        )
        record_with_receipt(self.directory, event, subjects)
        self._resolve("run", event.at)

    def fail_backup(self, at: datetime, cause: str) -> None:
        """Start a backup that fails."""
        run_id = f"backup-{at:%d-%H}"
        failed_at = at + 2 * MINUTE
        failure = RunFailed(at=failed_at, kind="run", run_id=run_id, subject="database_dump", cause=cause)
        self._record(RunStarted(at=at, kind="run", run_id=run_id), failure)
        key = IncidentKey(area="run", subject="database_dump failed")
        self._raise(_Trouble(key, Severity.CRITICAL, "Backup failed: database_dump", cause), failed_at)

    def drill(self, at: datetime, *, minutes: float, failed: str = "") -> None:
        """Restore the newest verified point; `failed` is what the comparison of the database found."""
        point = self._list_verified()[-1]
        ended_at = at + minutes * MINUTE
        results = tuple(
            make_result(
                check,
                CheckStatus.FAILED if is_bad else CheckStatus.PASSED,
                summary=failed if is_bad else "as in the recovery point",
                checked_at=ended_at,
            )
            for check in _RESTORE_CHECKS
            for is_bad in [bool(failed) and check is Check.DATABASE_IS_EQUAL]
        )
        self.catalog.record_results(point.point_id, results)
        subjects = list_subjects(self.directory, [point.point_id.text])
        event = DrillEnded(
            at=ended_at,
            began_at=at,
            point_id=point.point_id.text,
            manifest_sha256=subjects[0].digest["sha256"],
            is_passed=not failed,
            rto_seconds=minutes * 60,
            rpo_seconds=(at - point.point_id.taken_at).total_seconds(),
            object_count=self._object_count,
            target="PostgreSQL 18.6 and SeaweedFS of the drill",
            outcomes=_as_outcomes(results),
        )
        record_with_receipt(self.directory, event, subjects)
        if failed:
            key = IncidentKey(area="drill", subject="restore_drill failed")
            trouble = _Trouble(key, Severity.CRITICAL, "Restore drill failed: restore_drill", failed)
            self._raise(trouble, ended_at)
        else:
            self._resolve("drill", ended_at)

    def prune(self, at: datetime) -> None:
        """Remove what no rule keeps."""

        def read_again(point: PointListing) -> tuple[CheckResult, ...]:
            return tuple(
                result.model_copy(update={"checked_at": at}) for result in point.verification.results
            )

        remove_points(self.catalog, _POLICY, read_again, at)

    def copy(self, at: datetime, store: str) -> None:
        """Copy every verified point that the store lacks; it keeps three weeks."""
        state = self._folder(store).read_state()
        held = {point.point_id for point in state.points}
        new = [point for point in self._list_verified() if point.point_id.text not in held]
        copied = [
            CopiedPoint(point_id=point.point_id.text, copied_at=at, size_bytes=point.size_bytes)
            for point in new
        ]
        self._note(store, points=(*state.points, *copied)[-21:], attempted_at=at, problem="")
        self._record(
            PointsCopied(
                at=at,
                store=store,
                point_ids=tuple(point.point_id for point in copied),
                uploaded_bytes=sum(point.size_bytes for point in copied),
            )
        )
        self._resolve("copy", at, f"copy_to_{store} failed")

    def prove(self, at: datetime, store: str, problem: str = "") -> None:
        """List the store and read some packs back; `problem` is what the listing found."""
        state = self._folder(store).read_state()
        lock_days = self._stores[store].lock_days
        locked_until = at + (lock_days - 1) * DAY if lock_days else None
        problems = (problem,) if problem else ()
        self._note(
            store,
            listed_at=at,
            reread_at=at,
            listing_problems=problems,
            oldest_reread_at=max(BEGIN, at - 9 * DAY),
            oldest_unread_at=at - 5 * HOUR,
            opened_at=max(BEGIN, at - 12 * DAY),
            locked_until=locked_until,
        )
        self._record(
            CopiesProved(
                at=at,
                store=store,
                copy_count=len(state.points),
                pack_count=40,
                read_count=2,
                unread_count=3,
                locked_until=locked_until,
                problems=problems,
            )
        )

    def fail_copy(self, at: datetime, store: str, problem: str) -> None:
        """Try to copy to a store that cannot be used."""
        self._note(store, attempted_at=at, problem=problem, problem_work="copy")
        self._record(CopyFailed(at=at, store=store, problem=problem))
        key = IncidentKey(area="copy", subject=f"copy_to_{store} failed")
        self._raise(_Trouble(key, Severity.HIGH, f"Copy failed: copy_to_{store}", problem), at)

    def damage_newest_point(self, at: datetime) -> None:
        """Flip a bit of the newest archive, and find it."""
        point = self._list_verified()[-1]
        path = point.get_path(ArtifactKind.BUCKET)
        data = path.read_bytes()
        path.write_bytes(damage(data, len(data) * 4))
        cause = f"{path.name} is not what was written: its SHA-256 differs from the manifest's"
        results = (
            make_result(Check.DUMP_IS_STORED, checked_at=at, summary="the bytes are those of the manifest"),
            make_result(Check.ARCHIVE_IS_STORED, CheckStatus.FAILED, checked_at=at, summary=cause),
        )
        self.catalog.record_results(point.point_id, results)
        self._record(
            PointChecked(
                at=at,
                point_id=point.point_id.text,
                checked_by="verify_job",
                outcomes=_as_outcomes(results),
            ),
            RunFailed(
                at=at, kind="verification", run_id="verify", subject="reread_recovery_points", cause=cause
            ),
        )
        key = IncidentKey(area="verification", subject="reread_recovery_points failed")
        title = "Verification failed: reread_recovery_points"
        self._raise(_Trouble(key, Severity.HIGH, title, cause), at)

    def restore(self, at: datetime, result: str) -> None:
        """Restore a table of the newest verified point."""
        point = self._list_verified()[-1]
        event = RestoreEnded(
            at=at + 3 * MINUTE,
            began_at=at,
            point_id=point.point_id.text,
            subject="table public.jobs",
            target="postgresql://schedgen_restore@db.example.org:5432/schedgen",
            result=result,
            reason="ticket 4711: rows deleted by mistake",
            user="anna",
        )
        record_with_receipt(self.directory, event, list_subjects(self.directory, [point.point_id.text]))

    def forge_receipt(self, _at: datetime) -> None:
        """Change the signature of the newest receipt."""
        path = list_receipts(self.directory)[-1]
        path.write_text(path.read_text().replace('"sig": "', '"sig": "AAAA'))

    def resolve(self, at: datetime, area: str) -> None:
        """End the incidents of this area."""
        self._resolve(area, at)

    def _list_verified(self) -> list[PointListing]:
        return [point for point in self.catalog.list_points() if point.state is PointState.VERIFIED]

    def _record(self, *events: HistoryEvent) -> None:
        for event in events:
            self._history.record(event)

    def _raise(self, trouble: _Trouble, at: datetime) -> None:
        """Open an incident; the webhook refuses the alert at first."""
        is_new = all(incident.key != trouble.key for incident in self._notifier.read_incidents())
        alert = Alert(severity=trouble.severity, title=trouble.title, cause=trouble.cause, raised_at=at)
        self._notifier.report_trouble(trouble.key, alert)
        if is_new:
            later = at + 5 * MINUTE
            for channel, when, answer in (
                ("mail", at, ""),
                ("webhook", at, "HTTP 503"),
                ("webhook", later, ""),
            ):
                self._record(
                    AlertDelivered(
                        at=when,
                        channel=channel,
                        title=f"{self.name}: {trouble.title}",
                        is_accepted=not answer,
                        answer=answer,
                    )
                )

    def _resolve(self, area: str, at: datetime, subject: str = "") -> None:
        """End the incidents of this area, or only the one of this subject."""
        keys = {
            incident.key
            for incident in self._notifier.read_incidents()
            if incident.key.area == area and subject in {"", incident.key.subject}
        }
        self._notifier.report_resolved(frozenset(keys), facts={}, now=at)

    def _folder(self, store: str) -> LocalFolder:
        return LocalFolder(self.directory, store)

    def _note(self, store: str, **values: object) -> None:
        folder = self._folder(store)
        folder.prepare()
        folder.write_state(CopyState.model_validate({**dict(folder.read_state()), **values}))


def plan_quiet_month(directory: Path, name: str) -> MadeUpMonth:
    """Return a site without stores on which everything succeeds: a point every night, a drill a week."""
    month = MadeUpMonth(directory, name, object_count=40)
    for day in range((END - BEGIN).days):
        month.plan(BEGIN + day * DAY + 2 * HOUR, month.back_up)
        month.plan(BEGIN + day * DAY + 5 * HOUR, month.prune)
    for day in _SUNDAYS:
        month.plan(_on(day, 3), lambda at: month.drill(at, minutes=22))
    return month


def plan_failing_month(directory: Path, name: str) -> MadeUpMonth:
    """Return a site with two stores on which something of every kind fails once."""
    retention = RetentionPolicy(keep_days=21, keep_last=3)
    disk = StoreSettings("disk", StoreLocation("file:///mnt/nas"), retention=retention)
    cloud = replace(
        disk, name="cloud", location=StoreLocation("s3://backups-of-schedgen/copies"), lock_days=30
    )
    month = MadeUpMonth(directory, name, (disk, cloud))
    down = "connection to the database db.example.org:5432 refused: is the server running?"
    full = "no space left in the store disk: 1.2 GB needed, 0.3 GB free"
    for day in range(1, 32):
        if day in {8, 9}:
            month.plan(_on(day, 2), lambda at: month.fail_backup(at, down))
        elif day != 15:  # The host was off.
            month.plan(_on(day, 2), month.back_up)
            month.plan(_on(day, 5), month.prune)
        month.plan(_on(day, 3.5), lambda at: month.copy(at, "cloud"))
        month.plan(_on(day, 6), lambda at: month.prove(at, "cloud"))
        if day in {20, 21, 22} or day >= 30:
            month.plan(_on(day, 3.6), lambda at: month.fail_copy(at, "disk", full))
        else:
            month.plan(_on(day, 3.6), lambda at: month.copy(at, "disk"))
            lost = "pack 0007 is missing" if day == 19 else ""
            month.plan(_on(day, 6), lambda at, lost=lost: month.prove(at, "disk", lost))
    for day, minutes, failed in (
        (4, 31, ""),
        (11, 258, ""),
        (18, 36, "table public.jobs: 3021 rows, 3020 expected; the first that differs has id 17"),
        (25, 33, ""),
    ):
        month.plan(
            _on(day, 4),
            lambda at, minutes=minutes, failed=failed: month.drill(at, minutes=minutes, failed=failed),
        )
    month.plan(_on(13, 12), month.damage_newest_point)
    month.plan(_on(14, 9), lambda at: month.resolve(at, "verification"))
    month.plan(_on(16, 10), lambda at: month.restore(at, "failed: the table public.jobs is not empty"))
    month.plan(_on(16, 11), lambda at: month.restore(at, "done, equal"))
    month.plan(_on(27, 12), month.forge_receipt)
    return month


def _on(day: int, hour: float) -> datetime:
    return BEGIN + (day - 1) * DAY + hour * HOUR


def _as_outcomes(results: Sequence[CheckResult]) -> tuple[Outcome, ...]:
    return tuple(
        Outcome(check=result.check.value, status=result.status.value, summary=result.summary)
        for result in results
    )
