"""The stand-alone script on a downloaded store that is not encrypted: what it reads, and what it refuses."""

from __future__ import annotations

import gzip
import json
import runpy
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schedgen_backups_tests.support.artifacts import damage
from schedgen_backups_tests.support.copies import make_point_id
from schedgen_backups_tests.support.downloads import OBJECTS, Download
from schedgen_backups_tests.support.recover import SCRIPT

SCRIPT_NAMES: dict[str, Any] = runpy.run_path(str(SCRIPT))
FIRST, NEWEST = make_point_id(0).text, make_point_id(1).text


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Download:
    return Download(tmp_path_factory.mktemp("download"))


@pytest.fixture
def download(untouched: Download, tmp_path: Path) -> Download:
    return untouched.copy_to(tmp_path)


def test_copies_are_listed_with_number_and_size_of_their_packs(download: Download) -> None:
    done = download.run("list")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert (first[:15], second[:15]) == (FIRST, NEWEST)
    packs = download.read_json("packs.json")["packs"]
    size_bytes = sum(pack["size_bytes"] for pack in packs)
    assert second.endswith(f"committed  {len(packs)} packs, {size_bytes} bytes")


def test_the_newest_copy_is_verified(download: Download) -> None:
    done = download.run("verify")
    assert done.returncode == 0, done.stderr
    assert f"recovery point {NEWEST}" in done.stdout
    assert "2000 rows" in done.stdout
    assert "41 objects" in done.stdout
    assert done.stdout.endswith("complete and undamaged\n")


def test_fetched_files_are_equal_to_those_that_were_copied(download: Download, tmp_path: Path) -> None:
    for night, point_id in enumerate((FIRST, NEWEST)):
        done = download.run("fetch", point_id, "--to", str(tmp_path / point_id))
        assert done.returncode == 0, done.stderr
        download.assert_equal(tmp_path / point_id, night)
        assert len(list((tmp_path / point_id).iterdir())) == 4


