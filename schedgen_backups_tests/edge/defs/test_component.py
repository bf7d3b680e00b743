"""The Dagster component: the example project, and projects whose component is wrong.

Projects are loaded as Dagster loads them, and run against a real database and bucket.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterEventType
from dagster.components.core.package_entry import discover_entry_point_package_objects

import schedgen_backups
from schedgen_backups.config.variables import ENV_FILE_VARIABLE, NAMES, VARIABLES
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.support.inbox import Inbox, Watcher, open_inbox
from schedgen_backups_tests.support.sites import Application, environment_of, execute_job, failures_of

pytestmark = [
    pytest.mark.edge,
    # Dagster uses it when it adds the place in defs.yaml to a check (dagster 1.13, repository_data).
    pytest.mark.filterwarnings("ignore:Parameter `execution_type` of function"),
]

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "dagster_project"
PYPROJECT = """
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "{module}"
"""


class Project:
    """A Dagster project whose only definitions are in the `defs.yaml` of its folder `backup`."""

    def __init__(self, folder: Path, module: str) -> None:
        self.folder = folder
        self.defs = folder / module / "defs"
        (self.defs / "backup").mkdir(parents=True)
        (folder / module / "__init__.py").touch()
        (self.defs / "__init__.py").touch()
        (folder / "pyproject.toml").write_text(PYPROJECT.format(module=module))

    def load(self, *components: str) -> dg.Definitions:
        """Load the project with these attributes, a component for each; they must be YAML."""
        texts = [f"type: schedgen_backups.BackupSite\nattributes:\n{each}\n" for each in components]
        (self.defs / "backup" / "defs.yaml").write_text("---\n".join(texts))
        invalidate_caches()
        definitions = dg.load_from_defs_folder(path_within_project=self.folder)
        dg.Definitions.validate_loadable(definitions)
        return definitions


@pytest.fixture
def shop(
    tmp_path: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """Set the variables that the example reads, and Dagster's directory; yield the former."""
    for name in (*NAMES, ENV_FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    shutil.copy(EXAMPLE.parents[1] / "dagster.yaml", tmp_path / "home")
    (tmp_path / ".env").touch(mode=0o600)
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(tmp_path / ".env"))
    monkeypatch.setenv("BACKUP_NICE", "0")  # a lowered priority stays, here for all tests of the process
    values = {
        f"SHOP_{name}": value
        for name, value in environment_of(application, tmp_path / "points").items()
        if not name.endswith("SCHEDULE")
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    yield values
    for name in [name for name in sys.modules if name.partition(".")[0] in {"shop", "host"}]:
        del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path, shop: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Project:
    del shop
    folder = tmp_path / "project"
    monkeypatch.syspath_prepend(str(folder))
    return Project(folder, "host")


@pytest.fixture
def instance(shop: dict[str, str]) -> Iterator[dg.DagsterInstance]:
    del shop
    with dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"]) as opened:
        yield opened


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    with open_inbox() as opened:
        # What a site does not set comes from the environment.
        monkeypatch.setenv("BACKUP_ALERT_WEBHOOK_URL", opened.url)
        yield opened


def declare(application: Application, **changes: str) -> str:
    """Return the attributes of a site of this application; a change to nothing leaves one out."""
    attributes = {
        "name": "shop",
        "backup_dir_env": "SHOP_BACKUP_DIR",
        "postgres_host": application.database.host,
        "postgres_port": str(application.database.port),
        "postgres_db": application.database.database,
        "postgres_user": application.database.user,
        "postgres_password_env": "SHOP_POSTGRES_PASSWORD",
        "minio_endpoint": application.bucket.endpoint,
        "minio_bucket": application.bucket.bucket,
        "minio_access_key_env": "SHOP_MINIO_ACCESS_KEY",
        "minio_secret_key_env": "SHOP_MINIO_SECRET_KEY",
        **changes,
    }
    return "\n".join(f"  {key}: {value}" for key, value in attributes.items() if value)


def test_materialize_all_in_the_example_takes_a_point_and_then_makes_its_own_asset(
    shop: dict[str, str], instance: dg.DagsterInstance
) -> None:
    """Start it as a user does, with the project's own executor."""
    words = [sys.executable, "-m", "dagster", "asset", "materialize"]
    words += ["--select", "+key:status_page", "-m", "shop.definitions"]
    done = subprocess.run(words, cwd=EXAMPLE, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [point] = Catalog(Path(shop["SHOP_BACKUP_DIR"])).list_points()
    assert point.state is PointState.VERIFIED
    event = instance.get_latest_materialization_event(dg.AssetKey("status_page"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["recovery_point"].value == point.point_id.text
    records = instance.get_records_for_run(
        event.run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION
    ).records
    evaluations = [
        record.event_log_entry.get_dagster_event().asset_check_evaluation_data for record in records
    ]
    assert len(evaluations) == 9
    assert all(each.passed for each in evaluations)


def test_the_example_loads_as_a_code_location(shop: dict[str, str]) -> None:
    del shop
    words = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "shop.definitions"]
    done = subprocess.run(words, cwd=EXAMPLE, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_the_example_says_is_what_the_schema_knows() -> None:
    model = schedgen_backups.BackupSite.get_model_cls()
    assert model is not None
    schema = model.model_json_schema()
    lines = (EXAMPLE / "shop" / "defs" / "backup" / "defs.yaml").read_text().splitlines()
    keys = {line.strip().partition(":")[0] for line in lines if line.startswith("  ")}
    assert keys - schema["properties"].keys() == set()
    assert (schema["additionalProperties"], schema["required"]) == (False, ["name"])


def test_the_schema_has_every_setting_with_its_meaning_and_no_place_for_a_secret() -> None:
    model = schedgen_backups.BackupSite.get_model_cls()
    assert model is not None
    properties = model.model_json_schema()["properties"]
    for variable in VARIABLES:
        name = variable.name.lower()
        if name == "backup_sites_file":
            assert name not in properties
            continue
        assert variable.meaning in properties[f"{name}_file"]["description"]
        assert properties[f"{name}_env"]["type"] == "string"
        assert (name in properties) is not variable.is_secret
    assert properties["postgres_port"]["default"] == "5432"


def test_tools_of_dagster_find_the_component() -> None:
    found = {f"{key.namespace}.{key.name}" for key in discover_entry_point_package_objects()}
    assert "schedgen_backups.BackupSite" in found


def test_a_component_adds_nothing_that_concerns_other_runs(
    project: Project, application: Application, inbox: Inbox, instance: dg.DagsterInstance
) -> None:
    definitions = project.load(declare(application))

    @dg.asset
    def broken() -> None:
        raise ValueError("an error of the host's")

    whole = dg.Definitions.merge(
        definitions, dg.Definitions(assets=[broken], executor=dg.in_process_executor)
    )
    names = {job.name for job in whole.get_repository_def().get_all_jobs()}
    assert {name.partition("__")[0] for name in names} == {"", "shop"}
    outbox = Watcher("shop__alert_outbox", instance, definitions=definitions)
    outbox.evaluate()
    assert dg.materialize([broken], instance=instance, raise_on_error=False).success is False
    outbox.evaluate(2)
    assert inbox.texts == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"postgres_host": "", "postgres_hots": "localhost"}, "did you mean postgres_host?"),
        ({"postgres_password_env": "NOT_SET"}, "NOT_SET, which is not set"),
        (
            {"postgres_password_env": "", "postgres_password_file": "missing"},
            "names a file that cannot be read",
        ),
        ({"postgres_password_env": "", "postgres_password": "canary"}, "a secret cannot stand in this file"),
        ({"postgres_port": "{a: {b: c}}"}, "neither text, number"),
        ({"postgres_port": "'{{ env.NOT_SET }}'"}, "postgres_port is a template without a value"),
        ({"postgres_port": "'{{ nothing.here }}'"}, "postgres_port is a template that cannot be evaluated"),
        ({"postgres_port": "many"}, "POSTGRES_PORT is invalid"),
    ],
)
def test_a_wrong_setting_fails_its_site_with_the_reason_and_an_alert_and_nothing_else(
    project: Project,
    application: Application,
    inbox: Inbox,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    changes: dict[str, str],
    said: str,
) -> None:
    good = declare(application, name="blog", backup_dir_env="", backup_dir=str(tmp_path / "blog"))
    definitions = project.load(declare(application, **changes), good)
    result = execute_job(definitions.resolve_job_def("shop__backup_job"), instance, None)
    failures = failures_of(result)
    assert set(failures) == {"shop__database_dump"}
    assert said in failures["shop__database_dump"].description
    [alert] = inbox.alerts
    assert alert.startswith("[CRITICAL] shop: Backup failed: database_dump\n")
    assert said in alert
    assert "canary" not in json.dumps(str(failures)) + alert
    assert execute_job(definitions.resolve_job_def("blog__backup_job"), instance, None).success


