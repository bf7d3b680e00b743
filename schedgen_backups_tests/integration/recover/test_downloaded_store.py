"""The stand-alone script on the downloaded folder of an encrypted store, with the stock program age.

Servers, age and the final comparison are real. What a hostile store can hold is in `unit/recover`.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from schedgen_backups.core.copies.copier import Copier
from schedgen_backups.core.copies.layout import SiteKeys
from schedgen_backups.core.copies.local_folder import LocalFolder
from schedgen_backups.core.packs.encryption import AgeEncryptor, KeyPair, make_key_pair
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups.core.verify.commit import verify_point
from schedgen_backups_tests.support.artifacts import make_noise
from schedgen_backups_tests.support.copies import KEY_PAIR, make_point_id
from schedgen_backups_tests.support.downloads import Download
from schedgen_backups_tests.support.points import ID, make_backed_up, put
from schedgen_backups_tests.support.recover import Recovery
from schedgen_backups_tests.support.servers import run

pytestmark = pytest.mark.integration

INTERPRETERS = [sys.executable, *filter(None, [os.environ.get("RECOVER_PYTHON")])]
"""This Python, and the oldest supported one (3.9) if RECOVER_PYTHON names it."""


@pytest.fixture
def age_folder(tmp_path: Path) -> Path:
    """Return a folder for PATH with nothing but age."""
    program = shutil.which("age")
    assert program is not None, "install Debian's package age"
    folder = tmp_path / "age"
    folder.mkdir()
    (folder / "age").symlink_to(program)
    return folder


@pytest.fixture
def download(tmp_path: Path, age_folder: Path) -> Download:
    """Return an encrypted download."""
    (tmp_path / "encrypted").mkdir()
    download = Download(tmp_path / "encrypted", AgeEncryptor([KEY_PAIR.public]))
    download.path = str(age_folder)
    return download


def write_key(folder: Path, pair: KeyPair) -> str:
    path = folder / f"{pair.public[:12]}.txt"
    path.write_text(f"# a comment\n{pair.private}\n", encoding="ascii")
    return str(path)


@pytest.mark.parametrize("python", INTERPRETERS)
def test_a_downloaded_encrypted_store_is_restored_and_equal(
    python: str,
    database: DatabaseSettings,
    second_database: DatabaseSettings,
    bucket: BucketSettings,
    second_bucket: BucketSettings,
    postgres_bin_dir: Path,
    age_folder: Path,
    tmp_path: Path,
) -> None:
    put(bucket, "large", make_noise((20 << 20) + 1))
    backup = make_backed_up((database, bucket), (second_database, second_bucket), tmp_path / "backups")
    backup.commit()
    site_id = backup.catalog.settle_site().site_id
    store = FolderStore(tmp_path / "nas")
    store.prepare()
    pair = make_key_pair()
    folder = LocalFolder(backup.catalog.directory, "nas")
    verify_point(backup.catalog, backup.catalog.get_point(ID), checked_by="test")
    with folder.held():
        keys, encryptor = SiteKeys(site_id), AgeEncryptor([pair.public])
        Copier(backup.catalog, store, keys, encryptor, folder, pack_bytes=6 << 20).copy(
            backup.catalog.get_point(ID)
        )
    downloaded = Path(shutil.copytree(tmp_path / "nas" / site_id, tmp_path / "usb" / "site"))
    assert len(list((downloaded / "packs").iterdir())) > 4
    recovery = Recovery(downloaded, backup.database, backup.bucket, postgres_bin_dir, tmp_path)
    recovery.environment["PATH"] += f":{age_folder}"
    work = tmp_path / "work"
    work.mkdir()
    words = (*recovery.to_bucket, "--identity", write_key(tmp_path, pair), "--work", str(work))
    done = recovery.run("restore", *words, python=python)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("restored\n")
    assert [result.summary for result in backup.compare() if not result.is_passed] == []
    assert list(work.iterdir()) == []
    again = recovery.run("restore", *words, python=python)
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)
    assert list(work.iterdir()) == []
    for settings in (database, second_database):
        run(settings, "DROP TABLE jobs")


@pytest.mark.parametrize("python", INTERPRETERS)
def test_fetched_files_are_decrypted_and_equal(download: Download, tmp_path: Path, python: str) -> None:
    key = write_key(tmp_path, KEY_PAIR)
    assert download.run("list", python=python).stdout.count("committed") == 2
    out = tmp_path / "out"
    done = download.run("fetch", "--identity", key, "--to", str(out), python=python)
    assert done.returncode == 0, done.stderr
    download.assert_equal(out)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}


def test_each_pack_is_decrypted_once(download: Download, age_folder: Path, tmp_path: Path) -> None:
    (age_folder / "age").rename(age_folder / "real-age")
    (age_folder / "age").write_text(
        f'#!/bin/sh\necho x >> "{tmp_path}/calls"\nexec "{age_folder}/real-age" "$@"\n', encoding="ascii"
    )
    (age_folder / "age").chmod(0o755)
    download.path = f"{age_folder}:/bin"
    done = download.run("verify", "--identity", write_key(tmp_path, KEY_PAIR))
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text(encoding="ascii").count("x")
    assert calls == len(download.packs) + 4, "manifest, verification and two recipes"


def test_without_a_key_nothing_is_read(download: Download) -> None:
    done = download.run("verify")
    assert (done.returncode, "Add --identity FILE" in done.stderr) == (4, True)


def test_a_wrong_key_is_named(download: Download, tmp_path: Path) -> None:
    key = write_key(tmp_path, make_key_pair())
    done = download.run("verify", "--identity", key)
    assert (done.returncode, f"{key} is a wrong key" in done.stderr) == (4, True)


@pytest.mark.parametrize("text", [None, "AGE-SECRET-KEY-CANARY\n", "not a key, canary\n"])
def test_a_file_that_holds_no_key_is_named_and_not_printed(
    download: Download, tmp_path: Path, text: str | None
) -> None:
    key = tmp_path / "key.txt"
    if text is not None:
        key.write_text(text, encoding="ascii")
    done = download.run("verify", "--identity", str(key))
    assert (done.returncode, str(key) in done.stderr) == (4, True)
    assert "canary" not in (done.stdout + done.stderr).lower()


def test_without_the_program_age_its_package_is_named(download: Download, tmp_path: Path) -> None:
    download.path = str(tmp_path)
    done = download.run("verify", "--identity", write_key(tmp_path, KEY_PAIR))
    assert (done.returncode, "Install the package age" in done.stderr) == (4, True)


def test_an_encrypted_file_that_somebody_forged_is_refused(download: Download, tmp_path: Path) -> None:
    path = download.site / "packs" / download.packs[0]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    key = write_key(tmp_path, KEY_PAIR)
    done = download.run("verify", "--identity", key)
    assert (done.returncode, f"{path} was altered" in done.stderr) == (3, True)
    # With the digests adapted, age itself notices it.
    forged = path.read_bytes()
    path.write_bytes(data)
    download.forge(path, forged)
    done = download.run("verify", "--identity", key)
    assert (done.returncode, "cannot be decrypted" in done.stderr) == (3, True)


def test_an_older_copy_is_fetched_by_its_id(download: Download, tmp_path: Path) -> None:
    key, first = write_key(tmp_path, KEY_PAIR), make_point_id(0).text
    done = download.run("fetch", first, "--identity", key, "--to", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    download.assert_equal(tmp_path / "out", night=0)


def test_the_script_of_the_store_makes_the_same_files(download: Download, tmp_path: Path) -> None:
    key = write_key(tmp_path, KEY_PAIR)
    words = ["sh", "restore.sh", make_point_id(1).text, key, str(tmp_path / "out")]
    subprocess.run(words, cwd=download.site, check=True, capture_output=True)
    download.assert_equal(tmp_path / "out")