def test_only_the_packs_of_the_objects_are_needed_for_objects(download: Download, tmp_path: Path) -> None:
    lines = gzip.decompress(download.find_recipe("minio_").read_bytes()).decode().splitlines()
    needed = {line.split(" ")[0] for line in lines[:-1]}
    for name in set(download.packs) - needed:
        (download.site / "packs" / name).unlink()
    done = download.run("objects", "--folder", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    for key, data in OBJECTS.items():
        assert (tmp_path / "out" / key).read_bytes() == data


def test_files_are_not_fetched_into_a_directory_that_holds_something(
    download: Download, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    done = download.run("fetch", "--to", str(tmp_path / "out"))
    assert (done.returncode, "is not an empty directory" in done.stderr) == (2, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_folder_of_the_whole_store_is_refused_with_the_folders_of_its_sites(download: Download) -> None:
    site = download.site
    download.site = site.parent
    for command in ("list", "verify"):
        done = download.run(command)
        assert done.returncode == 4
        assert str(site) in done.stderr


def test_a_missing_pack_is_named_before_anything_is_read(download: Download) -> None:
    (download.site / "packs" / download.packs[0]).unlink()
    assert "1 PACKS MISSING OR TRUNCATED" in download.run("list").stdout
    done = download.run("verify")
    assert done.returncode == 3
    assert f"packs are missing or truncated, such as packs/{download.packs[0]}" in done.stderr
    assert "copied" not in done.stdout


def test_an_altered_pack_is_named_and_nothing_is_fetched(download: Download, tmp_path: Path) -> None:
    path = download.site / "packs" / download.packs[0]
    path.write_bytes(damage(path.read_bytes(), 8 * 100))
    done = download.run("fetch", "--to", str(tmp_path / "out"))
    assert done.returncode == 3
    assert f"{path} was altered" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("prefix", ["db_", "minio_", "manifest", "verification"])
def test_a_missing_file_of_the_point_is_named(download: Download, prefix: str) -> None:
    path = next(download.point.glob(f"{prefix}*"))
    path.unlink()
    done = download.run("verify")
    assert (done.returncode, f"{path} is missing" in done.stderr) == (3, True)


def test_a_recipe_that_the_pack_list_lacks_is_named(download: Download) -> None:
    name = download.find_recipe("db_").name
    download.forge_list(
        lambda listed: listed.update(files=[file for file in listed["files"] if file["name"] != name])
    )
    done = download.run("verify")
    assert (done.returncode, f"has no {name}" in done.stderr) == (3, True)


def test_an_altered_recipe_is_refused(download: Download) -> None:
    path = download.find_recipe("db_")
    path.write_bytes(damage(path.read_bytes(), 8 * 30))
    done = download.run("verify")
    assert (done.returncode, f"{path} was altered" in done.stderr) == (3, True)


def test_a_copy_without_its_commit_mark_is_not_used(download: Download) -> None:
    (download.point / "committed.json").unlink()
    assert "NOT COMMITTED" in download.run("list").stdout
    done = download.run("verify", NEWEST)
    assert (done.returncode, "committed.json is missing" in done.stderr) == (3, True)
    assert f"recovery point {FIRST}" in download.run("verify").stdout


@pytest.mark.parametrize("name", ["packs.json", "committed.json"])
def test_no_older_copy_takes_the_place_of_a_damaged_newest_one(download: Download, name: str) -> None:
    path = download.point / name
    path.write_bytes(path.read_bytes().replace(b"packs", b"pucks", 1))
    assert "DAMAGED" in download.run("list").stdout
    done = download.run("verify")
    assert (done.returncode, f"the copy of {NEWEST} cannot be used" in done.stderr) == (3, True)
    assert download.run("verify", FIRST).returncode == 0


def test_a_pack_list_of_another_point_is_refused(download: Download) -> None:
    for name in ("packs.json", "committed.json"):
        (download.point / name).write_bytes((download.site / "points" / FIRST / name).read_bytes())
    done = download.run("verify")
    assert (done.returncode, "of another point" in done.stderr) == (3, True)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../secret"},
        {"name": ".."},
        {"name": 1},
        {"size_bytes": -1},
        {"size_bytes": (256 << 20) + 1},
        {"size_bytes": True},
        {"sha256": "0"},
    ],
)
@pytest.mark.parametrize("family", ["packs", "files"])
def test_a_forged_entry_of_the_pack_list_is_refused(
    download: Download, family: str, change: dict[str, Any]
) -> None:
    download.forge_list(lambda listed: listed[family][0].update(change))
    done = download.run("verify")
    assert (done.returncode, "cannot be read" in done.stderr) == (3, True)


def test_a_pack_with_the_name_of_another_file_is_refused(download: Download) -> None:
    download.forge_list(lambda listed: listed["packs"][0].update(name="restore.sh"))
    done = download.run("verify")
    assert (done.returncode, "cannot be read" in done.stderr) == (3, True)


def test_a_pack_list_nested_too_deeply_is_refused(download: Download) -> None:
    (download.point / "committed.json").write_bytes(b"[" * 200_000)
    done = download.run("verify")
    assert (done.returncode, "cannot be read" in done.stderr) == (3, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: ["../../../etc/passwd 0 1", *lines], "line of another form"),
        (lambda lines: [".. 0 1", *lines], "which packs.json does not list"),
        (lambda lines: [*lines, lines[0]], "line of another form"),
        (lambda lines: [lines[0].rpartition(" ")[0] + " -1", *lines[1:]], "line of another form"),
        (lambda lines: [lines[0].rpartition(" ")[0] + " 9" * 18, *lines[1:]], "line of another form"),
        (lambda lines: [lines[0].rpartition(" ")[0] + f" {10**18 - 1}", *lines[1:]], "another file"),
        (lambda lines: [lines[0].rpartition(" ")[0] + f" {10**18 - 1}"] * 30, "another file"),
        (lambda lines: lines[:-1], "cut short"),
        (lambda lines: lines[1:], "cut short"),
        (lambda lines: [*lines[:-1], "# sha256 " + "0" * 64], "another file"),
        (
            lambda lines: [" ".join([lines[0].split(" ")[0], "9" * 18, lines[0].split(" ")[2]]), *lines[1:]],
            "shorter than a recipe says",
        ),
    ],
)
def test_a_forged_recipe_is_refused(
    download: Download, change: Callable[[list[str]], list[str]], message: str
) -> None:
    download.forge_recipe("db_", change)
    done = download.run("verify")
    assert (done.returncode, message in done.stderr) == (3, True), done.stderr


