"""A point of several databases and buckets is proven by every part of it, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckResult, CheckStatus
from schedgen_backups.core.catalog.part_results import name_source
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.drill.report import DrillReport, DrillSeconds, find_replaced, merge_reports
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.history.events import PointChecked, PointCommitted
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.metrics.exposition import render_metrics
from schedgen_backups.core.metrics.samples import MonitoredSite, measure_site
from schedgen_backups.core.model import (
    ArtifactKind,
    ArtifactName,
    Manifest,
    ManifestPart,
    Origin,
    PartName,
    RecoveryPointId,
    ReferenceVerdict,
)
from schedgen_backups.core.verify.commit import commit_point, verify_point
from schedgen_backups.core.verify.live_system import SitePart
from schedgen_backups_tests.support.artifacts import (
    POINT,
    TAKEN_AT,
    TableText,
    make_dump_text,
    make_entry,
    make_result,
    write_archive,
    write_dump_text,
)

ID = RecoveryPointId(POINT)
RUN = Origin(run_id="run")
MAIN, REPORTS, IMAGES = PartName("main", "pdfs"), PartName("reports", ""), PartName("", "images")
NAMES = (MAIN, REPORTS, IMAGES)


class Witness:
    """A live system that lacks every object."""

    def judge(self, keys: Sequence[str]) -> dict[str, ReferenceVerdict]:
        return dict.fromkeys(keys, ReferenceVerdict.MISSING)


def find_path(catalog: Catalog, kind: ArtifactKind, name: str) -> Path:
    return catalog.directory / ArtifactName(kind, name, ID).to_file_name()


def write_files(catalog: Catalog, names: Sequence[PartName], references: Sequence[str] = ("a", "b")) -> None:
    for name in {part.database for part in names} - {""}:
        write_dump_text(
            find_path(catalog, ArtifactKind.DATABASE, name),
            make_dump_text([TableText("jobs", (name.encode(),))]),
            {("public", "jobs"): 1},
            references=references,
            source_name=name,
        )
    for name in {part.bucket for part in names} - {""}:
        write_archive(
            find_path(catalog, ArtifactKind.BUCKET, name),
            [(make_entry("a", name.encode()), name.encode())],
            source_name=name,
        )


def list_parts(names: Sequence[PartName]) -> list[SitePart]:
    return [SitePart(name, Witness()) for name in names]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Return the files of a point that is not committed."""
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    write_files(catalog, NAMES)
    return catalog


def commit(catalog: Catalog, names: Sequence[PartName] = NAMES) -> Manifest:
    return commit_point(catalog, ID, origin=RUN, parts=list_parts(names))[0]


def find_state(catalog: Catalog) -> PointState:
    return catalog.get_point(ID).state


def test_a_point_of_which_every_part_is_proven_is_verified(catalog: Catalog) -> None:
    commit(catalog)
    assert find_state(catalog) is PointState.VERIFIED
    assert [part.state for part in catalog.get_point(ID).parts] == [PointState.VERIFIED] * 3


@pytest.mark.parametrize("part", NAMES, ids=str)
@pytest.mark.parametrize(
    "status", [None, *(status for status in CheckStatus if status is not CheckStatus.PASSED)]
)
def test_one_result_of_one_part_that_did_not_pass_is_not_hidden(
    catalog: Catalog, part: PartName, status: CheckStatus | None
) -> None:
    commit(catalog)
    check = Check.DUMP_IS_STORED if part.database else Check.ARCHIVE_IS_STORED
    found = catalog.read_verification(ID)
    own = name_source(check, part)
    kept = tuple(result for result in found.results if (result.check, result.source) != (check, own))
    assert len(kept) == len(found.results) - 1
    added = (make_result(check, status, source=own),) if status is not None else ()
    catalog.write_verification(found.model_copy(update={"results": (*kept, *added)}))
    assert find_state(catalog) is not PointState.VERIFIED


