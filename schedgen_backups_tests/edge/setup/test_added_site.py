"""Setup adds a site to a file of sites, against real servers."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups_tests.support.alerts import RecordingServer, recording_server
from schedgen_backups_tests.support.setup_machine import Machine, Person
from schedgen_backups_tests.support.sites import Application

pytestmark = [pytest.mark.edge]

FILE = """# of the operators
[defaults]
postgres_user = "nobody"
backup_retention_days = 9

[sites.shop]
backup_dir = "shop"
postgres_db = "shop"
minio_bucket = "shop-pdfs"   # and so on
"""


@pytest.fixture
def inbox() -> Iterator[RecordingServer]:
    with recording_server() as server:
        yield server


@pytest.fixture
def machine(tmp_path: Path, application: Application, inbox: RecordingServer) -> Machine:
    """Return a machine with a file of one site."""
    machine = Machine(tmp_path, application, inbox.url("/alerts/path-canary-4712"))
    (machine.folder / "sites.toml").write_text(FILE)
    machine.env.write_text(f"BACKUP_SITES_FILE=sites.toml\nMINIO_ENDPOINT={machine.bucket.endpoint}\n")
    machine.env.chmod(0o600)
    return machine


def test_a_site_is_added_with_what_differs_and_is_backed_up(machine: Machine, inbox: RecordingServer) -> None:
    code, seen = machine.run("--site", "blog", *machine.answer_flags(), "--yes")
    assert code == 0, seen
    text = (machine.folder / "sites.toml").read_text()
    assert text.startswith(FILE)
    added = text.removeprefix(FILE)
    assert added.startswith("\n[sites.blog]\n")
    keys = set(re.findall(r"^(\w+) = ", added, re.MULTILINE))
    assert {"backup_dir", "postgres_db", "minio_bucket", "postgres_user", "postgres_password_file"} <= keys
    # Inherited, the name of the site, or the default.
    assert not keys & {"minio_endpoint", "backup_retention_days", "backup_name", "backup_timezone"}
    for secret in machine.secrets:
        assert secret not in seen + text
    for key in ("postgres_password", "minio_secret_key", "backup_alert_webhook_url"):
        assert stat.S_IMODE((machine.folder / f"blog.{key}").stat().st_mode) == 0o600
    assert len([message for message in inbox.received if "test alert" in str(message.json["text"])]) == 1
    assert len(list(machine.folder.glob("sites.toml.old-*"))) == 1
    code, seen = machine.run_command("--site", "blog", "backup")
    assert code == 0, seen
    assert [point.state for point in Catalog(machine.points).list_points()] == [PointState.VERIFIED]
    code, seen = machine.run_command("sites", "--json")
    assert [site["problem"] for site in json.loads(seen)["sites"]][1] is None


def test_a_dry_run_writes_nothing(machine: Machine) -> None:
    flags = machine.answer_flags()
    before = machine.snapshot()
    code, seen = machine.run("--site", "blog", *flags, "--yes", "--dry-run")
    assert (code, "[sites.blog]" in seen, machine.snapshot()) == (0, True, before), seen
    assert not any(secret in seen for secret in machine.secrets)


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("shop", (), "describes the site shop already"),
        ("Blog", (), "cannot be the name of a site"),
        ("blog", ("--postgres-db", "no_such_database"), "no_such_database"),
        ("blog", ("--backup-dir", "shop/inner"), "share the directory"),
    ],
)
def test_a_wrong_answer_writes_nothing(
    machine: Machine, name: str, flags: tuple[str, ...], said: str
) -> None:
    given = machine.answer_flags()
    before = machine.snapshot()
    code, seen = machine.run("--site", name, *given, "--yes", *flags)
    assert (code, said in seen, machine.snapshot()) == (4, True, before), seen


def test_a_file_of_sites_that_is_not_text_is_left_alone(machine: Machine) -> None:
    (machine.folder / "sites.toml").write_bytes(FILE.encode() + b"# \xff\n")
    flags = machine.answer_flags()
    before = machine.snapshot()
    code, seen = machine.run("--site", "blog", *flags, "--yes")
    assert (code, "must be a UTF-8 text file" in seen, machine.snapshot()) == (4, True, before), seen


def test_without_a_file_of_sites_setup_says_how_to_make_one(machine: Machine) -> None:
    machine.env.write_text("")
    code, seen = machine.run("--site", "blog", "--yes")
    assert (code, "sites import-env" in seen) == (4, True)


def test_a_person_is_asked_the_same_questions_with_the_inherited_values_as_defaults(machine: Machine) -> None:
    person = Person(machine, "--site", "blog")
    person.answer_all(
        [
            ("Database server", machine.database.host),
            ("Port of the database server", str(machine.database.port)),
            ("Role that can read the database", machine.database.user),
            ("Database", machine.database.database),
            ("Password of the role", machine.database.password),
        ]
    )
    person.expect(machine.bucket.endpoint)
    person.answer_all(
        [
            ("", ""),
            ("Use https", ""),
            ("Bucket", machine.bucket.bucket),
            ("Access key", machine.bucket.access_key),
            ("Secret key", machine.bucket.secret_key),
            ("Query that returns the keys of the objects", ""),
            ("Directory for recovery points", str(machine.points)),
            ("Schedule of backups", "30 1 * * *"),
            ("Time zone", "UTC"),
            ("Days to keep recovery points [9]", ""),
            ("every alert contains it [blog]", ""),
            ("Webhook URL for alerts", ""),
            ("Recipients of alerts by email", ""),
        ]
    )
    assert person.see_the_end() == 0, person.seen
    text = (machine.folder / "sites.toml").read_text()
    assert 'backup_schedule = "30 1 * * *"' in text
    assert not any(secret in person.seen + text for secret in machine.secrets)
