"""The command line as a separate process: exit code, stdout and stderr.

All tests share one site with one recovery point; tests that damage files use a copy. Restores are in
`test_restore`, secrets in `edge/runs/test_secrets`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import dagster as dg
import pexpect
import pytest
import typer
from typer.testing import CliRunner

from schedgen_backups import run_tags
from schedgen_backups.cli.app import COMMAND_MODULES
from schedgen_backups.cli.main import app
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups.core.units import format_bytes
from schedgen_backups.demo.seed import SeedSummary
from schedgen_backups_tests.support.artifacts import damage
from schedgen_backups_tests.support.inbox import open_inbox
from schedgen_backups_tests.support.servers import run
from schedgen_backups_tests.support.sites import Application, Site
from schedgen_backups_tests.support.small_disk import mount_small_disk
from tools.json_shapes import SHAPES

pytestmark = [pytest.mark.edge]

REASON = "before [v2.1.0] goes out"


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=A Test", "-c", "user.email=test@example.org")
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def taken(
    tmp_path_factory: pytest.TempPathFactory, seeded_application: tuple[Application, SeedSummary]
) -> Iterator[tuple[Site, str]]:
    """Return a site that names a git checkout, and the id that `backup` printed there."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        site = Site(tmp_path_factory.mktemp("cli"), seeded_application[0], monkeypatch)
        git(site.folder, "init", "--quiet", "--initial-branch=release/2.1")
        (site.folder / "a file").touch()
        git(site.folder, "add", "a file")
        git(site.folder, "commit", "--quiet", "--message=A commit")
        labels = ("--label", "deployment=v2.1.0", "--label", "ticket=OPS-17=b")
        result = site.cli("backup", "--reason", REASON, *labels, BACKUP_GIT_DIRECTORY=str(site.folder))
        assert (result.code, result.stderr) == (0, "")
        yield site, result.stdout


@pytest.fixture
def cli_site(taken: tuple[Site, str]) -> Site:
    return taken[0]


@pytest.fixture
def copied(cli_site: Site, tmp_path: Path) -> Path:
    """Return a copy of the backup directory that a test may damage."""
    return Path(shutil.copytree(cli_site.directory, tmp_path / "copied"))


def test_backup_prints_only_the_id(taken: tuple[Site, str]) -> None:
    """Scripts use `id=$(schedgen-backups backup)`."""
    site, printed = taken
    assert [f"{point.point_id}\n" for point in site.points()] == [printed]


def test_the_run_is_in_the_ui_history(cli_site: Site) -> None:
    with dg.DagsterInstance.from_config(str(cli_site.home)) as history:
        run_of_ours = min(history.get_run_records(), key=lambda record: record.create_timestamp).dagster_run
        assert (run_of_ours.job_name, run_of_ours.status) == ("backup_job", dg.DagsterRunStatus.SUCCESS)
        assert run_of_ours.tags[run_tags.REASON] == REASON
        assert run_of_ours.tags[run_tags.GIT_BRANCH] == "release/2.1"
        assert run_of_ours.tags[run_tags.GIT_COMMIT] == git(cli_site.folder, "rev-parse", "HEAD")
        materialised = history.get_latest_materialization_event(dg.AssetKey("recovery_point"))
        assert materialised is not None
        assert materialised.run_id == run_of_ours.run_id


def test_the_manifest_records_user_and_commit(cli_site: Site) -> None:
    manifest = cli_site.points()[0].manifest
    assert manifest is not None
    assert manifest.origin.reason == REASON
    assert manifest.origin.labels == {"deployment": "v2.1.0", "ticket": "OPS-17=b"}
    assert manifest.origin.git_branch == "release/2.1"
    assert manifest.origin.git_commit == git(cli_site.folder, "rev-parse", "HEAD")


