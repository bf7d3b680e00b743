"""DAGSTER_HOME is private and created by one process at a time.

Problems with it are alerted before any run starts.
"""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing

import pytest

from schedgen_backups.config.config import load_config
from schedgen_backups.core.errors import StorageError
from schedgen_backups.exit_codes import STORAGE_EXIT_CODE
from schedgen_backups.runs.home import prepare_home
from schedgen_backups_tests.support.alerts import recording_server
from schedgen_backups_tests.support.sites import Site

pytestmark = [pytest.mark.edge]
_OPEN = """
import sys
from schedgen_backups.config.config import load_config
from schedgen_backups.runs import in_process
sys.stdin.read()
with in_process._open_instance(load_config(), "backup_job") as instance:
    instance.get_runs_count()
"""


def test_a_new_home_is_private_to_its_owner(site: Site) -> None:
    site.set(DAGSTER_HOME=str(site.folder / "new"))
    assert stat.S_IMODE(prepare_home(load_config().file).stat().st_mode) == 0o700


def test_processes_that_start_together_create_one_usable_home(site: Site) -> None:
    home = site.folder / "new"
    home.mkdir()
    shutil.copy(site.home / "dagster.yaml", home)
    site.set(DAGSTER_HOME=str(home))
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.close()
        starter.stdin = None
    complaints = [starter.communicate()[1] for starter in starters]
    assert [starter.returncode for starter in starters] == [0] * 4, complaints
    for database in home.glob("**/*.db"):
        with closing(sqlite3.connect(database)) as connection, connection:
            assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,), database


def test_a_home_that_dagster_cannot_use_is_alerted_and_printed(site: Site) -> None:
    (site.home / "history").mkdir()
    (site.home / "history" / "runs.db").write_bytes(b"not a database" * 100)
    with recording_server() as server:
        site.set(BACKUP_ALERT_WEBHOOK_URL=server.url("/hook"))
        result = site.cli("backup")
    assert result.code == STORAGE_EXIT_CODE
    assert "error: Dagster cannot work in DAGSTER_HOME: " in result.stderr
    assert "What to do: " in result.stderr
    assert "Traceback" not in result.stderr
    (received,) = server.received
    assert received.json["text"].startswith(
        "[CRITICAL] Backup failed: backup_job\nDagster cannot work in DAGSTER_HOME: "
    )


def test_a_home_that_is_not_a_directory_is_a_storage_error(site: Site) -> None:
    (site.folder / "file").touch()
    site.set(DAGSTER_HOME=str(site.folder / "file" / "home"))
    with pytest.raises(StorageError, match="cannot be used"):
        prepare_home(load_config().file)


def test_a_home_whose_checkout_moved_is_linked_to_the_present_one(site: Site) -> None:
    """As after an upgrade into another folder: Dagster would not start."""
    home = site.folder / "moved"
    home.mkdir()
    (home / "dagster.yaml").symlink_to(site.folder / "gone" / "dagster.yaml")
    site.set(DAGSTER_HOME=str(home))
    prepare_home(load_config().file)
    assert "telemetry" in (home / "dagster.yaml").read_text(encoding="utf-8")
