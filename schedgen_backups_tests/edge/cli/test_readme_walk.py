"""From an empty system to a restored one with the README's and the program's printed commands only.

The terminal has 80 columns, the roles are those of docs/restore.md, and the bucket has odd keys. Other tests
cover what each command does in detail.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pexpect
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.edge.setup.test_setup import Machine, Person
from schedgen_backups_tests.support.points import put
from schedgen_backups_tests.support.roles import DocumentedRoles, make_documented_roles
from schedgen_backups_tests.support.servers import client_of, run
from schedgen_backups_tests.support.sites import Application

pytestmark = [pytest.mark.edge, pytest.mark.timeout(900)]

SCREEN = (24, 80)
ODD_KEYS = ("odd/ü ä.pdf", "odd/100% 'x'.pdf", "odd/two  blanks.pdf", 'odd/"q"#?.pdf', "odd/[glob]*.pdf")
PROJECT = Path(__file__).resolve().parents[3]


class Checkout(Machine):
    """The files that `git clone` brings, with nothing installed: `make` does that."""

    def __init__(self, folder: Path, application: Application, webhook_url: str) -> None:
        super().__init__(folder, application, webhook_url)
        shutil.rmtree(self.folder)
        subprocess.run(["git", "clone", "--quiet", PROJECT, self.folder], check=True)

    def words(self, *flags: str) -> list[str]:
        """Return the words of a README command."""
        return ["make", "setup", *flags]


class Operator:
    """An operator at a terminal of 80 columns, in a checkout that setup has configured.

    `export` is the line that setup printed to find the program.
    """

    def __init__(self, machine: Machine, roles: DocumentedRoles, bucket: BucketSettings, export: str) -> None:
        self.machine, self.roles, self.bucket, self.export = machine, roles, bucket, export
        self.jobs = run(roles.owner, "SELECT id::text, s3_key FROM jobs ORDER BY s3_key")

    def type(self, command: str, *answers: tuple[str, str]) -> str:
        """Run a command that must exit with 0; return the terminal's content.

        `answers` pairs each prompt with what is typed.
        """
        # A copy is run by the tests' interpreter; a clone has its own.
        source = {} if isinstance(self.machine, Checkout) else {"PYTHONPATH": str(self.machine.folder)}
        environment = {**self.machine.environment, "TERM": "xterm", **source}
        words = ["-c", f"{self.export}; {command}"]
        child = pexpect.spawn(
            "sh",
            words,
            cwd=str(self.machine.folder),
            env=environment,
            dimensions=SCREEN,
            timeout=180,
            encoding="utf-8",
        )
        seen = ""
        for prompt, text in answers:
            child.expect_exact(prompt)
            seen += child.before + prompt
            child.expect(r": $")
            child.sendline(text)
        child.expect(pexpect.EOF)
        child.close()
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen + child.before).replace("\r\n", "\n")
        assert child.exitstatus == 0, text
        return text

    def pick_job(self, key: str) -> str:
        return next(str(job_id) for job_id, found in self.jobs if found == key)

    def sql(self, statement: str) -> None:
        """Run printed SQL as operators do: in psql, as the restoring role, connected to another database."""
        restorer = self.roles.restorer
        run(replace(restorer, database="postgres"), statement)


@pytest.fixture(
    params=[Machine, pytest.param(Checkout, marks=pytest.mark.exhaustive)],
    ids=["from a copy", "from a clone"],
)
def operator(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: EmbeddedPostgres, weed: EmbeddedS3
) -> Operator:
    """Return an operator of an application with odd keys and documented roles, after interactive setup."""
    name = f"walk_{uuid4().hex[:12]}"
    bucket = weed.settings(name.replace("_", "-"))
    roles = make_documented_roles(postgres_server.create_database(name))
    seed_application(roles.owner, bucket, user_count=10, job_count=20)
    for key, (job_id,) in zip(
        ODD_KEYS,
        run(roles.owner, "SELECT id::text FROM jobs WHERE s3_key IS NOT NULL ORDER BY id"),
        strict=False,
    ):
        run(roles.owner, f"UPDATE jobs SET s3_key = $key${key}$key$ WHERE id = '{job_id}'")
        put(bucket, key, f"%PDF-1.4 {key}".encode(), "text/plain")
    machine = request.param(tmp_path, Application(roles.reader, bucket), "")
    person = Person(machine, dimensions=SCREEN)
    person.answer("What starts the backups", "none")
    person.answer_all(
        [("Database server", roles.reader.host), ("Port of the database server", str(roles.reader.port))]
    )
    person.answer_all(
        [
            ("Role that can read", roles.reader.user),
            ("Database", name),
            ("Password of the role", roles.reader.password),
        ]
    )
    person.answer_all([("S3 server", bucket.endpoint), ("Use https", ""), ("Bucket", bucket.bucket)])
    person.answer_all(
        [
            ("Access key", bucket.access_key),
            ("Secret key", bucket.secret_key),
            ("Query that returns the keys", ""),
        ]
    )
    person.answer_all(
        [
            ("Directory for recovery points", str(machine.points)),
            ("Schedule of backups", ""),
            ("Time zone", ""),
            ("Days to keep recovery points", ""),
        ]
    )
    person.answer_all(
        [
            ("Name of this installation", "walk"),
            ("Webhook URL for alerts", ""),
            ("Recipients of alerts by email", ""),
            ("none for no store", ""),
        ]
    )
    assert person.see_the_end() == 0, person.seen
    with machine.env.open("a", encoding="utf-8") as env:
        env.write(
            f"RESTORE_POSTGRES_USER={roles.restorer.user}\nRESTORE_POSTGRES_PASSWORD={roles.restorer.password}\n"
        )
    [export] = re.findall(r"^  (export PATH=.*?)\r?$", person.seen, re.MULTILINE)
    return Operator(machine, roles, bucket, export)


def test_a_new_system_is_backed_up_and_restored_with_printed_commands_only(operator: Operator) -> None:
    owner, database = operator.roles.owner, operator.roles.owner.database
    [point] = Catalog(operator.machine.points).list_points()
    assert point.state is PointState.VERIFIED
    status = operator.type("schedgen-backups status")
    assert status.startswith(f"OK: newest verified recovery point {point.point_id} is")
    assert status.count("\n") == 1
    drilled = operator.type("schedgen-backups drill")
    assert re.search(r"database_is_equal +passed", drilled)
    assert re.search(r"bucket_is_equal +passed", drilled)

    # A job and its PDF were deleted.
    job_id, key = operator.pick_job(ODD_KEYS[1]), ODD_KEYS[1]
    run(owner, f"DELETE FROM jobs WHERE id = '{job_id}'")
    client_of(operator.bucket).remove_object(operator.bucket.bucket, key)
    undelete = f"schedgen-backups undelete latest jobs --where \"id = '{job_id}'\""
    assert key in operator.type(f"{undelete} --dry-run")
    assert "1 row and 1 object restored" in operator.type(
        undelete, (f"Type {database} to continue", database)
    )
    assert run(owner, f"SELECT s3_key FROM jobs WHERE id = '{job_id}'") == [(key,)]
    assert client_of(operator.bucket).stat_object(operator.bucket.bucket, key).size

    # A table was damaged: restore it beside the live one, then put its rows back.
    before = run(owner, "SELECT id, name, email FROM users ORDER BY id")
    run(owner, "UPDATE users SET name = 'spoilt'")
    seen = operator.type("schedgen-backups restore-tables latest users")
    assert re.search(r"public\.users +0 +0 +10 +0 ", seen), seen
    [statement] = re.findall(r'DROP DATABASE "[^"]+";', seen)
    assert "repeat the command with --write missing or --write changed" in " ".join(seen.split())
    operator.sql(statement)
    seen = operator.type(
        "schedgen-backups restore-tables latest users --write changed",
        (f"Type {database} to continue", database),
    )
    assert "10 rows written back" in " ".join(seen.split())
    assert run(owner, "SELECT id, name, email FROM users ORDER BY id") == before

    # A migration failed: the printed command swaps the whole database, and the printed statements swap it
    # back.
    run(owner, "DROP TABLE jobs")
    [command] = [
        line.strip() for line in operator.type("schedgen-backups last").splitlines() if "--swap" in line
    ]
    assert shlex.split(command)[:2] == ["schedgen-backups", "restore"]
    seen = operator.type(command)
    assert run(owner, "SELECT id::text, s3_key FROM jobs ORDER BY s3_key") == operator.jobs
    statements = re.findall(r'ALTER DATABASE "[^"]+" RENAME TO "[^"]+";', seen)
    assert len(statements) == 2, seen
    for statement in statements:
        operator.sql(statement)
    assert run(owner, "SELECT to_regclass('jobs') IS NULL") == [(True,)]
    log = operator.type("schedgen-backups log")
    assert log.count(": done") == 5, log
    assert log.count(f"  {point.point_id}\n") == 5


def test_the_commands_of_the_walk_are_in_the_documents() -> None:
    text = "".join(
        (PROJECT / "docs" / name).read_text(encoding="utf-8")
        for name in ("BACKUP_QUICK_REFERENCE.md", "restore.md")
    )
    text += (PROJECT / "README.md").read_text(encoding="utf-8")
    for words in (
        "schedgen-backups status",
        "schedgen-backups drill",
        "undelete latest jobs --where",
        "restore-tables latest jobs",
        "--swap",
    ):
        assert words in text
    done = subprocess.run(
        [sys.executable, "-m", "schedgen_backups.cli.main", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "restore-tables" in done.stdout
