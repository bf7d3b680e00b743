"""Compute the metrics of one site from its backup directory; no store and no server is asked."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus, VerificationLevel
from schedgen_backups.core.catalog.pins import read_pin
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.catalog.selection import judge_points
from schedgen_backups.core.catalog.space import forecast_space, measure_stored
from schedgen_backups.core.copies.status import StoreStatus, measure_spread
from schedgen_backups.core.errors import BackupError, VerificationError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.history.events import DrillEnded, RunFailed, RunStarted
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.metrics import families
from schedgen_backups.core.metrics.families import MetricFamily
from schedgen_backups.core.model import TOOL_VERSION, ArtifactKind, RecoveryPointId, ReferenceVerdict
from schedgen_backups.core.notify.channels import Channel
from schedgen_backups.core.notify.deliveries import read_last_delivery
from schedgen_backups.core.notify.notifier import Notifier
from schedgen_backups.core.notify.ticks import read_ticks
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.settings import Layout

BACKUP_KIND, DRILL_KIND = "run", "drill"
"""The kinds of runs that take and that drill a recovery point (`alerts.run_kinds`)."""


@dataclass(frozen=True)
class MonitoredSite:
    """What is measured, and the promises that it is measured against."""

    name: str
    catalog: Catalog
    max_age: timedelta
    schedule_gap: timedelta
    drill_max_age: timedelta
    drill_max_duration: timedelta
    layout: Layout = Layout.FILES
    """Of new recovery points."""
    channels: tuple[Channel, ...] = ()
    stores: tuple[StoreStatus, ...] = ()
    has_wrong_settings: bool = False


@dataclass(frozen=True)
class Sample:
    """One value of a metric."""

    family: MetricFamily
    value: float
    labels: tuple[str, ...] = ()
    """In the order of the family's labels."""


def measure_site(site: MonitoredSite, now: datetime) -> tuple[Sample, ...]:
    """Return the values of the site's metrics; what is unknown is absent."""
    points = site.catalog.list_points() if site.catalog.directory.is_dir() else ()
    return (
        Sample(families.BUILD_INFO, 1, (TOOL_VERSION,)),
        Sample(families.WRITTEN, now.timestamp()),
        Sample(families.SETTINGS_WRONG, site.has_wrong_settings),
        *_measure_promises(site),
        *_measure_points(site, points, now),
        *_measure_levels(points),
        *_measure_runs(site),
        *_measure_alerts(site),
        *(sample for store in site.stores for sample in _measure_store(store, points)),
    )


def _measure_promises(site: MonitoredSite) -> Iterator[Sample]:
    for family, span in (
        (families.MAX_AGE, site.max_age),
        (families.SCHEDULE_GAP, site.schedule_gap),
        (families.DRILL_MAX_AGE, site.drill_max_age),
        (families.DRILL_MAX_DURATION, site.drill_max_duration),
    ):
        yield Sample(family, span.total_seconds())


def _measure_points(site: MonitoredSite, points: Sequence[PointListing], now: datetime) -> Iterator[Sample]:
    states = Counter(point.state for point in points)
    for state in PointState:
        yield Sample(families.POINTS, states[state], (state.value,))
    overview = judge_points(points, now)
    yield Sample(families.POINTS_BROKEN, len(overview.broken) + len(overview.ahead))
    yield Sample(families.POINTS_UNREAD, sum(bool(point.unread_files) for point in points))
    # Listed once: most points have no pin, and a missing file takes as long to find.
    pins = site.catalog.list_pinned()
    pinned = [point for point in points if point.point_id in pins]
    yield Sample(families.PINNED, sum(_is_pinned(site.catalog, point, now) for point in pinned))
    pack_sizes = LocalPacks(site.catalog.directory).find_sizes()
    yield Sample(families.STORED_BYTES, measure_stored(points, pack_sizes))
    forecast = forecast_space(points, pack_sizes, site.layout)
    if forecast is not None:
        yield Sample(families.NEXT_POINT, forecast.added_bytes)
        yield Sample(families.NEXT_POINT_TEMPORARY, forecast.temporary_bytes)
    with suppress(OSError):
        yield Sample(families.FREE_BYTES, shutil.disk_usage(site.catalog.directory).free)
    verified = [point for point in points if point.state is PointState.VERIFIED]
    if verified:
        yield Sample(families.OLDEST_VERIFIED, verified[0].point_id.taken_at.timestamp())
        yield from _measure_newest(verified[-1])
        spread = measure_spread(verified[-1].point_id, site.stores, now)
        for what, number in (
            ("copies", spread.copy_count),
            ("kinds", spread.kind_count),
            ("elsewhere", spread.elsewhere_count),
        ):
            yield Sample(families.PLACES, number, (what,))
        for kind, size_bytes in _list_sizes(verified[-1]):
            yield Sample(families.LAST_SIZE, size_bytes, (kind.value,))
    for kind, size_bytes in _list_sizes(verified[-2]) if len(verified) > 1 else ():
        yield Sample(families.PREVIOUS_SIZE, size_bytes, (kind.value,))


