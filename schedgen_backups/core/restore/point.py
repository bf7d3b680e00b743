"""Restore a whole recovery point: prepare (check files and targets), execute, compare.

Nothing is written until the files are verified and both targets can take them. The first error stops both
halves. The database is committed last: after an error it is unchanged, and what was written into the bucket
is removed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from threading import Event

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckResult, CheckStatus
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.errors import (
    BackupError,
    BucketMissingError,
    DatabaseMissingError,
    RestoreError,
    VerificationError,
)
from schedgen_backups.core.formats.records import describe_left_out
from schedgen_backups.core.model import OWN_VERSION, ArtifactKind
from schedgen_backups.core.postgres.connection import NO_VALUES
from schedgen_backups.core.restore.bucket import (
    PreparedBucket,
    check_bucket_empty,
    describe_write,
    prepare_bucket,
    prepare_missing_bucket,
    write_bucket,
)
from schedgen_backups.core.restore.comparison import compare_bucket, compare_database
from schedgen_backups.core.restore.database import (
    PreparedDatabase,
    check_empty,
    describe_load,
    prepare_database,
    prepare_missing_database,
    prepare_new_database,
)
from schedgen_backups.core.restore.load import DatabaseLoad
from schedgen_backups.core.restore.load_roles import LoadRoles
from schedgen_backups.core.restore.swap import check_swap, name_old_database
from schedgen_backups.core.restore.unprivileged_load import LOADED_SETTINGS
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, TransferSettings
from schedgen_backups.core.units import name_some
from schedgen_backups.core.verify.files import verify_archive_file, verify_dump_file

OnProgress = Callable[[str, int], object]
"""Gets the name of the phase (`verify`, `database`, `bucket`, `compare`) and the bytes processed."""


def ignore_progress(_phase: str, _size_bytes: int) -> None:
    """Do nothing: for callers that show no progress."""


@dataclass(frozen=True)
class RestoreRequest:
    """The recovery point and its targets; a half without a target is not restored."""

    point: PointListing
    database: DatabaseSettings | None
    bucket: BucketSettings | None
    replace_contents: bool = False
    """Whether the targets need not be empty: the database is replaced completely, objects with the same keys
    are overwritten."""
    jobs: int = 1
    """Sessions that load an empty database; more than one means no single transaction."""
    is_swap: bool = False
    """Whether the database is loaded next to the named one, compared, and then takes its name."""
    creates_targets: bool = False
    """Whether a missing database or bucket is created."""
    load_roles: LoadRoles | None = None
    """The roles of a load without superuser privileges, in a drill; None for the role of `database`."""
    object_keys: frozenset[str] | None = None
    """The objects that are restored and compared, in a drill of a sample; None for all. Of the archive, only
    their bytes are read and verified."""

    @property
    def target_name(self) -> str:
        """The name that the operator types to confirm: the database's, otherwise the bucket's."""
        if self.database is not None:
            return self.database.database
        return self.bucket.bucket if self.bucket is not None else ""

    @property
    def needs_confirmation(self) -> bool:
        """Whether it may replace existing data."""
        return self.replace_contents or self.is_swap


@dataclass(frozen=True)
class RestoreReport:
    """The result of a restore and of its comparison."""

    results: tuple[CheckResult, ...]
    seconds: dict[str, float]
    """Phase (verify, restore, compare) → seconds."""
    object_count: int
    notes: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every comparison passed; an unknown result does not count as passed."""
        return all(result.status is CheckStatus.PASSED for result in self.results)


@dataclass(frozen=True)
class WrittenPoint:
    """The result of writing, before anything is compared."""

    object_count: int
    notes: tuple[str, ...]
    uncompared: str = ""
    """Parts of the schema's text that cannot be equal to the dump's; empty if all can."""