SEVERAL = """
  name: shop
  backup_dir_env: SHOP_BACKUP_DIR
  postgres_host: {database.host}
  postgres_port: {database.port}
  postgres_user: {database.user}
  postgres_password_env: SHOP_POSTGRES_PASSWORD
  minio_endpoint: {bucket.endpoint}
  minio_access_key_env: SHOP_MINIO_ACCESS_KEY
  minio_secret_key_env: SHOP_MINIO_SECRET_KEY
  databases:
    main:
      postgres_db: {database.database}
      bucket: pdfs
    reports:
      postgres_db: "{{{{ env.SHOP_REPORTS_DB }}}}"
      postgres_password_env: SHOP_REPORTS_PASSWORD
      postgres_user: {reports.user}
  buckets:
    pdfs:
      minio_bucket: {bucket.bucket}
    images:
      minio_bucket: {images.bucket}
"""


@pytest.fixture
def several(
    application: Application,
    database: DatabaseSettings,
    weed_bucket: BucketSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Return the attributes of a site of two databases and two buckets."""
    seed_application(database, weed_bucket, user_count=2, job_count=3)
    monkeypatch.setenv("SHOP_REPORTS_DB", database.database)
    monkeypatch.setenv("SHOP_REPORTS_PASSWORD", database.password)
    return SEVERAL.format(
        database=application.database, bucket=application.bucket, reports=database, images=weed_bucket
    )


def test_two_databases_and_two_buckets_are_one_point(
    project: Project, several: str, instance: dg.DagsterInstance, shop: dict[str, str]
) -> None:
    definitions = project.load(several)
    result = execute_job(definitions.resolve_job_def("shop__backup_job"), instance, None)
    assert failures_of(result) == {}
    evaluations = result.get_asset_check_evaluations()
    assert len(evaluations) == 9
    assert all(each.passed for each in evaluations)
    [point] = Catalog(Path(shop["SHOP_BACKUP_DIR"])).list_points()
    assert point.state is PointState.VERIFIED
    assert sorted(found.name.source_name for found in point.artifacts) == [
        "images",
        "main",
        "pdfs",
        "reports",
    ]
    assert point.manifest is not None
    assert point.manifest.parts[0].references.resolved_count > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bucket: pdfs": "bucket: pfds"}, "database main: no bucket 'pfds'"),
        ({"bucket: pdfs": "bucket: '{{ nothing.here }}'"}, "bucket is a template that cannot be evaluated"),
        ({"bucket: pdfs": "buckte: pdfs"}, "buckte is not a setting; did you mean bucket?"),
        ({"    main:": "    7:"}, "'7' cannot be the name of a database or a bucket"),
        ({"    main:": "    pdfs:"}, "pdfs is the name of a database and of a bucket"),
        (
            {"env.SHOP_REPORTS_DB": "env.NOT_SET"},
            "reports: postgres_db is a template without a value",
        ),
        ({"SHOP_REPORTS_PASSWORD": "NOT_SET"}, "environment variable NOT_SET, which is not set"),
        ({"      bucket: pdfs": "      8: pdfs"}, "database main: 8 is not a setting"),
        ({"      bucket: pdfs": "      postgres_password: canary"}, "a secret cannot stand in this file"),
        ({"  buckets:": "  buckets: [a]\n  other:"}, "buckets must hold a table for each"),
        ({"  buckets:": "  buckets: '{{ nothing.here }}'\n  other:"}, "buckets is a template that cannot be"),
    ],
)
def test_a_wrong_table_of_a_database_or_bucket_fails_its_site_and_nothing_else(
    project: Project,
    application: Application,
    several: str,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    changes: dict[str, str],
    said: str,
) -> None:
    for old, new in changes.items():
        assert old in several
        several = several.replace(old, new)
    good = declare(application, name="blog", backup_dir_env="", backup_dir=str(tmp_path / "blog"))
    definitions = project.load(several, good)
    failures = failures_of(execute_job(definitions.resolve_job_def("shop__backup_job"), instance, None))
    assert said in failures["shop__database_dump"].description
    assert "canary" not in str(failures)
    assert failures_of(execute_job(definitions.resolve_job_def("blog__backup_job"), instance, None)) == {}


def test_the_schema_knows_what_each_database_and_bucket_can_have() -> None:
    model = schedgen_backups.BackupSite.get_model_cls()
    assert model is not None
    properties = model.model_json_schema()["properties"]
    tables = {name: properties[name]["additionalProperties"] for name in ("databases", "buckets")}
    assert all(table["additionalProperties"] is False for table in tables.values())
    databases, buckets = (table["properties"].keys() for table in tables.values())
    assert {"postgres_db", "postgres_password_file", "bucket", "backup_reference_query"} <= databases
    assert {"minio_bucket", "minio_secret_key_env", "backup_exclude_objects"} <= buckets
    assert databases.isdisjoint({"minio_bucket", "postgres_password", "backup_dir"})
    assert buckets.isdisjoint({"postgres_db", "minio_secret_key", "backup_dir", "bucket"})


@pytest.mark.parametrize("name", ["", "../shop", "a__b", "5", "[a, b]"])
def test_a_name_that_nothing_can_have_fails_its_site(
    project: Project, application: Application, instance: dg.DagsterInstance, name: str
) -> None:
    definitions = project.load(declare(application, name=name))
    [job] = [job.name for job in definitions.jobs or () if job.name.endswith("__backup_job")]
    failures = failures_of(execute_job(definitions.resolve_job_def(job), instance, None))
    assert all("cannot be the name of a site" in each.description for each in failures.values())
    assert len(failures) == 2


def test_a_component_without_attributes_does_not_take_the_location_down(
    project: Project, application: Application
) -> None:
    assert project.load("", declare(application)).resolve_job_def("shop__backup_job")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"backup_dir_env": "", "backup_dir": "elsewhere"}, "another site is named 'shop', too"),
        ({"name": "blog"}, "site blog and site shop share the directory"),
    ],
)
def test_two_components_have_names_and_directories_of_their_own(
    project: Project,
    application: Application,
    instance: dg.DagsterInstance,
    second: dict[str, str],
    said: str,
) -> None:
    definitions = project.load(declare(application), declare(application, **second))
    assert execute_job(definitions.resolve_job_def("shop__backup_job"), instance, None).success
    [other] = [
        job.name
        for job in definitions.jobs or ()
        if job.name.endswith("__backup_job") and not job.name.startswith("shop__")
    ]
    failures = failures_of(execute_job(definitions.resolve_job_def(other), instance, None))
    assert all(said in each.description for each in failures.values())
    assert len(failures) == 2


def test_paths_start_at_the_folder_of_the_component(
    project: Project, application: Application, instance: dg.DagsterInstance
) -> None:
    changes = {
        "postgres_password_env": "",
        "postgres_password_file": "password",
        "backup_dir_env": "",
        "backup_dir": "points",
    }
    folder = project.defs / "backup"
    (folder / "password").write_text(application.database.password)
    definitions = project.load(declare(application, **changes))
    assert execute_job(definitions.resolve_job_def("shop__backup_job"), instance, None).success
    assert len(Catalog(folder / "points").list_points()) == 1


def test_python_code_of_a_project_makes_the_component_too(project: Project, application: Application) -> None:
    (project.defs / "made.py").write_text(
        "import dagster as dg, schedgen_backups\n"
        "@dg.component_instance\n"
        "def site(context: dg.ComponentLoadContext) -> schedgen_backups.BackupSite:\n"
        "    return schedgen_backups.BackupSite(name='shop', settings={'postgres_db': 'x'})\n"
    )
    definitions = project.load(declare(application))
    jobs = [job.name for job in definitions.jobs or () if job.name.endswith("__backup_job")]
    assert (len(jobs), "shop__backup_job" in jobs) == (2, True)


def test_a_component_is_built_without_a_project(shop: dict[str, str], application: Application) -> None:
    del shop
    site = schedgen_backups.BackupSite(
        name="shop", settings={"postgres_db": application.database.database, "postgres_password": "canary"}
    )
    assert "canary" not in repr(site)
    definitions = dg.build_defs_for_component(site)
    assert definitions.resolve_job_def("shop__backup_job").executor_def is dg.in_process_executor


def test_importing_the_package_does_not_load_dagster() -> None:
    program = "import sys, schedgen_backups; print('dagster' in sys.modules, hasattr(schedgen_backups, 'x'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