def _measure_newest(point: PointListing) -> Iterator[Sample]:
    yield Sample(families.LAST_VERIFIED, point.point_id.taken_at.timestamp())
    manifest = point.manifest
    if manifest is None:
        return
    yield Sample(families.LAST_DURATION, (manifest.committed_at - manifest.snapshot_at).total_seconds())
    counts = Counter(manifest.references.verdict_counts)
    for verdict in ReferenceVerdict:
        yield Sample(families.MISSING_REFERENCES, counts[verdict], (verdict.value,))
    yield Sample(families.NEWLY_MISSING, manifest.references.newly_missing_count)
    # Damage is counted by the state; here the numbers are only absent.
    with suppress(BackupError):
        if rows := list(_read_row_counts(point)):
            yield Sample(families.LAST_ROWS, sum(rows))
    with suppress(BackupError):
        if not (counted := list(_read_object_counts(point))):
            return
        yield Sample(families.LAST_OBJECTS, sum(objects for objects, _reused in counted))
        yield Sample(families.LAST_REUSED, sum(reused for _objects, reused in counted))


def _read_row_counts(point: PointListing) -> Iterator[int]:
    for found in point.list_sources(ArtifactKind.DATABASE):
        with open_dump(found.path, point.keys) as dump:
            yield dump.record.row_count


def _read_object_counts(point: PointListing) -> Iterator[tuple[int, int]]:
    """Yield of each archive how many objects it has, and how many of them were copied from an older one."""
    for found in point.list_sources(ArtifactKind.BUCKET):
        with open_archive(found.path, point.keys) as archive:
            yield archive.record.object_count, archive.record.reused_count


def _measure_levels(points: Sequence[PointListing]) -> Iterator[Sample]:
    own = [point for point in points if point.state not in {PointState.FOREIGN, PointState.AHEAD}]
    for level in VerificationLevel:
        results = [point.verification.level(level) for point in own]
        known = [result for result in results if result.checked_at is not None]
        newest = max(known, key=lambda result: (result.checked_at, result.status.value), default=None)
        status = newest.status if newest is not None else CheckStatus.UNKNOWN
        value = {CheckStatus.PASSED: 1, CheckStatus.INCOMPLETE: 1, CheckStatus.FAILED: 0}.get(status, -1)
        yield Sample(families.LEVEL, value, (level.value,))
        passed = [
            result.proved_at
            for result in known
            if result.proved_at is not None and result.status in {CheckStatus.PASSED, CheckStatus.INCOMPLETE}
        ]
        if passed:
            yield Sample(families.LEVEL_PASSED, max(passed).timestamp(), (level.value,))


