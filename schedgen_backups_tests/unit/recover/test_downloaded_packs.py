"""The stand-alone script on a downloaded store of points in packs, and what somebody can do to it."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import pytest

from schedgen_backups.core.settings import Layout
from schedgen_backups_tests.support.artifacts import damage
from schedgen_backups_tests.support.copies import make_point_id
from schedgen_backups_tests.support.downloads import Download


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Download:
    return Download(tmp_path_factory.mktemp("download"), layout=Layout.PACKS)


@pytest.fixture
def download(untouched: Download, tmp_path: Path) -> Download:
    return untouched.copy_to(tmp_path)


def test_the_newest_copy_is_verified(download: Download) -> None:
    done = download.run("verify")
    assert done.returncode == 0, done.stderr
    assert f"recovery point {make_point_id(1)}" in done.stdout


def test_fetched_files_are_equal_to_those_that_were_copied(download: Download, tmp_path: Path) -> None:
    for night in range(2):
        out = tmp_path / f"out{night}"
        done = download.run("fetch", make_point_id(night).text, "--to", str(out))
        assert done.returncode == 0, done.stderr
        download.assert_equal(out, night)


def test_an_altered_pack_is_named(download: Download, tmp_path: Path) -> None:
    path = download.site / "packs" / download.packs[0]
    path.write_bytes(damage(path.read_bytes(), 8 * 100))
    done = download.run("fetch", "--to", str(tmp_path / "out"))
    assert (done.returncode, f"{path} was altered" in done.stderr) == (3, True)


def test_a_pack_that_was_forged_with_its_digest_is_noticed(download: Download) -> None:
    path = download.site / "packs" / download.packs[0]
    download.forge(path, damage(path.read_bytes(), 8 * 100))
    done = download.run("verify")
    assert (done.returncode, "does not hold the pack" in done.stderr) == (3, True), done.stderr


def test_packs_that_were_exchanged_are_noticed(download: Download) -> None:
    def exchange(lines: list[str]) -> list[str]:
        names = list(dict.fromkeys(line.split(" ")[0] for line in lines if not line.startswith("#")))
        other = dict(zip(names, reversed(names), strict=True))
        return [
            line if line.startswith("#") else " ".join((other[line.split(" ")[0]], *line.split(" ")[1:]))
            for line in lines
        ]

    download.forge_recipe("minio_", exchange)
    done = download.run("verify")
    assert (done.returncode, "does not hold the pack" in done.stderr) == (3, True), done.stderr


def test_a_recipe_of_other_places_is_refused(download: Download) -> None:
    download.forge_recipe("minio_", lambda lines: [*lines[:-2], lines[-1]])
    done = download.run("verify")
    assert (done.returncode, "belongs to another file" in done.stderr) == (3, True), done.stderr


def test_a_local_recipe_that_the_manifest_does_not_name_is_refused(download: Download) -> None:
    path = download.find_local_recipe("db_")
    lines = gzip.decompress(path.read_bytes())
    download.forge(path, gzip.compress(lines, mtime=1))
    done = download.run("verify")
    assert (done.returncode, "is not the recipe that the manifest names" in done.stderr) == (3, True)


@pytest.mark.parametrize("name", ["../../../evil", ".pieces.sqlite", "20261001_020000-0000.age/x"])
def test_a_pack_of_a_name_that_is_none_is_never_written(
    download: Download, tmp_path: Path, name: str
) -> None:
    path = download.find_local_recipe("db_")
    lines = gzip.decompress(path.read_bytes()).decode()
    pack = lines.split(" ")[2]
    forged = gzip.compress(lines.replace(pack, name).encode())
    download.forge(path, forged)

    def change(manifest: dict[str, Any]) -> None:
        artifact = next(each for each in manifest["artifacts"] if each["kind"] == "database")
        artifact.update(size_bytes=len(forged), sha256=hashlib.sha256(forged).hexdigest())

    download.forge_manifest(change)
    done = download.run("fetch", "--to", str(tmp_path / "out"))
    assert (done.returncode, "the recipe cannot be used" in done.stderr) == (3, True), done.stderr
    assert not list(tmp_path.rglob("evil*"))
    assert not list(tmp_path.rglob(".pieces.sqlite"))