def test_list_and_show_give_the_same_as_text_and_json(cli_site: Site) -> None:
    [point] = cli_site.points()
    listed = cli_site.cli("list", "--json")
    [entry] = json.loads(listed.stdout)["points"]
    assert (listed.code, entry["id"], entry["state"]) == (0, point.point_id.text, "verified")
    assert entry["levels"] == {
        "stored": "passed",
        "parsed": "passed",
        "coherent": "passed",
        "restored": "unknown",
        "equal": "unknown",
    }
    shown = cli_site.cli("show", "latest", "--json")
    assert (shown.code, json.loads(shown.stdout)) == (0, {"format_version": 1, **entry})
    text = cli_site.cli("list").stdout
    assert all(word in text for word in (point.point_id.text, "verified", "coherent", REASON))
    text = cli_site.cli("show", point.point_id.text).stdout
    names = {artifact.path.name for artifact in point.artifacts}
    assert all(
        word in text for word in (*names, REASON, "deployment=v2.1.0", "release/2.1", "references_resolve")
    )


def test_files_of_the_old_script_are_listed_as_unmanaged(cli_site: Site, copied: Path) -> None:
    old = copied / "db_schedgen_20250101_020000.sql.gz"
    old.write_bytes(b"\x1f\x8b of the old script")
    listed = json.loads(cli_site.cli("list", "--json", BACKUP_DIR=str(copied)).stdout)
    assert (len(listed["points"]), listed["unmanaged"]) == (1, [old.name])


def test_verify_rereads_the_newest_point(cli_site: Site) -> None:
    result = cli_site.cli("verify", "latest", "--json")
    [checks] = json.loads(result.stdout)["results"].values()
    assert result.code == 0
    assert len(checks) == 7
    assert {check["status"] for check in checks} == {"passed"}


@pytest.mark.parametrize("kind", list(ArtifactKind))
def test_verify_exits_with_3_when_a_file_is_damaged(kind: ArtifactKind, cli_site: Site, copied: Path) -> None:
    path = Catalog(copied).list_points()[-1].get_path(kind)
    path.write_bytes(damage(path.read_bytes(), path.stat().st_size * 4))
    assert cli_site.cli("verify", "--all", BACKUP_DIR=str(copied)).code == 3
    alone = cli_site.cli("verify", str(path))
    assert alone.code == 3
    assert "failed" in alone.stdout


def test_a_missing_database_exits_with_1(cli_site: Site, tmp_path: Path) -> None:
    [port] = free_ports(1)
    result = cli_site.cli("backup", POSTGRES_PORT=str(port), BACKUP_DIR=str(tmp_path / "backups"))
    assert (result.code, result.stdout) == (1, "")
    assert f"database_dump failed: PostgreSQL at {LOOPBACK}:{port} cannot be reached" in result.stderr
    assert "What to do: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_bucket_exits_with_2_also_in_json(cli_site: Site, tmp_path: Path) -> None:
    result = cli_site.cli(
        "backup", "--json", MINIO_BUCKET="no-such-bucket", BACKUP_DIR=str(tmp_path / "backups")
    )
    answer = json.loads(result.stdout)
    assert (result.code, answer["success"]) == (2, False)
    assert [failure["step"] for failure in answer["failures"]] == ["minio_archive"]
    assert "no-such-bucket" in answer["failures"][0]["reason"]
    assert RecoveryPointId.parse(answer["id"])


def test_a_missing_secret_exits_with_4(cli_site: Site, tmp_path: Path) -> None:
    result = cli_site.cli("backup", MINIO_SECRET_KEY="", BACKUP_DIR=str(tmp_path / "backups"))
    assert (result.code, result.stdout) == (4, ""), result.stderr
    assert "MINIO_SECRET_KEY is not set" in result.stderr


def test_a_held_lock_exits_with_5(cli_site: Site, copied: Path) -> None:
    catalog = Catalog(copied)
    assert catalog.lock.acquire("run of somebody else")
    result = cli_site.cli("backup", BACKUP_DIR=str(copied))
    catalog.lock.release()
    assert (result.code, result.stdout) == (5, "")
    assert "in use by run of somebody else" in result.stderr