def test_results_of_the_bytes_of_another_part_do_not_count(catalog: Catalog) -> None:
    commit(catalog)
    found = catalog.read_verification(ID)
    digests = {
        result.source: result.artifacts for result in found.results if result.check is Check.DUMP_IS_STORED
    }
    swapped = tuple(
        result.model_copy(update={"artifacts": digests["main"]}) if result.source == "reports" else result
        for result in found.results
    )
    catalog.write_verification(found.model_copy(update={"results": swapped}))
    assert find_state(catalog) is PointState.UNVERIFIED


def _drop_a_part(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"parts": manifest.parts[:-1]})


def _drop_all_parts(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"parts": ()})


def _drop_a_bucket_of_a_part(manifest: Manifest) -> Manifest:
    first = manifest.parts[0].model_copy(update={"bucket": ""})
    return manifest.model_copy(update={"parts": (first, *manifest.parts[1:])})


def _drop_an_artifact(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"artifacts": manifest.artifacts[:-1]})


def _add_a_part(manifest: Manifest) -> Manifest:
    added = ManifestPart(database="gone", references=manifest.references)
    return manifest.model_copy(update={"parts": (*manifest.parts, added)})


def _name_another_file(manifest: Manifest) -> Manifest:
    first = manifest.artifacts[0]
    others = [
        each.model_copy(update={"file_name": first.file_name, "sha256": first.sha256})
        if each.kind is first.kind
        else each
        for each in manifest.artifacts
    ]
    return manifest.model_copy(update={"artifacts": tuple(others)})


def _name_a_file_twice(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"artifacts": (*manifest.artifacts, manifest.artifacts[0])})


@pytest.mark.parametrize(
    "forge",
    [
        _drop_a_part,
        _drop_all_parts,
        _drop_a_bucket_of_a_part,
        _drop_an_artifact,
        _add_a_part,
        _name_another_file,
        _name_a_file_twice,
    ],
)
def test_a_manifest_whose_parts_are_not_its_artifacts_is_never_verified(
    catalog: Catalog, forge: Callable[[Manifest], Manifest]
) -> None:
    manifest = forge(commit(catalog))
    catalog.manifest_path(ID).unlink()
    catalog.write_manifest(manifest)
    point = catalog.get_point(ID)
    assert point.state is PointState.DAMAGED
    assert point.problems


def test_a_manifest_of_the_older_format_with_one_half_is_not_verified(catalog: Catalog) -> None:
    manifest = _drop_all_parts(commit(catalog))
    older = manifest.model_copy(update={"artifacts": manifest.artifacts[:1], "format_version": 2})
    catalog.manifest_path(ID).unlink()
    catalog.write_manifest(older)
    found = catalog.read_verification(ID)
    own = tuple(
        result.model_copy(update={"source": ""})
        for result in found.results
        if result.source == older.artifacts[0].source_name
    )
    catalog.write_verification(found.model_copy(update={"results": own}))
    assert find_state(catalog) is PointState.UNVERIFIED