def _measure_runs(site: MonitoredSite) -> Iterator[Sample]:
    history = History(site.catalog.directory)
    started = history.find_last(RunStarted, lambda event: event.kind == BACKUP_KIND)
    failed = history.find_last(RunFailed, lambda event: event.kind == BACKUP_KIND)
    drill = history.find_last(DrillEnded, lambda event: not event.store)
    if started is not None:
        yield Sample(families.LAST_ATTEMPT, started.at.timestamp())
    if failed is not None:
        yield Sample(families.LAST_FAILURE, failed.at.timestamp())
    broken_off = history.find_last(RunFailed, lambda event: event.kind == DRILL_KIND)
    if drill is not None or broken_off is not None:
        # A drill that ends without a result, as by a damaged file, is the last one, too.
        is_passed = drill is not None and drill.is_passed and (broken_off is None or broken_off.at < drill.at)
        yield Sample(families.DRILL_PASSED, int(is_passed))
    if drill is not None:
        yield Sample(families.DRILL_ENDED, drill.at.timestamp())
        yield Sample(families.DRILL_RTO, drill.rto_seconds)
        yield Sample(families.DRILL_RPO, drill.rpo_seconds)


def _measure_alerts(site: MonitoredSite) -> Iterator[Sample]:
    directory = site.catalog.directory
    notifier = Notifier(site.channels, directory)
    incidents = notifier.read_incidents()
    yield Sample(families.INCIDENTS, len(incidents))
    if incidents:
        oldest = min(incident.began_at for incident in incidents)
        yield Sample(families.OLDEST_INCIDENT, oldest.timestamp())
    answers = [read_last_delivery(directory, channel) for channel in site.channels]
    yield Sample(families.CHANNELS, len(answers))
    yield Sample(
        families.CHANNELS_FAILING, sum(answer is not None and not answer.is_accepted for answer in answers)
    )
    yield Sample(families.SPOOLED, notifier.count_spooled())
    ticks = read_ticks(directory)
    if ticks:
        yield Sample(families.DAEMON_TICK, max(ticks.values()).timestamp())


def _measure_store(store: StoreStatus, points: Sequence[PointListing]) -> Iterator[Sample]:
    state, label = store.state, (store.name,)
    newest = state.newest
    if newest is not None:
        taken_at = RecoveryPointId.parse(newest.point_id).taken_at
        yield Sample(families.COPY_POINT, taken_at.timestamp(), label)
    yield Sample(families.COPY_POINTS, len(state.points), label)
    lacking = [
        point
        for point in points
        if point.state is PointState.VERIFIED and (newest is None or point.point_id.text > newest.point_id)
    ]
    yield Sample(families.COPY_LACKING, len(lacking), label)
    for proof, at in (
        ("listed", state.listed_at),
        ("reread", state.oldest_reread_at),
        ("opened", state.opened_at),
    ):
        if at is not None:
            yield Sample(families.COPY_PROVED, at.timestamp(), (store.name, proof))
    for kind, number in (
        ("stranger", state.stranger_count),
        ("listing", len(state.listing_problems) - state.stranger_count),
        ("reread", len(state.reread_problems)),
    ):
        yield Sample(families.COPY_PROBLEMS, number, (store.name, kind))
    if state.oldest_unread_at is not None:
        yield Sample(families.COPY_OLDEST_UNREAD, state.oldest_unread_at.timestamp(), label)
    if state.locked_until is not None:
        yield Sample(families.COPY_LOCKED_UNTIL, state.locked_until.timestamp(), label)
    yield Sample(families.COPY_FAILING, int(bool(state.problem or store.error)), label)
    if store.settings is not None:
        for family, span in (
            (families.COPY_MAX_AGE, timedelta(hours=store.settings.max_age_hours)),
            (families.COPY_REREAD_LIMIT, timedelta(days=store.settings.reread_days)),
            (families.COPY_LOCK, timedelta(days=store.settings.lock_days)),
        ):
            yield Sample(family, span.total_seconds(), label)


def _list_sizes(point: PointListing) -> Iterator[tuple[ArtifactKind, int]]:
    for kind in ArtifactKind:
        if (size_bytes := point.measure_kind(kind)) is not None:
            yield kind, size_bytes


def _is_pinned(catalog: Catalog, point: PointListing, now: datetime) -> bool:
    try:
        pin = read_pin(catalog, point.point_id)
    except VerificationError:
        # It keeps the point, whatever it says.
        return True
    return pin is not None and pin.is_valid(now)