def test_a_missing_dagster_home_exits_with_4(cli_site: Site) -> None:
    result = cli_site.cli("backup", DAGSTER_HOME="")
    assert (result.code, result.stdout) == (4, ""), result.stderr
    assert "DAGSTER_HOME is not set" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("backup", "--nonsense"), 64, "No such option"),
        (("nonsense",), 64, "No such command"),
        (("pin", "latest"), 64, "Missing option"),
        (("show", "yesterday"), 4, "is not the id of a recovery point"),
        (("verify", "20010203_040506"), 8, "no recovery point 20010203_040506"),
        (("backup", "--label", "v2"), 4, "use key=value"),
        (("list", "--since", "tomorrow"), 4, "invalid duration"),
    ],
    ids=["option", "command", "missing option", "id", "point", "label", "span"],
)
def test_invalid_input_is_refused_in_text_and_json(
    arguments: tuple[str, ...], code: int, said: str, cli_site: Site
) -> None:
    result = cli_site.cli(*arguments)
    assert (result.code, result.stdout) == (code, ""), result.stderr
    assert said in result.stderr
    as_json = cli_site.cli(*arguments, "--json")
    refusal = json.loads(as_json.stdout)
    assert (as_json.code, as_json.stderr, refusal.keys()) == (
        code,
        "",
        {"format_version", "error", "hint", "exit_code"},
    )
    assert said in refusal["error"]
    assert (refusal["exit_code"], bool(refusal["hint"])) == (code, True)


def test_list_filters_by_label_age_and_state(cli_site: Site, copied: Path) -> None:
    """The list shows pins, labels and reasons beside the points."""
    [point] = cli_site.points()
    wheres = {"BACKUP_DIR": str(copied)}
    assert cli_site.cli("pin", "latest", "--reason", "an [audit]", "--days", "3", **wheres).code == 0
    shown = cli_site.cli("list", **wheres).stdout
    assert "an [audit]" in shown
    assert "deployment=v2.1.0, ticket=OPS-17=b" in shown
    assert REASON in shown
    assert max(map(len, shown.splitlines())) > 100  # Output to a pipe is not wrapped.
    assert "an [audit]" in cli_site.cli("show", "latest", **wheres).stdout

    def count(*options: str) -> int:
        return len(json.loads(cli_site.cli("list", "--json", *options, **wheres).stdout)["points"])

    assert [
        count(*options) for options in ((), ("--label", "ticket"), ("--since", "1h"), ("--state", "verified"))
    ] == [1, 1, 1, 1]
    assert [count(*options) for options in (("--label", "ticket=no"), ("--state", "foreign"))] == [0, 0]
    [entry] = json.loads(cli_site.cli("list", "--json", **wheres).stdout)["points"]
    assert (entry["id"], entry["pin"]["reason"]) == (point.point_id.text, "an [audit]")


def test_doctor_finds_no_problem_on_a_healthy_site(cli_site: Site) -> None:
    result = cli_site.cli("doctor", "--json", BACKUP_NAME="tests")
    results = json.loads(result.stdout)["results"]
    assert result.code == 0
    # The test site has no timer, no daemon, no alert channel and no store, and the backup keys are those of
    # the server's owner.
    notes = {result["what"] for result in results if result["state"] != "ok"}
    assert notes <= {"schedule", "alerts", "heartbeat", "restore proven", "restore of the bucket", "stores"}
    assert {
        "Dagster definitions",
        "backup directory",
        "free space",
        "clock",
        "pg_dump",
        "privileges",
        "references",
        "bucket",
    } <= {result["what"] for result in results}


