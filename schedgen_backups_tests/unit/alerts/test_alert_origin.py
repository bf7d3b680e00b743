"""Every alert names its installation, and every failure is in its history."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from schedgen_backups.alerts.service import AlertService, Failure
from schedgen_backups.config.config import load_config
from schedgen_backups.config.variables import NAMES
from schedgen_backups.core.history.events import RunFailed
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.notify.alert import Severity
from schedgen_backups.core.notify.incidents import IncidentKey
from schedgen_backups_tests.support.alerts import recording_server


@pytest.mark.parametrize(
    ("name", "title", "installation"),
    [
        ("production", "[HIGH] production: Failed", "production"),
        ("", "[HIGH] Failed", f"{socket.gethostname()}, database schedgen@db.example:5432/schedgen"),
    ],
)
def test_an_alert_names_its_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, title: str, installation: str
) -> None:
    for variable in NAMES:
        monkeypatch.delenv(variable, raising=False)
    env = tmp_path / "env"
    env.touch(mode=0o600)
    with recording_server() as server:
        lines = (
            f"BACKUP_NAME={name}",
            f"BACKUP_ALERT_WEBHOOK_URL={server.url('/hook')}",
            f"BACKUP_DIR={tmp_path}",
            "POSTGRES_HOST=db.example",
        )
        env.write_text("\n".join((*lines, "POSTGRES_PASSWORD=secret")), encoding="utf-8")
        AlertService(load_config(env)).raise_trouble(
            IncidentKey(area="run", subject="x"), Severity.HIGH, "Failed", "A reason."
        )
    [received] = server.received
    assert received.json["text"].startswith(f"{title}\n")
    assert f"\ninstallation: {installation}\n" in received.json["text"]


@pytest.mark.parametrize(("run_id", "count"), [("run-1", 1), ("", 2)])
def test_a_failure_is_in_the_history_once_per_run_and_each_time_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_id: str, count: int
) -> None:
    """A run's failure is raised until a channel accepts it; two nights without a run are two failures."""
    for variable in NAMES:
        monkeypatch.delenv(variable, raising=False)
    env = tmp_path / "env"
    env.touch(mode=0o600)
    env.write_text(f"BACKUP_DIR={tmp_path}\n", encoding="utf-8")
    failure = Failure("backup_job", "DAGSTER_HOME cannot be used", "", run_id, "backup_job")
    for _night in range(2):
        AlertService(load_config(env)).raise_failure(failure)
    failed = [event for event in History(tmp_path).read().events if isinstance(event, RunFailed)]
    assert len(failed) == count
