"""The code location: it loads with any environment, because a location that does not load sends no alert.

Loading is tried in fresh interpreters, with every warning an error. Other files here test what the assets and
checks do.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups.alerts.run_kinds import DRILL_CHECK_NAMES
from schedgen_backups.config.config import load_config
from schedgen_backups.config.variables import ENV_FILE_VARIABLE
from schedgen_backups.definitions import defs
from schedgen_backups.defs.site import build_site_definitions
from schedgen_backups_tests.support.sites import Site

pytestmark = [pytest.mark.edge]

# Dagster's own warning about pydantic; every other one is an error.
STRICT = ("-W", "error", "-W", "ignore:The `__fields__` attribute is deprecated:DeprecationWarning")
LOAD = """
import dagster as dg
from schedgen_backups.definitions import defs
dg.Definitions.validate_loadable(defs)
for repository in (defs.get_repository_def(),):
    assert [job.name for job in repository.get_all_jobs()]
schedule = defs.resolve_schedule_def("daily_backup_schedule")
print(schedule.cron_schedule, schedule.execution_timezone, sep="|")
"""
# google.api_core asks for a library of gRPC, which nothing here uses.
IMPORT_CORE = """
import importlib, pkgutil, sys, warnings
warnings.filterwarnings("ignore", category=ImportWarning, module="google")
warnings.filterwarnings("ignore", category=FutureWarning, module="google")
import schedgen_backups.core as core
names = [module.name for module in pkgutil.walk_packages(core.__path__, "schedgen_backups.core.")]
for name in names:
    importlib.import_module(name)
unwanted = {"dagster", "typer", "rich", "dotenv", "schedgen_backups.config.config",
    "schedgen_backups.defs.resources"}
