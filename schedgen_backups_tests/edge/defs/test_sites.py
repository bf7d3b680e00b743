"""Several sites in one code location: distinct names, separate directories, and alerts that do not mix.

Runs are real ones in one instance, against two databases and buckets. The names of the site without a name
are written down here: they must not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
import pytest
import yaml

from schedgen_backups.config.config import Config, load_config
from schedgen_backups.config.sites import load_installation
from schedgen_backups.config.variables import ENV_FILE_VARIABLE, NAMES
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.defs.site import build_installation_definitions, build_site_definitions
from schedgen_backups.demo.seed import seed_application
from schedgen_backups.site_names import name_shared
from schedgen_backups_tests.support.inbox import Inbox, Watcher, open_inbox
from schedgen_backups_tests.support.site_stores import UNREACHABLE, SiteStores
from schedgen_backups_tests.support.sites import Application, Site, environment_of, execute_job, failures_of

pytestmark = [pytest.mark.edge]

JOBS = {
    "backup_job",
    "prune_job",
    "verify_job",
    "restore_job",
    "restore_drill_job",
    "audit_job",
    "monthly_report_job",
    "copy_to_disk_job",
    "prune_copies_in_disk_job",
}
SHARED_JOBS = {"remove_old_runs_job"}
SENSORS = {
    "alert_outbox",
    "freshness_watch",
    "retention_sensor",
    "verification_sensor",
    "drill_sensor",
    "copy_sensor",
}
SCHEDULES = {
    "daily_backup_schedule",
    "weekly_drill_schedule",
    "weekly_audit_schedule",
    "monthly_report_schedule",
    "weekly_prune_copies_in_disk_schedule",
}
SHARED_SCHEDULES = {"daily_run_removal_schedule"}
ASSETS = {
    "live_system",
    "database_dump",
    "minio_archive",
    "recovery_point",
    "restore_drill",
    "offsite_copy/disk",
}
CHECKS = {
    "database_dump:dump_is_complete",
    "database_dump:dump_matches_snapshot",
    "database_dump:dump_size_is_plausible",
    "minio_archive:archive_is_readable",
    "minio_archive:every_object_is_archived",
    "minio_archive:archive_size_is_plausible",
    "minio_archive:references_resolve",
    "recovery_point:recovery_point_is_intact",
    "recovery_point:recovery_point_is_fresh",
    "restore_drill:point_is_restored",
    "restore_drill:point_is_equal",
    "restore_drill:referenced_pdfs_open",
    "restore_drill:operator_checks_hold",
    "restore_drill:drill_is_in_time",
    "live_system:live_references_resolve",
    "offsite_copy/disk:copy_is_complete",
    "offsite_copy/disk:copy_reads_back",
}
OPS = {
    "database_dump",
    "minio_archive",
    "recovery_point",
    "restore_drill",
    "report_point_is_restored",
    "report_point_is_equal",
    "report_referenced_pdfs_open",
    "report_operator_checks_hold",
    "report_drill_is_in_time",
    "prune_recovery_points",
    "reread_recovery_points",
    "restore_recovery_point",
    "monthly_report",
    "offsite_copy_disk",
    "offsite_prune_disk",
    *(check.replace("/", "__").replace(":", "_") for check in CHECKS),
}
SHARED_OPS = {"old_runs"}
POOLS = {"backup_directory", "restore_drill", "housekeeping", "copies_disk"}
HOOKS = {
    "alert_on_step_failure",
    "announce_recovery_point",
    "announce_retention",
    "announce_verification",
    "announce_housekeeping",
    "announce_copies",
}


@dataclass(frozen=True)
class Names:
    """Every name of some definitions, by kind."""

    jobs: set[str]
    sensors: set[str]
    schedules: set[str]
    assets: set[str]
    checks: set[str]
    ops: set[str]
    pools: set[str]
    hooks: set[str]
    groups: set[str]
    resources: set[str]


def list_names(definitions: dg.Definitions) -> Names:
    repository = definitions.get_repository_def()
    jobs = repository.get_all_jobs()
    nodes = [node for job in jobs for node in job.nodes]
    ops = [node.definition for node in nodes if isinstance(node.definition, dg.OpDefinition)]
    graph = definitions.resolve_asset_graph()
    having_hooks = [*jobs, *nodes, *graph.assets_defs]
    return Names(
        jobs={job.name for job in jobs if not job.name.startswith("__")},
        sensors={sensor.name for sensor in repository.sensor_defs},
        schedules={schedule.name for schedule in repository.schedule_defs},
        assets={key.to_user_string() for key in graph.get_all_asset_keys()},
        checks={key.to_user_string() for key in graph.asset_check_keys},
        ops={op.name for op in ops},
        pools={pool for op in ops for pool in op.pools},
        hooks={hook.name for each in having_hooks for hook in each.hook_defs},
        groups={node.group_name for node in graph.asset_nodes},
        resources=set(definitions.resources or ()),
    )


def prefix(names: set[str], start: str) -> set[str]:
    return {f"{start}{name}" for name in names}


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return the configuration of a site that has every definition there is."""
    site = Site(tmp_path, UNREACHABLE, monkeypatch)
    stores = SiteStores(site)
    stores.add("disk")
    site.set(DRILL_SQL_CHECKS="checks.sql", DRILL_AFTER_EACH_POINT="true")
    return load_config()


