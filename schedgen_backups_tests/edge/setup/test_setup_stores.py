"""Setup adds stores of copies at a terminal, and tries the file that a script names.

Folder, S3 server and copies are real.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from dotenv import dotenv_values
from minio.commonconfig import COMPLIANCE
from minio.objectlockconfig import DAYS, ObjectLockConfig

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.packs.encryption import make_key_pair
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups_tests.support.servers import client_of
from schedgen_backups_tests.support.setup_machine import Machine, Person
from schedgen_backups_tests.support.sites import Application
from schedgen_backups_tests.support.store_programs import SshServer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = [pytest.mark.edge]

OTHER = '# by hand\n[stores.other]\nurl = "file:///mnt/other"\nrecipients = ["age1…"]   # broken\n'
PAIRS = (make_key_pair(), make_key_pair())
PUBLIC_KEY = "Public key"


@pytest.fixture
def machine(tmp_path: Path, application: Application) -> Machine:
    return Machine(tmp_path, application, "")


@pytest.fixture
def locked_bucket(application: Application) -> BucketSettings:
    """Return a bucket of the application's server whose objects are locked for three days."""
    settings = replace(application.bucket, bucket=f"copies-{os.urandom(6).hex()}")
    client = client_of(settings)
    client.make_bucket(settings.bucket, object_lock=True)
    client.set_object_lock_config(settings.bucket, ObjectLockConfig(COMPLIANCE, 3, DAYS))
    return settings


def list_flags(machine: Machine, *flags: str) -> list[str]:
    """Return answers to every question but those about stores."""
    values = {
        "deployment": "none",
        "minio-secure": "false",
        "preset": "none",
        "reference-query": "",
        "schedule": "0 2 * * *",
        "timezone": "UTC",
        "retention-days": "7",
        "name": "test",
        "alert-email": "",
    }
    return [
        *machine.answer_flags(),
        *(word for name, value in values.items() for word in (f"--{name}", value)),
        *flags,
    ]


def read_stores(path: Path) -> dict[str, dict[str, object]]:
    return tomllib.loads(path.read_text(encoding="utf-8"))["stores"]


def name_two_recipients(person: Person) -> None:
    for number, pair in enumerate(PAIRS, 1):
        person.answer(f"{PUBLIC_KEY} {number}", pair.public)
    person.answer(f"{PUBLIC_KEY} 3")


def test_one_key_with_two_comments_is_one_key(machine: Machine, tmp_path: Path) -> None:
    ssh_key = Ed25519PrivateKey.generate().public_key()
    public = ssh_key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    person = Person(machine, *list_flags(machine, "--dry-run"))
    person.answer_all([("Store of copies", f"file://{tmp_path}/copies"), ("Name of the store", "nas")])
    person.answer(f"{PUBLIC_KEY} 1", f"{public} operator@laptop")
    person.answer(f"{PUBLIC_KEY} 2", f"{public} safe")
    person.expect("this key is named already")
    person.answer(f"{PUBLIC_KEY} 2", PAIRS[0].public)
    person.answer(f"{PUBLIC_KEY} 3")
    person.answer("Another store", "")
    assert person.see_the_end() == 0, person.seen


