"""A site of several databases and buckets: one point, whose parts are checked, drilled and restored each."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import Check, CheckStatus, VerificationLevel
from schedgen_backups.core.catalog.missing_objects import settle_baseline
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.history.events import DrillEnded
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.model import ArtifactKind, PartName
from schedgen_backups.core.packs.encryption import make_key_pair
from schedgen_backups_tests.support.artifacts import damage
from schedgen_backups_tests.support.recover import SCRIPT
from schedgen_backups_tests.support.site_parts import Parts, read_bodies
from schedgen_backups_tests.support.sites import Application, environment_of

pytestmark = [pytest.mark.edge]


@pytest.mark.parametrize("layout", ["files", "packs", "encrypted"])
def test_one_point_holds_every_database_and_bucket_and_each_is_restored(parts: Parts, layout: str) -> None:
    site = parts.site
    if layout == "encrypted":
        key_pair, identity = make_key_pair(), site.folder / "pack.key"
        identity.write_text(f"{key_pair.private}\n")
        identity.chmod(0o600)
        site.set(BACKUP_PACK_RECIPIENTS=key_pair.public, BACKUP_PACK_IDENTITY_FILE=str(identity))
    parts.write(layout="files" if layout == "files" else "packs")
    answer = site.cli("backup", "--json")
    assert answer.code == 0, answer
    [point] = site.points()
    assert (point.state, len(point.artifacts)) == (PointState.VERIFIED, 4)
    assert point.manifest is not None
    assert [part.name for part in point.manifest.parts] == [
        PartName("main", "pdfs"),
        PartName("reports", ""),
        PartName("", "images"),
    ]
    assert 0 < point.manifest.snapshot_spread_seconds < 60
    assert point.manifest.references.resolved_count == point.manifest.parts[0].references.resolved_count > 0
    answer = site.cli("verify", "latest")
    assert answer.code == 0, answer
    answer = site.cli("fetch", "latest", "--to", str(site.folder / f"fetched-{layout}"), "--json")
    assert answer.code == 0, answer
    assert len(json.loads(answer.stdout)["files"]) == 4
    answer = site.cli("drill", "--json")
    assert answer.code == 0, answer
    [point] = site.points()
    assert [level.status.value for level in point.verification.levels()][3:] == ["passed", "passed"]

    answer = site.cli("restore", "latest", "--database", f"restored_main_{layout}")
    assert answer.code != 0
    assert "name one of them, as shop/main" in answer.stderr
    for name, target in (
        ("main", ("--database", f"restored_main_{layout}", "--bucket", f"restored-main-{layout}")),
        ("reports", ("--database", f"restored_reports_{layout}")),
        ("images", ("--bucket", f"restored-images-{layout}")),
    ):
        answer = site.cli("--site", f"shop/{name}", "restore", "latest", *target)
        assert answer.code == 0, answer
    for restored, name in ((f"restored-main-{layout}", "pdfs"), (f"restored-images-{layout}", "images")):
        bucket = parts.buckets[name]
        assert read_bodies(bucket.with_bucket(restored)) == read_bodies(bucket) != {}
    answer = site.cli("backup")
    assert answer.code == 0, answer
    assert [point.state for point in site.points()] == [PointState.VERIFIED] * 2


def test_damage_of_one_archive_is_damage_of_the_point_and_is_named(parts: Parts) -> None:
    site = parts.site
    assert site.cli("backup").code == 0
    [point] = site.points()
    images = next(found for found in point.artifacts if found.name.source_name == "images")
    data = images.path.read_bytes()
    images.path.write_bytes(damage(data, len(data) * 4))
    answer = site.cli("verify", "latest")
    assert answer.code == 3
    [point] = site.points()
    assert point.state is PointState.FAILED
    answer = site.cli("--site", "shop/main", "list", "--json")
    assert [each["state"] for each in json.loads(answer.stdout)["points"]] == ["verified"]
    answer = site.cli("--site", "shop/images", "list", "--json")
    assert [each["state"] for each in json.loads(answer.stdout)["points"]] == ["failed"]


def test_the_commands_of_a_rollback_are_printed_for_every_part_and_work(parts: Parts) -> None:
    site = parts.site
    assert site.cli("backup").code == 0
    rollback = json.loads(site.cli("last", "--json").stdout)["rollback"]
    commands = [command for kind in ("database", "bucket") for command in rollback[kind].split("; ")]
    assert [command.split()[1:3] for command in commands] == [
        ["--site", f"shop/{name}"] for name in ("main", "reports", "main", "images")
    ]
    for command in commands:
        answer = site.cli(*shlex.split(command)[1:])
        assert answer.code == 0, (command, answer)
    assert "--site shop/main restore " in site.cli("doctor").stdout


def test_nothing_is_said_to_be_wrong_with_a_site_for_having_parts(parts: Parts) -> None:
    site = parts.site
    assert site.cli("backup").code == 0
    answer = site.cli("sites", "--json")
    assert (answer.code, json.loads(answer.stdout)["sites"][0]["problem"]) == (0, None)
    for command in ("list", "status"):
        answer = site.cli(command, "--all-sites")
        assert answer.code == 0, answer
    answer = site.cli("metrics")
    assert re.search(r"^schedgen_backup_settings_wrong\{.*\} 0\.0$", answer.stdout, re.MULTILINE)


def test_a_drill_names_the_part_that_failed_and_restores_the_others(parts: Parts) -> None:
    site = parts.site
    assert site.cli("backup").code == 0
    [point] = site.points()
    dump = next(found for found in point.artifacts if found.name.source_name == "main")
    data = dump.path.read_bytes()
    dump.path.write_bytes(damage(data, len(data) * 4))
    answer = site.cli("drill", point.point_id.text)
    assert answer.code == 3
    assert f"main and pdfs: recovery point {point.point_id} is damaged" in answer.stderr
    recorded = site.points()[0].recorded
    assert recorded is not None
    restored = {result.source for result in recorded.results if result.check is Check.BUCKET_IS_RESTORED}
    assert restored == {"images"}


def test_a_point_from_before_the_tables_is_verified_and_drilled_with_its_part(parts: Parts) -> None:
    site = parts.site
    table = (site.folder / "sites.toml").read_text()
    database, bucket = parts.databases["main"], parts.buckets["pdfs"]
    settings = environment_of(Application(database, bucket), site.directory)
    secrets = {"POSTGRES_PASSWORD": "MAIN_PASSWORD", "MINIO_SECRET_KEY": "PDFS_SECRET_KEY"}
    lines = [f'{name.lower()} = "{value}"' for name, value in settings.items() if name not in secrets]
    lines += [f'{name.lower()}_env = "{variable}"' for name, variable in secrets.items()]
    (site.folder / "sites.toml").write_text("\n".join(["[sites.shop]", *lines]))
    assert site.cli("backup").code == 0
    (site.folder / "sites.toml").write_text(table)
    site.set(BACKUP_ALLOW_NEW_SOURCE="true")
    assert site.cli("backup").code == 0
    old, new = site.points()
    assert (len(old.artifacts), len(new.artifacts)) == (2, 4)
    assert site.cli("verify", "--all").code == 0
    answer = site.cli("drill", old.point_id.text)
    assert answer.code == 0, answer
    old, _new = site.points()
    assert old.verification.level(VerificationLevel.EQUAL).status is CheckStatus.PASSED
    parts.write(**{f'postgres_db = "{database.database}"': 'postgres_db = "another"'})
    answer = site.cli("drill", old.point_id.text)
    assert (answer.code, "is older than the tables" in answer.stderr) == (4, True), answer


def test_what_worked_is_kept_when_one_database_fails(parts: Parts) -> None:
    name = parts.databases["reports"].database
    parts.write(**{f'postgres_db = "{name}"': 'postgres_db = "gone"'})
    answer = parts.site.cli("backup")
    assert answer.code != 0
    assert "reports: " in answer.stderr
    assert "main: " not in answer.stderr
    [point] = parts.site.points()
    assert point.state is PointState.PARTIAL
    assert sorted(found.name.source_name for found in point.artifacts) == ["images", "main", "pdfs"]


@pytest.mark.parametrize("kind", ArtifactKind)
def test_a_site_may_have_databases_or_buckets_only(parts: Parts, kind: ArtifactKind) -> None:
    path = parts.site.folder / "sites.toml"
    start, end = (
        ("[sites.shop.databases.main]", "[sites.shop.databases.reports]")
        if kind is ArtifactKind.DATABASE
        else ("[sites.shop.buckets.images]", None)
    )
    text = path.read_text()
    head, chosen = text.split("[sites.shop.databases.main]")[0], text[text.index(start) :]
    chosen = chosen.split(end)[0] if end is not None else chosen
    path.write_text(head + chosen.replace('bucket = "pdfs"', ""))
    for command in (("backup",), ("verify", "latest"), ("drill",), ("status",)):
        answer = parts.site.cli(*command)
        assert answer.code == 0, (command, answer.stdout, answer.stderr)
    [point] = parts.site.points()
    assert point.state is PointState.VERIFIED
    assert [found.name.kind for found in point.artifacts] == [kind]


def test_a_part_cannot_be_backed_up_or_pruned_alone(parts: Parts) -> None:
    for command in ("backup", "prune"):
        answer = parts.site.cli("--site", "shop/main", command)
        assert answer.code == 4
        assert "whole site" in answer.stderr


@pytest.mark.parametrize("layout", ["files", "packs"])
def test_a_copy_is_complete_and_each_part_is_used_from_it(parts: Parts, layout: str, tmp_path: Path) -> None:
    parts.write(layout=layout)
    site = parts.site
    store = tmp_path / "nas"
    (tmp_path / "stores.toml").write_text(f'[stores.nas]\nurl = "file://{store}"\nencryption = "none"\n')
    site.set(BACKUP_STORES_FILE=str(tmp_path / "stores.toml"))
    for command in (("backup",), ("stores", "prepare", "nas"), ("stores", "copy", "nas")):
        answer = site.cli(*command)
        assert answer.code == 0, answer
    [point] = site.points()
    for command in (("verify", "latest"), ("drill", "latest"), ("fetch", "latest", "--to", tmp_path / "out")):
        answer = site.cli(*map(str, command), "--from", "nas")
        assert answer.code == 0, (command, answer.stdout, answer.stderr)
    [fetched] = Catalog(tmp_path / "out").list_points()
    assert (fetched.problems, len(fetched.artifacts)) == ((), 4)
    images = read_bodies(parts.buckets["images"])
    key = next(iter(images))
    words = ("restore-objects", "latest", key, "--to", str(tmp_path / "one"), "--from", "nas")
    answer = site.cli(*words)
    assert answer.code == 4
    assert "has several buckets: pdfs, images" in answer.stderr
    answer = site.cli("--site", "shop/images", *words)
    assert answer.code == 0, answer
    assert (tmp_path / "one" / key).read_bytes() == images[key]

    [copy] = [path for path in store.iterdir() if path.is_dir()]
    for directory in (site.directory, copy):
        done = recover("verify", directory)
        assert done.returncode == 4
        names = ", ".join(f"{point.point_id}/{name}" for name in ("main", "reports", "images"))
        assert f"Give one of them: {names}" in done.stderr
        for name in ("main", "reports", "images"):
            done = recover("verify", directory, f"{point.point_id}/{name}")
            assert done.returncode == 0, done.stderr
    done = recover("objects", site.directory, "latest/images", "--folder", tmp_path / "unpacked")
    assert done.returncode == 0, done.stderr
    assert {each: (tmp_path / "unpacked" / each).read_bytes() for each in images} == images


def recover(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command, *rest = words
    return subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, command, *rest], capture_output=True, text=True, check=False
    )


def keep_tables(parts: Parts, *names: str) -> None:
    """Leave only these databases and buckets in the file of sites."""
    path = parts.site.folder / "sites.toml"
    head, *tables = path.read_text().split("[sites.shop.")
    kept = [table for table in tables if table.split("]")[0].split(".")[1] in names]
    path.write_text("[sites.shop.".join([head, *kept]))


def test_databases_without_buckets_are_drilled(parts: Parts) -> None:
    parts.write(**{'bucket = "pdfs"': ""})
    keep_tables(parts, "main", "reports")
    for command in (("backup",), ("drill",)):
        answer = parts.site.cli(*command)
        assert answer.code == 0, (command, answer.stdout, answer.stderr)
    [point] = parts.site.points()
    assert [level.status.value for level in point.verification.levels()][3:] == ["passed", "passed"]


def test_the_drill_of_a_copy_restores_the_copy_of_every_part(parts: Parts, tmp_path: Path) -> None:
    site = parts.site
    key_pair = make_key_pair()
    (tmp_path / "key.txt").write_text(f"{key_pair.private}\n")
    stores = f'[stores.nas]\nurl = "file://{tmp_path / "nas"}"\nrecipients = ["{key_pair.public}"]\n'
    (tmp_path / "stores.toml").write_text(stores)
    site.set(BACKUP_STORES_FILE=str(tmp_path / "stores.toml"))
    for command in (("backup",), ("stores", "prepare", "nas"), ("stores", "copy", "nas")):
        answer = site.cli(*command)
        assert answer.code == 0, (command, answer.stdout, answer.stderr)
    [point] = site.points()
    for found in point.artifacts:
        found.path.unlink()
    source = ("--from", "nas", "--identity", str(tmp_path / "key.txt"))
    answer = site.cli("--site", "shop/images", "drill", *source)
    assert answer.code == 0, (answer.stdout, answer.stderr)
    assert History(site.directory).find_last(DrillEnded) is None
    [store] = json.loads(site.cli("stores", "--json").stdout)["stores"]
    assert store["state"]["opened_at"] is None, "only a part of it was restored"
    answer = site.cli("drill", *source)
    assert answer.code == 0, (answer.stdout, answer.stderr)
    [store] = json.loads(site.cli("stores", "--json").stdout)["stores"]
    assert store["state"]["opened_at"] is not None
    assert History(site.directory).find_last(DrillEnded) is not None


def test_every_file_of_a_partial_point_is_verified_and_listed(parts: Parts) -> None:
    name = parts.databases["reports"].database
    parts.write(**{f'postgres_db = "{name}"': 'postgres_db = "gone"'})
    assert parts.site.cli("backup").code != 0
    [point] = parts.site.points()
    [listed] = json.loads(parts.site.cli("list", "--json").stdout)["points"]
    assert list(listed["artifacts"]) == ["database", "bucket images", "bucket pdfs"]
    pdfs = next(found for found in point.artifacts if found.name.source_name == "pdfs")
    data = pdfs.path.read_bytes()
    pdfs.path.write_bytes(damage(data, len(data) * 4))
    answer = parts.site.cli("verify", point.point_id.text)
    assert answer.code == 3
    assert "archive_is_stored of pdfs" in answer.stdout


def test_objects_are_accepted_as_missing_for_one_part(parts: Parts) -> None:
    assert parts.site.cli("backup").code == 0
    answer = parts.site.cli("accept-missing", "a.pdf", "--reason", "lost")
    assert answer.code == 4
    assert "shop/main" in answer.stderr
    answer = parts.site.cli("--site", "shop/main", "accept-missing", "a.pdf", "--reason", "lost")
    assert answer.code == 0
    found = settle_baseline(Catalog(parts.site.directory), ["a.pdf"], source=str(PartName("main", "pdfs")))
    assert found == {"a.pdf"}


@pytest.mark.parametrize(
    "command",
    [("backup",), ("prune",), ("heal",), ("stores", "copy", "nas"), ("report", "--to", "report.html")],
    ids=lambda command: command[0],
)
def test_what_concerns_the_whole_site_refuses_a_part(parts: Parts, command: tuple[str, ...]) -> None:
    """A copy of one part would be listed as the copy of the point."""
    answer = parts.site.cli("--site", "shop/main", *command)
    assert answer.code == 4
    assert "whole site" in answer.stderr
