"""The drill under Dagster and the command line: asset, checks, alerts, recorded results.

`integration/drill/test_drill` tests what the drill itself finds.
"""

from __future__ import annotations

import json
import subprocess
import sys

import dagster as dg
import pytest

from schedgen_backups.alerts.run_kinds import DRILL, DRILL_CHECK_NAMES
from schedgen_backups.config.config import load_config
from schedgen_backups.core.catalog.check_results import CheckStatus, VerificationLevel
from schedgen_backups.core.drill.report import DrillReport
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.definitions import defs
from schedgen_backups.defs.drill import make_drill_checks
from schedgen_backups.defs.resources import MAX_RUNTIME_TAG
from schedgen_backups.defs.site import build_site_definitions
from schedgen_backups.site_names import SiteNames
from schedgen_backups_tests.support.inbox import Watcher, open_inbox
from schedgen_backups_tests.support.sites import NEVER, Site, failures_of, wait_until

pytestmark = [pytest.mark.edge]


@pytest.fixture
def backed_up(site: Site, instance: dg.DagsterInstance) -> Site:
    """Return a site with one committed recovery point."""
    assert site.run(instance).success
    return site


def name_servers(site: Site) -> None:
    """Run drills on the application's servers, which is faster than starting servers."""
    database, bucket = site.application.database, site.application.bucket
    site.set(
        DRILL_DATABASE_URL=f"postgresql://{database.user}@{database.host}:{database.port}/postgres",
        DRILL_POSTGRES_PASSWORD=database.password,
        DRILL_ON_SOURCE_SERVER="true",
        DRILL_MINIO_ENDPOINT=bucket.endpoint,
        DRILL_MINIO_ACCESS_KEY=bucket.access_key,
        DRILL_MINIO_SECRET_KEY=bucket.secret_key,
    )


def evaluations_of(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    [materialization] = result.asset_materializations_for_node("restore_drill")
    return {name: value.value for name, value in materialization.metadata.items()}


def assert_no_scratch(site: Site) -> None:
    folder = site.directory / ".drill"
    assert [path.name for path in (folder.iterdir() if folder.exists() else []) if path.is_dir()] == []


def test_a_drill_of_the_newest_point_passes_and_is_recorded(
    backed_up: Site, instance: dg.DagsterInstance
) -> None:
    (backed_up.folder / "checks.sql").write_text(
        "-- there are jobs\nSELECT count(*) = 40 FROM jobs;\n", encoding="utf-8"
    )
    backed_up.set(DRILL_SQL_CHECKS="checks.sql")
    result = backed_up.run(instance, "restore_drill_job")
    assert failures_of(result) == {}
    evaluations = evaluations_of(result)
    assert {name: evaluation.passed for name, evaluation in evaluations.items()} == dict.fromkeys(
        DRILL_CHECK_NAMES, True
    )
    metadata = metadata_of(result)
    phases = [
        metadata[f"{name}_seconds"]
        for name in ("start_servers", "verify", "restore", "compare", "sample", "sql_checks")
    ]
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in phases)
    assert metadata["rto_seconds"] == pytest.approx(
        sum(seconds for seconds in phases if isinstance(seconds, float)), abs=1
    )
    report = DrillReport.model_validate(metadata["report"])
    assert (report.is_passed, report.point_id) == (True, backed_up.points()[-1].point_id.text)
    assert report.rpo_seconds > 0
    [point] = backed_up.points()
    assert [level.status for level in point.verification.levels()] == [CheckStatus.PASSED] * len(
        VerificationLevel
    )
    backed_up.assert_left_clean()
    assert_no_scratch(backed_up)


def test_failed_sql_checks_fail_the_run_but_not_the_point(
    backed_up: Site, instance: dg.DagsterInstance
) -> None:
    name_servers(backed_up)
    result = backed_up.run(instance, "restore_drill_job")
    assert result.success
    assert evaluations_of(result).keys() == set(DRILL_CHECK_NAMES) - {"operator_checks_hold"}
    (backed_up.folder / "checks.sql").write_text(
        "-- nobody is there\nSELECT count(*) = 0 FROM jobs", encoding="utf-8"
    )
    backed_up.set(DRILL_SQL_CHECKS="checks.sql")
    failed = backed_up.run(instance, "restore_drill_job")
    assert list(failures_of(failed)) == ["restore_drill_operator_checks_hold"]
    assert "nobody is there" in (evaluations_of(failed)["operator_checks_hold"].description or "")
    assert backed_up.points()[-1].state.value == "verified"