def test_doctor_reports_what_could_be_restored_and_creates_nothing(cli_site: Site) -> None:
    folder = cli_site.folder / "not" / "there"
    cli_site.cli("doctor", BACKUP_DIR=str(folder))
    assert not folder.parent.exists()
    results = {
        result["what"]: result for result in json.loads(cli_site.cli("doctor", "--json").stdout)["results"]
    }
    assert results["restore"]["detail"].startswith(
        "to try one next to the live system: schedgen-backups restore "
    )
    assert results["restore of the database"]["state"] == "ok"
    run(cli_site.application.database, "CREATE ROLE edge_reader LOGIN PASSWORD 'p' IN ROLE pg_read_all_data")
    try:
        answer = cli_site.cli("doctor", "--json", POSTGRES_USER="edge_reader", POSTGRES_PASSWORD="p").stdout
    finally:
        run(cli_site.application.database, "DROP ROLE edge_reader")
    [reader] = [
        result for result in json.loads(answer)["results"] if result["what"] == "restore of the database"
    ]
    assert reader["state"] == "note"
    assert "edge_reader cannot create databases and is not a member of" in reader["detail"]
    assert "RESTORE_POSTGRES_USER" in reader["fix"]


def test_doctor_advises_packs_when_hourly_points_have_no_room_as_whole_files(
    cli_site: Site, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"

    def read_advice(**values: str) -> list[dict[str, str]]:
        answer = cli_site.cli("doctor", "--json", BACKUP_DIR=str(disk / "points"), **values)
        results = json.loads(answer.stdout)["results"]
        return [result for result in results if result["what"] == "layout"]

    hourly = {"BACKUP_SCHEDULE": "0 * * * *"}
    with mount_small_disk(disk, "64m"):
        shutil.copytree(cli_site.directory, disk / "points")
        [advice] = read_advice(**hourly)
        assert read_advice(BACKUP_SCHEDULE="0 2 * * *") == []
        assert read_advice(**hourly, BACKUP_LAYOUT="packs") == []
        [thinned] = read_advice(**hourly, BACKUP_RETENTION_HOURS="24")
        assert list(disk.iterdir()) == [disk / "points"]
    [point] = cli_site.points()
    total = format_bytes(168 * point.size_bytes)
    assert advice["state"] == "note"
    assert f"about 168 points kept x {format_bytes(point.size_bytes)} = {total} needed" in advice["detail"]
    assert "BACKUP_LAYOUT=packs" in advice["fix"]
    assert "about 30 points kept" in thinned["detail"]


@pytest.fixture
def planted_package(cli_site: Site) -> Iterator[Path]:
    """Plant a package named dagster in the current directory; return the file that it writes."""
    seen, package = cli_site.folder / "seen", cli_site.folder / "dagster"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(seen)!r}, 'w')", encoding="utf-8")
    yield seen
    shutil.rmtree(package)


def test_doctor_reports_definitions_that_do_not_load(cli_site: Site) -> None:
    broken = cli_site.folder / "broken" / "dagster"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('half of an upgrade')", encoding="utf-8")
    result = cli_site.cli("doctor", "--json", PYTHONPATH=str(broken.parent))
    assert result.code == 4
    detail, fix = problems_of(result.stdout)["Dagster definitions"]
    assert detail == "they do not load: ImportError: half of an upgrade"
    assert "neither the schedule nor the sensors run" in fix


def test_doctor_loads_nothing_from_the_current_directory(cli_site: Site, planted_package: Path) -> None:
    results = json.loads(cli_site.cli("doctor", "--json", BACKUP_NAME="tests").stdout)["results"]
    [loaded] = [result for result in results if result["what"] == "Dagster definitions"]
    assert loaded["state"] == "ok"
    assert not planted_package.exists()


def test_doctor_reports_the_last_answer_of_each_channel(cli_site: Site) -> None:
    def look(**values: str) -> dict[str, tuple[str, str]]:
        results = json.loads(cli_site.cli("doctor", "--json", **values).stdout)["results"]
        return {
            result["what"]: (result["state"], result["detail"])
            for result in results
            if result["what"].startswith("alerts")
        }

    with open_inbox() as inbox:
        named = {"BACKUP_ALERT_WEBHOOK_URL": inbox.url, "BACKUP_DIR": str(cli_site.folder / "of-channels")}
        assert [state for state, _detail in look(**named).values()] == ["note"]
        assert cli_site.cli("alert-test", **named).code == 0
        [(state, detail)] = look(**named).values()
        assert (state, "was accepted at" in detail) == ("ok", True)
        inbox.go_down()
        assert cli_site.cli("alert-test", **named).code == 9
        [(state, detail)] = look(**named).values()
        assert (state, "was refused at" in detail) == ("problem", True)


