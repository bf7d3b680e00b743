"""A FIFO, socket or device with the name of a backup file causes no hang and counts as damage."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from schedgen_backups.core.capture.unchanged import PreviousObjects
from schedgen_backups.core.catalog.catalog import STAGING_NAME, Catalog
from schedgen_backups.core.catalog.missing_objects import settle_baseline
from schedgen_backups.core.catalog.pins import read_pin
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.catalog.resume import (
    JOURNAL_NAME,
    find_archive,
    find_resumable,
    read_journal,
    write_source,
)
from schedgen_backups.core.catalog.small_files import BASELINE_NAME, SITE_NAME
from schedgen_backups.core.errors import LockHeldError, StorageError, VerificationError
from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.notify.incidents import IncidentStore
from schedgen_backups.core.notify.notifier import Notifier
from schedgen_backups.core.restore.log import RESTORE_LOG_NAME, logged_restore, read_restore_log
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.system.files import open_regular, read_small_file
from schedgen_backups.core.system.lock import LOCK_NAME
from schedgen_backups.core.verify.files import verify_archive, verify_dump, verify_every_object
from schedgen_backups_tests.support import histories
from schedgen_backups_tests.support.artifacts import ARCHIVE_NAME, DUMP_NAME, POINT, is_refused
from schedgen_backups_tests.support.recover import SCRIPT, run_script

pytestmark = pytest.mark.timeout(20)

ID = RecoveryPointId(POINT)
BUCKET = BucketSettings(endpoint="127.0.0.1:9000", bucket="pdfs", access_key="a", secret_key="s")
IRREGULAR = r"regular|directory|device|address"
Make = Callable[[Path], None]


def make_socket(path: Path) -> None:
    # Its name may have 107 bytes only.
    with socket.socket(socket.AF_UNIX) as opened:
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            opened.bind(path.name)
        finally:
            os.chdir(here)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.fixture(
    params=[os.mkfifo, make_socket, link_to_device, os.mkdir],
    ids=["FIFO", "socket", "endless device", "directory"],
)
def make(request: pytest.FixtureRequest) -> Make:
    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        request.param(path)

    return make


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Return the catalog of two committed and verified points."""
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    for night in (0, 1):
        histories.add_point(catalog, histories.name_night(night))
    return catalog


@pytest.mark.parametrize(
    "name", [f"manifest_{POINT}.json", f"verification_{POINT}.json", DUMP_NAME, ARCHIVE_NAME]
)
def test_in_place_of_a_points_file_it_damages_that_point_alone(
    catalog: Catalog, make: Make, name: str
) -> None:
    make(catalog.directory / name)
    damaged, whole = catalog.list_points()
    assert (damaged.point_id, damaged.state) == (ID, PointState.DAMAGED)
    assert any(name in problem for problem in damaged.problems)
    assert whole.state is PointState.VERIFIED
    assert catalog.list_unmanaged() == ()


def test_without_a_manifest_it_is_not_a_point(catalog: Catalog, make: Make) -> None:
    make(catalog.directory / "manifest_20261201_020000.json")
    make(catalog.directory / ARCHIVE_NAME.replace(POINT, "20261202_020000"))
    states = {str(point.point_id): point.state for point in catalog.list_points()}
    assert states["20261201_020000"] is PointState.DAMAGED
    assert "20261202_020000" not in states


def test_small_files_are_damaged(catalog: Catalog, make: Make) -> None:
    make(catalog.directory / SITE_NAME)
    make(catalog.directory / BASELINE_NAME)
    make(catalog.pin_path(ID))
    with pytest.raises(VerificationError, match="cannot be read"):
        catalog.read_site()
    assert settle_baseline(catalog, []) == frozenset()
    with pytest.raises(VerificationError, match="cannot be read"):
        read_pin(catalog, ID)
    assert {point.state for point in catalog.list_points()} == {PointState.VERIFIED}


def test_an_artifact_cannot_be_read(tmp_path: Path, make: Make) -> None:
    for name, verify in ((DUMP_NAME, verify_dump), (ARCHIVE_NAME, verify_archive)):
        make(tmp_path / name)
        assert is_refused(verify(tmp_path / name))
    assert is_refused([verify_every_object(tmp_path / ARCHIVE_NAME)])
    with ArtifactFile(tmp_path / DUMP_NAME) as file, pytest.raises(VerificationError, match="cannot be read"):
        file.open_reader()


def test_an_older_archive_is_not_reused(tmp_path: Path, make: Make) -> None:
    make(tmp_path / ARCHIVE_NAME)
    with PreviousObjects(tmp_path, BUCKET, reread_days=30) as objects:
        assert not objects.add_archive(tmp_path / ARCHIVE_NAME)


