"""Which settings apply to the command line, to runs, and to what `make serve` starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups.config.variables import ENV_FILE_VARIABLE
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups_tests.support.sites import Site, failures_of

pytestmark = [pytest.mark.edge]

PROJECT = Path(__file__).resolve().parents[3]
AS_DAGSTER_STARTS = """
from dagster._cli.utils import get_possibly_temporary_instance_for_cli
from schedgen_backups.config.config import load_config
with get_possibly_temporary_instance_for_cli("dagster dev"):
    print(load_config().bucket.bucket)
"""


def write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path


def test_an_edited_environment_file_applies_to_the_next_run(site: Site, instance: dg.DagsterInstance) -> None:
    """The process that holds the definitions is not restarted."""
    site.unset("MINIO_BUCKET")
    write(site.env, "MINIO_BUCKET=no-such-bucket\n")
    assert "no-such-bucket" in failures_of(site.run(instance))["minio_archive"].description
    write(site.env, f"MINIO_BUCKET={site.application.bucket.bucket}\n")
    assert site.run(instance).success


def test_the_environment_file_of_a_command_applies_to_its_run(site: Site, tmp_path: Path) -> None:
    site.unset("BACKUP_DIR")
    other = write(tmp_path / "other.env", "BACKUP_DIR=points\n")
    result = site.cli("--env-file", str(other), "backup")
    assert result.code == 0, result.stderr
    assert [f"{point.point_id}\n" for point in Catalog(tmp_path / "points").list_points()] == [result.stdout]
    assert (
        site.cli("list", "--json", **{ENV_FILE_VARIABLE: str(other)}).stdout
        == site.cli("--env-file", str(other), "list", "--json").stdout
    )


def test_a_missing_named_environment_file_exits_with_4(site: Site) -> None:
    for command in (("list",), ("status",), ("backup",), ("doctor",)):
        result = site.cli("--env-file", "none.env", *command)
        assert result.code == 4
        assert "does not exist" in result.stderr + result.stdout


def test_doctor_warns_about_a_group_writable_file(site: Site) -> None:
    site.env.chmod(0o660)
    results = {
        result["what"]: result for result in json.loads(site.cli("doctor", "--json").stdout)["results"]
    }
    assert (results["environment file"]["state"], results["environment file"]["fix"]) == (
        "note",
        f"chmod g-w {site.env}",
    )


@pytest.mark.usefixtures("site")
def test_doctor_runs_no_program_named_by_a_foreign_folder(tmp_path: Path) -> None:
    """When root called it below another user's folder, it ran that folder's PG_BIN_DIR."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "workspace.yaml").touch()
    for program in ("pg_dump", "psql", "pg_dumpall"):
        path = write(foreign / program, f"#!/bin/sh\ntouch {foreign}/was-run\n")
        path.chmod(0o755)
    write(foreign / ".env", f"PG_BIN_DIR={foreign}\n")
    environment = {name: value for name, value in os.environ.items() if name != ENV_FILE_VARIABLE}
    words = [sys.executable, "-m", "schedgen_backups.cli.main", "doctor", "--json"]
    done = subprocess.run(
        words,
        cwd=foreign,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert str(foreign) not in done.stdout
    assert not (foreign / "was-run").exists()


def test_status_and_list_need_no_password(site: Site) -> None:
    assert site.cli("backup").code == 0
    site.unset("POSTGRES_PASSWORD", "MINIO_SECRET_KEY")
    site.set(BACKUP_DOWNLOAD_THREADS="eight")
    assert (site.cli("status").code, site.cli("list").code, site.cli("verify", "latest").code) == (0, 0, 0)


@pytest.fixture
def served(tmp_path: Path) -> tuple[Path, Path]:
    """Return a checkout whose .env names a bucket, and a DAGSTER_HOME for `make serve`."""
    checkout, home = tmp_path / "checkout", tmp_path / "checkout" / ".dagster"
    home.mkdir(parents=True)
    write(checkout / ".env", "MINIO_BUCKET=of-the-file\n")
    return checkout, home


def find_bucket(served: tuple[Path, Path], folder: Path, **environment: str) -> str:
    """Return the bucket in effect for code that `dagster dev` loads when started in this folder."""
    keys = {
        "MINIO_ACCESS_KEY": "key",
        "MINIO_SECRET_KEY": "secret",
        ENV_FILE_VARIABLE: str(served[0] / ".env"),
    }
    environment = {
        **{name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
        **keys,
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", AS_DAGSTER_STARTS],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_make_serve_prefers_the_environment_to_the_file(served: tuple[Path, Path]) -> None:
    checkout, folder = served
    assert find_bucket(served, folder) == "of-the-file"
    assert find_bucket(served, folder, MINIO_BUCKET="of-the-environment") == "of-the-environment"
    # In the checkout, Dagster itself prefers the file to the environment, so it is not started there.
    assert find_bucket(served, checkout, MINIO_BUCKET="of-the-environment") == "of-the-file"
