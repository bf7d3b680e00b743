"""The wheel, built from the sdist and installed outside the checkout, works as the README says.

Takes a few minutes, most of them in pip: `make test-wheel`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from contextlib import suppress
from copy import copy
from pathlib import Path
from subprocess import PIPE

import pytest

from schedgen_backups.config.variables import ENV_FILE_VARIABLE, NAMES
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.model import TOOL_VERSION
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups.demo.seed import SeedSummary
from schedgen_backups_tests.support.sites import Application, wait_until

pytestmark = [pytest.mark.edge, pytest.mark.exhaustive, pytest.mark.timeout(1800)]

PROJECT = Path(__file__).resolve().parents[3]
SHARE = f"schedgen_backups-{TOOL_VERSION}.data/data/share/schedgen-backups"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist and the wheel built from it."""
    folder = tmp_path_factory.mktemp("built")
    words = [sys.executable, "-m", "build", "--outdir", str(folder), str(PROJECT)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Installed:
    """The wheel in an environment of its own, and a folder outside a checkout to call it from."""

    def __init__(self, folder: Path, wheel: Path, application: Application) -> None:
        self.folder, self.programs = folder, folder / "environment" / "bin"
        self.points, self.env = folder / "points", folder / "env"
        self.application = application
        self.env.touch(mode=0o600)
        names = {*NAMES, "VIRTUAL_ENV", "PYTHONPATH", "DAGSTER_HOME"}
        self.environment = {name: value for name, value in os.environ.items() if name not in names}
        self.environment |= {
            ENV_FILE_VARIABLE: str(self.env),
            "DAGSTER_HOME": str(folder / "home"),
            "HOME": str(folder),
        }
        subprocess.run([sys.executable, "-m", "venv", str(folder / "environment")], check=True)
        pip = [self.programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        locks = [f"--requirement={PROJECT}/locks/{name}.txt" for name in ("host", "drill")]
        subprocess.run([*pip, "--require-hashes", *locks], check=True)
        # Fails if the locks lack what the wheel requires.
        subprocess.run([*pip, "--no-index", f"{wheel}[drill]"], check=True)

    def run(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [str(self.programs / "schedgen-backups"), *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def set(self, **values: str) -> None:
        """Append variables to the environment file."""
        with self.env.open("a", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in values.items())

    def move(self, folder: Path, **values: str) -> Installed:
        """Return the same programs with a new home, an empty backup directory and these settings only."""
        moved = copy(self)
        folder.mkdir()
        moved.folder, moved.points, moved.env = folder, folder / "points", folder / "env"
        moved.env.touch(mode=0o600)
        moved.environment = self.environment | {
            ENV_FILE_VARIABLE: str(moved.env),
            "DAGSTER_HOME": str(folder / "home"),
            "HOME": str(folder),
        }
        moved.set(BACKUP_DIR=str(moved.points), **values)
        return moved

    def set_up(self) -> tuple[int, str]:
        database, bucket = self.application.database, self.application.bucket
        secrets = {"postgres-password": database.password, "minio-secret-key": bucket.secret_key}
        for name, secret in secrets.items():
            (self.folder / name).write_text(secret, encoding="utf-8")
        answers = {
            "postgres-host": database.host,
            "postgres-port": str(database.port),
            "postgres-user": database.user,
            "postgres-db": database.database,
            "minio-endpoint": bucket.endpoint,
            "minio-bucket": bucket.bucket,
            "minio-access-key": bucket.access_key,
            "backup-dir": str(self.points),
            **{f"{name}-file": str(self.folder / name) for name in secrets},
        }
        return self.run(
            "setup",
            "--yes",
            "--deployment",
            "none",
            *(word for name, value in answers.items() for word in (f"--{name}", value)),
        )


@pytest.fixture(scope="module")
def installed(
    built: Path, tmp_path_factory: pytest.TempPathFactory, seeded_application: tuple[Application, SeedSummary]
) -> Installed:
    [wheel] = built.glob("*.whl")
    return Installed(tmp_path_factory.mktemp("outside"), wheel, seeded_application[0])


def test_sdist_and_wheel_hold_the_program_and_its_files_but_no_tests(built: Path) -> None:
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    shared = {name.removeprefix(f"{SHARE}/") for name in names if name.startswith(SHARE)}
    folders = ("deploy", "docker")
    assert {
        str(path.relative_to(PROJECT))
        for folder in folders
        for path in (PROJECT / folder).rglob("*")
        if path.is_file()
    } <= shared
    assert {"dagster.yaml", "workspace.yaml", "pyproject.toml", ".env.example"} <= shared
    assert {path for path in shared if path.startswith("locks/")} == {
        f"locks/{name}.txt"
        for name in ("build", "host", "seed", "drill", "containers", "kubernetes", "gcs", "sftp")
    }
    assert {name for name in names if name.startswith("schedgen_backups_tests")} == set()
    assert {"schedgen_backups/py.typed", "schedgen_backups/recover.py"} <= names
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert shared <= packed


def test_the_documented_commands_install_the_project(tmp_path: Path) -> None:
    """With nothing but what the locks name: the last command has no index."""
    pattern = re.compile(r"^[$#] (\.venv/bin/pip .+)$", re.MULTILINE)
    commands = [
        pattern.findall((PROJECT / "docs" / name).read_text(encoding="utf-8"))
        for name in ("deploy.md", "restore.md")
    ]
    assert commands[0] == commands[1]
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", PROJECT, checkout], check=True)
    subprocess.run([sys.executable, "-m", "venv", checkout / ".venv"], check=True)
    for command in commands[0]:
        subprocess.run(shlex.split(command), cwd=checkout, check=True)
    done = subprocess.run(
        [checkout / ".venv" / "bin" / "schedgen-backups", "--version"], cwd=tmp_path, stdout=PIPE, check=True
    )
    assert done.stdout.decode().split()[-1] == TOOL_VERSION


def test_setup_and_backup_take_a_point_and_status_is_green(installed: Installed) -> None:
    code, seen = installed.set_up()
    assert code == 0, seen
    assert installed.run("backup", "--reason", "by hand")[0] == 0
    assert [point.state for point in Catalog(installed.points).list_points()] == [
        PointState.VERIFIED,
        PointState.VERIFIED,
    ]
    code, seen = installed.run("status")
    assert (code, seen.startswith("OK: newest verified recovery point ")) == (0, True), seen
    config = installed.folder / "home" / "dagster.yaml"
    assert "telemetry:\n  enabled: false" in config.read_text(encoding="utf-8")
    assert config.resolve().is_relative_to(installed.folder / "environment")
    code, seen = installed.run("manual")
    assert (code, seen.startswith(".TH")) == (0, True)


def test_a_drill_passes_where_only_the_store_the_key_and_the_wheel_are_left(
    installed: Installed, tmp_path: Path
) -> None:
    code, seen = installed.run("stores", "make-key")
    assert code == 0, seen
    [private], [public] = re.findall(r"AGE-SECRET-KEY-1\w+", seen), re.findall(r"\bage1\w+", seen)
    store = installed.folder / "nas"
    stores_file = tmp_path / "stores.toml"
    stores_file.write_text(f'[stores.nas]\nurl = "file://{store}"\nrecipients = ["{public}"]\n')
    installed.set(BACKUP_STORES_FILE=str(stores_file))
    for command in ("prepare", "copy"):
        code, seen = installed.run("stores", command, "nas")
        assert code == 0, seen
    # Another machine: no database, no bucket, no backup directory, no key but the one that was kept.
    copied = tmp_path / "carried"
    shutil.copytree(store, copied)
    stores_file.write_text(f'[stores.nas]\nurl = "file://{copied}"\nrecipients = ["{public}"]\n')
    identity = tmp_path / "key.txt"
    identity.write_text(private)
    elsewhere = installed.move(tmp_path / "machine", BACKUP_STORES_FILE=str(stores_file))
    source = ("--from", "nas", "--identity", str(identity))
    for command in (("list",), ("show", "latest"), ("verify", "latest"), ("drill", "latest")):
        code, seen = elsewhere.run(*command, *source)
        assert code == 0, seen
    assert "equal" in seen


def test_the_ui_is_served_with_its_code_location(installed: Installed) -> None:
    [port] = free_ports(1)
    process = subprocess.Popen(
        [str(installed.programs / "schedgen-backups"), "serve", "--port", str(port)],
        cwd=installed.folder,
        env=installed.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def ask(path: str, body: bytes | None = None) -> str:
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{port}{path}", data=body, headers={"Content-Type": "application/json"}
        )
        with suppress(OSError), urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310
            return response.read().decode()
        return ""

    query = b'{"query": "{repositoriesOrError {... on RepositoryConnection {nodes {pipelines {name}}}}}"}'
    try:
        wait_until(lambda: "dagster_webserver_version" in ask("/server_info"), "the UI answers")
        wait_until(lambda: "backup_job" in ask("/graphql", query), "the code location is loaded")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize(
    ("kind", "file"),
    [("systemd", "schedgen-backup.service"), ("cron", "schedgen-backups"), ("helm", "values.yaml")],
)
def test_the_deployment_files_name_this_installation(installed: Installed, kind: str, file: str) -> None:
    folder = installed.folder / kind
    code, seen = installed.run("deploy", kind, "--to", str(folder))
    assert code == 0, seen
    text = (folder / file).read_text(encoding="utf-8")
    if kind != "helm":
        assert f"{installed.programs}/schedgen-backups backup" in text
        assert f"BACKUP_ENV_FILE={installed.env}" in text
        assert "/opt/schedgen-backups" not in text
    code, seen = installed.run("deploy", kind, "--to", str(folder))
    assert (code, "is not an empty directory" in seen) == (4, True)


def test_the_compose_folder_builds_its_image(installed: Installed) -> None:
    """The checkout has the same files: a wheel that is built there is equal."""
    folder = installed.folder / "compose"
    assert installed.run("deploy", "compose", "--to", str(folder))[0] == 0
    words = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--outdir",
        str(installed.folder / "again"),
        str(folder),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [again] = (installed.folder / "again").glob("*.whl")
    with zipfile.ZipFile(again) as opened:
        names = {name for name in opened.namelist() if "dist-info" not in name}
    assert {str(path.relative_to(PROJECT)) for path in (PROJECT / "schedgen_backups").rglob("*.py")} <= names
    for name in (
        "docker/compose.yaml",
        "docker/Dockerfile",
        "docker/socket-proxy.Dockerfile",
        ".dockerignore",
    ):
        assert (folder / name).read_bytes() == (PROJECT / name).read_bytes()
