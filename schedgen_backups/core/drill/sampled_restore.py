"""Restore the database of a point whole, and of its objects a sample."""

from __future__ import annotations

from collections.abc import Iterator

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.drill.object_sample import (
    ObjectSample,
    SampledObject,
    choose_objects,
    describe_sample,
)
from schedgen_backups.core.drill.pdf_sample import SAMPLE_SIZE, is_missing_as_recorded, pick_referenced_keys
from schedgen_backups.core.drill.scratch import Scratch
from schedgen_backups.core.restore.point import (
    OnProgress,
    PreparedRestore,
    RestoreReport,
    RestoreRequest,
    prepare_restore,
)
from schedgen_backups.core.settings import DatabaseSettings, DrillObjects, TransferSettings
from schedgen_backups.core.units import count, name_some


def restore_with_sample(
    prepared: PreparedRestore,
    scratch: Scratch,
    objects: DrillObjects,
    transfer: TransferSettings,
    *,
    catalog: Catalog,
    drilled_by: str,
    on_progress: OnProgress,
) -> RestoreReport:
    """Restore the prepared database, then the sample, and record both; errors are those of a restore.

    The objects follow the database, since a sample of references is chosen in it. The PDFs that the drill
    opens are restored as well.
    """
    point = prepared.request.point
    if scratch.database is None:
        return _restore_sample(
            prepared, objects, catalog=catalog, drilled_by=drilled_by, on_progress=on_progress
        )
    database = prepared.restore(restored_by=drilled_by, on_progress=on_progress)
    sample, opened, lost = _choose(point, scratch.database, objects, transfer)
    request = RestoreRequest(point, None, scratch.bucket, object_keys=sample.keys | opened)
    with prepare_restore(request, transfer) as half:
        restored = half.restore(restored_by=drilled_by, on_progress=on_progress)
    with point.open_archive() as archive:
        is_whole = restored.object_count == archive.record.object_count
    results = (
        *database.results,
        *(
            _judge(result, sample, restored.object_count, lost, is_whole=is_whole)
            for result in restored.results
        ),
    )
    catalog.record_results(point.point_id, point.label_results(results))
    return RestoreReport(
        results,
        {name: seconds + restored.seconds[name] for name, seconds in database.seconds.items()},
        restored.object_count,
        (*database.notes, *restored.notes),
    )


def _restore_sample(
    prepared: PreparedRestore,
    objects: DrillObjects,
    *,
    catalog: Catalog,
    drilled_by: str,
    on_progress: OnProgress,
) -> RestoreReport:
    """Restore a sample of all objects of a point without a database, and record it."""
    point = prepared.request.point
    sample = choose_objects(lambda: _read_objects(point), objects.sample_count, point.point_id.text)
    restored = prepared.select_objects(sample.keys).restore(restored_by=drilled_by, on_progress=on_progress)
    with point.open_archive() as archive:
        is_whole = restored.object_count == archive.record.object_count
    results = tuple(
        _judge(result, sample, restored.object_count, (), is_whole=is_whole) for result in restored.results
    )
    catalog.record_results(point.point_id, point.label_results(results))
    return RestoreReport(results, restored.seconds, restored.object_count, restored.notes)


def _choose(
    point: PointListing, database: DatabaseSettings, objects: DrillObjects, transfer: TransferSettings
) -> tuple[ObjectSample, frozenset[str], tuple[str, ...]]:
    """Return the sample, the keys of the PDFs to open, and referenced keys that the archive wrongly lacks."""
    limit_seconds = transfer.stall_timeout_seconds
    _count, opened = pick_referenced_keys(point, database, SAMPLE_SIZE, stall_timeout_seconds=limit_seconds)
    if objects.kind == "sample":
        sample = choose_objects(lambda: _read_objects(point), objects.sample_count, point.point_id.text)
        return sample, frozenset(opened), ()
    reference_count, keys = pick_referenced_keys(
        point, database, objects.sample_count, stall_timeout_seconds=limit_seconds
    )
    wanted = frozenset(keys)
    archived = frozenset(each.key for each in _read_objects(point) if each.key in wanted)
    lost = tuple(sorted(key for key in wanted - archived if not is_missing_as_recorded(point.manifest, key)))
    sample = ObjectSample(
        archived, reference_count, len(archived), point.point_id.text, noun="referenced object"
    )
    return sample, frozenset(opened), lost


def _read_objects(point: PointListing) -> Iterator[SampledObject]:
    with point.open_archive() as archive:
        for entry in archive.read_entries():
            yield SampledObject(entry.key, entry.size_bytes, entry.modified_at.timestamp())


def _judge(
    result: CheckResult, sample: ObjectSample, restored_count: int, lost: tuple[str, ...], *, is_whole: bool
) -> CheckResult:
    """Return the result of the sample; only a sample of every object passes."""
    figures = {
        **result.figures,
        "sampled_objects": restored_count,
        "sample_population": sample.population_count,
        "sample_seed": sample.seed,
    }
    if lost and result.check is Check.BUCKET_IS_RESTORED:
        summary = (
            f"{count(len(lost), 'referenced object')} of the sample not in the archive: {name_some(lost)}"
        )
        return result.model_copy(
            update={"status": CheckStatus.FAILED, "summary": summary, "figures": figures}
        )
    if result.status is not CheckStatus.PASSED or is_whole:
        return result.model_copy(update={"figures": figures})
    status = CheckStatus.SAMPLED if restored_count else CheckStatus.UNKNOWN
    summary = f"{result.summary}; {describe_sample(sample, restored_count)}"
    return result.model_copy(update={"status": status, "summary": summary, "figures": figures})
