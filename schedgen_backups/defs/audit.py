"""The consistency check of the live system: every row's object exists; and the job that runs it weekly.

`core.verify.live_system` does the work, and the command `audit` does the same from a terminal. The check
blocks nothing: a backup must be taken even if the live system lost objects.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

from typing import Any

import dagster as dg

from schedgen_backups.core.catalog.check_results import BOTH_KINDS
from schedgen_backups.core.units import format_bytes
from schedgen_backups.core.verify.live_system import (
    ConsistencyReport,
    check_consistency,
    describe_consistency,
)
from schedgen_backups.defs.checks import make_check
from schedgen_backups.defs.resources import BackupResource
from schedgen_backups.exit_codes import VERIFICATION_EXIT_CODE
from schedgen_backups.monitoring.failures import explain_failure
from schedgen_backups.site_names import AUDIT_JOB, LIVE_SYSTEM, SiteNames

_NAMED = 50


def make_audit_check(names: SiteNames) -> dg.AssetChecksDefinition:
    """Return the check of this site's live system."""
    return make_check(names, LIVE_SYSTEM, "live_references_resolve", _check_live_references_resolve)


def make_audit_job(names: SiteNames, check: dg.AssetChecksDefinition) -> Any:
    """Return the job that performs the check.

    The return type has no public name in Dagster.
    """
    return dg.define_asset_job(
        names.qualify(AUDIT_JOB),
        selection=dg.AssetSelection.checks(check),
        description="Check that every object that a row of the live database refers to is in the live "
        "bucket.",
    )


def _check_live_references_resolve(
    _context: dg.AssetCheckExecutionContext, backup: BackupResource
) -> dg.AssetCheckResult:
    """Every object that a row of the live database refers to is in the live bucket."""
    with explain_failure(VERIFICATION_EXIT_CODE):
        found = {
            f"{part.part}: " if part.part is not None else "": check_consistency(part.live_application)
            for part in backup.config.parts
            if part.part is None or part.part.kinds == BOTH_KINDS
        }
    return dg.AssetCheckResult(
        passed=all(report.is_coherent for report in found.values()),
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{name}{describe_consistency(report)}" for name, report in found.items()),
        metadata={
            f"{name}{key}": value
            for name, report in found.items()
            for key, value in _list_figures(report).items()
        },
    )


def _list_figures(found: ConsistencyReport) -> dict[str, Any]:
    return {
        "references": found.reference_count,
        "objects": found.object_count,
        "rows_without_object": len(found.rows_without_object),
        "objects_without_row": len(found.objects_without_row),
        "unreferenced_size": format_bytes(found.unreferenced_bytes),
        "unreferenced_bytes": found.unreferenced_bytes,
        "missing_keys": dg.MetadataValue.json(list(found.rows_without_object[:_NAMED])),
    }