@dataclass(frozen=True)
class PreparedRestore:
    """A restore with opened files and checked targets; nothing is written yet."""

    request: RestoreRequest
    database: PreparedDatabase | None
    bucket: PreparedBucket | None

    @contextmanager
    def aim_at(self, fresh: DatabaseSettings) -> Generator[PreparedRestore, None, None]:
        """Prepare the same restore into another, empty database, within the block."""
        request = replace(self.request, database=fresh, is_swap=False)
        if self.database is None:
            yield replace(self, request=request)
            return
        with self.database.aim_at(fresh) as database:
            yield replace(self, request=request, database=database)

    def get_database(self) -> PreparedDatabase:
        """Return the database half; RestoreError if there is none."""
        if self.database is None:
            raise RestoreError("the restore has no database", hint="Name a database.")
        return self.database

    @property
    def captured_at(self) -> datetime:
        """When the state was captured that is restored: the database's snapshot, or the bucket's listing."""
        if self.database is not None:
            return self.database.record.snapshot_at
        if self.bucket is not None:
            return self.bucket.record.listed_at
        raise RestoreError("nothing is restored", hint="Name a database or a bucket.")

    def select_objects(self, keys: frozenset[str]) -> PreparedRestore:
        """Return the same restore of these objects only."""
        bucket = replace(self.bucket, keys=keys) if self.bucket is not None else None
        return replace(self, request=replace(self.request, object_keys=keys), bucket=bucket)

    def list_versions(self) -> dict[str, str]:
        """Return the versions of this program and, for a database, of the target's server and the client."""
        return self.database.list_versions() if self.database is not None else dict(OWN_VERSION)

    def describe(self) -> tuple[str, ...]:
        """Return what the restore would do, one line each."""
        request = self.request
        point_id = request.point.point_id
        lines = [
            f"verify the files of recovery point {point_id}, taken {point_id.taken_at:%Y-%m-%d %H:%M:%S} UTC"
        ]
        if self.database is not None and request.database is not None:
            database, label = self.database, request.database.label
            if database.missing_roles:
                lines.append(
                    f"create the roles {name_some(database.missing_roles)}, which the server lacks, without "
                    "passwords"
                )
            if database.collation_note:
                lines.append(f"note that {database.collation_note}")
            if database.maintenance is not None:
                lines.append(f"create the database {label}, with encoding and collation as captured")
            place = f"a new database next to {label}" if request.is_swap else label
            lines += describe_load(
                database.record, database.facts, place, database.choose_way(request.jobs), jobs=request.jobs
            )
            if request.is_swap:
                old_name = name_old_database(request.database, point_id)
                lines.append(
                    f"compare the new database, then swap the names; the old one remains as {old_name}"
                )
        if self.bucket is not None:
            lines += describe_write(self.bucket)
        records = [half.record for half in (self.database, self.bucket) if half is not None]
        left_out = " and ".join(filter(None, (describe_left_out(record.left_out) for record in records)))
        if left_out:
            lines.append(f"note that the recovery point does not contain {left_out}: they will be missing")
        lines.append("compare every table and every object with what was captured")
        return tuple(lines)

    def verify(self, on_progress: OnProgress = ignore_progress) -> None:
        """Read both files completely; VerificationError if one differs from what was captured."""
        manifest = self.request.point.manifest
        expected = {artifact.kind: artifact.sha256 for artifact in manifest.artifacts} if manifest else {}
        results: list[CheckResult] = []
        passed = partial(on_progress, "verify")
        if self.database is not None:
            results += verify_dump_file(
                self.database.artifact,
                expected_sha256=expected.get(ArtifactKind.DATABASE),
                on_progress=passed,
            )
        if self.bucket is not None and self.bucket.keys is None:
            results += verify_archive_file(
                self.bucket.artifact, expected_sha256=expected.get(ArtifactKind.BUCKET), on_progress=passed
            )
        failed = [result for result in results if not result.is_passed]
        if failed:
            raise VerificationError(
                f"recovery point {self.request.point.point_id} is damaged, nothing was written: "
                f"{failed[0].summary}",
                hint="Restore another recovery point; `schedgen-backups verify --all` shows which are "
                "intact.",
            )

    def execute(self, on_progress: OnProgress = ignore_progress) -> WrittenPoint:
        """Write both halves concurrently, the database's commit last.

        RestoreError, BucketError, DatabaseError or VerificationError at the first error. Its hint says what
        the targets contain now. If the load is one transaction, the database is unchanged; objects written
        into the bucket are removed again.
        """
        return _Writing(self, on_progress).run()

    def compare(
        self, on_progress: OnProgress = ignore_progress, *, uncompared: str = ""
    ) -> tuple[CheckResult, ...]:
        """Return how the targets compare with what was captured; `uncompared` as in `WrittenPoint`."""
        results: list[CheckResult] = []
        passed = partial(on_progress, "compare")
        if self.database is not None:
            results += compare_database(
                self.database, roles=self.request.load_roles, uncompared=uncompared, on_progress=passed
            )
        if self.bucket is not None:
            results += compare_bucket(self.bucket, on_progress=passed)
        return tuple(results)

    def restore(
        self,
        *,
        catalog: Catalog | None = None,
        restored_by: str = "",
        on_progress: OnProgress = ignore_progress,
    ) -> RestoreReport:
        """Verify, execute and compare; errors are those of the three.

        `catalog`, if given, records the results.
        """
        seconds: dict[str, float] = {}
        started = time.monotonic()
        self.verify(on_progress)
        seconds["verify"] = time.monotonic() - started
        started = time.monotonic()
        written = self.execute(on_progress)
        seconds["restore"] = time.monotonic() - started
        started = time.monotonic()
        try:
            results = self.compare(on_progress, uncompared=written.uncompared)
        except BackupError as error:
            raise error.restate(
                error.message,
                hint=f"Everything was written, but the comparison failed. {error.hint}".strip(),
            ) from error
        seconds["compare"] = time.monotonic() - started
        # Last: this may take privileges from the role that compares.
        notes = (*written.notes, *(self.database.carry_properties() if self.database is not None else ()))
        signed = tuple(result.model_copy(update={"checked_by": restored_by}) for result in results)
        if catalog is not None:
            catalog.record_results(self.request.point.point_id, self.request.point.label_results(signed))
        return RestoreReport(signed, seconds, written.object_count, notes)

    def undo_bucket(self) -> str:
        """Remove the written objects; return a sentence on what the bucket contains now.

        Empty without a bucket.
        """
        return self.bucket.writer.undo().describe(self.bucket.target.label) if self.bucket is not None else ""