def test_the_only_part_asks_its_live_system_about_missing_objects(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    write_files(catalog, [MAIN])
    manifest = commit(catalog, [MAIN])
    assert manifest.references.verdict_counts == {ReferenceVerdict.MISSING: 1}
    assert (manifest.format_version, manifest.parts) == (2, ())


def test_a_point_of_before_the_site_had_other_parts_is_verified_by_what_it_has(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    write_files(catalog, [REPORTS])
    first = commit(catalog, [REPORTS])
    again, verification = commit_point(catalog, ID, origin=RUN, parts=list_parts([IMAGES]))
    assert again == first
    assert verification.is_verified


def test_every_file_of_a_point_that_is_not_committed_is_verified(catalog: Catalog) -> None:
    path = find_path(catalog, ArtifactKind.BUCKET, "images")
    path.write_bytes(path.read_bytes()[:-100])
    verification, _summary = verify_point(
        catalog, catalog.get_point(ID), checked_by="test", parts=list_parts(NAMES)
    )
    assert {result.source for result in verification.results if result.status is CheckStatus.FAILED} == {
        "images"
    }
    with pytest.raises(VerificationError, match="images: archive_is_stored"):
        commit(catalog)


def test_the_results_of_a_part_are_not_those_of_others(catalog: Catalog) -> None:
    commit(catalog)
    path = find_path(catalog, ArtifactKind.BUCKET, "images")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    verify_point(catalog, catalog.get_point(ID), checked_by="test")
    own = Catalog(catalog.directory, part=MAIN)
    verification, _summary = verify_point(own, own.get_point(ID), checked_by="test")
    assert verification.is_verified
    assert {result.status for result in verification.results} == {CheckStatus.PASSED}


def test_each_size_is_one_sample(catalog: Catalog) -> None:
    manifest = commit(catalog)
    site = MonitoredSite(
        name="shop",
        catalog=catalog,
        max_age=timedelta(hours=26),
        schedule_gap=timedelta(hours=24),
        drill_max_age=timedelta(days=8),
        drill_max_duration=timedelta(hours=4),
        stores=(),
    )
    samples = measure_site(site, TAKEN_AT + timedelta(hours=1))
    text = render_metrics({"shop": samples}).decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    assert len({name for name, _value in lines}) == len(lines)
    total = sum(each.size_bytes for each in manifest.artifacts if each.kind is ArtifactKind.BUCKET)
    assert [float(value) for name, value in lines if "last_size" in name and "bucket" in name] == [total]


def test_the_history_names_the_part_that_failed(catalog: Catalog) -> None:
    """The report counts by name: what passed for one part must not hide what failed for another."""
    commit(catalog)
    history = History(catalog.directory)
    committed = history.find_last(PointCommitted)
    assert committed is not None
    names = {outcome.check for outcome in committed.outcomes}
    assert {"dump_is_stored of main", "archive_is_stored of images"} <= names
    path = find_path(catalog, ArtifactKind.BUCKET, "pdfs")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    verify_point(catalog, catalog.get_point(ID), checked_by="test")
    checked = history.find_last(PointChecked)
    assert checked is not None
    statuses = {outcome.check: outcome.status for outcome in checked.outcomes}
    assert len(statuses) == len(checked.outcomes)
    assert statuses.keys() <= names
    assert statuses["archive_is_stored of pdfs"] == "failed"
    assert statuses["archive_is_stored of images"] == "passed"


def make_report(*results: CheckResult) -> DrillReport:
    return DrillReport(
        point_id=POINT,
        snapshot_at=TAKEN_AT,
        began_at=TAKEN_AT,
        seconds=DrillSeconds(**dict.fromkeys(DrillSeconds.model_fields, 1.0)),
        results=results,
        object_count=1,
        target="",
    )


def test_a_bucket_that_was_not_restored_with_one_of_two_databases_is_not_restored(catalog: Catalog) -> None:
    names = (MAIN, PartName("reports", "pdfs"), IMAGES)
    commit(catalog, names)
    failed = make_result(Check.BUCKET_IS_RESTORED, CheckStatus.FAILED)
    passed = make_result(Check.BUCKET_IS_RESTORED)
    reports = {names[0]: make_report(failed), names[1]: make_report(passed), IMAGES: make_report(passed)}
    merged = merge_reports(dict(reports))
    assert [result.status for result in merged.results] == [CheckStatus.FAILED]
    for name, report in reports.items():
        point = next(part for part in catalog.get_point(ID).parts if part.part == name)
        catalog.record_results(ID, point.label_results(report.results))
    catalog.record_results(ID, find_replaced(dict(reports)))
    found = catalog.get_point(ID).verification.result(Check.BUCKET_IS_RESTORED)
    assert found is not None
    assert found.status is CheckStatus.FAILED


def test_a_drill_of_parts_without_references_has_a_result_about_them() -> None:
    names = (REPORTS, PartName("users", ""))
    said = make_result(Check.REFERENCED_PDFS_OPEN, CheckStatus.NOT_CONFIGURED)
    merged = merge_reports({name: make_report(said) for name in names})
    assert [result.status for result in merged.results] == [CheckStatus.NOT_CONFIGURED]