print(len(names) > 20, sorted(unwanted & sys.modules.keys()))
"""


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in this folder with this environment, an empty environment file and nothing else."""
    empty = folder / "env"
    empty.touch(mode=0o600)
    environment = {ENV_FILE_VARIABLE: str(empty), **environment}
    return subprocess.run(
        [sys.executable, *STRICT, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def read_backup_schedule() -> dg.ScheduleDefinition:
    """Return the backup schedule as the current environment defines it."""
    schedule = build_site_definitions(load_config()).resolve_schedule_def("daily_backup_schedule")
    assert isinstance(schedule, dg.ScheduleDefinition)
    return schedule


def test_the_location_loads_with_an_empty_environment_and_touches_nothing(tmp_path: Path) -> None:
    loaded = run_python(LOAD, tmp_path)
    assert (loaded.returncode, loaded.stdout, loaded.stderr) == (0, "0 2 * * *|UTC\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["env"]


@pytest.mark.parametrize(
    "environment",
    [
        {"BACKUP_SCHEDULE": "every night at two", "BACKUP_TIMEZONE": "Africa/Johannesburg"},
        pytest.param(
            {"BACKUP_SCHEDULE": "0 3 * * *", "BACKUP_TIMEZONE": "Africa/Pretoria"},
            marks=pytest.mark.exhaustive,
        ),
        {
            "BACKUP_SCHEDULE": "0 0 2 * * *",
            "POSTGRES_PORT": "x",
            "MINIO_ENDPOINT": "http://minio:9000",
            "BACKUP_DOWNLOAD_THREADS": "eight",
        },
        {
            "DRILL_SCHEDULE": "on Sundays",
            "DRILL_DATABASE_URL": "somewhere",
            "DRILL_MAX_MINUTES": "-1",
            "DRILL_MINIO_ENDPOINT": "http://x",
        },
        {"BACKUP_PRESET": "none"},
        {"BACKUP_PRESET": "no such", "DRILL_SQL_CHECKS": "nowhere.sql"},
    ],
    ids=["cron", "zone", "numbers", "drill", "no references", "no preset"],
)
def test_the_location_loads_with_wrong_values_and_the_default_schedule(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The scheduled run then fails visibly with the reason."""
    loaded = run_python(LOAD, tmp_path, **environment)
    assert (loaded.returncode, loaded.stdout, loaded.stderr) == (0, "0 2 * * *|UTC\n", "")


def test_core_is_imported_without_dagster_and_the_command_line(tmp_path: Path) -> None:
    """Core must work without Dagster; an import chain would break that unnoticed."""
    imported = run_python(IMPORT_CORE, tmp_path)
    assert (imported.stdout, imported.stderr) == ("True []\n", "")


def test_the_assets_have_these_groups_kinds_and_owners() -> None:
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    assert {name: (spec.group_name, set(spec.kinds), list(spec.owners)) for name, spec in specs.items()} == {
        "live_system": ("backup", {"postgres", "s3"}, ["team:operations"]),
        "database_dump": ("backup", {"postgres", "file"}, ["team:operations"]),
        "minio_archive": ("backup", {"s3", "file"}, ["team:operations"]),
        "recovery_point": ("backup", {"json"}, ["team:operations"]),
        "restore_drill": ("backup", {"postgres", "s3"}, ["team:operations"]),
    }
    dependencies = {
        name: {dep.asset_key.to_user_string() for dep in spec.deps} for name, spec in specs.items()
    }
    assert dependencies == {
        "database_dump": {"live_system"},
        "minio_archive": {"live_system"},
        "recovery_point": {"database_dump", "minio_archive"},
        "live_system": set(),
        "restore_drill": {"recovery_point"},
    }
    assert all(spec.description for spec in specs.values())


def test_the_checks_are_these_and_those_of_a_backup_block() -> None:
    configured = build_site_definitions(load_config().with_values({"DRILL_SQL_CHECKS": "checks.sql"}))
    every = [
        spec
        for checks in configured.asset_checks or ()
        if isinstance(checks, dg.AssetChecksDefinition)
        for spec in checks.check_specs
    ]
    assert {spec.name for spec in every if spec.asset_key.to_user_string() == "restore_drill"} == set(
        DRILL_CHECK_NAMES
    )
    assert all(spec.description for spec in every)
    specs = [spec for spec in every if spec.asset_key.to_user_string() != "restore_drill"]
    assert {(spec.asset_key.to_user_string(), spec.name) for spec in specs} == {
        ("database_dump", "dump_is_complete"),
        ("database_dump", "dump_matches_snapshot"),
        ("database_dump", "dump_size_is_plausible"),
        ("minio_archive", "archive_is_readable"),
        ("minio_archive", "every_object_is_archived"),
        ("minio_archive", "archive_size_is_plausible"),
        ("minio_archive", "references_resolve"),
        ("recovery_point", "recovery_point_is_intact"),
        ("recovery_point", "recovery_point_is_fresh"),
        ("live_system", "live_references_resolve"),
    }
    not_blocking = {"recovery_point_is_intact", "recovery_point_is_fresh", "live_references_resolve"}
    assert {spec.name for spec in specs if not spec.blocking} == not_blocking
    [references] = [spec for spec in specs if spec.name == "references_resolve"]
    assert {dep.asset_key.to_user_string() for dep in references.additional_deps} == {"database_dump"}


def test_the_backup_job_selects_three_assets_with_all_their_checks() -> None:
    job = defs.resolve_job_def("backup_job")
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == {
        "database_dump",
        "minio_archive",
        "recovery_point",
    }
    assert len(job.asset_layer.asset_graph.asset_check_keys) == 9
    assert job.executor_def is dg.in_process_executor


def test_materialize_all_never_starts_a_restore() -> None:
    """Nor a drill, although it writes only to its own scratch servers: only its checks can be run again."""
    assert {key.to_user_string() for key in defs.resolve_asset_graph().materializable_asset_keys} == {
        "database_dump",
        "minio_archive",
        "recovery_point",
    }
    assert [job.name for job in defs.jobs or ()] == [
        "backup_job",
        "restore_drill_job",
        "prune_job",
        "verify_job",
        "restore_job",
        "monthly_report_job",
        "audit_job",
        "remove_old_runs_job",
    ]


@pytest.mark.parametrize(
    "cron", ["0 2 * * *", "*/15 8-18 * * 1-5", "30 1 1 */3 *", "@daily", "0 22 * * MON-FRI"]
)
@pytest.mark.parametrize("timezone", ["UTC", "Africa/Johannesburg"])
def test_the_schedule_accepts_any_cron_string_and_time_zone(cron: str, timezone: str, site: Site) -> None:
    site.set(BACKUP_SCHEDULE=cron, BACKUP_TIMEZONE=timezone)
    schedule = read_backup_schedule()
    assert (schedule.cron_schedule, schedule.execution_timezone) == (cron, timezone)


def test_the_schedule_is_on_by_default() -> None:
    schedule = defs.resolve_schedule_def("daily_backup_schedule")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert schedule.job_name == "backup_job"


def test_a_wrong_unrelated_setting_does_not_move_the_schedule(site: Site) -> None:
    """The failing run must start at the operators' hour, not at two at night in another zone."""
    site.set(
        BACKUP_SCHEDULE="0 5 * * *", BACKUP_TIMEZONE="Africa/Johannesburg", BACKUP_DOWNLOAD_THREADS="eight"
    )
    schedule = read_backup_schedule()
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 5 * * *", "Africa/Johannesburg")


def test_the_schedule_is_read_from_the_operators_env_file(site: Site) -> None:
    site.unset("BACKUP_SCHEDULE")
    site.env.write_text("BACKUP_SCHEDULE='45 3 * * *'\n", encoding="utf-8")
    assert read_backup_schedule().cron_schedule == "45 3 * * *"