def test_a_killed_captures_leftover_is_not_reused(tmp_path: Path, make: Make) -> None:
    folder = tmp_path / STAGING_NAME / "x"
    folder.mkdir(parents=True)
    make(folder / JOURNAL_NAME)
    find_resumable(tmp_path / STAGING_NAME)
    with pytest.raises(OSError, match=IRREGULAR):
        list(read_journal(folder))
    make(folder / "source.json")
    assert find_archive(folder, BUCKET) is None


def test_an_unfinished_archive_is_not_resumed(tmp_path: Path, make: Make) -> None:
    write_source(tmp_path, BUCKET, "a.tar.gz")
    (tmp_path / "a.tar.gz").touch()
    make(tmp_path / JOURNAL_NAME)
    with PreviousObjects(tmp_path, BUCKET, reread_days=30) as objects:
        objects.add_resumable(tmp_path)
        make(tmp_path / "a.tar.gz")
        objects.add_resumable(tmp_path)


def test_the_restore_log_cannot_be_read_or_written(tmp_path: Path, make: Make) -> None:
    make(tmp_path / RESTORE_LOG_NAME)
    with pytest.raises(StorageError, match=RESTORE_LOG_NAME):
        read_restore_log(tmp_path)
    with (
        pytest.raises(OSError, match=IRREGULAR),
        logged_restore(tmp_path, point_id=POINT, subject="x", target="y"),
    ):
        pass


def test_alerts_are_sent_without_their_files(tmp_path: Path, make: Make) -> None:
    folder = tmp_path / ".alerts"
    (folder / "spool").mkdir(parents=True)
    make(folder / "incidents.json")
    make(folder / "spool" / "20261101.json")
    with pytest.raises(OSError, match=IRREGULAR):
        IncidentStore(folder).read()
    assert Notifier([], tmp_path).flush_spool() == 1


def test_a_lock_names_another_process(tmp_path: Path, make: Make) -> None:
    make(tmp_path / LOCK_NAME)
    catalog, other = Catalog(tmp_path), Catalog(tmp_path)
    with suppress(StorageError):
        catalog.lock.acquire("one")
        with pytest.raises(LockHeldError, match="another process"):
            other.lock.acquire("two")


@pytest.mark.takes_seconds
def test_the_stand_alone_script_calls_it_damaged(catalog: Catalog, tmp_path: Path, make: Make) -> None:
    (tmp_path / SCRIPT.name).write_bytes(SCRIPT.read_bytes())
    make(catalog.manifest_path(ID))
    listed = run_script(tmp_path, ["list", str(catalog.directory)], {})
    assert listed.returncode == 0, listed.stderr
    assert [line for line in listed.stdout.splitlines() if POINT in line and "MANIFEST DAMAGED" in line]
    make(catalog.directory / DUMP_NAME)
    verified = run_script(tmp_path, ["verify", str(catalog.directory), POINT], {})
    assert verified.returncode == 3, verified.stderr


def test_a_file_is_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    assert read_small_file(tmp_path / "a") == b"1234"
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"1234"
    monkeypatch.setattr("schedgen_backups.core.system.files._SMALL_FILE_LIMIT_BYTES", 3)
    with pytest.raises(OSError, match="larger than 256 MiB"):
        read_small_file(tmp_path / "a")


def test_points_are_listed_while_their_files_are_removed(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names are listed first; each file is removed before it is read."""
    glob = Path.glob

    def remove_found(self: Path, pattern: str) -> Iterator[Path]:
        found = list(glob(self, pattern))
        for path in found:
            if POINT in path.name or path.name.endswith(".tmp"):
                path.unlink()
        yield from found

    monkeypatch.setattr(Path, "glob", remove_found)
    (catalog.directory / ".manifest.json.0.tmp").touch()
    assert [point.state for point in catalog.list_points() if point.point_id != ID] == [PointState.VERIFIED]
    assert catalog.list_points()[-1].artifact(ArtifactKind.DATABASE) is not None
    catalog.sweep_staging()


def test_a_manifest_removed_meanwhile_is_skipped(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.manifest_path(ID).unlink()
    monkeypatch.setattr(Path, "exists", lambda _path: True)
    assert catalog.read_manifest(ID) is None
    assert catalog.get_point(ID).state is PointState.PARTIAL


def test_a_probe_of_the_directory_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f".probe-{os.getpid()}")
    Catalog(tmp_path).prepare()