@pytest.mark.parametrize("kind", list(ArtifactKind))
def test_damage_fails_the_drill_and_the_point(
    backed_up: Site, instance: dg.DagsterInstance, kind: ArtifactKind
) -> None:
    name_servers(backed_up)
    backed_up.flip_bit(kind)
    result = backed_up.run(instance, "restore_drill_job")
    assert list(failures_of(result)) == ["restore_drill"]
    assert "nothing was written" in failures_of(result)["restore_drill"].description
    # Otherwise the checks would keep showing the previous drill's results.
    evaluation = evaluations_of(result)["point_is_restored"]
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "the drill failed without a result" in (evaluation.description or "")
    assert backed_up.points()[-1].state.value == "failed"
    assert_no_scratch(backed_up)


def test_a_failed_drill_sends_one_alert_which_only_a_passed_drill_resolves(site: Site) -> None:
    (site.folder / "checks.sql").write_text("SELECT false", encoding="utf-8")
    name_servers(site)
    with open_inbox() as inbox, dg.DagsterInstance.from_config(str(site.home)) as instance:
        assert site.run(instance).success
        site.set(BACKUP_ALERT_WEBHOOK_URL=inbox.url, DRILL_SQL_CHECKS="checks.sql")
        assert not site.run(instance, "restore_drill_job").success
        [alert] = inbox.alerts
        assert alert.startswith("[HIGH] Restore drill failed: restore_drill_operator_checks_hold\n")
        assert "1 of 1 check failed: SELECT false" in alert
        outbox = Watcher("alert_outbox", instance)
        outbox.evaluate(2)
        assert site.run(instance).success
        outbox.evaluate(2)
        assert inbox.texts == [alert]
        site.unset("DRILL_SQL_CHECKS")
        assert site.run(instance, "restore_drill_job").success
        outbox.evaluate(2)
        # Checks that are not configured cause no alert.
        assert inbox.alerts == [alert]
        [recovery] = inbox.recoveries
        assert "drill: restore_drill_operator_checks_hold failed" in recovery
    secrets = [
        secret.encode() for secret in (site.application.database.password, site.application.bucket.secret_key)
    ]
    written = [path for folder in (site.home, site.directory) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert [path for path in written if any(secret in path.read_bytes() for secret in secrets)] == []


def test_a_backup_sweeps_what_a_killed_drill_left(site: Site, instance: dg.DagsterInstance) -> None:
    script = (
        "import os; from pathlib import Path; from schedgen_backups.core.drill.scratch_folder import "
        "open_scratch_folder\n"
    )
    script += f"with open_scratch_folder(Path({str(site.directory / '.drill')!r})): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9

    def is_swept() -> bool:
        assert site.run(instance).success
        return not list((site.directory / ".drill").glob("schedgen-drill-*"))

    wait_until(is_swept, "a backup sweeps")


def test_the_drill_command_exits_with_3_when_a_check_fails(backed_up: Site) -> None:
    point_id = backed_up.points()[-1].point_id.text
    result = backed_up.cli("drill", point_id)
    assert (result.code, result.stderr) == (0, "")
    assert all(
        word in result.stdout
        for word in (point_id, "database_is_equal", "referenced_pdfs_open", "RTO", "RPO")
    )
    (backed_up.folder / "checks.sql").write_text("SELECT false", encoding="utf-8")
    name_servers(backed_up)
    failed = backed_up.cli("drill", "--json", DRILL_SQL_CHECKS="checks.sql")
    assert failed.code == 3
    printed = json.loads(failed.stdout)
    assert (printed["success"], printed["report"]["point_id"]) == (False, point_id)
    assert printed["rto_seconds"] == printed["report"]["seconds"]["total"]
    assert [failure["step"] for failure in printed["failures"]] == ["restore_drill_operator_checks_hold"]
    assert "open incidents" in backed_up.cli("status").stdout
    # Where cron starts the drills, no sensor resolves the incident.
    assert backed_up.cli("drill").code == 0
    assert backed_up.cli("status").code == 0


def test_the_drill_command_reports_wrong_settings_before_it_starts(site: Site) -> None:
    result = site.cli("drill", "yesterday")
    assert (result.code, "is not the id of a recovery point" in result.stderr) == (4, True)
    result = site.cli("drill")
    assert (result.code, "no verified recovery point" in result.stderr) == (8, True)


def test_wrong_drill_settings_fail_the_drill_and_no_backup(site: Site, instance: dg.DagsterInstance) -> None:
    site.set(DRILL_DATABASE_URL="somewhere", DRILL_MAX_MINUTES="soon")
    assert site.run(instance).success
    [failure] = failures_of(site.run(instance, "restore_drill_job")).values()
    assert "DRILL_DATABASE_URL" in failure.description


def test_the_live_databases_password_goes_to_no_other_server(
    site: Site, instance: dg.DagsterInstance
) -> None:
    """Without DRILL_POSTGRES_PASSWORD, the login fails."""
    assert site.run(instance).success
    database = site.application.database
    site.set(
        DRILL_DATABASE_URL=f"postgresql://{database.user}@{database.host}:{database.port}/postgres",
        DRILL_ON_SOURCE_SERVER="true",
    )
    [failure] = failures_of(site.run(instance, "restore_drill_job")).values()
    assert "no password supplied" in failure.description


def test_a_drill_needs_no_login_of_the_live_system(backed_up: Site, instance: dg.DagsterInstance) -> None:
    """After the loss of a host there is none; and a drill should not have what it does not need."""
    name_servers(backed_up)
    backed_up.set(POSTGRES_PASSWORD="", MINIO_ACCESS_KEY="", MINIO_SECRET_KEY="")
    assert backed_up.run(instance, "restore_drill_job").success


def test_the_weekly_drill_is_on_by_default_in_the_operators_time_zone(site: Site) -> None:
    schedule = defs.resolve_schedule_def("weekly_drill_schedule")
    assert (schedule.cron_schedule, schedule.job_name) == ("0 4 * * 0", "restore_drill_job")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    site.set(DRILL_SCHEDULE=NEVER, BACKUP_TIMEZONE="Africa/Johannesburg")
    moved = build_site_definitions(load_config()).resolve_schedule_def("weekly_drill_schedule")
    assert (moved.cron_schedule, moved.execution_timezone) == (NEVER, "Africa/Johannesburg")
    site.set(DRILL_SCHEDULE="on Sundays")
    assert (
        build_site_definitions(load_config()).resolve_schedule_def("weekly_drill_schedule").cron_schedule
        == "0 4 * * 0"
    )


def test_the_drill_asset_is_not_executable_and_its_job_has_check_steps_and_a_limit(site: Site) -> None:
    """The button "Materialize all" takes a backup and starts no drill."""
    site.set(DRILL_SQL_CHECKS="checks.sql")
    config = load_config()
    definitions = build_site_definitions(config)
    executable = {key.to_user_string() for key in definitions.resolve_asset_graph().executable_asset_keys}
    assert executable == {"database_dump", "minio_archive", "recovery_point"}
    job = definitions.resolve_job_def("restore_drill_job")
    assert {node.name for node in job.nodes} == DRILL.subjects
    assert {f"restore_drill_{name}" for name in DRILL_CHECK_NAMES} | {"restore_drill"} == DRILL.subjects
    assert job.tags[MAX_RUNTIME_TAG] == "7200"
    checks = make_drill_checks(SiteNames(), config.definitions)
    assert [spec.blocking for check in checks for spec in check.check_specs] == [
        True,
        True,
        True,
        True,
        False,
    ]


def test_checks_that_are_not_configured_are_hidden(site: Site) -> None:
    def list_shown() -> set[str]:
        return {
            key.name for key in build_site_definitions(load_config()).resolve_asset_graph().asset_check_keys
        }

    shown = list_shown()
    site.set(DRILL_SQL_CHECKS="checks.sql", BACKUP_PRESET="none")
    assert shown - list_shown() == {"references_resolve", "referenced_pdfs_open", "live_references_resolve"}
    assert list_shown() - shown == {"operator_checks_hold"}


def test_rerun_drill_checks_repeat_the_last_drills_results(
    backed_up: Site, instance: dg.DagsterInstance
) -> None:
    name_servers(backed_up)
    assert backed_up.run(instance, "restore_drill_job").success
    result = backed_up.run_selection(instance, dg.AssetSelection.checks_for_assets("restore_drill"))
    assert {name: evaluation.passed for name, evaluation in evaluations_of(result).items()} == dict.fromkeys(
        set(DRILL_CHECK_NAMES) - {"operator_checks_hold"}, True
    )