class _Writing:
    """Both halves in their own threads; the first error stops the other half."""

    def __init__(self, prepared: PreparedRestore, on_progress: OnProgress) -> None:
        self._prepared = prepared
        self._stop = Event()
        self._errors: list[BaseException] = []
        request = prepared.request
        self._load = (
            DatabaseLoad(
                prepared.database,
                replace_contents=request.replace_contents and not prepared.database.is_fresh,
                jobs=request.jobs,
                roles=request.load_roles,
                stop=self._stop,
                on_progress=partial(on_progress, "database"),
            )
            if prepared.database is not None
            else None
        )
        self._on_object = partial(on_progress, "bucket")

    def run(self) -> WrittenPoint:
        try:
            object_count = self._run_both()
        except BackupError as error:
            raise error.restate(
                error.message, hint=" ".join(text for text in (*self._undo(), error.hint) if text)
            ) from error
        except BaseException:
            self._undo()
            raise
        if self._load is None:
            return WrittenPoint(object_count, ())
        return WrittenPoint(object_count, self._load.notes, self._load.uncompared)

    def _run_both(self) -> int:
        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="restore") as pool:
            try:
                writing = pool.submit(self._keep_error, self._write_objects)
                loading = pool.submit(self._keep_error, partial(self._load_database, writing))
                for half in (writing, loading):
                    half.exception()
            finally:
                self._stop.set()
        if self._errors:
            raise self._errors[0]
        return writing.result()

    def _keep_error(self, act: Callable[[], int]) -> int:
        try:
            return act()
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()
            raise

    def _write_objects(self) -> int:
        bucket = self._prepared.bucket
        if bucket is None:
            return 0
        return write_bucket(
            bucket,
            overwrite=self._prepared.request.replace_contents,
            stop=self._stop,
            on_progress=self._on_object,
        )

    def _load_database(self, writing: Future[int]) -> int:
        def wait_for_objects() -> None:
            writing.result()
            if self._stop.is_set():  # set when the restore is cancelled
                raise RestoreError("the restore of the database was stopped")

        if self._load is not None:
            self._load.run(wait_for_objects)
        return 0

    def _undo(self) -> tuple[str, ...]:
        """Remove the written objects, unless rows refer to them; return the state of both targets."""
        if self._load is None:
            return (self._prepared.undo_bucket(),)
        database = self._load.describe_target()
        if self._load.is_committed or self._load.is_in_doubt:
            return (
                database,
                "The written objects are still in the bucket." if self._prepared.bucket is not None else "",
            )
        return database, self._prepared.undo_bucket()


