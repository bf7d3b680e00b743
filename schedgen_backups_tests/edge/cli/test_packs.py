"""Points in packs: everything works as with files, and a night costs what changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from io import BytesIO
from pathlib import Path

import dagster as dg
import pytest

from schedgen_backups.core.catalog.check_results import STORED_CHECKS, Check, CheckStatus, VerificationLevel
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.packed_file import open_packed_file
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.encryption import make_key_pair
from schedgen_backups_tests.support.artifacts import damage
from schedgen_backups_tests.support.inbox import open_inbox
from schedgen_backups_tests.support.servers import client_of, run
from schedgen_backups_tests.support.sites import Site, failures_of
from schedgen_backups_tests.support.small_disk import mount_small_disk

pytestmark = [pytest.mark.edge]

_ROOT = Path(__file__).resolve().parents[3]
RECOVER = _ROOT / "schedgen_backups" / "recover.py"
DOCUMENT = _ROOT / "docs" / "packs.md"


@pytest.fixture
def packed(site: Site, instance: dg.DagsterInstance) -> Site:
    site.set(BACKUP_LAYOUT="packs")
    assert site.run(instance).success
    return site


def list_packs(site: Site) -> dict[str, int]:
    return {
        path.name: path.stat().st_size
        for path in (site.directory / "packs").iterdir()
        if not path.name.startswith(".")
    }


def read_scripts(document: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)


def run_script(site: Site, script: str, recipe: str, whole: Path) -> None:
    environment = {**os.environ, "RECIPE": recipe, "WHOLE": str(whole)}
    subprocess.run(["sh", "-c", script], cwd=site.directory, env=environment, check=True, capture_output=True)


def take_next(site: Site, instance: dg.DagsterInstance) -> None:
    # The id of a point has seconds.
    time.sleep(1.1)
    result = site.run(instance)
    assert result.success, failures_of(result)


def test_a_point_in_packs_is_verified_restored_and_equal(packed: Site, tmp_path: Path) -> None:
    [point] = packed.points()
    assert point.state is PointState.VERIFIED
    assert [artifact.path.name.endswith(".recipe.gz") for artifact in point.artifacts] == [True, True]
    assert point.size_bytes == sum(open_packed_file(artifact.path).size_bytes for artifact in point.artifacts)
    assert packed.cli("verify", "latest").code == 0
    answer = packed.cli("drill", "latest")
    assert answer.code == 0, answer.stderr + answer.stdout
    [point] = packed.points()
    assert point.verification.level(VerificationLevel.EQUAL).status is CheckStatus.PASSED
    answer = packed.cli("restore-objects", "latest", "*", "--to", str(tmp_path / "out"))
    assert answer.code == 0, answer.stderr


def test_the_next_night_writes_what_changed(packed: Site, instance: dg.DagsterInstance) -> None:
    before = list_packs(packed)
    client = client_of(packed.application.bucket)
    body = b"%PDF-1.4 changed" * 100
    client.put_object(packed.application.bucket.bucket, "new.pdf", BytesIO(body), len(body))
    try:
        # Copied objects must be older than two seconds.
        time.sleep(2)
        take_next(packed, instance)
    finally:
        client.remove_object(packed.application.bucket.bucket, "new.pdf")
    after = list_packs(packed)
    assert {name: after.get(name) for name in before} == before
    new_bytes = sum(after.values()) - sum(before.values())
    assert 0 < new_bytes < 0.2 * sum(before.values())
    _first, second = packed.points()
    assert second.state is PointState.VERIFIED
    with open_archive(second.get_path(ArtifactKind.BUCKET)) as archive:
        entry = next(entry for entry in archive.read_entries() if entry.key == "new.pdf")
        assert b"".join(archive.read_object(entry)) == body
        assert archive.record.reused_count == archive.record.object_count - 1
    assert packed.cli("verify", "--all").code == 0


def test_the_whole_artifact_is_a_file_for_stock_tools(packed: Site, tmp_path: Path) -> None:
    [point] = packed.points()
    path = point.get_path(ArtifactKind.BUCKET)
    whole = tmp_path / "archive.tar.gz"
    put_together, check, *_others = read_scripts(DOCUMENT)
    run_script(packed, put_together, path.name, whole)
    run_script(packed, check, path.name, whole)
    with tarfile.open(whole) as tar, open_archive(path) as archive:
        bodies = {entry.member_name: b"".join(archive.read_object(entry)) for entry in archive.read_entries()}
        for name, body in bodies.items():
            member = tar.extractfile(name)
            assert member is not None
            assert member.read() == body
    dump = point.get_path(ArtifactKind.DATABASE)
    run_script(packed, put_together, dump.name, tmp_path / "dump.sql.gz")
    done = subprocess.run(["gunzip", "-c", tmp_path / "dump.sql.gz"], capture_output=True, check=True)
    assert b"PostgreSQL database dump complete" in done.stdout
    pack = packed.directory / "packs" / open_packed_file(path).recipe.packs[0]
    pack.write_bytes(damage(pack.read_bytes(), 8))
    with pytest.raises(subprocess.CalledProcessError):
        run_script(packed, check, path.name, whole)


def test_fetch_writes_files_of_the_usual_layout(packed: Site, tmp_path: Path) -> None:
    out = tmp_path / "files"
    answer = packed.cli("fetch", "latest", "--to", str(out))
    assert answer.code == 0, answer.stderr
    [point] = packed.points()
    names = sorted(artifact.name.to_file_name() for artifact in point.artifacts)
    assert sorted(path.name for path in out.iterdir()) == names
    assert sorted(answer.stdout.split()) == sorted(str(out / name) for name in names)
    for artifact in point.artifacts:
        packed_file = open_packed_file(artifact.path)
        assert (out / artifact.name.to_file_name()).read_bytes() == packed_file.open_reader().read()
    for path in out.iterdir():
        words = [sys.executable, str(RECOVER), "verify", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert packed.cli("fetch", "latest", "--to", str(out)).code == 6
    pack = packed.directory / "packs" / sorted(list_packs(packed))[-2]
    pack.write_bytes(damage(pack.read_bytes(), 8 * (pack.stat().st_size // 2)))
    answer = packed.cli("fetch", "latest", "--to", str(tmp_path / "again"))
    assert (answer.code, "is damaged" in answer.stderr) == (3, True), answer.stderr
    pack.unlink()
    answer = packed.cli("fetch", point.point_id.text, "--to", str(tmp_path / "gone"))
    assert (answer.code, f"the pack {pack.name} is missing" in answer.stderr) == (3, True), answer.stderr
    assert [path.name for path in (tmp_path / "gone").iterdir() if path.name.startswith("minio")] == []
    answer = packed.cli("fetch", point.point_id.text, "--to", str(tmp_path / "no" / "where"))
    assert (answer.code, "cannot be made" in answer.stderr) == (6, True), answer.stderr
    assert packed.cli("fetch", "latest", "--to", str(out), "--identity", "x").code == 4


def test_recover_py_verifies_a_point_in_packs_and_names_a_damaged_pack(packed: Site) -> None:
    words = [sys.executable, str(RECOVER), "verify", str(packed.directory)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    name = sorted(list_packs(packed))[-2]
    pack = packed.directory / "packs" / name
    pack.write_bytes(damage(pack.read_bytes(), 8 * (pack.stat().st_size // 2)))
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, f"the pack {name} is missing or altered" in done.stderr) == (3, True), (
        done.stderr
    )


@pytest.mark.parametrize("how", ["altered", "shortened", "removed"])
def test_a_damaged_pack_is_found_and_the_next_night_is_whole(
    packed: Site, instance: dg.DagsterInstance, how: str
) -> None:
    [point] = packed.points()
    with open_archive(point.get_path(ArtifactKind.BUCKET)) as archive:
        entry = next(archive.read_entries())
    packed_file = open_packed_file(point.get_path(ArtifactKind.BUCKET))
    segment = next(packed_file.find_segments(entry.offset + entry.length - 20, 1))
    pack = packed.directory / "packs" / segment.pack
    data = pack.read_bytes()
    if how == "altered":
        pack.write_bytes(damage(data, 8 * segment.offset))
        answer = packed.cli("verify", "latest")
        assert (answer.code, "are not those that were written" in answer.stdout) == (3, True), answer.stdout
        assert entry.key in answer.stdout or " more" in answer.stdout
    elif how == "shortened":
        pack.write_bytes(data[:-1])
    else:
        pack.unlink()
    [point] = packed.points()
    assert point.state in {PointState.FAILED, PointState.DAMAGED}
    time.sleep(2)
    take_next(packed, instance)
    first, second = packed.points()
    assert (first.state, second.state) == (PointState.VERIFIED, PointState.VERIFIED)
    assert pack.read_bytes() == data, "its objects are in the bucket: it is made whole again"
    answer = packed.cli("verify", "--all")
    assert answer.code == 0, answer.stdout
    with open_archive(second.get_path(ArtifactKind.BUCKET)) as archive:
        bodies = [b"".join(archive.read_object(entry)) for entry in archive.read_entries()]
    listed = client_of(packed.application.bucket).list_objects(
        packed.application.bucket.bucket, recursive=True
    )
    assert len(bodies) == len(list(listed))


def test_packs_go_with_the_last_point_that_needs_them(packed: Site, instance: dg.DagsterInstance) -> None:
    client, bucket = client_of(packed.application.bucket), packed.application.bucket.bucket
    client.put_object(bucket, "short-lived.pdf", BytesIO(b"%PDF"), 4)
    try:
        time.sleep(2)
        take_next(packed, instance)
    finally:
        client.remove_object(bucket, "short-lived.pdf")
    take_next(packed, instance)
    first, second, third = packed.points()
    needed = {
        name
        for point in (first, third)
        for artifact in point.artifacts
        for name in open_packed_file(artifact.path).recipe.packs
    }
    assert needed < set(list_packs(packed))
    for artifact in second.artifacts:
        artifact.path.unlink()
    (packed.directory / f"manifest_{second.point_id}.json").unlink()
    assert packed.cli("prune").code == 0
    assert set(list_packs(packed)) == needed
    assert packed.cli("verify", "--all").code == 0


def test_no_pack_is_removed_while_a_recipe_cannot_be_read(packed: Site) -> None:
    stray = packed.directory / "packs" / "20200101_000000-0000"
    stray.write_bytes(b"of a killed backup")
    path = packed.points()[0].get_path(ArtifactKind.DATABASE)
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    answer = packed.cli("prune")
    assert (stray.exists(), "packs are kept: " in answer.stdout) == (True, True), answer.stdout
    path.write_bytes(data)
    assert packed.cli("prune").code == 0
    assert not stray.exists()


def test_no_pack_is_removed_while_a_recipe_is_missing(packed: Site) -> None:
    path = packed.points()[0].get_path(ArtifactKind.BUCKET)
    before = list_packs(packed)
    aside = path.rename(packed.folder / path.name)
    answer = packed.cli("prune")
    assert (list_packs(packed), f"packs are kept: {path.name} is missing" in answer.stdout) == (
        before,
        True,
    ), answer.stdout
    assert packed.cli("backup").code == 0
    aside.rename(path)
    answer = packed.cli("verify", "--all")
    assert answer.code == 0, answer.stdout


def test_a_backup_removes_the_packs_that_a_killed_one_left(packed: Site) -> None:
    stray = packed.directory / "packs" / "20200101_000000-0000"
    stray.write_bytes(b"of a killed backup")
    assert packed.cli("backup").code == 0
    assert not stray.exists()
    assert packed.cli("verify", "--all").code == 0


def test_layouts_follow_each_other(packed: Site, instance: dg.DagsterInstance) -> None:
    time.sleep(2)
    packed.set(BACKUP_LAYOUT="files")
    take_next(packed, instance)
    packed.set(BACKUP_LAYOUT="packs")
    take_next(packed, instance)
    points = packed.points()
    assert [point.state for point in points] == [PointState.VERIFIED] * 3
    reused: list[bool] = []
    contents: list[dict[str, bytes]] = []
    for point in points:
        with open_archive(point.get_path(ArtifactKind.BUCKET)) as archive:
            reused.append(archive.record.reused_count == archive.record.object_count)
            contents.append(
                {entry.key: b"".join(archive.read_object(entry)) for entry in archive.read_entries()}
            )
    assert reused == [False, True, True]
    assert contents[0] == contents[1] == contents[2]
    assert packed.cli("verify", "--all").code == 0


def forget_readings(site: Site) -> None:
    """Make every pack due to be read again."""
    with closing(sqlite3.connect(site.directory / "packs" / ".pieces.sqlite")) as index, index:
        index.execute("UPDATE packs SET reread_at = '2026-01-01T00:00:00+00:00'")


def spoil(site: Site, name: str) -> None:
    pack = site.directory / "packs" / name
    pack.write_bytes(damage(pack.read_bytes(), 8 * (pack.stat().st_size // 2)))


def list_needed_packs(point: PointListing, kind: ArtifactKind) -> tuple[str, ...]:
    return open_packed_file(point.get_path(kind)).recipe.packs


@pytest.mark.parametrize("kind", ArtifactKind)
def test_damage_that_is_found_in_the_rotation_costs_the_new_point_nothing(
    packed: Site, instance: dg.DagsterInstance, kind: ArtifactKind
) -> None:
    [name, *_rest] = list_needed_packs(packed.points()[0], kind)
    before = (packed.directory / "packs" / name).read_bytes()
    spoil(packed, name)
    forget_readings(packed)
    time.sleep(2)
    with open_inbox() as inbox:
        packed.set(BACKUP_ALERT_WEBHOOK_URL=inbox.url)
        take_next(packed, instance)
        [message] = inbox.texts
    assert "Damaged packs were healed" in message
    assert name in message
    first, second = packed.points()
    assert (first.state, second.state) == (PointState.VERIFIED, PointState.VERIFIED)
    assert (packed.directory / "packs" / name).read_bytes() == before
    answer = packed.cli("verify", "--all")
    assert answer.code == 0, answer.stdout
    assert name not in list_needed_packs(second, kind)


def test_damage_of_the_archive_index_costs_the_new_point_nothing(packed: Site) -> None:
    client, bucket = client_of(packed.application.bucket), packed.application.bucket.bucket
    keys = [f"index/{number:04d}.pdf" for number in range(150)]
    for key in keys:
        client.put_object(bucket, key, BytesIO(b"%PDF"), 4)
    try:
        time.sleep(2)
        assert packed.cli("backup").code == 0
        path = packed.points()[-1].get_path(ArtifactKind.BUCKET)
        with open_archive(path) as archive:
            start, end = archive.footer.index_offset, archive.footer.footer_offset
        [record, *_lines] = open_packed_file(path).find_segments(start, end - start)
        name = record.pack
        pack = packed.directory / "packs" / name
        pack.write_bytes(damage(pack.read_bytes(), 8 * (record.offset + 100)))
        forget_readings(packed)
        answer = packed.cli("backup")
    finally:
        for key in keys:
            client.remove_object(bucket, key)
    assert answer.code == 0, answer
    assert packed.points()[-1].state is PointState.VERIFIED
    assert name not in list_needed_packs(packed.points()[-1], ArtifactKind.BUCKET)
    assert packed.points()[-2].state is PointState.FAILED, "its record lies nowhere else"
    answer = packed.cli("verify", "latest")
    assert answer.code == 0, answer.stdout


def exchange_places(site: Site) -> None:
    """Let the index of pieces have each piece where the next one of the same pack lies."""
    with closing(sqlite3.connect(site.directory / "packs" / ".pieces.sqlite")) as index, index:
        rows = index.execute("SELECT digest, pack, start, length FROM pieces ORDER BY pack, start").fetchall()
        index.execute("DELETE FROM pieces")
        places = [row[1:] for row in rows]
        index.executemany(
            "INSERT INTO pieces VALUES (?, ?, ?, ?, x'00')",
            ((row[0], *place) for row, place in zip(rows, places[1:] + places[:1], strict=True)),
        )


@pytest.mark.parametrize("reread_days", ["0", "90"])
def test_a_damaged_index_of_pieces_costs_space_and_nothing_else(packed: Site, reread_days: str) -> None:
    packed.set(BACKUP_REREAD_DAYS=reread_days)
    time.sleep(2)
    for _night in range(2):
        exchange_places(packed)
        answer = packed.cli("backup")
        assert answer.code == 0, answer
    answer = packed.cli("verify", "--all")
    assert answer.code == 0, answer.stdout
    assert [point.state for point in packed.points()] == [PointState.VERIFIED] * 3


@pytest.mark.parametrize("kind", ArtifactKind)
def test_a_pack_that_only_older_points_need_is_read_again_too(
    packed: Site, instance: dg.DagsterInstance, kind: ArtifactKind
) -> None:
    client, bucket = client_of(packed.application.bucket), packed.application.bucket.bucket
    client.put_object(bucket, "short-lived.pdf", BytesIO(b"%PDF" * 100), 400)
    table = "CREATE TABLE short_lived AS SELECT md5(n::text) FROM generate_series(1, 99) n"
    run(packed.application.database, table)
    try:
        time.sleep(2)
        take_next(packed, instance)
    finally:
        client.remove_object(bucket, "short-lived.pdf")
        run(packed.application.database, "DROP TABLE short_lived")
    old = packed.points()[-1]
    take_next(packed, instance)
    others = {name for point in packed.points() if point != old for name in list_needed_packs(point, kind)}
    [name, *_rest] = sorted({*list_needed_packs(old, kind)} - others)
    spoil(packed, name)
    forget_readings(packed)
    take_next(packed, instance)
    points = {point.point_id: point for point in packed.points()}
    first = points.pop(old.point_id)
    assert (first.state, {point.state for point in points.values()}) == (
        PointState.FAILED,
        {PointState.VERIFIED},
    )
    failed = {result.check for result in first.verification.results if result.status is CheckStatus.FAILED}
    assert STORED_CHECKS[kind] in failed
    assert not failed & {STORED_CHECKS[other] for other in ArtifactKind if other is not kind}
    # Known by now: it is not verified in each further night.
    checked_at = [result.checked_at for result in first.verification.results]
    take_next(packed, instance)
    [again] = [point for point in packed.points() if point.point_id == old.point_id]
    assert [result.checked_at for result in again.verification.results] == checked_at


def test_the_packs_of_archives_are_used_after_nights_with_dumps_only(
    packed: Site, instance: dg.DagsterInstance
) -> None:
    time.sleep(2)
    for _night in range(4):
        time.sleep(1.1)
        assert packed.run_selection(instance, dg.AssetSelection.assets("database_dump")).success
    before = list_packs(packed)
    take_next(packed, instance)
    written = sum(size for name, size in list_packs(packed).items() if name not in before)
    assert written < 0.2 * sum(before.values())


def test_a_check_says_what_was_not_read_this_time(packed: Site, instance: dg.DagsterInstance) -> None:
    time.sleep(2)
    take_next(packed, instance)
    verification = packed.points()[-1].verification
    for check in (Check.ARCHIVE_IS_STORED, Check.ARCHIVE_IS_READABLE):
        result = verification.result(check)
        assert result is not None
        assert "what is new was read back, and every other pack at " in result.summary
    level = verification.level(VerificationLevel.STORED)
    assert level.checked_at is not None
    assert level.proved_at is not None
    assert level.proved_at < level.checked_at


def test_a_night_sends_a_store_what_is_new_and_its_copy_is_fetched(
    packed: Site, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    stores = packed.folder / "stores.toml"
    (packed.folder / "nas").mkdir()
    stores.write_text(f'[stores.nas]\nurl = "file://{packed.folder}/nas"\nencryption = "none"\n')
    stores.chmod(0o600)
    packed.set(BACKUP_STORES_FILE=str(stores))
    assert packed.cli("stores", "prepare", "nas").code == 0
    sizes: list[int] = []
    for _night in range(2):
        answer = packed.cli("stores", "copy", "nas")
        assert answer.code == 0, answer
        files = (path for path in (packed.folder / "nas").rglob("*") if path.is_file())
        sizes.append(sum(path.stat().st_size for path in files))
        time.sleep(1.1)
        take_next(packed, instance)
    assert packed.cli("stores", "copy", "nas").code == 0
    assert sizes[1] - sizes[0] < 0.2 * sizes[0]
    assert packed.cli("stores", "prove", "nas").code == 0
    out = tmp_path / "out"
    for point in packed.points():
        answer = packed.cli("fetch", point.point_id.text, "--from", "nas", "--to", str(out))
        assert answer.code == 0, answer
    packed.set(BACKUP_DIR=str(out))
    answer = packed.cli("verify", "--all")
    assert answer.code == 0, answer


def test_a_pack_of_a_deleted_object_is_healed_from_a_store(
    packed: Site, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    stores = packed.folder / "stores.toml"
    (packed.folder / "nas").mkdir()
    pair = make_key_pair()
    identity = tmp_path / "key.txt"
    identity.write_text(f"{pair.private}\n", encoding="ascii")
    stores.write_text(f'[stores.nas]\nurl = "file://{packed.folder}/nas"\nrecipients = ["{pair.public}"]\n')
    stores.chmod(0o600)
    packed.set(BACKUP_STORES_FILE=str(stores))
    assert packed.cli("stores", "prepare", "nas").code == 0
    client, bucket = client_of(packed.application.bucket), packed.application.bucket.bucket
    client.put_object(bucket, "short-lived.pdf", BytesIO(b"%PDF" * 100), 400)
    try:
        time.sleep(2)
        take_next(packed, instance)
    finally:
        client.remove_object(bucket, "short-lived.pdf")
    assert packed.cli("stores", "copy", "nas").code == 0
    first, second = packed.points()
    [name] = {*list_needed_packs(second, ArtifactKind.BUCKET)} - {
        *list_needed_packs(first, ArtifactKind.BUCKET),
        *(name for name in list_packs(packed) if not is_pack_of(second, name, "short-lived.pdf")),
    }
    pack = packed.directory / "packs" / name
    data = pack.read_bytes()
    pack.write_bytes(bytes(len(data)))
    answer = packed.cli("verify", "latest")
    assert (answer.code, "1 object: short-lived.pdf" in answer.stdout) == (3, True), answer.stdout
    answer = packed.cli("heal", "--json")
    assert (answer.code, json.loads(answer.stdout)["damaged"]) == (3, [name])
    answer = packed.cli("heal", "--from", "nas", "--identity", str(identity))
    assert (answer.code, f"{second.point_id} is verified" in answer.stdout) == (0, True), answer
    assert pack.read_bytes() == data
    assert packed.cli("verify", "--all").code == 0
    answer = packed.cli("heal")
    assert (answer.code, "0 packs healed" in answer.stdout) == (0, True)


def test_heal_calls_no_point_whole_whose_recipe_is_damaged(packed: Site) -> None:
    path = packed.points()[0].get_path(ArtifactKind.BUCKET)
    data = path.read_bytes()
    path.write_bytes(damage(data, 8 * 100))
    answer = packed.cli("heal")
    assert (answer.code, "is damaged" in answer.stdout) == (3, True), answer
    path.write_bytes(data)
    answer = packed.cli("heal")
    assert (answer.code, packed.points()[0].state) == (0, PointState.VERIFIED), answer


def is_pack_of(point: PointListing, name: str, key: str) -> bool:
    """Return whether bytes of this object lie in the pack."""
    path = point.get_path(ArtifactKind.BUCKET)
    with open_archive(path) as archive:
        entry = next(entry for entry in archive.read_entries() if entry.key == key)
    segments = open_packed_file(path).find_segments(entry.offset, entry.length)
    return any(segment.pack == name for segment in segments)


def test_a_whole_file_beside_its_recipe_changes_nothing(packed: Site, tmp_path: Path) -> None:
    assert packed.cli("fetch", "latest", "--to", str(tmp_path / "out")).code == 0
    size_bytes = packed.points()[0].size_bytes
    for path in (tmp_path / "out").iterdir():
        shutil.copy(path, packed.directory / path.name)
    answer = packed.cli("verify", "latest")
    [point] = packed.points()
    assert (answer.code, point.state, point.size_bytes) == (0, PointState.VERIFIED, size_bytes), answer.stdout


def test_metrics_have_the_size_of_what_is_in_packs(packed: Site) -> None:
    text = packed.cli("metrics").stdout
    sizes = re.findall(r'^schedgen_backup_last_size_bytes\{.*"(\w+)".*\} ([0-9.e+]+)$', text, re.MULTILINE)
    [point] = packed.points()
    expected = sorted(open_packed_file(artifact.path).size_bytes for artifact in point.artifacts)
    assert sorted(int(float(value)) for _kind, value in sizes) == expected


def test_a_disk_with_less_room_than_a_whole_point_suffices_for_the_next_one(
    site: Site, instance: dg.DagsterInstance
) -> None:
    site.set(BACKUP_LAYOUT="packs")
    with mount_small_disk(site.directory, "64m"):
        assert site.run(instance).success
        before = list_packs(site)
        # Copied objects must be older than two seconds.
        time.sleep(2)
        take_next(site, instance)
        [_first, second] = site.points()
        free_bytes = second.size_bytes * 9 // 10
        with (site.directory / "other").open("wb") as file:
            file.write(b"x" * (shutil.disk_usage(site.directory).free - free_bytes))
        [space] = [
            result
            for result in json.loads(site.cli("doctor", "--json").stdout)["results"]
            if result["what"] == "free space"
        ]
        values = dict(
            re.findall(r"^schedgen_backup_(\w+)\{[^}]*\} (\S+)$", site.cli("metrics").stdout, re.MULTILINE)
        )
        new = sum(size for name, size in list_packs(site).items() if name not in before)
        recipes = sum(artifact.size_bytes for artifact in second.artifacts)
        stored = sum(path.stat().st_size for path in site.directory.glob("*.gz"))
        stored += sum(list_packs(site).values())
    assert (space["state"] != "problem", "more points" in space["detail"]) == (True, True), space
    assert float(values["next_point_bytes"]) == new + recipes
    assert float(values["stored_bytes"]) == stored
    # What the alarm BackupSpaceRunsOut compares.
    needed = 2 * (new + recipes) + float(values["next_point_temporary_bytes"])
    assert needed < float(values["directory_free_bytes"]) < 2 * second.size_bytes


def test_what_a_failed_backup_wrote_does_not_fill_the_disk(site: Site, instance: dg.DagsterInstance) -> None:
    site.set(BACKUP_LAYOUT="packs")
    client, bucket = client_of(site.application.bucket), site.application.bucket.bucket
    body = os.urandom(20 << 20)
    with mount_small_disk(site.directory, "16m"):
        assert site.run(instance).success
        used_bytes = shutil.disk_usage(site.directory).used
        client.put_object(bucket, "large.pdf", BytesIO(body), len(body))
        try:
            time.sleep(1.1)
            assert site.cli("backup").code == 6
        finally:
            client.remove_object(bucket, "large.pdf")
        assert shutil.disk_usage(site.directory).used < used_bytes + (1 << 20)
        # Of a killed one.
        stray = site.directory / "packs" / "20200101_000000-0000"
        stray.write_bytes(b"x" * (shutil.disk_usage(site.directory).free - 4096))
        time.sleep(1.1)
        answer = site.cli("backup")
        assert (answer.code, stray.exists()) == (0, False), answer
        assert site.cli("verify", "--all").code == 0


def list_needed(site: Site) -> set[str]:
    return {
        pack.name
        for point in site.points()
        if point.manifest is not None
        for artifact in point.artifacts
        for pack in open_packed_file(artifact.path).recipe.stated_packs
    }


@pytest.mark.parametrize("command", ["backup", "prune"])
def test_a_kill_at_any_time_costs_no_committed_point_a_pack(packed: Site, command: str) -> None:
    started = time.monotonic()
    process = packed.start_cli(command)
    _said, complaint = process.communicate()
    assert process.returncode == 0, complaint
    duration = time.monotonic() - started
    client, bucket = client_of(packed.application.bucket), packed.application.bucket.bucket
    try:
        for number in range(6):
            body = f"%PDF {number}".encode() * 1000
            client.put_object(bucket, f"kill-{number}.pdf", BytesIO(body), len(body))
            if command == "prune":
                # Something to remove: packs that nobody needs.
                (packed.directory / "packs" / f"20200101_00000{number}-0000").write_bytes(b"x" * 1000)
            process = packed.start_cli(command)
            time.sleep(duration * (0.35 + 0.1 * number))
            process.kill()
            process.communicate()
            assert list_needed(packed) <= set(list_packs(packed))
            assert packed.cli("prune").code == 0
            assert list_needed(packed) <= set(list_packs(packed))
    finally:
        for number in range(6):
            client.remove_object(bucket, f"kill-{number}.pdf")
    assert packed.cli("backup").code == 0
    assert packed.cli("verify", "--all").code == 0
    assert packed.points()[-1].state is PointState.VERIFIED
