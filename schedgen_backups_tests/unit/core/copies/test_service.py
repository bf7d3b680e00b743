"""What is due is copied whatever else is wrong, and what a store lost is reported."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.pins import read_pin
from schedgen_backups.core.copies.layout import COMMIT_NAME, PACK_LIST_NAME, list_copies, read_pack_list
from schedgen_backups.core.copies.local_folder import CopyState, LocalFolder, now_utc, open_fetch_folder
from schedgen_backups.core.copies.service import CopyService
from schedgen_backups.core.copies.settings import StoreSettings
from schedgen_backups.core.errors import StorageError, StoreError, VerificationError
from schedgen_backups.core.history.events import CopyFailed
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.encryption import Decryptor
from schedgen_backups.core.packs.piece_index import PieceIndex
from schedgen_backups.core.receipts.keys import list_public_keys
from schedgen_backups.core.receipts.receipts import issue_receipt, verify_receipt
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.system.lock import FileLock
from schedgen_backups_tests.support.artifacts import damage
from schedgen_backups_tests.support.copies import (
    HOST_KEYS,
    KEY_PAIR,
    KEYS,
    SITE_ID,
    list_objects,
    make_point,
    make_point_id,
)


class CopiedFolder:
    """A backup directory, and a folder as its store."""

    def __init__(self, folder: Path, *, keep_days: int = 3650) -> None:
        self.catalog = Catalog(folder / "backups", HOST_KEYS)
        self.catalog.prepare()
        self.store = FolderStore(folder / "nas")
        self.store.prepare()
        self.service = CopyService(
            self.catalog,
            StoreSettings(
                "nas",
                StoreLocation(f"file://{folder / 'nas'}"),
                recipients=(KEY_PAIR.public,),
                retention=RetentionPolicy(keep_days=keep_days, keep_last=1),
            ),
        )

    def list_files(self) -> set[str]:
        """Return the keys of copies and packs, without probes and receipts."""
        keys = {stored.key for stored in self.store.list("")}
        return {key for key in keys if "/probes/" not in key and "/receipts/" not in key}

    def remove_copy(self, night: int) -> None:
        for stored in list(self.store.list(f"{KEYS.points}{make_point_id(night)}/")):
            self.store.delete(stored)


def test_receipts_go_along_and_are_verified_with_what_the_store_holds(tmp_path: Path) -> None:
    copied = CopiedFolder(tmp_path)
    make_point(copied.catalog, 0, list_objects(2))
    event = CopyFailed(at=datetime.now(timezone.utc), store="nas", problem="none")
    own = issue_receipt(copied.catalog.directory, event, [])
    assert own is not None
    copied.service.copy_due()
    copied.service.copy_due()
    proof = copied.service.prove()
    assert proof.listing.problems == ()
    folder = tmp_path / "nas" / SITE_ID / "receipts"
    sent = folder / f"{own.name}.age"
    assert Decryptor([KEY_PAIR.private]).decrypt(sent.name, sent.read_bytes()) == own.read_bytes()
    assert verify_receipt(own, list_public_keys(folder / "keys")).event["problem"] == "none"
    # The proof left a receipt itself, which goes along with the next copy.
    make_point(copied.catalog, 1, list_objects(2))
    copied.service.copy_due()
    assert len(list(folder.glob("*.age"))) == 2


@pytest.fixture
def copied(tmp_path: Path) -> CopiedFolder:
    return CopiedFolder(tmp_path)


def test_a_point_that_cannot_be_copied_does_not_stop_the_others(copied: CopiedFolder) -> None:
    for night in range(3):
        make_point(copied.catalog, night, list_objects(3))
    path = copied.catalog.get_point(make_point_id(2)).get_path(ArtifactKind.BUCKET)
    status = path.stat()
    path.write_bytes(damage(path.read_bytes(), 8 * 100))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(VerificationError, match=str(make_point_id(2))):
        copied.service.copy_due()
    assert list(list_copies(copied.store, KEYS)) == [make_point_id(0), make_point_id(1)]
    assert str(make_point_id(2)) in copied.service.state.problem


def test_a_copy_that_disappeared_is_reported_until_it_is_there_again(copied: CopiedFolder) -> None:
    for night in range(2):
        make_point(copied.catalog, night, list_objects(3))
    copied.service.copy_due()
    assert copied.service.prove().listing.problems == ()
    copied.remove_copy(0)
    problem = f"the copy of {make_point_id(0)} is missing, although retention keeps it"
    for _night in range(2):
        copied.service.prove()
        assert copied.service.state.listing_problems == (problem,)
    copied.service.copy_due()
    copied.service.prove()
    assert copied.service.state.listing_problems == ()
    assert copied.service.state.lost_points == ()


def test_a_lost_commit_mark_is_put_back_after_any_number_of_proofs(copied: CopiedFolder) -> None:
    for night in range(2):
        make_point(copied.catalog, night, list_objects(3))
    copied.service.copy_due()
    copied.service.prove()
    before = copied.list_files()
    [mark] = copied.store.list(KEYS.file(make_point_id(0), COMMIT_NAME))
    copied.store.delete(mark)
    for _night in range(3):
        copied.service.prove()
    assert copied.service.state.lost_points == (str(make_point_id(0)),)
    assert [report.uploaded_bytes for report in copied.service.copy_due()] == [0]
    assert copied.service.prove().listing.problems == ()
    assert copied.service.state.lost_points == ()
    assert copied.list_files() == before


def test_what_is_kept_here_of_a_copy_goes_when_retention_has_let_it_go(tmp_path: Path) -> None:
    copied = CopiedFolder(tmp_path, keep_days=50)
    for night in (0, 30):
        make_point(copied.catalog, night, list_objects(3))
        copied.service.copy_due()
    folder = LocalFolder(copied.catalog.directory, "nas")
    copied.remove_copy(0)
    copied.service.prove(now=make_point_id(40).taken_at)
    assert copied.service.state.lost_points == (str(make_point_id(0)),)
    assert make_point_id(0) in folder.list_points()
    copied.service.prove(now=make_point_id(70).taken_at)
    assert folder.list_points() == [make_point_id(30)]


def test_a_file_under_a_taken_key_stops_its_point_and_no_other(copied: CopiedFolder) -> None:
    make_point(copied.catalog, 1, list_objects(3))
    copied.service.copy_due()
    [mark] = copied.store.list(KEYS.file(make_point_id(1), COMMIT_NAME))
    [manifest] = copied.store.list(KEYS.file(make_point_id(1), "manifest"))
    for stored in (mark, manifest):
        copied.store.delete(stored)
    copied.store.put_new(manifest.key, b"of somebody else")
    make_point(copied.catalog, 0, list_objects(3))
    with pytest.raises(StoreError, match="cannot be continued"):
        copied.service.copy_due()
    assert list(list_copies(copied.store, KEYS)) == [make_point_id(0)]
    assert "is not what this host would store" in copied.service.state.problem


def test_a_copy_that_retention_does_not_keep_may_disappear(tmp_path: Path) -> None:
    copied = CopiedFolder(tmp_path, keep_days=1)
    make_point(copied.catalog, 0, list_objects(3))
    copied.service.copy_due()
    make_point(copied.catalog, 1, list_objects(3))
    copied.service.copy_due()
    copied.remove_copy(0)
    assert copied.service.prove().listing.problems == ()


def test_retention_cannot_take_a_point_that_is_being_copied(
    copied: CopiedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_point(copied.catalog, 0, list_objects(3))
    seen: list[str] = []
    put_new = FolderStore.put_new

    def put_and_look(store: FolderStore, key: str, data: bytes) -> None:
        pin = read_pin(copied.catalog, make_point_id(0))
        if key.endswith(COMMIT_NAME) and pin is not None:
            seen.append(pin.reason)
        put_new(store, key, data)

    monkeypatch.setattr(FolderStore, "put_new", put_and_look)
    copied.service.copy_due()
    assert seen == ["it is being copied to nas"]
    assert read_pin(copied.catalog, make_point_id(0)) is None


def test_a_damaged_pin_does_not_stop_a_copy(copied: CopiedFolder) -> None:
    make_point(copied.catalog, 0, list_objects(3))
    copied.catalog.pin_path(make_point_id(0)).write_bytes(b"damaged")
    assert [report.point_id for report in copied.service.copy_due()] == [make_point_id(0)]


def test_preparing_again_finds_out_again_what_the_store_does(copied: CopiedFolder) -> None:
    make_point(copied.catalog, 0, list_objects(3))
    copied.service.copy_due()
    before = copied.service.state.capabilities
    assert before is not None
    probes = len(list(copied.store.list(f"{SITE_ID}/probes/")))
    assert copied.service.probe() == before
    assert len(list(copied.store.list(f"{SITE_ID}/probes/"))) > probes


def test_only_old_fetched_files_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    hour_ago = time.time() - 4000
    for name in ("young", "old", "used"):
        (tmp_path / f".fetched-{name}").mkdir()
        if name != "young":
            os.utime(tmp_path / f".fetched-{name}", (hour_ago, hour_ago))
    lock = FileLock(tmp_path / ".fetched-used" / ".lock")
    assert lock.try_acquire()
    os.utime(tmp_path / ".fetched-used", (hour_ago, hour_ago))
    with open_fetch_folder(tmp_path) as folder:
        left = {path.name for path in tmp_path.iterdir()} - {folder.name}
    assert left == {".fetched-young", ".fetched-used"}
    lock.release()
    assert not folder.exists()


def test_an_index_that_cannot_be_opened_is_kept_and_explained(tmp_path: Path) -> None:
    path = tmp_path / "pieces.sqlite"
    path.mkdir()
    with pytest.raises(StorageError, match="cannot be used") as caught:
        PieceIndex(path)
    assert "cache" in caught.value.hint
    assert path.is_dir()


def test_the_share_of_a_day_is_read_back_and_remembered(copied: CopiedFolder) -> None:
    make_point(copied.catalog, 0, list_objects(3))
    copied.service.copy_due()
    now = datetime.now(timezone.utc)
    for day in range(31):
        copied.service.prove(now=now + timedelta(days=day))
    state = copied.service.state
    assert (state.unread_count, state.reread_problems) == (0, ())
    assert state.oldest_reread_at is not None


def test_a_copy_whose_lists_were_replaced_together_is_reported(copied: CopiedFolder) -> None:
    make_point(copied.catalog, 0, list_objects(3))
    copied.service.copy_due()
    assert copied.service.prove().listing.problems == ()
    commit, pack_list = read_pack_list(copied.store, KEYS, make_point_id(0))
    altered = pack_list.packs[0].model_copy(update={"sha256": "0" * 64})
    data = pack_list.model_copy(update={"packs": (altered, *pack_list.packs[1:])}).model_dump_json().encode()
    digest = hashlib.sha256(data).hexdigest()
    for name, content in (
        (PACK_LIST_NAME, data),
        (COMMIT_NAME, commit.model_copy(update={"packs_sha256": digest}).model_dump_json().encode()),
    ):
        key = KEYS.file(make_point_id(0), name)
        stored = copied.store.head(key)
        assert stored is not None
        copied.store.delete(stored)
        copied.store.put_new(key, content)
    with pytest.raises(VerificationError, match="nothing is removed"):
        copied.service.prune()
    assert "is not the one that this host sent" in " ".join(copied.service.prove().listing.problems)
    assert copied.service.state.listing_problems != ()


def test_nothing_is_pruned_while_a_pack_is_known_to_be_altered(tmp_path: Path) -> None:
    copied = CopiedFolder(tmp_path, keep_days=1)
    for night in range(2):
        make_point(copied.catalog, night, list_objects(3 + night))
        copied.service.copy_due()
    stored = next(copied.store.list(KEYS.packs))
    data = copied.store.get_range(stored.key, 0, stored.size_bytes)
    copied.store.delete(stored)
    copied.store.put_new(stored.key, damage(data, 8 * 300))
    copied.service.prove()
    with pytest.raises(VerificationError, match="was altered"):
        copied.service.prune()
    copied.store.delete(stored)
    copied.store.put_new(stored.key, data)
    copied.service.prove()
    assert copied.service.prune().plan.refusal == ""


def test_a_proof_does_not_hide_that_nothing_can_be_copied(
    copied: CopiedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_point(copied.catalog, 0, list_objects(3))
    put_new = FolderStore.put_new

    def refuse(store: FolderStore, key: str, data: bytes) -> None:
        if "/packs/" in key:
            raise StoreError("No space left on device")
        put_new(store, key, data)

    monkeypatch.setattr(FolderStore, "put_new", refuse)
    with pytest.raises(StoreError):
        copied.service.copy_due()
    copied.service.prove()
    assert copied.service.state.problem == "No space left on device"
    monkeypatch.undo()
    copied.service.copy_due()
    assert copied.service.state.problem == ""


def test_what_was_seen_at_a_former_place_is_not_said_of_the_new_one(
    copied: CopiedFolder, tmp_path: Path
) -> None:
    make_point(copied.catalog, 0, list_objects(3))
    copied.service.copy_due()
    for day in range(8):
        copied.service.prove(now=now_utc() - timedelta(days=8 - day))
    assert copied.service.state.unread_count == 0
    shutil.copytree(tmp_path / "nas", tmp_path / "moved")
    location = StoreLocation(f"file://{tmp_path / 'moved'}")
    moved = CopyService(copied.catalog, replace(copied.service.settings, location=location))
    assert moved.state == CopyState()
    assert len(moved.list_due()) == 1, "nothing is known of the new place"
    assert moved.copy_due() == (), "it holds the copy"
    assert moved.prove().reread.unread_count > 0
    assert len(moved.state.points) == 1
    assert moved.state.capabilities is not None


def test_after_a_copy_without_a_proof_not_every_pack_counts_as_read_back(copied: CopiedFolder) -> None:
    make_point(copied.catalog, 0, list_objects(3))
    copied.service.copy_due()
    for day in range(8):
        copied.service.prove(now=now_utc() - timedelta(days=8 - day))
    assert copied.service.state.oldest_reread_at is not None
    make_point(copied.catalog, 1, list_objects(6))
    [report] = copied.service.copy_due()
    state = copied.service.state
    assert state.oldest_reread_at is None
    assert state.unread_count == len(report.new_packs) > 0
    assert state.oldest_unread_at is not None
    copied.service.prove()
    assert copied.service.state.pack_count == state.pack_count