def find_text(folder: Path, text: str) -> list[Path]:
    """Return the files in the folder that contain the text."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_the_first_point_is_copied_and_opens_with_a_key_that_setup_made(
    machine: Machine, tmp_path: Path
) -> None:
    folder, kept = tmp_path / "nas" / "copies", tmp_path / "safe.txt"
    person = Person(machine, *list_flags(machine))
    person.answer("Store of copies", "ftp://nas")
    person.expect("expected a URL that begins with file://")
    person.answer("Store of copies", f"file://{folder}")
    person.answer("Name of the store", "NAS")
    person.expect("expected at most 31 small letters")
    person.answer("Name of the store", "nas")
    person.expect("No such file or directory")
    person.answer("Correct the answers?", "y")
    folder.parent.mkdir()
    person.answer_all([("Store of copies", ""), ("Name of the store", "")])
    person.expect("no overwriting: yes")
    person.answer(f"{PUBLIC_KEY} 1", PAIRS[0].private)
    person.expect("a private key stands among the recipients")
    person.answer(f"{PUBLIC_KEY} 1", "age1canary-of-a-typing-error")
    person.expect("this is not a public key of age")
    person.answer(f"{PUBLIC_KEY} 1", "make")
    person.expect("private key, shown only now")
    person.answer("Last 6 characters", "AAAAAA")
    person.expect("These are not its last characters")
    private = re.findall(r"AGE-SECRET-KEY-\w+", person.seen)
    person.answer("Last 6 characters", private[0][-6:].lower())
    person.answer(f"{PUBLIC_KEY} 2", "")
    person.expect("its loss is the loss of every copy")
    person.answer("Continue with one public key?", "n")
    person.answer(f"{PUBLIC_KEY} 2", "make")
    person.answer("Last 6 characters", "file")
    person.answer("New file for the private key", str(kept))
    person.answer(f"{PUBLIC_KEY} 3", "")
    person.answer("Another store", "")
    assert person.see_the_end() == 0, person.seen
    assert dotenv_values(machine.env)["BACKUP_STORES_FILE"] == str(machine.folder / "stores.toml")
    assert stat.S_IMODE((machine.folder / "stores.toml").stat().st_mode) == 0o600
    assert "canary" not in person.seen
    assert PAIRS[0].private not in person.seen
    # Shown once; what was typed of it is not it.
    private = re.findall(r"AGE-SECRET-KEY-\w+", person.seen)
    assert (len(private), find_text(tmp_path, private[0])) == (2, [])
    assert (find_text(tmp_path, private[1]), stat.S_IMODE(kept.stat().st_mode)) == ([kept], 0o600)
    [point] = Catalog(machine.points).list_points()
    assert [path.parent.name for path in folder.glob("*/points/*/committed.json")] == [point.point_id.text]
    key, fetched = tmp_path / "key.txt", tmp_path / "fetched"
    key.write_text(private[0])
    # On another host, which has only the store: the probes of setup are not a site.
    words = ("fetch", "latest", "--from", "nas", "--identity", key, "--to", fetched)
    code, text = machine.run_command(*words, BACKUP_DIR=str(tmp_path / "new host"))
    assert code == 0, text
    for artifact in point.artifacts:
        assert (fetched / artifact.path.name).read_bytes() == artifact.path.read_bytes()
    assert "schedgen-backups stores copy nas" in person.seen
    assert "drill --from nas --identity FILE" in person.seen


def test_a_locked_bucket_is_added_and_the_other_stores_stay_byte_for_byte(
    machine: Machine, locked_bucket: BucketSettings
) -> None:
    bucket, stores = locked_bucket, machine.folder / "stores.toml"
    stores.write_text(OTHER, encoding="utf-8")
    stores.chmod(0o600)
    person = Person(machine, *list_flags(machine, "--no-first-backup", "--stores-file", str(stores)))
    person.expect("'age1…' is not a public key of age")
    person.answer("Another store", f"s3://{bucket.bucket}/copies")
    person.answer("Name of the store", "other")
    person.answer("Replace its whole description?", "n")
    person.answer("Name of the store", "s3")
    person.answer_all([("URL of the server", f"http://{bucket.endpoint}"), ("Region", "none")])
    person.answer_all([("Access key", bucket.access_key), ("Secret key", "wrong-canary")])
    person.expect("store s3:")
    person.answer("Correct the answers?")
    person.answer_all([("Another store", ""), ("Name of the store", ""), ("URL of the server", "")])
    person.answer_all([("Region", ""), ("Access key", ""), ("Secret key", bucket.secret_key)])
    person.expect("object lock: yes")
    person.answer("Days to keep locked", "three")
    person.expect("expected a number of days")
    person.answer("Days to keep locked", "14")
    name_two_recipients(person)
    person.answer("Another store", "")
    assert person.see_the_end() == 0, person.seen
    assert stores.read_text(encoding="utf-8").startswith(OTHER)
    assert read_stores(stores)["s3"] == {
        "url": f"s3://{bucket.bucket}/copies",
        "endpoint": f"http://{bucket.endpoint}",
        "access_key": bucket.access_key,
        "secret_key_file": "s3.secret",
        "recipients": [pair.public for pair in PAIRS],
        "lock_days": 14,
    }
    secret = machine.folder / "s3.secret"
    assert (secret.read_text().strip(), stat.S_IMODE(secret.stat().st_mode)) == (bucket.secret_key, 0o600)
    assert [bucket.secret_key in stores.read_text(), bucket.secret_key in person.seen] == [False, False]
    assert "canary" not in person.seen
    [old] = machine.folder.glob("stores.toml.old-*")
    assert old.read_text(encoding="utf-8") == OTHER
    code, text = machine.run_command("stores", "prepare", "s3")
    assert (code, "object lock: yes" in text) == (0, True), text


def test_a_server_with_sftp_gets_a_copy_of_the_key_that_logs_in(machine: Machine, tmp_path: Path) -> None:
    if SshServer.find() is None:
        pytest.skip("sshd is not installed")
    (tmp_path / "remote").mkdir()
    (tmp_path / "sshd").mkdir()
    with SshServer(tmp_path / "sshd") as server:
        person = Person(machine, *list_flags(machine, "--no-first-backup"))
        person.answer("Store of copies", f"sftp://{server.user}@{server.endpoint}{tmp_path}/remote/copies")
        person.answer("Name of the store", "box")
        person.answer("File of the private key", "/no/such/key")
        person.expect("expected a file")
        person.answer("File of the private key", str(server.key_file))
        person.answer_all([("Passphrase of the key", ""), ("Public key of the server", server.other_key)])
        person.expect("store box:")
        person.answer("Correct the answers?")
        person.answer_all(
            [("Store of copies", ""), ("Name of the store", ""), ("File of the private key", "")]
        )
        person.answer_all([("Passphrase of the key", ""), ("Public key of the server", server.host_key)])
        person.expect("no overwriting: yes")
        name_two_recipients(person)
        person.answer("Another store", "")
        assert person.see_the_end() == 0, person.seen
        key = machine.folder / "box.key"
        assert (key.read_bytes(), stat.S_IMODE(key.stat().st_mode)) == (server.key_file.read_bytes(), 0o600)
        code, text = machine.run_command("stores", "prepare", "box")
        assert (code, "no overwriting: yes" in text) == (0, True), text


def test_a_store_can_be_left_out_after_a_failure(machine: Machine, tmp_path: Path) -> None:
    named = str(machine.folder / "stores.toml")
    person = Person(machine, *list_flags(machine, "--no-first-backup", "--stores-file", named))
    person.answer_all([("Store of copies", f"file://{tmp_path}/missing/copies"), ("Name of the store", "")])
    person.answer("Correct the answers?", "n")
    person.expect("No store of copies:")
    assert person.see_the_end() == 0, person.seen
    assert [path.name for path in machine.folder.glob("*stores.toml*")] == []
    assert "BACKUP_STORES_FILE" not in dotenv_values(machine.env)


@pytest.mark.parametrize("prompt", [f"{PUBLIC_KEY} 1", "Last 6 characters", "Another store"])
def test_an_interruption_leaves_no_file(prompt: str, machine: Machine, tmp_path: Path) -> None:
    before = {path for path in machine.folder.rglob("*") if "__pycache__" not in path.parts}
    person = Person(machine, *list_flags(machine, "--no-first-backup"))
    person.answer_all([("Store of copies", f"file://{tmp_path}/copies"), ("Name of the store", "")])
    if prompt == "Last 6 characters":
        person.answer(f"{PUBLIC_KEY} 1", "make")
    if prompt == "Another store":
        name_two_recipients(person)
    person.expect(prompt)
    person.interrupt()
    assert person.see_the_end() == 130
    after = {path for path in machine.folder.rglob("*") if "__pycache__" not in path.parts}
    assert {path.name for path in after - before} == {".env.setup"}
    for private in re.findall(r"AGE-SECRET-KEY-\w+", person.seen):
        assert find_text(tmp_path, private) == []


def test_a_dry_run_shows_the_store_and_writes_nothing_into_it(machine: Machine, tmp_path: Path) -> None:
    before = machine.snapshot()
    person = Person(machine, *list_flags(machine, "--dry-run"))
    person.answer_all([("Store of copies", f"file://{tmp_path}/copies"), ("Name of the store", "nas")])
    name_two_recipients(person)
    person.answer("Another store", "")
    assert person.see_the_end() == 0, person.seen
    assert "[stores.nas]" in person.seen
    assert f"BACKUP_STORES_FILE={machine.folder}/stores.toml" in person.seen
    assert {name for name in machine.snapshot() if name not in before and "secret-" not in name} == set()
    assert not (tmp_path / "copies").exists()


def test_without_a_terminal_a_named_file_is_tried(machine: Machine, tmp_path: Path) -> None:
    stores = tmp_path / "stores.toml"
    flags = list_flags(machine, "--yes", "--no-first-backup", "--stores-file", str(stores))
    code, text = machine.run(*flags)
    assert (code, f"{stores} cannot be read" in " ".join(text.split())) == (4, True), text
    description = f'[stores.nas]\nurl = "file://{tmp_path}/no/copies"\nrecipients = ["{PAIRS[0].public}"]\n'
    stores.write_text(description, encoding="utf-8")
    code, text = machine.run(*flags)
    assert (code, "No such file" in text, machine.env.exists()) == (4, True, False), text
    (tmp_path / "no").mkdir()
    code, text = machine.run(*flags)
    assert (code, "store nas" in text) == (0, True), text
    assert stores.read_text(encoding="utf-8") == description
    assert dotenv_values(machine.env)["BACKUP_STORES_FILE"] == str(stores)


def test_a_store_that_is_down_later_does_not_stop_setup_and_is_not_made_again(
    machine: Machine, tmp_path: Path
) -> None:
    stores, folder = tmp_path / "stores.toml", tmp_path / "copies"
    stores.write_text(
        f'[stores.nas]\nurl = "file://{folder}"\nrecipients = ["{PAIRS[0].public}"]\n', encoding="utf-8"
    )
    flags = list_flags(machine, "--yes", "--no-first-backup", "--stores-file", str(stores))
    assert machine.run(*flags)[0] == 0
    folder.rename(tmp_path / "disk")
    folder.mkdir()
    code, text = machine.run(*flags)
    assert (code, "is not a store" in text) == (0, True), text
    assert list(folder.iterdir()) == []


def test_the_containers_get_the_file_in_their_secrets_and_the_folder_as_a_mount(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "docker-compose.yml").write_text("services: {}\n", encoding="utf-8")
    (tmp_path / ".env").write_text("BACKUP_SECRETS=./secrets\n", encoding="utf-8")
    flags = list_flags(
        machine, "--deployment", "compose", "--application-compose", str(tmp_path / "docker-compose.yml")
    )
    person = Person(machine, *flags)
    if os.geteuid() != 0:
        person.expect("only root can write a file of stores")
        return
    tmp_path.chmod(0o755)
    for path in tmp_path.parents:
        path.chmod(path.stat().st_mode | 0o011)
    folder = tmp_path / "nas"
    folder.mkdir()
    person.answer_all([("Store of copies", f"file://{folder}"), ("Name of the store", "nas")])
    person.expect("Permission denied")
    person.answer("Correct the answers?", "y")
    os.chown(folder, 10001, 10001)
    person.answer_all([("Store of copies", ""), ("Name of the store", "")])
    name_two_recipients(person)
    person.answer("Another store", "")
    person.answer("Build and start the containers now?", "n")
    assert person.see_the_end() == 0, person.seen
    stores = tmp_path / "secrets" / "stores.toml"
    assert read_stores(stores)["nas"]["url"] == "file:///copies"
    assert (stores.stat().st_uid, stat.S_IMODE(stores.stat().st_mode)) == (10001, 0o600)
    assert {path.stat().st_uid for path in folder.rglob("*")} == {10001}
    values = dotenv_values(tmp_path / ".env")
    assert (values["BACKUP_STORES_FILE"], values["BACKUP_COPIES"]) == (
        "/run/secrets/stores.toml",
        str(folder),
    )
    assert "run --rm backup-cli stores copy nas" in person.seen
