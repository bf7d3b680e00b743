"""Jobs and steps of stores: which kind they are, and which job's success resolves their incidents."""

from __future__ import annotations

import pytest

from schedgen_backups.alerts.run_kinds import (
    BACKUP,
    COPY,
    COPY_CHECK_NAMES,
    COPY_RETENTION,
    RunKind,
    find_run_kind,
)
from schedgen_backups.core.copies.status import CopyCheck


@pytest.mark.parametrize(
    ("job_name", "subject", "kind"),
    [
        ("copy_to_nas_job", "offsite_copy_nas", COPY),
        ("chosen", "offsite_copy__nas_copy_is_complete", COPY),
        ("prune_copies_in_nas_job", "offsite_prune_nas", COPY_RETENTION),
        ("prune_copies_in_nas_job", "prune_copies_in_nas_job", COPY_RETENTION),
        ("backup_job", "database_dump", BACKUP),
    ],
)
def test_the_failure_of_a_store_is_never_a_failed_backup(job_name: str, subject: str, kind: RunKind) -> None:
    assert find_run_kind(job_name, subject) is kind


@pytest.mark.parametrize("store", ["nas", "b2_eu", "job", "in_job"])
def test_an_incident_of_a_store_is_resolved_by_its_own_job(store: str) -> None:
    job = f"copy_to_{store}_job"
    keys = [
        COPY.make_failure_key(f"offsite_copy_{store}"),
        COPY.make_failure_key(job),
        COPY.make_cancellation_key(job),
        *(COPY.make_failure_key(f"offsite_copy__{store}_{name}") for name in COPY_CHECK_NAMES),
    ]
    assert {COPY.find_job_name(key) for key in keys} == {job}
    prune_key = COPY_RETENTION.make_failure_key(f"offsite_prune_{store}")
    assert COPY_RETENTION.find_job_name(prune_key) == f"prune_copies_in_{store}_job"


def test_the_checks_have_the_names_that_their_steps_are_recognized_by() -> None:
    assert tuple(check.value for check in CopyCheck) == COPY_CHECK_NAMES