@contextmanager
def prepare_restore(
    request: RestoreRequest, transfer: TransferSettings
) -> Generator[PreparedRestore, None, None]:
    """Open files, connection and S3 client within the block; both targets can take the point.

    RestoreError (TargetNotEmptyError) says why one cannot. DatabaseError and BucketError say why it cannot be
    reached. Nothing is written.
    """
    if request.database is None and request.bucket is None:
        raise RestoreError(
            "nothing to restore: no database and no bucket given",
            hint="Give a database, a bucket or both.",
        )
    if request.is_swap and request.database is None:
        raise RestoreError(
            "a swap needs a database, but none is given",
            hint="Give the live database, or omit the swap.",
        )
    with ExitStack() as stack:
        database = (
            _open_database(stack, request, request.database, transfer)
            if request.database is not None
            else None
        )
        bucket = (
            _open_bucket(stack, request, request.bucket, transfer) if request.bucket is not None else None
        )
        yield PreparedRestore(request, database, bucket)


def _open_database(
    stack: ExitStack, request: RestoreRequest, target: DatabaseSettings, transfer: TransferSettings
) -> PreparedDatabase:
    path = request.point.get_path(ArtifactKind.DATABASE)
    if request.is_swap:
        database = stack.enter_context(prepare_new_database(path, target, transfer, keys=request.point.keys))
        check_swap(database.session, target, request.point.point_id)
    else:
        values = LOADED_SETTINGS if request.load_roles is not None else NO_VALUES
        try:
            database = stack.enter_context(
                prepare_database(path, target, transfer, keys=request.point.keys, values=values)
            )
        except DatabaseMissingError:
            if not request.creates_targets:
                raise
            database = stack.enter_context(
                prepare_missing_database(path, target, transfer, keys=request.point.keys)
            )
    if not request.replace_contents:
        check_empty(target, database.facts.relation_count)
    return database


def _open_bucket(
    stack: ExitStack, request: RestoreRequest, target: BucketSettings, transfer: TransferSettings
) -> PreparedBucket:
    path = request.point.get_path(ArtifactKind.BUCKET)
    try:
        bucket = stack.enter_context(prepare_bucket(path, target, transfer, keys=request.point.keys))
    except BucketMissingError:
        if not request.creates_targets:
            raise
        bucket = stack.enter_context(prepare_missing_bucket(path, target, transfer, keys=request.point.keys))
    if not request.replace_contents:
        check_bucket_empty(target, is_empty=bucket.is_empty)
    return replace(bucket, keys=request.object_keys)


def restore_point(
    request: RestoreRequest,
    transfer: TransferSettings,
    *,
    catalog: Catalog | None = None,
    restored_by: str = "",
    on_progress: OnProgress = ignore_progress,
) -> RestoreReport:
    """Prepare and execute the restore, without confirmation in between.

    Errors are those of `prepare_restore` and `PreparedRestore.restore`.
    """
    with prepare_restore(request, transfer) as prepared:
        return prepared.restore(catalog=catalog, restored_by=restored_by, on_progress=on_progress)
