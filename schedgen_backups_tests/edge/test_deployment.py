"""A backup before a deployment, as a deployment script takes it: verified or not zero, pinned, marked, found again, and gone back to."""

from __future__ import annotations

import json
import shlex
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.catalog import Catalog
from schedgen_backups.core.pruning import read_pin
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.edge_support import Application, Site
from schedgen_backups_tests.servers import client_of, run

pytestmark = [pytest.mark.edge]

LABEL = "deployment=v2.1.0"


@pytest.fixture
def own_site(database: DatabaseSettings, weed_bucket: BucketSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site whose application a deployment may spoil."""
    seed_application(database, weed_bucket, user_count=5, job_count=10)
    return Site(tmp_path, Application(database, weed_bucket), monkeypatch)


def source(marker: Path, name: str) -> str:
    """What a shell gets from the marker."""
    return subprocess.run(["bash", "-euc", f". {shlex.quote(str(marker))}; echo ${name}"], capture_output=True, text=True, check=True).stdout.strip()


def test_a_deployment_goes_back_by_the_commands_that_it_was_given(own_site: Site) -> None:
    site = own_site
    marker = site.folder / ".last-deployment-backup"
    taken = site.cli("backup", "--pin-for", "30d", "--label", LABEL, "--write-marker", str(marker))
    assert taken.code == 0, taken.stderr
    point_id = taken.stdout.strip()
    assert (source(marker, "BACKUP_ID"), source(marker, "BACKUP_LABELS")) == (point_id, LABEL)
    assert Path(source(marker, "BACKUP_DATABASE_FILE")).exists()
    [point] = site.points()
    pin = read_pin(Catalog(site.directory), point.point_id)
    assert pin is not None
    assert pin.expires_at is not None
    assert (pin.reason, timedelta(days=29) < pin.expires_at - datetime.now(timezone.utc) <= timedelta(days=30)) == (LABEL, True)

    assert site.cli("backup").code == 0
    found = json.loads(site.cli("last", "--label", LABEL, "--json").stdout)
    assert (found["id"], found["labels"]) == (point_id, {"deployment": "v2.1.0"})
    assert json.loads(site.cli("last", "--json").stdout)["id"] > point_id
    assert point_id in site.cli("last", "--label", "deployment").stdout
    missing = site.cli("last", "--label", "deployment=v9")
    assert (missing.code, "no verified recovery point with the label" in missing.stderr) == (3, True)

    database, bucket = site.application.database, site.application.bucket
    run(database, "DROP TABLE jobs CASCADE")
    for entry in list(client_of(bucket).list_objects(bucket.bucket, recursive=True)):
        client_of(bucket).remove_object(bucket.bucket, entry.object_name or "")
    for command in found["rollback"]:
        program, *words = shlex.split(command)
        assert program == "schedgen-backups"
        done = site.cli(*words)
        assert done.code == 0, done.stderr
    assert run(database, "SELECT count(*) FROM jobs") == [(10,)]
    assert json.loads(site.cli("audit", "--json").stdout)["rows_without_object"] == []
    run(database.with_database("postgres"), f'DROP DATABASE "{database.database}_old_{point_id}"')


def test_a_backup_that_fails_leaves_the_marker_of_the_last_good_one(site: Site) -> None:
    marker = site.folder / "marker"
    marker.write_text("BACKUP_ID=earlier\n", encoding="utf-8")
    failed = site.cli("backup", "--pin-for", "30d", "--write-marker", str(marker), POSTGRES_PASSWORD="wrong")
    assert failed.code == 1
    assert source(marker, "BACKUP_ID") == "earlier"
    assert list(site.directory.glob("pin_*")) == []


@pytest.mark.parametrize("span", ["30", "d", "-1d", "0d", "1 month"])
def test_a_span_that_is_none_is_refused_before_anything_is_taken(site: Site, span: str) -> None:
    refused = site.cli("backup", "--pin-for", span)
    assert (refused.code, "no span of time" in refused.stderr) == (4, True)
    assert site.points() == ()