def test_pieces_in_another_order_are_noticed(download: Download) -> None:
    download.forge_recipe("minio_", lambda lines: [lines[1], lines[0], *lines[2:]])
    done = download.run("verify")
    assert (done.returncode, "differ from what was written" in done.stderr) == (3, True)


@pytest.mark.parametrize(
    "name",
    [
        "../db_x_{id}.sql.gz",
        "db_/../../x_{id}.sql.gz",
        "db_a\\b_{id}.sql.gz",
        "db_x_20200101_000000.sql.gz",
        "minio_x_{id}.tar.gz",
        "db_x_{id}.tar.gz",
        "passwd",
    ],
)
def test_a_manifest_that_names_a_foreign_file_is_refused(download: Download, name: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        artifact = next(each for each in manifest["artifacts"] if each["kind"] == "database")
        artifact["file_name"] = name.replace("{id}", NEWEST)

    download.forge_manifest(change)
    done = download.run("verify")
    assert (done.returncode, "which is not a file of that point" in done.stderr) == (3, True), done.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(point_id=FIRST),
        lambda manifest: manifest["artifacts"].append(manifest["artifacts"][0]),
        lambda manifest: manifest["artifacts"][0].update(size_bytes="1"),
        lambda manifest: manifest["artifacts"][0].update(sha256="1"),
        lambda manifest: manifest.update(artifacts=1),
    ],
)
def test_a_forged_manifest_is_refused(download: Download, change: Callable[[dict[str, Any]], object]) -> None:
    download.forge_manifest(change)
    done = download.run("verify")
    assert (done.returncode, "the manifest of the copy" in done.stderr) == (3, True), done.stderr


def test_a_size_that_no_disk_holds_is_refused_before_anything_is_written(download: Download) -> None:
    download.forge_manifest(lambda manifest: manifest["artifacts"][0].update(size_bytes=1 << 60))
    done = download.run("verify")
    assert (done.returncode, "bytes of free space" in done.stderr, "--work" in done.stderr) == (2, True, True)


def test_a_recipe_that_unpacks_to_too_much_is_refused_with_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = "20261001_020000-" + "0" * 80
    line = f"{pack} {'0' * 18} {'0' * 18}\n".encode()
    bomb = b"".join([gzip.compress(line * ((16 << 20) // len(line)))] * 20)
    copy = SCRIPT_NAMES["Copy"](FIRST, tmp_path, packs={pack: (0, "0" * 64)})
    artifact = SCRIPT_NAMES["StoredArtifact"]("db", "db_x.sql.gz", 0, "0" * 64)
    plan = SCRIPT_NAMES["Plan"](copy)
    monkeypatch.setitem(plan.add.__globals__, "RECIPE_LIMIT_BYTES", 6 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(SCRIPT_NAMES["RecoverError"], match="larger than expected"):
            plan.add(0, artifact, bomb)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_a_directory_of_plain_files_is_not_fetched(download: Download, tmp_path: Path) -> None:
    assert download.run("fetch", "--to", str(tmp_path / "out")).returncode == 0
    download.site = tmp_path / "out"
    done = download.run("fetch", "--to", str(tmp_path / "other"))
    assert (done.returncode, "is not the downloaded folder of a site" in done.stderr) == (4, True)
    assert json.loads((tmp_path / "out" / f"manifest_{NEWEST}.json").read_bytes())["point_id"] == NEWEST
