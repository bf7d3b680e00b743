"""Values in files: written to JSON and read back unchanged, also with fields of a newer version.

Ids and file names are tested both ways here; `test_catalog` tests directories with such names.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schedgen_backups.core.catalog.check_results import Check, CheckStatus, Verification
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.model import (
    Artifact,
    ArtifactKind,
    ArtifactName,
    FrozenModel,
    Manifest,
    MissingReference,
    Origin,
    RecoveryPointId,
    ReferenceState,
    ReferenceSummary,
    ReferenceVerdict,
)
from schedgen_backups_tests.support.artifacts import POINT, TAKEN_AT, make_entry, make_result

MANIFEST = Manifest(
    tool_version="1",
    point_id=POINT,
    snapshot_at=TAKEN_AT,
    committed_at=TAKEN_AT,
    artifacts=(
        Artifact(
            kind=ArtifactKind.DATABASE, file_name="f", source_name="schedgen", size_bytes=1, sha256="0" * 64
        ),
    ),
    references=ReferenceSummary(
        state=ReferenceState.READ,
        reference_count=3,
        resolved_count=2,
        verdict_counts={ReferenceVerdict.DELETED: 1},
        missing=(MissingReference(key="ä/課.pdf", verdict=ReferenceVerdict.DELETED),),
    ),
    origin=Origin(reason="before the migration", labels={"ticket": "7"}, user="ops"),
)
MODELS: tuple[FrozenModel, ...] = (
    MANIFEST,
    make_entry("ä \n\t/x", b"data", tags={"a": "b"}, metadata={"name": "é"}, version_id="null"),
    Verification(
        point_id=POINT,
        results=(make_result(Check.DUMP_IS_STORED, artifacts={ArtifactKind.DATABASE: "0" * 64}),),
    ),
    make_result(
        Check.REFERENCES_RESOLVE,
        CheckStatus.NOT_CONFIGURED,
        figures={"count": 1, "share": 0.5, "whole": True, "text": "x"},
    ),
)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), st.integers(-14 * 60, 14 * 60))  # noqa: DTZ001 - the zone is added
def test_an_id_is_the_utc_second_whatever_zone_the_time_has(moment: datetime, offset_minutes: int) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    point_id = RecoveryPointId.from_time(aware)
    assert point_id.taken_at == aware.replace(microsecond=0)
    assert RecoveryPointId.parse(str(point_id)) == point_id


@given(st.lists(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), max_size=10))  # noqa: DTZ001 - the zone is added
def test_ids_sort_like_their_times(moments: list[datetime]) -> None:
    ids = [RecoveryPointId.from_time(moment.replace(tzinfo=timezone.utc)) for moment in moments]
    assert [point_id.taken_at for point_id in sorted(ids)] == sorted(point_id.taken_at for point_id in ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "20261122",
        "20261122_0200",
        "20261122-020000",
        "20261322_020000",
        "20261122_250000",
        "20261122_020000\n",
        " 20261122_020000",
    ],
)
def test_what_is_not_an_id_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        RecoveryPointId.parse(text)
    assert "Ids look like 20261122_020000" in raised.value.hint


def test_digits_of_other_scripts_are_not_an_id() -> None:
    """Python counts them as digits, and one moment would have two ids."""
    with pytest.raises(ConfigurationError):
        RecoveryPointId.parse("\u0662\u0660\u0662\u06661122_020000")


@given(
    st.sampled_from(ArtifactKind),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=20),
)
def test_file_names_are_parsed_back_and_are_single_safe_names(kind: ArtifactKind, source_name: str) -> None:
    name = ArtifactName(kind, source_name, RecoveryPointId(POINT))
    file_name = name.to_file_name()
    assert ArtifactName.from_file_name(file_name) == name
    assert not set(file_name) & set("/\\\n\r\t\"'*?<>|:;$`")


def test_the_usual_file_names_are_those_that_operators_know() -> None:
    point_id = RecoveryPointId(POINT)
    assert (
        ArtifactName(ArtifactKind.DATABASE, "schedgen", point_id).to_file_name()
        == "db_schedgen_20261122_020000.sql.gz"
    )
    assert (
        ArtifactName(ArtifactKind.BUCKET, "schedgen-pdfs", point_id).to_file_name()
        == "minio_schedgen-pdfs_20261122_020000.tar.gz"
    )


@pytest.mark.parametrize(
    "file_name",
    [
        "db_schedgen_20261122_020000.tar.gz",
        "minio_x_20261122_020000.sql.gz",
        "db_20261122_020000.sql.gz",
        "db_schedgen_20261322_020000.sql.gz",
        "db_schedgen_20261122_020000.sql",
        "db_schedgen_20261122_020000.sql.gz.part",
        "manifest_20261122_020000.json",
        "notes.txt",
    ],
)
def test_other_file_names_are_not_artifacts(file_name: str) -> None:
    assert ArtifactName.from_file_name(file_name) is None


@pytest.mark.parametrize("value", MODELS, ids=lambda value: type(value).__name__)
def test_values_are_unchanged_after_json(value: FrozenModel) -> None:
    assert type(value).model_validate_json(value.model_dump_json()) == value
    assert type(value).model_validate_json(value.model_dump_json(exclude_defaults=True)) == value
    assert type(value).model_validate_json(value.model_dump_json(exclude_none=True, indent=1)) == value


@pytest.mark.parametrize("value", MODELS, ids=lambda value: type(value).__name__)
def test_fields_of_a_newer_version_are_ignored(value: FrozenModel) -> None:
    newer = {**json.loads(value.model_dump_json()), "new_field": {"deep": [1]}, "format_version": 2}
    older = type(value).model_validate_json(json.dumps(newer))
    assert older.model_dump(exclude={"format_version"}) == value.model_dump(exclude={"format_version"})


@pytest.mark.parametrize("value", MODELS, ids=lambda value: type(value).__name__)
def test_values_are_frozen(value: FrozenModel) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(value, next(iter(type(value).model_fields)), "changed")


def test_a_time_without_a_zone_is_refused() -> None:
    values = {**json.loads(MANIFEST.model_dump_json()), "committed_at": "2026-11-22T02:00:00"}
    with pytest.raises(ValidationError, match="timezone"):
        Manifest.model_validate(values)


def test_a_manifest_without_artifacts_is_refused() -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate({**json.loads(MANIFEST.model_dump_json()), "artifacts": []})


@pytest.mark.parametrize(
    ("state", "verdict", "is_coherent"),
    [
        (ReferenceState.READ, None, True),
        (ReferenceState.READ, ReferenceVerdict.DELETED, True),
        (ReferenceState.READ, ReferenceVerdict.MISSING, True),
        (ReferenceState.READ, ReferenceVerdict.LOST, False),
        (ReferenceState.READ, ReferenceVerdict.UNKNOWN, False),
        (ReferenceState.NOT_CONFIGURED, None, False),
    ],
)
def test_only_what_a_backup_could_have_held_makes_references_incoherent(
    *, state: ReferenceState, verdict: ReferenceVerdict | None, is_coherent: bool
) -> None:
    counts = {verdict: 1} if verdict else {}
    assert ReferenceSummary(state=state, verdict_counts=counts).is_coherent is is_coherent
