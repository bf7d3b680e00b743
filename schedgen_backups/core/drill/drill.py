"""Restore a recovery point into an empty database and bucket, check it, and measure the time.

Restores and comparisons are those of `restore`, as in an emergency; `scratch` provides the targets. Add
further checks of a drill here. Nothing here touches the live system.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from threading import Event, Thread

import psycopg

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import BOTH_KINDS, Check, CheckResult, CheckStatus
from schedgen_backups.core.catalog.pins import pin_temporarily
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.catalog.selection import find_newest_verified
from schedgen_backups.core.drill.pdf_sample import open_referenced_pdfs
from schedgen_backups.core.drill.report import DrillReport, DrillSeconds
from schedgen_backups.core.drill.sampled_restore import restore_with_sample
from schedgen_backups.core.drill.scratch import Scratch, open_scratch, sweep_scratch
from schedgen_backups.core.drill.sql_checks import SqlCheck, read_sql_checks, run_sql_checks
from schedgen_backups.core.errors import (
    BackupError,
    ConfigurationError,
    DatabaseError,
    PointNotFoundError,
    RestoreError,
    VerificationError,
)
from schedgen_backups.core.model import RecoveryPointId, ReferenceState
from schedgen_backups.core.postgres.connection import (
    CONNECT_TIMEOUT_SECONDS,
    connect_database,
    give_up_sessions,
)
from schedgen_backups.core.restore.load_roles import LoadRoles
from schedgen_backups.core.restore.point import OnProgress, RestoreRequest, prepare_restore
from schedgen_backups.core.settings import DatabaseSettings, DrillSettings, TransferSettings
from schedgen_backups.core.verify.commit import verify_point
from schedgen_backups.core.verify.files import make_result

PIN_TIME_FACTOR = 2
"""A drill is aborted after this many times DRILL_MAX_MINUTES; until then its point is not removed."""
_SECONDS_PER_MINUTE = 60
_BETWEEN_ENDS_SECONDS = 1.0
_END_SESSIONS = """
SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()
AND backend_type = 'client backend'
"""


def find_drill_point(catalog: Catalog, point_id: RecoveryPointId | None) -> RecoveryPointId:
    """Return the given point's id, or the newest verified one's; PointNotFoundError if there is none."""
    if point_id is not None:
        return catalog.get_point(point_id).point_id
    newest = find_newest_verified(catalog)
    if newest is None:
        raise PointNotFoundError(
            f"no verified recovery point in {catalog.directory}",
            hint="Take one: schedgen-backups backup",
        )
    return newest.point_id


def drill_point(
    catalog: Catalog,
    point_id: RecoveryPointId | None,
    transfer: TransferSettings,
    drill: DrillSettings,
    *,
    source: DatabaseSettings | None,
    drilled_by: str,
    on_progress: OnProgress = lambda _phase, _size_bytes: None,
) -> DrillReport:
    """Restore and check the point (None: the newest verified one), record the results and clean up.

    `source` is the database that was backed up, without a password; its server is refused. `on_progress` gets
    the phases of a restore, then `sample` with sizes in bytes and `sql checks` with 1 for each check.

    VerificationError when a file is damaged: nothing was written then, and the damage is recorded. Any other
    error of `scratch` or of the restore means that the drill has no result.
    """
    checks = read_sql_checks(drill.sql_checks_path) if drill.sql_checks_path is not None else ()
    swept = sweep_scratch(drill)
    chosen = find_drill_point(catalog, point_id)
    if drill.objects.kind == "referenced" and catalog.get_point(chosen).verification.kinds == BOTH_KINDS:
        _require_references(catalog.get_point(chosen))
    max_duration = timedelta(minutes=drill.max_minutes * PIN_TIME_FACTOR)
    with pin_temporarily(
        catalog, chosen, reason="a restore drill reads it", pinned_by=drilled_by, max_duration=max_duration
    ) as point:
        began_at = datetime.now(timezone.utc)
        started = time.monotonic()
        with open_scratch(point, drill, source) as scratch:
            ready = time.monotonic()
            try:
                with _ended_after(max_duration - timedelta(seconds=ready - started), scratch.load_roles):
                    report = _look(
                        catalog,
                        point,
                        transfer,
                        drill,
                        checks,
                        scratch,
                        drilled_by=drilled_by,
                        on_progress=on_progress,
                        began=(began_at, started, ready),
                    )
            except VerificationError:
                # The restore reports the damage but records nothing.
                verify_point(catalog, point, checked_by=drilled_by)
                raise
    return report.model_copy(update={"notes": (*swept, *report.notes)})


def _require_references(point: PointListing) -> None:
    with point.open_dump() as dump:
        if dump.record.reference_state is ReferenceState.NOT_CONFIGURED:
            raise ConfigurationError(
                f"DRILL_OBJECTS is referenced:N, but {point.point_id} was taken without a reference query",
                hint="Use sample:N, or set BACKUP_REFERENCE_QUERY and take a recovery point.",
            )


@contextmanager
def _ended_after(duration: timedelta, roles: LoadRoles | None) -> Generator[None, None, None]:
    """End all sessions of the scratch database when the block takes longer, and raise RestoreError.

    Code in the dump may run forever, while its server reports activity.
    """
    if roles is None:
        yield
        return
    done, is_late = Event(), Event()

    def watch() -> None:
        if done.wait(duration.total_seconds()):
            return
        is_late.set()
        while not done.is_set():
            opening = connect_database(
                roles.superuser or roles.loader, stall_timeout_seconds=CONNECT_TIMEOUT_SECONDS
            )
            with suppress(DatabaseError, psycopg.Error), opening as connection:
                connection.execute(_END_SESSIONS)
            # A client whose connection broke does not learn that its session ended.
            give_up_sessions(roles.loader)
            done.wait(_BETWEEN_ENDS_SECONDS)

    watcher = Thread(target=watch, name="drill limit", daemon=True)
    watcher.start()
    try:
        yield
    except BackupError as error:
        if not is_late.is_set():
            raise
        raise RestoreError(
            f"the drill was aborted after {duration.total_seconds() / _SECONDS_PER_MINUTE:.0f} minutes: "
            f"{error.message}",
            hint="Raise DRILL_MAX_MINUTES if the database needs that long; otherwise look for a check, an "
            "index or a view that never finishes.",
        ) from error
    finally:
        done.set()
        watcher.join()


def _look(
    catalog: Catalog,
    point: PointListing,
    transfer: TransferSettings,
    drill: DrillSettings,
    checks: tuple[SqlCheck, ...],
    scratch: Scratch,
    *,
    drilled_by: str,
    on_progress: OnProgress,
    began: tuple[datetime, float, float],
) -> DrillReport:
    began_at, started, ready = began
    roles = scratch.load_roles
    is_whole = drill.objects.kind == "all" or scratch.bucket is None
    request = RestoreRequest(
        point,
        (roles.superuser or roles.loader) if roles is not None else None,
        scratch.bucket if is_whole or roles is None else None,
        load_roles=roles,
    )
    with prepare_restore(request, transfer) as prepared:
        snapshot_at = prepared.captured_at
        versions = prepared.list_versions()
        restored = (
            prepared.restore(catalog=catalog, restored_by=drilled_by, on_progress=on_progress)
            if is_whole
            else restore_with_sample(
                prepared,
                scratch,
                drill.objects,
                transfer,
                catalog=catalog,
                drilled_by=drilled_by,
                on_progress=on_progress,
            )
        )
    compared = time.monotonic()
    sampled = (
        open_referenced_pdfs(
            point,
            scratch.database,
            scratch.bucket,
            transfer,
            on_progress=lambda size_bytes: on_progress("sample", size_bytes),
        )
        if scratch.database is not None and scratch.bucket is not None
        else make_result(
            Check.REFERENCED_PDFS_OPEN, CheckStatus.NOT_CONFIGURED, "no rows refer to objects here", {}
        )
    )
    opened = time.monotonic()
    held = (
        run_sql_checks(
            checks,
            scratch.database,
            timeout_seconds=transfer.stall_timeout_seconds,
            on_progress=lambda count: on_progress("sql checks", count),
        )
        if scratch.database is not None
        else make_result(
            Check.OPERATOR_CHECKS_HOLD, CheckStatus.NOT_CONFIGURED, "the point has no database", {}
        )
    )
    ended = time.monotonic()
    found = (sampled, held, _judge_time(ended - started, drill))
    signed = tuple(result.model_copy(update={"checked_by": drilled_by}) for result in found)
    catalog.record_results(point.point_id, point.label_results(signed))
    return DrillReport(
        point_id=point.point_id.text,
        snapshot_at=snapshot_at,
        began_at=began_at,
        seconds=DrillSeconds(
            start_servers=ready - started,
            verify=restored.seconds["verify"],
            restore=restored.seconds["restore"],
            compare=restored.seconds["compare"],
            sample=opened - compared,
            sql_checks=ended - opened,
            total=ended - started,
        ),
        results=(*restored.results, *signed),
        object_count=restored.object_count,
        target=scratch.description,
        versions=versions,
        notes=(*scratch.notes, *restored.notes),
    )


def _judge_time(total_seconds: float, drill: DrillSettings) -> CheckResult:
    minutes = total_seconds / _SECONDS_PER_MINUTE
    is_in_time = minutes <= drill.max_minutes
    return make_result(
        Check.DRILL_IS_IN_TIME,
        CheckStatus.PASSED if is_in_time else CheckStatus.FAILED,
        f"{minutes:.1f} minutes (limit {drill.max_minutes})",
        {"minutes": round(minutes, 3), "allowed_minutes": drill.max_minutes},
    )
