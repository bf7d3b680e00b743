"""Setup at a terminal, with wrong answers first, and without one, as a script runs it.

Servers, channels and the first recovery point are real. A program that records its arguments replaces Docker
in the last step; `docker/` tests what compose does.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dotenv import dotenv_values

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.setup.draft import Draft
from schedgen_backups_tests.support.alerts import RecordingServer, closed_port, recording_server
from schedgen_backups_tests.support.setup_machine import Machine, Person
from schedgen_backups_tests.support.sites import Application
from schedgen_backups_tests.support.small_disk import mount_small_disk

pytestmark = [pytest.mark.edge]

OLD_ENV = (
    "# of the application\nJWT_SECRET=canary-of-the-application\n\nBACKUP_SCHEDULE='15 3 * * *' # at "
    "night\nPOSTGRES_PASSWORD=old-canary\n"
)


@pytest.fixture
def inbox() -> Iterator[RecordingServer]:
    with recording_server() as server:
        yield server


@pytest.fixture
def machine(tmp_path: Path, application: Application, inbox: RecordingServer) -> Machine:
    return Machine(tmp_path, application, inbox.url("/alerts/path-canary-4712"))


def assert_secrets_are_kept(machine: Machine, seen: str) -> None:
    assert [secret for secret in machine.secrets if secret in seen] == []
    for path in machine.folder.glob(".env*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def assert_first_point_is_verified(machine: Machine) -> None:
    assert [point.state for point in Catalog(machine.points).list_points()] == [PointState.VERIFIED]


def answer_questions(person: Person, machine: Machine, *, is_here: bool, is_cron: bool = False) -> None:
    """Give wrong password, bucket, cron string, zone and address.

    Each is reported at once and asked again.
    """
    database = [
        ("Database server", machine.database.host),
        ("Port of the database server", str(machine.database.port)),
        ("Role that can read the database", machine.database.user),
        ("Database", machine.database.database),
    ]
    person.answer_all([*database, ("Password of the role", "wrong")])
    person.expect("authentication failed")
    person.answer("Keep these answers", "n")
    person.answer_all(
        [*((prompt, "") for prompt, _text in database), ("Password of the role", machine.database.password)]
    )
    person.answer("S3 server", "http://no-endpoint")
    person.expect("expected host:port without http://")
    bucket = [
        ("Use https", ""),
        ("Bucket", machine.bucket.bucket),
        ("Access key", machine.bucket.access_key),
    ]
    person.answer("S3 server", machine.bucket.endpoint)
    person.answer_all(
        [
            ("Use https", ""),
            ("Bucket", "no-such-bucket"),
            *bucket[2:],
            ("Secret key", machine.bucket.secret_key),
        ]
    )
    person.expect("bucket:")
    person.answer("Keep these answers", "n")
    person.answer_all([("S3 server", ""), *bucket, ("Secret key", "")])
    person.expect("the tables of the preset schedgen")
    person.expect('SELECT "s3_key" FROM "public"."jobs"')
    person.answer("Query that returns the keys of the objects", "SELECT key FROM nowhere")
    person.expect("BACKUP_REFERENCE_QUERY cannot be used")
    person.answer("Keep these answers", "n")
    person.answer("Query that returns the keys of the objects", "9")
    person.expect("a number from 0 to")
    person.answer("Query that returns the keys of the objects")
    person.expect("0 rows without their object")
    if is_here:
        person.answer("Directory for recovery points", str(machine.points))
    person.answer("Schedule of backups", "every night")
    person.expect("BACKUP_SCHEDULE: 'every night' is invalid, expected a cron string")
    person.answer("Schedule of backups", "30 1 * * 1-5")
    person.answer("Time zone", "Africa/Nowhere")
    person.expect("expected a time zone")
    person.answer("Time zone", "Africa/Johannesburg")
    person.answer("Days to keep recovery points", "14")
    if is_cron:
        person.expect("cron uses this machine's local time")
        person.answer("Keep these answers", "n")
        person.answer_all(
            [
                ("Directory for recovery points", ""),
                ("Schedule of backups", ""),
                ("Time zone", "UTC"),
                ("Days to keep recovery points", "14"),
            ]
        )
    person.answer("Name of this installation", "night shift")
    person.answer("Webhook URL for alerts", f"http://127.0.0.1:{closed_port()}/nobody")
    person.answer("Recipients of alerts by email", "")
    person.expect("did not accept the test alert")
    person.answer("Keep these answers", "n")
    person.answer("Name of this installation", "")
    person.answer("Webhook URL for alerts", machine.webhook_url)
    person.answer("Recipients of alerts by email", "")
    person.answer("Store of copies", "")


def read_answers(machine: Machine) -> dict[str, str | None]:
    names = (
        "POSTGRES_PASSWORD",
        "MINIO_SECRET_KEY",
        "MINIO_BUCKET",
        "BACKUP_SCHEDULE",
        "BACKUP_TIMEZONE",
        "BACKUP_RETENTION_DAYS",
    )
    values = dotenv_values(machine.env)
    return {name: values[name] for name in (*names, "BACKUP_NAME", "BACKUP_ALERT_WEBHOOK_URL")}


@pytest.mark.parametrize(
    "deployment",
    ["systemd", *(pytest.param(other, marks=pytest.mark.exhaustive) for other in ("cron", "none"))],
)
def test_wrong_answers_are_reported_at_once_and_right_ones_lead_to_a_verified_point(
    deployment: str, machine: Machine, inbox: RecordingServer
) -> None:
    machine.env.write_text(OLD_ENV, encoding="utf-8")
    # The first point does not depend on the kind of deployment: test one kind with files of its own and the
    # one without.
    has_point = deployment != "cron"
    person = Person(machine, *([] if has_point else ["--no-first-backup"]), TZ="UTC")
    person.answer("What starts the backups", "windows")
    person.expect("one of compose, systemd, cron, none")
    person.answer("What starts the backups", deployment)
    answer_questions(person, machine, is_here=True, is_cron=deployment == "cron")
    assert person.see_the_end() == 0, person.seen
    assert ("A recovery point was taken and verified." in person.seen) is has_point
    assert read_answers(machine) == {
        "POSTGRES_PASSWORD": machine.database.password,
        "MINIO_SECRET_KEY": machine.bucket.secret_key,
        "MINIO_BUCKET": machine.bucket.bucket,
        "BACKUP_SCHEDULE": "30 1 * * 1-5",
        "BACKUP_TIMEZONE": "UTC" if deployment == "cron" else "Africa/Johannesburg",
        "BACKUP_RETENTION_DAYS": "14",
        "BACKUP_NAME": "night shift",
        "BACKUP_ALERT_WEBHOOK_URL": machine.webhook_url,
    }
    text = machine.env.read_text(encoding="utf-8")
    assert text.startswith(
        "# of the application\nJWT_SECRET=canary-of-the-application\n\nBACKUP_SCHEDULE='30 1 * * 1-5' # at "
        "night\n"
    )
    [old] = machine.folder.glob(".env.old-*")
    assert old.read_text(encoding="utf-8") == OLD_ENV
    assert_secrets_are_kept(machine, person.seen)
    if has_point:
        assert_first_point_is_verified(machine)
    assert [
        received.json["text"]
        for received in inbox.received
        if "[INFO] night shift: Test of" in str(received.json["text"])
    ] != []
    units, cron = (
        sorted(path.name for path in machine.places[name].glob("*")) for name in ("unit-dir", "cron-dir")
    )
    if deployment == "systemd":
        assert len(units) == 5
        assert "OnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 1:30:00 Africa/Johannesburg\n" in (
            machine.places["unit-dir"] / "schedgen-backup.timer"
        ).read_text(encoding="utf-8")
        service = (machine.places["unit-dir"] / "schedgen-backup.service").read_text(encoding="utf-8")
        assert f"ExecStart={Path(sys.executable).parent}/schedgen-backups backup" in service
        assert f"WorkingDirectory={machine.places['state-dir']}\n" in service
        assert f"Environment=BACKUP_ENV_FILE={machine.env}\n" in service
        assert f"ReadWritePaths=-{machine.points}\n" in service
        assert "/opt/" not in service.replace(str(machine.folder), "").replace(
            str(Path(sys.executable).parent), ""
        )
    if deployment == "cron":
        assert cron == ["schedgen-backups"]
        line = (machine.places["cron-dir"] / "schedgen-backups").read_text(encoding="utf-8").splitlines()[-1]
        assert line.startswith(f"30 1 * * 1-5 {pwd.getpwuid(os.geteuid()).pw_name} cd {machine.folder} && ")
    assert bool(units) is (deployment == "systemd")


def test_answers_survive_an_interruption_and_are_deleted_at_the_end(machine: Machine) -> None:
    person = Person(machine, "--no-first-backup", "--deployment", "none")
    database = [
        ("Database server", machine.database.host),
        ("Port of the database server", str(machine.database.port)),
        ("Role that can read the database", machine.database.user),
        ("Database", machine.database.database),
        ("Password of the role", machine.database.password),
    ]
    person.answer_all(database)
    person.expect("S3 server")
    person.interrupt()
    assert person.see_the_end() == 130
    [draft] = machine.folder.glob(".env*")
    assert stat.S_IMODE(draft.stat().st_mode) == 0o600
    again = Person(machine, "--no-first-backup", "--deployment", "none", "--backup-dir", str(machine.points))
    again.expect("The answers of the unfinished setup")
    again.answer_all([(prompt, "") for prompt, _text in database])
    again.answer_all(
        [
            ("S3 server", machine.bucket.endpoint),
            ("Use https", ""),
            ("Bucket", machine.bucket.bucket),
        ]
    )
    again.answer_all([("Access key", machine.bucket.access_key), ("Secret key", machine.bucket.secret_key)])
    again.answer("Query that returns the keys of the objects", "0")
    again.answer_all(
        [
            (prompt, "")
            for prompt in (
                "Schedule of backups",
                "Time zone",
                "Days to keep recovery points",
                "Name of this",
                "Webhook URL",
                "Recipients of",
                "Store of copies",
            )
        ]
    )
    assert again.see_the_end() == 0, again.seen
    assert dotenv_values(machine.env)["POSTGRES_PASSWORD"] == machine.database.password
    assert dotenv_values(machine.env)["BACKUP_PRESET"] == "none"
    assert [path.name for path in machine.folder.glob(".env*")] == [".env"]
    assert_secrets_are_kept(machine, person.seen + again.seen)


def test_a_draft_older_than_the_settings_is_ignored_and_deleted(machine: Machine) -> None:
    draft = machine.env.with_name(".env.setup")
    draft.write_text('{"POSTGRES_PASSWORD": "old-canary"}', encoding="utf-8")
    os.utime(draft, (1, 1))
    machine.env.write_text(OLD_ENV, encoding="utf-8")
    assert Draft(machine.env).read() == {}
    code, seen = machine.run(*machine.answer_flags(), "--deployment", "none", "--yes", "--no-first-backup")
    assert (code, draft.exists()) == (0, False), seen
    draft.write_text("{", encoding="utf-8")
    assert Draft(machine.env).read() == {}


def test_a_deployment_is_recognized_replaced_and_removed(machine: Machine) -> None:
    """Two deployments that start backups would conflict; what cannot be recreated is never removed."""
    answers = [*machine.answer_flags(), "--yes", "--no-first-backup"]
    assert machine.run(*answers, "--deployment", "cron", "--timezone", "UTC", TZ="UTC")[0] == 0
    cron, units = machine.places["cron-dir"], machine.places["unit-dir"]
    code, seen = machine.run(*answers)
    assert (code, "cron  cron (already installed)" in seen) == (0, True), seen
    assert ([path.name for path in cron.iterdir()], list(units.glob("*"))) == (["schedgen-backups"], [])
    code, seen = machine.run(*answers, "--deployment", "systemd")
    assert (code, f"removed: {cron / 'schedgen-backups'}" in seen) == (0, True), seen
    assert (list(cron.iterdir()), len(list(units.iterdir()))) == ([], 5)
    code, seen = machine.run("--remove")
    assert (code, list(units.iterdir())) == (0, [])
    assert f"Not removed: {machine.env}" in seen
    assert machine.points.is_dir()
    code, seen = machine.run("--remove")
    assert (code, "No deployment is installed here." in seen) == (0, True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--timezone", "Africa/Johannesburg"), "cron uses this machine's local time"),
        (("--backup-dir", "/var/back ups"), "cannot be used in a unit or a cron file"),
        (("--alert-email", "admin"), "expected addresses such as ops@example.org"),
    ],
    ids=["zone", "blank", "address"],
)
def test_what_cron_or_mail_cannot_do_is_refused(machine: Machine, flags: tuple[str, str], words: str) -> None:
    code, seen = machine.run(
        *machine.answer_flags(), "--deployment", "cron", "--yes", "--no-first-backup", *flags, TZ="UTC"
    )
    assert code == 4
    assert words in " ".join(seen.split())
    assert not machine.env.exists()


def test_compose_is_set_up_beside_the_application_and_started_only_on_request(machine: Machine) -> None:
    root = machine.folder.parent
    (root / "docker-compose.yml").write_text("services: {}\n", encoding="utf-8")
    (root / ".env").write_text(OLD_ENV, encoding="utf-8")
    programs = root / "programs"
    programs.mkdir()
    docker = programs / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >>{root}/calls\n', encoding="utf-8")
    docker.chmod(0o755)
    person = Person(machine, PATH=f"{programs}:{os.environ['PATH']}")
    person.expect(f"Docker with compose, and {root}/docker-compose.yml")
    person.answer("What starts the backups", "compose")
    answer_questions(person, machine, is_here=False)
    person.answer("Build and start the containers now?", "y")
    assert person.see_the_end() == 0, person.seen
    files = f"compose -f {root}/docker-compose.yml -f {machine.folder}/docker/compose.yaml"
    calls = [
        call
        for call in (root / "calls").read_text(encoding="utf-8").splitlines()
        if call != "compose version"
    ]
    assert calls == [
        f"{files} up -d --build",
        f"{files} run --rm backup-cli doctor",
        f"{files} run --rm backup-cli receipts show-key",
        f"{files} run --rm backup-cli backup --reason setup",
        f"{files} run --rm backup-cli verify latest",
    ]
    values = dotenv_values(root / ".env")
    assert (values["JWT_SECRET"], values["SCHEDGEN_BACKUPS_SOURCE"]) == (
        "canary-of-the-application",
        str(machine.folder),
    )
    assert (values["POSTGRES_PASSWORD"], values["BACKUP_RETENTION_DAYS"]) == (machine.database.password, "14")
    assert not machine.env.exists()
    assert_secrets_are_kept(machine, person.seen)
    assert "Remove the containers with" in machine.run("--remove", PATH=f"{programs}:{os.environ['PATH']}")[1]
    assert stat.S_IMODE((root / ".env").stat().st_mode) == 0o600


def test_without_a_terminal_flags_suffice_and_a_second_run_changes_nothing(
    machine: Machine, inbox: RecordingServer
) -> None:
    code, seen, processes = machine.run_watched(
        *machine.answer_flags(), "--deployment", "systemd", "--yes", BACKUP_RETENTION_DAYS="21"
    )
    assert code == 0, seen
    assert any(b"backup\0--reason\0setup" in line for line in processes)
    assert [line for line in processes for secret in machine.secrets[:3] if secret.encode() in line] == []
    assert_secrets_are_kept(machine, seen)
    assert_first_point_is_verified(machine)
    assert dotenv_values(machine.env)["BACKUP_RETENTION_DAYS"] == "21"
    [key] = machine.points.glob("receipts/keys/*.pub.pem")
    assert key.read_text().splitlines()[1] in seen
    before = machine.snapshot()
    code, seen = machine.run("--deployment", "systemd", "--yes")
    assert (code, machine.snapshot()) == (0, before), seen
    assert len(re.findall(r"^unchanged: ", seen, flags=re.MULTILINE)) == 6
    assert "written" not in seen
    assert "a verified recovery point already exists" in seen
    assert len([received for received in inbox.received if "test alert" in str(received.json["text"])]) == 1
    code, seen = machine.run("--deployment", "systemd", "--yes", "--schedule", "0 4 * * *")
    assert re.findall(r"^written: .*/(\S+?),? ?.*$", seen, flags=re.MULTILINE) != []
    assert {
        name for name, content in machine.snapshot().items() if before.get(name) not in {None, content}
    } == {
        str(machine.env),
        str(machine.places["unit-dir"] / "schedgen-backup.timer"),
    }


NEW_FLAGS = {
    "retention-hours": "48",
    "layout": "packs",
    "pack-reread-days": "14",
    "drill-after-each-point": "true",
    "drill-objects": "sample:500",
}
NEW_VARIABLES = {
    "BACKUP_RETENTION_HOURS": "48",
    "BACKUP_LAYOUT": "packs",
    "BACKUP_PACK_REREAD_DAYS": "14",
    "DRILL_AFTER_EACH_POINT": "true",
    "DRILL_OBJECTS": "sample:500",
}


def test_flags_set_hours_layout_and_drills(machine: Machine) -> None:
    always = ("--deployment", "none", "--yes", "--no-first-backup")
    flags = [word for name, value in NEW_FLAGS.items() for word in (f"--{name}", value)]
    code, seen = machine.run(*machine.answer_flags(), *always, *flags)
    assert code == 0, seen
    values = dotenv_values(machine.env)
    assert {name: values[name] for name in NEW_VARIABLES} == NEW_VARIABLES
    before = machine.env.read_bytes()
    code, seen = machine.run(*always)
    assert (code, machine.env.read_bytes()) == (0, before), seen


def test_settings_that_are_not_set_are_not_written(machine: Machine) -> None:
    code, seen = machine.run(
        *machine.answer_flags(), "--deployment", "none", "--yes", "--no-first-backup", DRILL_OBJECTS="all"
    )
    assert code == 0, seen
    values = dotenv_values(machine.env)
    assert {name: values[name] for name in NEW_VARIABLES if name in values} == {"DRILL_OBJECTS": "all"}
    assert "layout:" not in seen


def test_packs_are_offered_where_hourly_points_have_no_room_as_whole_files(machine: Machine) -> None:
    disk = machine.folder.parent / "disk"
    hourly = ("--deployment", "none", "--no-first-backup", "--schedule", "0 * * * *")
    with mount_small_disk(disk, "64m"):
        flags = [*machine.answer_flags(), "--backup-dir", str(disk / "points")]
        person = Person(machine, *flags, *hourly)
        person.answer("Use https", "")
        person.answer("Query that returns the keys of the objects", "0")
        person.answer("Time zone", "")
        person.answer("Hours to keep every recovery point", "72")
        person.answer("Days to keep recovery points", "14")
        person.expect("about 24 backups a day, about 83 points kept x ")
        person.answer("Layout of recovery points", "zip")
        person.expect("BACKUP_LAYOUT: 'zip' is invalid, expected files or packs")
        person.answer("Layout of recovery points", "packs")
        person.answer_all(
            [(prompt, "") for prompt in ("Name of this", "Recipients of alerts by email", "Store of copies")]
        )
        assert person.see_the_end() == 0, person.seen
        values = dotenv_values(machine.env)
        assert (values["BACKUP_LAYOUT"], values["BACKUP_RETENTION_HOURS"]) == ("packs", "72")
        # Nothing is said once packs are in use, and without a terminal nothing switches by itself.
        code, seen = machine.run(*hourly, "--yes")
        assert (code, "layout:" in seen) == (0, False), seen
        code, seen = machine.run(*hourly, "--yes", "--layout", "files")
        assert (code, "about 83 points kept x" in seen) == (0, True), seen
        assert dotenv_values(machine.env)["BACKUP_LAYOUT"] == "files"


def test_a_dry_run_prints_the_files_without_secrets_and_writes_nothing(
    machine: Machine, inbox: RecordingServer
) -> None:
    machine.env.write_text(OLD_ENV, encoding="utf-8")
    flags = [*machine.answer_flags(), "--deployment", "cron", "--yes", "--dry-run"]
    before = machine.snapshot()
    code, seen = machine.run(*flags)
    assert (code, machine.snapshot()) == (0, before), seen
    assert [secret for secret in machine.secrets if secret in seen] == []
    assert all(
        word in seen
        for word in (
            str(machine.env),
            "POSTGRES_PASSWORD=********",
            f"POSTGRES_DB={machine.database.database}",
            "15 3 * * *",
        )
    )
    assert inbox.received == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--schedule", "every night"), "BACKUP_SCHEDULE: 'every night' is invalid"),
        (("--minio-bucket", "no-such-bucket"), "no-such-bucket"),
        (("--postgres-port", "0"), "POSTGRES_PORT: '0' is invalid, expected a port"),
        (("--layout", "zip"), "BACKUP_LAYOUT: 'zip' is invalid, expected files or packs"),
        (("--retention-hours", "0"), "BACKUP_RETENTION_HOURS: '0' is invalid, expected a number of hours"),
        (("--drill-objects", "few"), "DRILL_OBJECTS: 'few' is invalid, expected all, sample:N"),
    ],
)
def test_without_a_terminal_a_wrong_answer_exits_with_4_and_writes_nothing(
    flags: tuple[str, str], message: str, machine: Machine
) -> None:
    code, seen = machine.run(*machine.answer_flags(), "--deployment", "none", "--yes", *flags)
    assert (code, message in seen) == (4, True), seen
    assert not machine.env.exists()
    assert not machine.points.exists()


def test_without_a_terminal_and_yes_setup_explains_what_to_do(machine: Machine) -> None:
    code, seen = machine.run()
    assert (code, "--yes" in seen) == (4, True)


def test_a_group_readable_env_becomes_private_to_the_backup_user(machine: Machine) -> None:
    """The manual installation of docs/deploy.md leaves the file to root.

    Made private, it would stop the nightly backup.
    """
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    flags = (
        *machine.answer_flags(),
        "--deployment",
        "cron",
        "--yes",
        "--no-first-backup",
        "--service-user",
        user,
    )
    code, seen = machine.run(*flags)
    assert code == 0, seen
    assert "Receipts are signed" in seen or "The key of receipts was not made" in seen
    os.chown(machine.env, os.geteuid(), os.getegid())
    machine.env.chmod(0o640)
    code, seen = machine.run(*flags)
    assert (code, f"unchanged: {machine.env}" in seen) == (0, True), seen
    status = machine.env.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, pwd.getpwnam(user).pw_uid)


def test_cancelling_at_a_question_exits_with_130_and_writes_nothing(machine: Machine) -> None:
    person = Person(machine, "--deployment", "none")
    person.answer("Database server", "elsewhere")
    person.expect("Port of the database server")
    person.interrupt()
    assert (person.see_the_end(), list(machine.folder.glob(".env*"))) == (130, [])
