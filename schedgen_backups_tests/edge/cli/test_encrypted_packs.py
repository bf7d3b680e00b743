"""Encrypted packs in the backup directory: everything works as with plain ones, with the key of this host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus, VerificationLevel
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.formats.packed_file import open_packed_file, read_local_recipe
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.encryption import KeyPair, make_key_pair
from schedgen_backups.core.packs.identity_file import IdentityFile
from schedgen_backups_tests.edge.cli.test_packs import DOCUMENT, RECOVER, list_packs, read_scripts, take_next
from schedgen_backups_tests.support.artifacts import damage
from schedgen_backups_tests.support.servers import client_of
from schedgen_backups_tests.support.sites import Site, failures_of

pytestmark = [pytest.mark.edge]

SAFE: KeyPair = make_key_pair()
"""Of the operator: its private half is not on the host."""


def write_identity(site: Site, *pairs: KeyPair) -> Path:
    path = site.folder / "packs.key"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text("".join(f"# a key\n{pair.private}\n" for pair in pairs))
    return path


def encrypt(site: Site, pair: KeyPair, *older: KeyPair) -> Path:
    identity = write_identity(site, pair, *older)
    site.set(
        BACKUP_LAYOUT="packs",
        BACKUP_PACK_RECIPIENTS=f"{pair.public}, {SAFE.public}",
        BACKUP_PACK_IDENTITY_FILE=str(identity),
        BACKUP_STAGING_DIR=str(site.folder),
    )
    return identity


@pytest.fixture
def host() -> KeyPair:
    return make_key_pair()


@pytest.fixture
def encrypted(site: Site, instance: dg.DagsterInstance, host: KeyPair) -> Site:
    encrypt(site, host)
    result = site.run(instance)
    assert result.success, failures_of(result)
    return site


def recover(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RECOVER), *map(str, words)], capture_output=True, text=True, check=False
    )


def list_files(site: Site) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in site.directory.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_point_in_encrypted_packs_is_verified_drilled_and_restored(
    encrypted: Site, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    client, bucket = client_of(encrypted.application.bucket), encrypted.application.bucket.bucket
    body = b"%PDF-1.4 nobody may read this in the directory" * 40
    client.put_object(bucket, "new.pdf", BytesIO(body), len(body))
    try:
        # Copied objects must be older than two seconds.
        time.sleep(2)
        before = list_packs(encrypted)
        take_next(encrypted, instance)
    finally:
        client.remove_object(bucket, "new.pdf")
    after = list_packs(encrypted)
    assert {name.endswith(".age") for name in after} == {True}
    new_bytes = sum(after.values()) - sum(before.values())
    assert 0 < new_bytes < 0.2 * sum(before.values()), "what did not change is not written again"
    [_first, point] = encrypted.points()
    assert point.state is PointState.VERIFIED
    for path, data in list_files(encrypted).items():
        assert b"nobody may read" not in data, path
    answer = encrypted.cli("verify", "--all")
    assert answer.code == 0, answer.stdout
    answer = encrypted.cli("drill", "latest")
    assert answer.code == 0, answer.stderr + answer.stdout
    [_first, point] = encrypted.points()
    assert point.verification.level(VerificationLevel.EQUAL).status is CheckStatus.PASSED
    answer = encrypted.cli("restore-objects", "latest", "new.pdf", "--to", str(tmp_path / "out"))
    assert answer.code == 0, answer.stderr
    assert (tmp_path / "out" / "new.pdf").read_bytes() == body
    answer = encrypted.cli("restore-tables", "latest", "jobs", "--diff-only")
    assert answer.code == 0, answer.stderr
    results = json.loads(encrypted.cli("doctor", "--json").stdout)["results"]
    states = [(each["state"], each["detail"]) for each in results if each["what"] == "encryption of packs"]
    assert states[0] == ("ok", "packs are encrypted for 2 keys, and this host reads them")
    assert [state for state, _detail in states[1:]] == ["note"], "the drill restores into BACKUP_DIR"


def test_a_running_backup_has_nothing_plain_in_the_directory(
    site: Site, instance: dg.DagsterInstance, host: KeyPair
) -> None:
    encrypt(site, host)
    assert site.run(instance).success
    assert not (site.directory / ".staging").exists()
    [staging] = site.folder.glob("schedgen-backups-*")
    assert (staging.stat().st_mode & 0o777, list(staging.iterdir())) == (0o700, [])
    [point] = site.points()
    assert [path.suffix for path in site.directory.glob("db_*")] == [".gz"]
    assert {path.stat().st_mode & 0o777 for path in site.directory.glob("*.recipe.gz")} == {0o600}
    assert point.state is PointState.VERIFIED
    staging.chmod(0o770)
    time.sleep(1.1)
    failures = failures_of(site.run(instance)).values()
    assert "can be used by others" in " ".join(each.description for each in failures)


def test_stock_tools_and_recover_py_read_encrypted_packs(encrypted: Site, tmp_path: Path) -> None:
    [point] = encrypted.points()
    identity = encrypted.folder / "packs.key"
    safe = tmp_path / "safe.key"
    safe.write_text(SAFE.private)
    out = tmp_path / "files"
    answer = encrypted.cli("fetch", "latest", "--to", str(out))
    assert answer.code == 0, answer.stderr
    _whole, check, put_together, *_others = read_scripts(DOCUMENT)
    for artifact in point.artifacts:
        # With Debian's age, and with the key that this host does not have.
        plain = tmp_path / f"plain {artifact.name.kind.value}"
        plain.mkdir()
        environment = {
            **os.environ,
            "RECIPE": artifact.path.name,
            "WHOLE": str(tmp_path / "whole"),
            "KEY": str(safe),
            "PLAIN": str(plain),
        }
        for script in (put_together, check):
            subprocess.run(["sh", "-c", script], cwd=encrypted.directory, env=environment, check=True)
        fetched = out / artifact.name.to_file_name()
        assert fetched.read_bytes() == (tmp_path / "whole").read_bytes()
        packed = open_packed_file(artifact.path, IdentityFile(identity))
        assert fetched.read_bytes() == packed.open_reader().read()
    done = recover("verify", encrypted.directory, "--identity", identity)
    assert (done.returncode, "complete and undamaged" in done.stdout) == (0, True), done.stderr
    done = recover("objects", encrypted.directory, "--identity", safe, "--folder", tmp_path / "objects")
    assert done.returncode == 0, done.stderr
    done = recover("verify", encrypted.directory)
    assert (done.returncode, "no private key was given" in done.stderr) == (4, True), done.stderr
    assert "packs are as they were written" in done.stdout
    wrong = tmp_path / "wrong.key"
    wrong.write_text(make_key_pair().private)
    done = recover("verify", encrypted.directory, "--identity", wrong)
    assert (done.returncode, "is a wrong key" in done.stderr) == (4, True), done.stderr
    pack = encrypted.directory / "packs" / sorted(list_packs(encrypted))[-2]
    data = pack.read_bytes()
    pack.write_bytes(damage(data, 8 * (len(data) - 100)))
    for words in (("--identity", identity), ()):
        done = recover("verify", encrypted.directory, *words)
        assert (done.returncode, f"{pack.name} is missing or altered" in done.stderr) == (3, True), (
            done.stderr
        )


def test_without_the_key_the_bytes_are_proved_and_nothing_else(encrypted: Site, tmp_path: Path) -> None:
    [point] = encrypted.points()
    wrong = write_identity(encrypted, make_key_pair())
    for how in ("a wrong one", "none", "readable"):
        if how == "none":
            wrong.unlink()
        elif how == "readable":
            write_identity(encrypted, make_key_pair()).chmod(0o644)
        answer = encrypted.cli("verify", point.point_id.text, "--json")
        checks = {each["check"]: each["status"] for each in find_checks(json.loads(answer.stdout))}
        assert checks["dump_is_stored"] == checks["archive_is_stored"] == "passed", answer.stdout
        others = {status for name, status in checks.items() if not name.endswith("_is_stored")}
        assert (answer.code, others) == (3, {"unknown"}), answer.stdout
        answer = encrypted.cli("restore-objects", point.point_id.text, "*", "--to", str(tmp_path / how))
        assert (answer.code, "BACKUP_PACK_IDENTITY_FILE" in answer.stderr) == (4, True), answer.stderr
        [problem, *_others] = [
            each
            for each in json.loads(encrypted.cli("doctor", "--json").stdout)["results"]
            if each["what"] == "encryption of packs"
        ]
        assert problem["state"] == "problem", problem


def find_checks(value: object) -> list[dict[str, str]]:
    """Return the results of checks anywhere in this JSON value."""
    if isinstance(value, dict):
        if "check" in value and "status" in value:
            return [value]
        return [found for each in value.values() for found in find_checks(each)]
    return [found for each in value for found in find_checks(each)] if isinstance(value, list) else []


@pytest.mark.parametrize("how", ["wrong", "missing", "readable by others", "not set", "in BACKUP_DIR"])
def test_a_key_that_does_not_open_packs_stops_a_backup_before_it_writes(
    site: Site, instance: dg.DagsterInstance, host: KeyPair, how: str
) -> None:
    identity = encrypt(site, host)
    if how == "wrong":
        write_identity(site, make_key_pair())
    elif how == "missing":
        identity.unlink()
    elif how == "readable by others":
        identity.chmod(0o604)
    elif how == "not set":
        site.unset("BACKUP_PACK_IDENTITY_FILE")
    else:
        site.directory.mkdir(mode=0o700)
        site.set(BACKUP_PACK_IDENTITY_FILE=str(identity.rename(site.directory / "packs.key")))
    result = site.run(instance)
    assert not result.success
    reasons = " ".join(failure.description for failure in failures_of(result).values())
    assert "BACKUP_PACK_IDENTITY_FILE" in reasons, reasons
    assert host.private not in reasons
    assert [path.name for path in site.directory.rglob("*.gz")] == []
    assert not (site.directory / "packs").exists()


def test_other_recipients_write_everything_again_and_older_points_stay_readable(
    encrypted: Site, instance: dg.DagsterInstance, host: KeyPair
) -> None:
    def find_new(before: dict[str, int]) -> int:
        return sum(size for name, size in list_packs(encrypted).items() if name not in before)

    first = list_packs(encrypted)
    other = make_key_pair()
    encrypt(encrypted, other, host)
    # Copied objects must be older than two seconds.
    time.sleep(2)
    take_next(encrypted, instance)
    second = list_packs(encrypted)
    assert find_new(first) > 0.9 * sum(first.values()), "the former keys are not to open it"
    assert encrypted.cli("verify", "--all").code == 0
    [old, new] = encrypted.points()
    assert set(needed(new)).isdisjoint(first)
    # Without the older key, only the newer point can be read, and the next one is not stopped by that.
    encrypt(encrypted, other)
    assert encrypted.cli("verify", new.point_id.text).code == 0
    assert encrypted.cli("verify", old.point_id.text).code == 3
    take_next(encrypted, instance)
    assert find_new(second) < 0.2 * sum(first.values())
    # Plain again: what is encrypted is not used, and is read all the same.
    encrypt(encrypted, other, host)
    encrypted.unset("BACKUP_PACK_RECIPIENTS")
    third = list_packs(encrypted)
    take_next(encrypted, instance)
    newest = encrypted.points()[-1]
    assert {name.endswith(".age") for name in needed(newest)} == {False}
    assert find_new(third) > 0.9 * sum(first.values())
    assert encrypted.cli("verify", "--all").code == 0
    assert [point.state for point in encrypted.points()] == [PointState.VERIFIED] * 4


def needed(point: object) -> list[str]:
    return [
        name
        for artifact in point.artifacts  # type: ignore[attr-defined]
        for name in read_local_recipe(artifact.path).packs
    ]


def test_a_damaged_encrypted_pack_is_not_healed_and_the_next_night_is_whole(
    encrypted: Site, instance: dg.DagsterInstance
) -> None:
    [point] = encrypted.points()
    name = read_local_recipe(point.get_path(ArtifactKind.BUCKET)).packs[0]
    pack = encrypted.directory / "packs" / name
    data = pack.read_bytes()
    pack.write_bytes(damage(data, 8 * (len(data) // 2)))
    answer = encrypted.cli("verify", "latest")
    assert (answer.code, "are not those that were written" in answer.stdout) == (3, True), answer.stdout
    time.sleep(2)
    take_next(encrypted, instance)
    first, second = encrypted.points()
    assert (first.state, second.state) == (PointState.FAILED, PointState.VERIFIED)
    assert name not in needed(second)
    answer = encrypted.cli("heal")
    assert answer.code == 3, answer.stdout + answer.stderr
    pack.write_bytes(data)
    assert encrypted.cli("verify", "--all").code == 0


def test_a_safety_backup_is_encrypted_as_well(encrypted: Site, tmp_path: Path) -> None:
    _ = tmp_path
    client, bucket = client_of(encrypted.application.bucket), encrypted.application.bucket.bucket
    body = b"%PDF overwritten" * 10
    key = next(iter(client.list_objects(bucket, recursive=True))).object_name
    assert key is not None
    before = client.get_object(bucket, key).read()
    client.put_object(bucket, key, BytesIO(body), len(body))
    try:
        answer = encrypted.cli("restore-objects", "latest", key, "--back", "--overwrite", "--confirm", bucket)
        assert answer.code == 0, answer.stderr
        assert client.get_object(bucket, key).read() == before
    finally:
        client.put_object(bucket, key, BytesIO(before), len(before))
    safety = encrypted.directory / "safety"
    assert {path.suffix for path in (safety / "packs").iterdir() if path.name[0] != "."} == {".age"}
    assert [path.name for path in safety.glob("*.tar.gz")] == []
    [kept] = Catalog(safety, IdentityFile(encrypted.folder / "packs.key")).list_points()
    with kept.open_archive() as archive:
        [entry] = archive.read_entries()
        assert (entry.key, b"".join(archive.read_object(entry))) == (key, body)


def test_a_store_with_the_same_recipients_is_read_with_the_key_of_this_host(
    encrypted: Site, host: KeyPair, tmp_path: Path
) -> None:
    stores = encrypted.folder / "stores.toml"
    stores.write_text(
        f'[stores.nas]\nurl = "file://{tmp_path}/store"\nrecipients = ["{SAFE.public}", "{host.public}"]\n'
    )
    encrypted.set(BACKUP_STORES_FILE=str(stores))
    (tmp_path / "store").mkdir()
    for words in (("prepare", "nas"), ("copy", "nas"), ("prove", "nas")):
        answer = encrypted.cli("stores", *words)
        assert answer.code == 0, answer.stderr + answer.stdout
    answer = encrypted.cli("verify", "latest", "--from", "nas")
    assert answer.code == 0, answer.stderr + answer.stdout
    name = max(list_packs(encrypted))
    pack = encrypted.directory / "packs" / name
    data = pack.read_bytes()
    pack.unlink()
    answer = encrypted.cli("heal", "--from", "nas")
    assert (answer.code, pack.read_bytes()) == (0, data), answer.stderr + answer.stdout
    write_identity(encrypted, make_key_pair())
    assert encrypted.cli("verify", "latest", "--from", "nas").code != 0
    safe = tmp_path / "safe.key"
    safe.write_text(SAFE.private)
    out = tmp_path / "fetched"
    answer = encrypted.cli("fetch", "latest", "--from", "nas", "--identity", str(safe), "--to", str(out))
    assert answer.code == 0, answer.stderr
    assert {path.suffix for path in (out / "packs").glob("2*")} == {".age"}
    [point] = Catalog(out, IdentityFile(write_identity(encrypted, SAFE))).list_points()
    with point.open_archive() as archive:
        assert archive.record.object_count > 0