def test_the_site_without_a_name_has_the_names_it_always_had(whole: Config) -> None:
    assert list_names(build_site_definitions(whole)) == Names(
        jobs=JOBS | SHARED_JOBS,
        sensors=SENSORS,
        schedules=SCHEDULES | SHARED_SCHEDULES,
        assets=ASSETS,
        checks=CHECKS,
        ops=OPS | SHARED_OPS,
        pools=POOLS,
        hooks=HOOKS,
        groups={"backup"},
        resources={"backup"},
    )


@pytest.mark.parametrize("sites", [("acme", "globex"), ("acme", "acme_two", "")], ids=["two", "three"])
def test_sites_have_distinct_names_and_share_only_what_an_installation_has_once(
    sites: Sequence[str], whole: Config
) -> None:
    definitions = build_installation_definitions([replace(whole, site_name=site) for site in sites])
    dg.Definitions.validate_loadable(definitions)
    starts = [f"{site}__" if site else "" for site in sites]
    keys = [f"{site}/" if site else "" for site in sites]
    ends = [f"__{site}" if site else "" for site in sites]
    assert list_names(definitions) == Names(
        jobs=SHARED_JOBS.union(*(prefix(JOBS, start) for start in starts)),
        sensors={f"{name}_of_all_sites" for name in SENSORS},
        schedules=SHARED_SCHEDULES.union(*(prefix(SCHEDULES, start) for start in starts)),
        assets=set[str]().union(*(prefix(ASSETS, start) for start in keys)),
        checks=set[str]().union(*(prefix(CHECKS, start) for start in keys)),
        ops=SHARED_OPS.union(*(prefix(OPS, start) for start in starts)),
        pools={f"{pool}{end}" for pool in POOLS for end in ends} | {"housekeeping"},
        hooks=set[str]().union(*(prefix(HOOKS, start) for start in starts)),
        groups={site or "backup" for site in sites},
        resources={f"backup{end}" for end in ends},
    )


def test_each_job_of_a_site_belongs_to_this_site_alone(whole: Config) -> None:
    sites = ("acme", "globex")
    definitions = build_installation_definitions([replace(whole, site_name=site) for site in sites])
    for site in sites:
        for job in JOBS:
            nodes = definitions.resolve_job_def(f"{site}__{job}").nodes
            assert {node.name.partition("__")[0] for node in nodes} == {site}


def test_the_queue_knows_the_database_server_of_a_backup_and_what_is_a_drill(whole: Config) -> None:
    """The limits of dagster.yaml are for these tags."""
    path = Path(__file__).resolve().parents[3] / "dagster.yaml"
    limits = yaml.safe_load(path.read_text())["concurrency"]["runs"]["tag_concurrency_limits"]
    definitions = build_site_definitions(whole)
    tags = {job: definitions.resolve_job_def(job).tags for job in ("backup_job", "restore_drill_job")}
    server, drill = (limit["key"] for limit in limits)
    settings = whole.database_server
    assert tags["backup_job"][server] == f"{settings.host}:{settings.port}"
    assert drill in tags["restore_drill_job"]
    assert drill not in tags["backup_job"]