def test_a_folder_that_is_not_a_checkout_is_a_note_and_stops_no_backup(cli_site: Site, copied: Path) -> None:
    for value in (str(cli_site.folder / "nothing"), "~nobody-of-this-name/x"):
        named = {"BACKUP_GIT_DIRECTORY": value, "BACKUP_DIR": str(copied)}
        assert "BACKUP_GIT_DIRECTORY" in cli_site.cli("doctor", **named).stdout
        answer = cli_site.cli("backup", **named)
        assert answer.code == 0, answer.stderr
        manifest = Catalog(copied).read_manifest(RecoveryPointId(answer.stdout.strip()))
        assert manifest is not None
        assert (manifest.origin.git_commit, manifest.origin.git_branch) == ("", "")


def test_doctor_prints_whole_lines(cli_site: Site) -> None:
    """A reader of cron's mail cannot widen the window."""
    folder = cli_site.folder / ("long-" * 40)
    result = cli_site.cli("doctor", BACKUP_DIR=str(folder), POSTGRES_PASSWORD="")
    assert result.code == 4
    assert "…" not in result.stdout
    assert str(folder) in "".join(result.stdout.split())
    assert "POSTGRES_PASSWORD is not set" in result.stdout
    assert "fix:" in result.stdout


def problems_of(stdout: str) -> dict[str, tuple[str, str]]:
    return {
        result["what"]: (result["detail"], result["fix"])
        for result in json.loads(stdout)["results"]
        if result["state"] == "problem"
    }


def test_doctor_reports_missing_credentials_and_an_old_pg_dump(
    cli_site: Site, postgres_bin_dir_17: Path
) -> None:
    result = cli_site.cli("doctor", "--json", MINIO_ACCESS_KEY="", PG_BIN_DIR=str(postgres_bin_dir_17))
    problems = problems_of(result.stdout)
    assert result.code == 4
    assert problems.keys() == {"settings of the bucket", "pg_dump"}
    assert problems["settings of the bucket"][0] == "MINIO_ACCESS_KEY is not set"
    assert "PostgreSQL 18 and the newest pg_dump here is 17" in problems["pg_dump"][0]
    assert "postgresql-client-18" in problems["pg_dump"][1]
    assert all(fix for _detail, fix in problems.values())


def test_doctor_reports_a_missing_privilege_and_a_missing_bucket(cli_site: Site) -> None:
    server = cli_site.application.database
    run(server, "CREATE ROLE edge_nobody LOGIN PASSWORD 'edge-nobody'")
    result = cli_site.cli(
        "doctor",
        "--json",
        POSTGRES_USER="edge_nobody",
        POSTGRES_PASSWORD="edge-nobody",
        MINIO_BUCKET="no-such-bucket",
    )
    run(server, "DROP ROLE edge_nobody")
    problems = problems_of(result.stdout)
    assert result.code == 4
    detail, fix = problems["privileges"]
    assert detail.startswith("the role edge_nobody may not read public.")
    assert "public.jobs" in detail
    assert fix == 'As a superuser run: GRANT pg_read_all_data TO "edge_nobody";'
    assert "no-such-bucket" in problems["bucket"][0]
    assert all(fix for _detail, fix in problems.values())


