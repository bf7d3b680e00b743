"""`before-deployment`: a verified, pinned backup, its marker file and the rollback commands.

The tests run these commands.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.pins import read_pin
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.retention.prune import plan_pruning
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.units import parse_span
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.support.roles import make_documented_roles
from schedgen_backups_tests.support.servers import client_of, run
from schedgen_backups_tests.support.sites import Application, Site

pytestmark = [pytest.mark.edge]

LABEL = "deployment=v2.1.0; $(touch leaked)"
MARKER = ".last-deployment-backup"


@pytest.fixture
def deployed(
    tmp_path: Path, postgres_server: EmbeddedPostgres, weed: EmbeddedS3, monkeypatch: pytest.MonkeyPatch
) -> Site:
    """Return a site with its own application and the three roles of docs/restore.md; none is a superuser."""
    name = f"deploy_{uuid4().hex}"
    bucket = weed.settings(name.replace("_", "-"))
    roles = make_documented_roles(postgres_server.create_database(name))
    seed_application(roles.owner, bucket, user_count=10, job_count=20)
    site = Site(tmp_path, Application(roles.reader, bucket), monkeypatch)
    site.set(RESTORE_POSTGRES_USER=roles.restorer.user, RESTORE_POSTGRES_PASSWORD=roles.restorer.password)
    return site


def source(marker: Path) -> dict[str, str]:
    """Return the variables of a shell that sourced the marker."""
    done = subprocess.run(
        ["sh", "-c", 'set -eu; . "$0"; set | grep ^LAST_BACKUP_', str(marker)],
        cwd=marker.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        name: value.strip("'")
        for name, _separator, value in (line.partition("=") for line in done.stdout.splitlines())
    }


def test_a_rollback_restores_the_pinned_point_of_the_marker(
    deployed: Site,
) -> None:
    taken = deployed.cli("backup", "--pin-for", "30d", "--label", LABEL, "--write-marker", MARKER)
    assert (taken.code, taken.stderr) == (0, "")
    [point] = deployed.points()
    catalog = Catalog(deployed.directory)
    pin = read_pin(catalog, point.point_id)
    assert pin is not None
    assert pin.expires_at is not None
    assert pin.reason == LABEL
    assert timedelta(days=29) < pin.expires_at - datetime.now(timezone.utc) <= timedelta(days=30)
    policy = RetentionPolicy(keep_days=1, keep_last=1, keep_weeks=0, keep_months=0, timezone=ZoneInfo("UTC"))
    assert any(
        LABEL in reason
        for decision in plan_pruning(catalog, policy, datetime.now(timezone.utc)).decisions
        for reason in decision.reasons
    )

    marker = source(deployed.folder / MARKER)
    assert (marker["LAST_BACKUP_ID"], marker["LAST_BACKUP_LABEL"]) == (point.point_id.text, LABEL)
    assert datetime.fromisoformat(marker["LAST_BACKUP_TAKEN_AT"]) == point.point_id.taken_at
    assert marker["LAST_BACKUP_LOCATION"] == str(deployed.directory)
    assert not (deployed.folder / "leaked").exists()

    answer = json.loads(deployed.cli("last", "--label", "deployment", "--json").stdout)
    assert (answer["id"], answer["labels"], answer["is_pinned"]) == (
        point.point_id.text,
        dict([LABEL.split("=", 1)]),
        True,
    )
    commands = [answer["rollback"]["database"], answer["rollback"]["bucket"]]
    text = deployed.cli("last", "--label", LABEL).stdout
    assert all(command in text for command in (point.point_id.text, *commands))

    database, bucket = deployed.application.database, deployed.application.bucket
    before = run(database, "SELECT id, s3_key FROM jobs ORDER BY id")
    key = next(key for _id, key in before if key)
    run(replace(database, user=database.user.replace("reader", "owner")), "DELETE FROM jobs")
    client_of(bucket).remove_object(bucket.bucket, key)
    for command in commands:
        words = command.replace("schedgen-backups", f"{sys.executable} -m schedgen_backups.cli.main", 1)
        done = subprocess.run(
            ["sh", "-c", words], cwd=deployed.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert run(database, "SELECT id, s3_key FROM jobs ORDER BY id") == before
    assert client_of(bucket).stat_object(bucket.bucket, key).size


def test_a_failed_backup_keeps_the_old_marker_and_its_exit_code(
    site: Site,
) -> None:
    marker = site.folder / MARKER
    marker.write_text("LAST_BACKUP_ID=20260101_020000\n", encoding="utf-8")
    failed = site.cli(
        "backup",
        "--pin-for",
        "30d",
        "--label",
        "deployment=v2",
        "--write-marker",
        MARKER,
        MINIO_BUCKET="no-such-bucket",
    )
    assert failed.code == 2
    assert marker.read_text(encoding="utf-8") == "LAST_BACKUP_ID=20260101_020000\n"
    assert list(site.folder.glob(f".{MARKER}*")) == []
    without = site.cli("last", "--label", "deployment=v2")
    assert (without.code, without.stdout) == (8, "")
    assert "no verified recovery point with the label deployment=v2" in without.stderr


@pytest.mark.parametrize("words", [("--pin-for", "soon"), ("--write-marker", "no/such/folder/marker")])
def test_impossible_options_are_refused_before_the_backup(site: Site, words: tuple[str, str]) -> None:
    assert site.cli("backup", *words).code == 4
    assert not site.directory.exists() or site.points() == ()


@pytest.mark.parametrize("text", ["", "30", "0d", "-1d", "1y", "d", "9999999w", "1d2h"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="invalid duration"):
        parse_span(text)


def test_durations_are_hours_days_and_weeks() -> None:
    assert [parse_span(text) for text in ("12h", "30d", "4w")] == [
        timedelta(hours=12),
        timedelta(days=30),
        timedelta(weeks=4),
    ]