@dataclass(frozen=True)
class TwoSites:
    """Two sites of one installation, with an inbox each."""

    definitions: dg.Definitions
    sites: dict[str, Site]
    inboxes: dict[str, Inbox]

    def backup(self, name: str, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
        return execute_job(self.definitions.resolve_job_def(f"{name}__backup_job"), instance, None)

    def watch(self, instance: dg.DagsterInstance) -> Watcher:
        """Return the outbox that serves both."""
        return Watcher(name_shared("alert_outbox"), instance, definitions=self.definitions)

    def set(self, name: str, **values: str) -> None:
        """Write the values into the site's environment file; runs and ticks read it again."""
        with self.sites[name].env.open("a") as file:
            file.writelines(f"{variable}={value}\n" for variable, value in values.items())

    def read_small_files(self, name: str) -> str:
        """Return the text of every file in the site's directory, without dumps and archives."""
        paths = [path for path in self.sites[name].directory.rglob("*") if path.is_file()]
        return "\n".join(path.read_text() for path in paths if path.suffix != ".gz")


@pytest.fixture
def two(
    tmp_path: Path,
    application: Application,
    database: DatabaseSettings,
    weed_bucket: BucketSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TwoSites]:
    seed_application(database, weed_bucket, user_count=2, job_count=3)
    applications = {"acme": application, "globex": Application(database, weed_bucket)}
    sites: dict[str, Site] = {}
    for name, each in applications.items():
        (tmp_path / name).mkdir()
        sites[name] = Site(tmp_path / name, each, monkeypatch)
    # The variables of a process would override those of both files.
    for variable in (*NAMES, ENV_FILE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    with ExitStack() as stack:
        inboxes = {name: stack.enter_context(open_inbox()) for name in sites}
        for name, site in sites.items():
            values = environment_of(applications[name], site.directory)
            values["BACKUP_ALERT_WEBHOOK_URL"] = inboxes[name].url
            site.env.write_text("".join(f"{variable}='{value}'\n" for variable, value in values.items()))
        configs = [replace(load_config(site.env), site_name=name) for name, site in sites.items()]
        yield TwoSites(build_installation_definitions(configs), sites, inboxes)


@pytest.fixture
def home(two: TwoSites) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(two.sites["acme"].home)) as opened:
        yield opened


def test_two_sites_back_up_into_their_own_directories(two: TwoSites, home: dg.DagsterInstance) -> None:
    for name, site in two.sites.items():
        result = two.backup(name, home)
        assert failures_of(result) == {}
        assert {key.path[0] for key in home.get_asset_keys()} <= set(two.sites)
        [point] = site.points()
        assert point.state is PointState.VERIFIED
        [dump] = site.directory.glob("db_*.sql.gz")
        assert dump.name.startswith(f"db_{site.application.database.database}_")
        site.assert_left_clean()
    assert {key.to_user_string() for key in home.get_asset_keys()} == {
        f"{name}/{asset}"
        for name in two.sites
        for asset in ("database_dump", "minio_archive", "recovery_point")
    }
    assert two.watch(home).evaluate() == "everything was reported"
    assert all(inbox.texts == [] for inbox in two.inboxes.values())


def test_a_failure_of_one_site_is_reported_by_this_site_alone(
    two: TwoSites, home: dg.DagsterInstance
) -> None:
    outbox = two.watch(home)
    outbox.evaluate()
    two.set("globex", POSTGRES_PORT="1")
    assert two.backup("acme", home).success
    assert not two.backup("globex", home).success
    outbox.evaluate(2)
    [alert, *others] = two.inboxes["globex"].alerts
    assert (alert.splitlines()[0], others) == ("[CRITICAL] globex: Backup failed: database_dump", [])
    assert "acme" not in two.inboxes["globex"].bodies.decode()
    assert two.inboxes["acme"].texts == []
    assert "database_dump" in (two.sites["globex"].directory / "history.jsonl").read_text()
    assert "acme" not in two.read_small_files("globex")
    assert "globex" not in two.read_small_files("acme")

    port = two.sites["globex"].application.database.port
    two.set("globex", POSTGRES_PORT=str(port))
    assert two.backup("globex", home).success
    assert two.inboxes["globex"].texts[-1].startswith("[INFO] globex: Backups work again\n")
    assert two.inboxes["acme"].texts == []


def test_a_run_that_ends_without_a_step_is_reported_by_its_site_alone(
    two: TwoSites, home: dg.DagsterInstance
) -> None:
    """The outbox of each site sees every run of the instance."""

    @dg.resource
    def broken(_context: dg.InitResourceContext) -> None:
        raise ConnectionError("no such luck with the resource")

    job = two.definitions.resolve_job_def("globex__prune_job")
    execute_job(job.with_top_level_resources({**job.resource_defs, "backup__globex": broken}), home, None)
    two.watch(home).evaluate(2)
    [alert] = two.inboxes["globex"].alerts
    assert alert.startswith("[MEDIUM] globex: Retention failed: prune_job\n")
    assert two.inboxes["acme"].texts == []


def test_materialize_all_of_two_sites_is_one_run_whose_failures_go_to_their_site(
    two: TwoSites, home: dg.DagsterInstance
) -> None:
    two.set("globex", POSTGRES_PORT="1")
    outbox = two.watch(home)
    outbox.evaluate()
    everything = two.definitions.resolve_implicit_global_asset_job_def()
    captures = [dg.AssetKey([name, "database_dump"]) for name in two.sites]
    result = everything.execute_in_process(instance=home, asset_selection=captures, raise_on_error=False)
    assert set(failures_of(result)) == {"globex__database_dump"}
    outbox.evaluate(2)
    assert [alert.splitlines()[0] for alert in two.inboxes["globex"].alerts] == [
        "[CRITICAL] globex: Backup failed: database_dump"
    ]
    assert two.inboxes["acme"].texts == []


def test_a_wrong_site_of_the_file_fails_with_its_reason_and_the_others_are_backed_up(
    two: TwoSites, home: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    for name, site in two.sites.items():
        values = environment_of(site.application, site.directory)
        values["BACKUP_ALERT_WEBHOOK_URL"] = two.inboxes[name].url
        texts.append(f"[sites.{name}]")
        for variable, value in values.items():
            # Secrets cannot stand in the file.
            monkeypatch.setenv(f"{name.upper()}_{variable}", value)
            texts.append(f'{variable.lower()}_env = "{name.upper()}_{variable}"')
    texts += ['[sites."../evil"]', 'backup_dir = "evil"']
    file = tmp_path / "sites.toml"
    file.write_text("\n".join(texts).replace('postgres_host_env = "GLOBEX', 'postgres_hots_env = "GLOBEX'))
    monkeypatch.setenv("BACKUP_SITES_FILE", str(file))
    sites = load_installation()
    installed = replace(two, definitions=build_installation_definitions(sites))
    dg.Definitions.validate_loadable(installed.definitions)
    assert {site.site_name for site in sites} > {"acme", "globex"}
    outbox = installed.watch(home)
    outbox.evaluate()
    assert installed.backup("acme", home).success
    assert two.sites["acme"].points()[0].state is PointState.VERIFIED
    assert "did you mean postgres_host_env?" in str(failures_of(installed.backup("globex", home)))
    outbox.evaluate(2)
    [alert, *others] = two.inboxes["globex"].alerts
    assert (alert.splitlines()[0], others) == ("[CRITICAL] globex: Backup failed: database_dump", [])
    assert two.inboxes["acme"].texts == []
    [evil] = {site.site_name for site in sites} - {"acme", "globex"}
    assert "cannot be the name of a site" in str(failures_of(installed.backup(evil, home)))


def test_two_sites_of_a_file_do_not_write_into_one_directory(
    two: TwoSites, home: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sites.toml"
    monkeypatch.setenv("BACKUP_SITES_FILE", str(file))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    texts: list[str] = []
    for name in two.sites:
        monkeypatch.setenv(f"{name.upper()}_WEBHOOK", two.inboxes[name].url)
        texts.append(
            f'[sites.{name}]\nbackup_dir = "one"\npostgres_db = "x"\nminio_bucket = "x"\n'
            f'backup_alert_webhook_url_env = "{name.upper()}_WEBHOOK"'
        )
    file.write_text("\n".join(texts))
    installed = replace(two, definitions=build_installation_definitions(load_installation()))
    said = str(failures_of(installed.backup("globex", home)))
    assert "site globex and site acme share the directory" in said
    assert not (tmp_path / "one").exists()
    for sensor in ("alert_outbox", "freshness_watch"):
        Watcher(name_shared(sensor), home, definitions=installed.definitions).evaluate(2)
    assert_both_halves_are_reported(two.inboxes["globex"], "share the directory")
    assert two.inboxes["acme"].texts == []
    written = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]  # by the sensors, of acme
    assert not any("globex" in f"{path.name} {path.read_text()}" for path in written)


def assert_both_halves_are_reported(inbox: Inbox, said: str) -> None:
    assert [alert.splitlines()[0] for alert in inbox.alerts] == [
        f"[CRITICAL] globex: Backup failed: {asset}" for asset in ("database_dump", "minio_archive")
    ]
    assert all(said in alert for alert in inbox.alerts)


@pytest.mark.parametrize(
    ("text", "said"), [("[sites.globex", "is not TOML"), ('[sites.acme]\nbackup_dir = "x"', "unknown site")]
)
def test_a_file_that_is_broken_while_dagster_runs_fails_the_backups_and_sends_alerts(
    two: TwoSites,
    home: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    said: str,
) -> None:
    file = tmp_path / "sites.toml"
    monkeypatch.setenv("BACKUP_SITES_FILE", str(file))
    monkeypatch.setenv("GLOBEX_WEBHOOK", two.inboxes["globex"].url)
    file.write_text(
        '[sites.globex]\nbackup_dir = "globex-points"\npostgres_db = "x"\nminio_bucket = "x"\n'
        'backup_alert_webhook_url_env = "GLOBEX_WEBHOOK"\n'
    )
    installed = replace(two, definitions=build_installation_definitions(load_installation()))
    file.write_text(text)
    assert said in str(failures_of(installed.backup("globex", home)))
    assert_both_halves_are_reported(two.inboxes["globex"], said)