def find_loaded_packages(importtime: str) -> set[str]:
    """Return the top-level names of the modules that Python reported as imported."""
    return {name.partition(".")[0] for name in re.findall(r"\d+ \| \d+ \| ([\w.]+)", importtime)}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--version",),
        ("--help",),
        ("list",),
        ("show", "latest"),
        ("verify", "latest"),
        ("last",),
        ("status",),
        ("prune", "--dry-run"),
        ("doctor",),
        ("audit",),
        ("restore-objects", "latest", "*", "--to", "objects"),
        ("restore-objects", "latest", "*", "--back", "--dry-run"),
    ],
    ids=" ".join,
)
def test_commands_that_run_no_job_do_not_load_dagster(arguments: tuple[str, ...], cli_site: Site) -> None:
    """Loading it takes longer than their work, and people wait for one PDF."""
    with cli_site.start_cli(*arguments, PYTHONPROFILEIMPORTTIME="1") as process:
        _printed, errors = process.communicate()
    # Failures of other tests on this site are incidents, about which `status` warns.
    assert process.returncode in ({0, 1} if arguments == ("status",) else {0}), errors[-1000:]
    loaded = find_loaded_packages(" ".join(errors.split()))
    assert "schedgen_backups" in loaded
    assert loaded.isdisjoint({"dagster", "dagster_shared", "pypdf"})


def test_the_command_table_matches_the_registered_commands() -> None:
    for name in set(COMMAND_MODULES.values()):
        import_module(f"schedgen_backups.{name}")
    assert typer.main.get_command(app).registered.keys() == COMMAND_MODULES.keys()  # type: ignore[attr-defined]


def test_every_command_has_help() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {"backup", "list", "show", "verify", "restore", "doctor", "demo"} <= commands.keys()
    for name, command in commands.items():
        result = CliRunner().invoke(app, [name, "--help"])
        assert result.exit_code == 0
        assert str(command.help).split(".")[0].split(":")[0] in " ".join(result.output.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("accept-missing", "nobody/has/this", "--reason", "x"),
        ("audit",),
        ("backup",),
        ("doctor",),
        ("last",),
        ("list",),
        ("deploy", "helm", "--to", "files"),
        ("log",),
        ("pin", "latest", "--reason", "x"),
        ("prune", "--dry-run"),
        ("show", "latest"),
        ("status",),
        ("unpin", "latest"),
        ("verify", "latest"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_json_output_has_the_documented_shape(
    arguments: tuple[str, ...], cli_site: Site, copied: Path
) -> None:
    answer = json.loads(cli_site.cli(*arguments, "--json", BACKUP_DIR=str(copied)).stdout)
    assert answer.pop("format_version") == 1
    assert set(answer) == set(SHAPES[arguments[0]])


def test_every_command_with_output_has_json_and_a_documented_shape() -> None:
    group = typer.main.get_group(app)
    # What they print or write has a format of its own.
    without = {"demo", "setup", "serve", "webserver", "manual", "metrics", "report"}
    with_json = {
        name
        for name in COMMAND_MODULES
        if any("--json" in parameter.opts for parameter in group.commands[name].params)
    }
    assert with_json == COMMAND_MODULES.keys() - without
    assert with_json == SHAPES.keys()


def test_text_to_copy_is_whole_on_a_narrow_terminal(cli_site: Site) -> None:
    """Ids, paths and commands contain no line break of ours.

    The terminal wraps them and copies them whole.
    """
    [point] = cli_site.points()
    seen = {
        words: read_from_terminal(cli_site, words)
        for words in ("list", "show latest", "last", "status", "restore --help")
    }
    for words in ("list", "show latest", "last", "status"):
        assert point.point_id.text in seen[words], seen[words]
    for kind in ArtifactKind:
        assert str(point.get_path(kind)) in seen["show latest"]
    database, bucket = cli_site.application.database.database, cli_site.application.bucket.bucket
    assert f"--database {database} --swap --confirm {database} --reason rollback" in seen["last"]
    assert f"'*' --back --overwrite --confirm {bucket} --reason rollback" in seen["last"]
    assert len(seen["status"].strip().splitlines()) == 1
    assert "--no-safety-backup" in seen["restore --help"]


def read_from_terminal(site: Site, words: str) -> str:
    program = str(Path(sys.executable).with_name("schedgen-backups"))
    child = pexpect.spawn(
        program, words.split(), env=dict(os.environ), cwd=str(site.folder), dimensions=(40, 80), timeout=120
    )
    child.expect(pexpect.EOF)
    return re.sub(r"\x1b\[[0-9;]*m", "", child.before.decode())
