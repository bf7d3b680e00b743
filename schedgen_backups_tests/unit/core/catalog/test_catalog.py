"""The backup directory: files are published whole and never overwritten; check results decide the state.

Artifacts here are small ones made without a server. The lock is tested in `unit/core/system/test_lock`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import STAGING_NAME, Catalog
from schedgen_backups.core.catalog.check_results import COMMIT_CHECKS, Check, CheckStatus
from schedgen_backups.core.catalog.missing_objects import accept_missing
from schedgen_backups.core.catalog.pins import Pin, write_pin
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.catalog.selection import find_newest_verified, measure_freshness, resolve_point
from schedgen_backups.core.errors import (
    ConfigurationError,
    StorageError,
    UnreadableFileError,
    VerificationError,
)
from schedgen_backups.core.model import (
    AcceptedObject,
    Adoption,
    Artifact,
    ArtifactKind,
    Manifest,
    RecoveryPointId,
    ReferenceState,
    ReferenceSummary,
)
from schedgen_backups.core.system.files import create_private
from schedgen_backups.core.system.lock import LOCK_NAME
from schedgen_backups_tests.support import histories
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    DUMP_NAME,
    POINT,
    TAKEN_AT,
    TableText,
    list_files,
    make_entry,
    make_result,
    write_archive,
    write_dump,
)

ID = RecoveryPointId(POINT)
WRITE_PAST_THE_LIMIT = """
import resource, sys
from pathlib import Path
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import StorageError
from schedgen_backups_tests.support.artifacts import TableText, write_dump
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
catalog = Catalog(Path(sys.argv[1]))
try:
    with catalog.stage("x") as folder:
        write_dump(folder / sys.argv[2], [TableText("jobs",
            tuple(b"%d" % (n * n * 7919) for n in range(2000)))])
        catalog.publish(folder / sys.argv[2])
except StorageError as error:
    print(error.message)
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    return catalog


def add_point(catalog: Catalog, *, is_committed: bool = True) -> Manifest:
    """Write a point of two small artifacts, with its manifest if requested."""
    dump = write_dump(catalog.directory / DUMP_NAME, [TableText("jobs", (b"1",))])
    archive = write_archive(catalog.directory / ARCHIVE_NAME, [(make_entry("a", b"1"), b"1")])
    sizes = {
        ArtifactKind.DATABASE: (DUMP_NAME, dump.size_bytes, dump.sha256),
        ArtifactKind.BUCKET: (ARCHIVE_NAME, archive.size_bytes, archive.sha256),
    }
    manifest = Manifest(
        tool_version="test",
        point_id=POINT,
        snapshot_at=TAKEN_AT,
        committed_at=TAKEN_AT,
        artifacts=tuple(
            Artifact(kind=kind, file_name=name, source_name="x", size_bytes=size, sha256=sha256)
            for kind, (name, size, sha256) in sizes.items()
        ),
        references=ReferenceSummary(state=ReferenceState.READ),
    )
    if is_committed:
        catalog.write_manifest(manifest)
    return manifest


def record_all(catalog: Catalog, manifest: Manifest) -> None:
    """Record every check as passed on the manifest's files."""
    digests = {artifact.kind: artifact.sha256 for artifact in manifest.artifacts}
    catalog.record_results(ID, tuple(make_result(check, artifacts=digests) for check in COMMIT_CHECKS))


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_published_file_is_in_the_directory_and_its_staging_is_gone(catalog: Catalog) -> None:
    with catalog.stage("x") as folder:
        (folder / "file.gz").write_bytes(b"content")
        assert list_files(catalog.directory) == [f"{STAGING_NAME}/x/file.gz"]
        assert catalog.publish(folder / "file.gz") == catalog.directory / "file.gz"
    assert list_files(catalog.directory) == ["file.gz"]


def test_publishing_never_overwrites(catalog: Catalog) -> None:
    (catalog.directory / "file.gz").write_bytes(b"first")
    with (  # noqa: PT012 - staged first
        pytest.raises(StorageError, match="already exists and is never overwritten"),
        catalog.stage("x") as folder,
    ):
        (folder / "file.gz").write_bytes(b"second")
        catalog.publish(folder / "file.gz")
    assert (catalog.directory / "file.gz").read_bytes() == b"first"
    assert list_files(catalog.directory) == ["file.gz"]


def test_a_manifest_is_never_rewritten(catalog: Catalog) -> None:
    manifest = add_point(catalog)
    with pytest.raises(StorageError, match="never overwritten"):
        catalog.write_manifest(manifest.model_copy(update={"tool_version": "another"}))
    assert catalog.read_manifest(ID) == manifest


def test_an_error_while_writing_publishes_nothing_and_leaves_no_staging(catalog: Catalog) -> None:
    with pytest.raises(RuntimeError), catalog.stage("x") as folder:  # noqa: PT012 - the file is half-written
        (folder / DUMP_NAME).write_bytes(b"half")
        raise RuntimeError
    assert list_files(catalog.directory) == []
    assert catalog.list_points() == ()


def test_half_written_files_are_not_points(catalog: Catalog) -> None:
    with catalog.stage("x") as folder:
        write_dump(folder / DUMP_NAME, [TableText("jobs", (b"1",))])
        (folder / f"manifest_{POINT}.json").write_text("{")
        assert catalog.list_points() == ()
        assert catalog.list_unmanaged() == ()


def test_what_an_orphaned_run_left_is_swept(catalog: Catalog) -> None:
    left = catalog.directory / STAGING_NAME / f"{POINT}-database"
    left.mkdir(parents=True)
    (left / DUMP_NAME).write_bytes(b"half")
    (catalog.directory / STAGING_NAME / f"verification_{POINT}.json.17").write_bytes(b"half")
    add_point(catalog)
    before = list_files(catalog.directory)
    assert catalog.sweep_staging() == (f"{POINT}-database", f"verification_{POINT}.json.17")
    assert list_files(catalog.directory) == [name for name in before if not name.startswith(STAGING_NAME)]
    assert catalog.sweep_staging() == ()


def test_sweeping_follows_no_link_out_of_the_staging_folder(catalog: Catalog, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"1")
    (catalog.directory / STAGING_NAME).mkdir()
    (catalog.directory / STAGING_NAME / "link").symlink_to(elsewhere)
    assert catalog.sweep_staging() == ("link",)
    assert (elsewhere / "precious").exists()
    assert list((catalog.directory / STAGING_NAME).iterdir()) == []


def test_files_and_folders_are_private_to_their_owner(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        catalog = Catalog(tmp_path / "backups")
        catalog.prepare()
        with catalog.stage("x") as folder:
            assert mode_of(folder) == 0o700
            assert mode_of(folder.parent) == 0o700
            os.close(create_private(folder / "file"))
            catalog.publish(folder / "file")
        catalog.write_manifest(add_point(catalog, is_committed=False))
        catalog.record_results(ID, (make_result(Check.DUMP_IS_STORED),))
        catalog.lock.acquire("test")
        catalog.lock.release()
    finally:
        os.umask(before)
    assert mode_of(catalog.directory) == 0o700
    for name in ("file", f"manifest_{POINT}.json", f"verification_{POINT}.json", LOCK_NAME):
        assert mode_of(catalog.directory / name) == 0o600, name


def test_a_private_file_never_reuses_an_existing_one(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"somebody's")
    with pytest.raises(FileExistsError):
        create_private(tmp_path / "there")


def test_a_directory_that_cannot_be_created_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Catalog(tmp_path / "file" / "backups").prepare()


def test_artifacts_without_a_manifest_are_a_partial_point(catalog: Catalog) -> None:
    add_point(catalog, is_committed=False)
    (catalog.directory / DUMP_NAME).unlink()
    (point,) = catalog.list_points()
    assert (point.point_id, point.state) == (ID, PointState.PARTIAL)
    assert point.get_path(ArtifactKind.BUCKET).name == ARCHIVE_NAME
    with pytest.raises(VerificationError, match="has no database file"):
        point.get_path(ArtifactKind.DATABASE)


def test_a_committed_point_is_unverified_until_every_check_passed(catalog: Catalog) -> None:
    manifest = add_point(catalog)
    assert catalog.get_point(ID).state is PointState.UNVERIFIED
    record_all(catalog, manifest)
    assert catalog.get_point(ID).state is PointState.VERIFIED
    catalog.record_results(ID, (make_result(Check.DUMP_IS_STORED, CheckStatus.UNKNOWN),))
    assert catalog.get_point(ID).state is PointState.UNVERIFIED
    catalog.record_results(ID, (make_result(Check.DUMP_IS_STORED, CheckStatus.FAILED),))
    assert catalog.get_point(ID).state is PointState.FAILED


def test_results_for_other_bytes_do_not_count(catalog: Catalog) -> None:
    manifest = add_point(catalog)
    exchanged = tuple(artifact.model_copy(update={"sha256": "0" * 64}) for artifact in manifest.artifacts)
    record_all(catalog, manifest.model_copy(update={"artifacts": exchanged}))
    assert catalog.get_point(ID).state is PointState.UNVERIFIED


def test_a_point_with_a_missing_file_is_not_verified(catalog: Catalog) -> None:
    record_all(catalog, add_point(catalog))
    (catalog.directory / ARCHIVE_NAME).unlink()
    assert catalog.get_point(ID).state is not PointState.VERIFIED


def test_files_of_the_old_script_are_unmanaged_and_never_points(catalog: Catalog) -> None:
    old = catalog.directory / "db_schedgen_20260101_020000.sql.gz"
    old.write_bytes(b"\x1f\x8b old")
    empty = catalog.directory / "minio_schedgen-pdfs_20260101_020000.tar.gz"
    empty.write_bytes(b"")
    (catalog.directory / "notes.txt").write_text("mine")
    add_point(catalog)
    assert [point.point_id for point in catalog.list_points()] == [ID]
    assert set(catalog.list_unmanaged()) == {old, empty}


def test_points_are_listed_oldest_first(catalog: Catalog) -> None:
    ids = ["20260102_020000", "20251231_235959", "20260101_000000"]
    for point_id in ids:
        write_dump(
            catalog.directory / f"db_schedgen_{point_id}.sql.gz",
            [TableText("jobs", (b"1",))],
            point_id=point_id,
        )
    assert [str(point.point_id) for point in catalog.list_points()] == sorted(ids)


def test_a_point_alone_is_what_it_is_in_the_list(catalog: Catalog) -> None:
    own = catalog.settle_site().site_id
    for night, site_id in enumerate([own, own, "b" * 32]):
        commit_as(catalog, night, site_id)
    (catalog.directory / f"verification_{histories.name_night(1)}.json").write_bytes(b"{")
    points = catalog.list_points()
    assert len({point.state for point in points}) == 3
    assert [catalog.get_point(point.point_id) for point in points] == list(points)


def test_a_copied_manifest_hides_no_point(catalog: Catalog) -> None:
    manifest = add_point(catalog)
    (catalog.directory / f"manifest_{POINT} (copy).json").write_text(manifest.model_dump_json())
    assert [point.point_id for point in catalog.list_points()] == [ID]
    assert catalog.list_unmanaged() == ()


@pytest.mark.parametrize("name", ["manifest", "verification"])
@pytest.mark.parametrize("contents", [b"", b'{"tool_version": ', b"\xff\xfe", None])
def test_one_damaged_file_hides_no_other_point(catalog: Catalog, name: str, contents: bytes | None) -> None:
    """None: a directory of that name."""
    for night in (0, 1):
        histories.add_point(catalog, histories.name_night(night))
    other = histories.name_night(1)
    path = catalog.directory / f"{name}_{POINT}.json"
    path.unlink()
    path.mkdir() if contents is None else path.write_bytes(contents)
    damaged, whole = catalog.list_points()
    assert (damaged.point_id, damaged.state) == (ID, PointState.DAMAGED)
    assert [problem for problem in damaged.problems if path.name in problem] == list(damaged.problems)
    assert (whole.point_id, whole.state, whole.problems) == (other, PointState.VERIFIED, ())
    assert catalog.get_point(ID).state is PointState.DAMAGED


@pytest.mark.parametrize("stated", [0, 4, "2b", [2], None])
def test_a_manifest_of_another_format_is_named_as_such(catalog: Catalog, stated: object) -> None:
    """Read as this format, it would mean something else.

    Reported as damaged, it would suggest a disk fault.
    """
    manifest = add_point(catalog)
    path = catalog.manifest_path(ID)
    path.write_text(json.dumps({**json.loads(manifest.model_dump_json()), "format_version": stated}))
    point = catalog.get_point(ID)
    assert point.state is PointState.DAMAGED
    assert ["unsupported format" in problem for problem in point.problems] == [True]


@pytest.mark.parametrize("kind", list(ArtifactKind))
@pytest.mark.parametrize(
    "change", [lambda _data: b"", lambda data: data[:-1], lambda data: data + b"0", None]
)
def test_an_artifact_of_another_size_is_damage(
    catalog: Catalog, kind: ArtifactKind, change: Callable[[bytes], bytes] | None
) -> None:
    """None: the file is missing. The state is read from the files as they are, not from a record."""
    add_point(catalog)
    path = catalog.get_point(ID).get_path(kind)
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    point = catalog.get_point(ID)
    assert point.state is PointState.DAMAGED
    assert [path.name in problem for problem in point.problems] == [True]


def test_a_damaged_verification_is_replaced_by_the_next_check(catalog: Catalog) -> None:
    add_point(catalog)
    (catalog.directory / f"verification_{POINT}.json").write_bytes(b"{")
    verification = catalog.record_results(ID, (make_result(Check.DUMP_IS_STORED),))
    assert [result.check for result in verification.results] == [Check.DUMP_IS_STORED]
    assert catalog.get_point(ID).state is PointState.UNVERIFIED


def test_results_of_concurrent_checks_are_all_kept(catalog: Catalog) -> None:
    checks = list(Check)
    with ThreadPoolExecutor(len(checks)) as pool:
        list(
            pool.map(
                lambda check: Catalog(catalog.directory).record_results(ID, (make_result(check),)), checks
            )
        )
    assert {result.check for result in catalog.read_verification(ID).results} == set(checks)


def test_a_missing_point_is_a_wrong_setting(catalog: Catalog) -> None:
    with pytest.raises(ConfigurationError, match="no recovery point 20000101_000000"):
        catalog.get_point(RecoveryPointId("20000101_000000"))


def test_a_full_disk_is_a_storage_error_and_publishes_nothing(catalog: Catalog) -> None:
    """/dev/full refuses every write, as a full disk does."""
    with pytest.raises(StorageError, match="is full") as caught, catalog.stage("x") as folder:  # noqa: PT012 - the disk fills while writing
        (folder / DUMP_NAME).symlink_to("/dev/full")
        write_dump(folder / DUMP_NAME, [TableText("jobs", (b"1",))])
        catalog.publish(folder / DUMP_NAME)
    assert "Nothing was published" in caught.value.hint
    assert not caught.value.is_retryable
    assert list_files(catalog.directory) == []


def test_a_quota_is_reported_like_a_full_disk(catalog: Catalog) -> None:
    with pytest.raises(StorageError, match="is full"), catalog.stage("x"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


@pytest.mark.takes_seconds
def test_a_file_at_the_systems_size_limit_is_not_published(catalog: Catalog) -> None:
    add_point(catalog)
    before = list_files(catalog.directory)
    name = "db_schedgen_20261123_020000.sql.gz"
    finished = subprocess.run(
        [sys.executable, "-c", WRITE_PAST_THE_LIMIT, str(catalog.directory), name],
        cwd=Path(__file__).parents[4],  # the directory of the tests' own package
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "File too large" in finished.stdout
    assert list_files(catalog.directory) == before


def test_a_verification_is_replaced_as_a_whole(catalog: Catalog) -> None:
    catalog.record_results(ID, (make_result(Check.DUMP_IS_STORED),))
    verification = catalog.record_results(ID, (make_result(Check.DUMP_IS_STORED, CheckStatus.FAILED),))
    assert catalog.read_verification(ID) == verification
    assert [result.status for result in verification.results] == [CheckStatus.FAILED]
    assert list_files(catalog.directory) == [f"verification_{POINT}.json"]


def commit_as(catalog: Catalog, night: int, site_id: str) -> RecoveryPointId:
    """Write a verified point that carries the id of some site."""
    point_id = histories.name_night(night)
    histories.add_point(catalog, point_id)
    path = catalog.manifest_path(point_id)
    path.write_text(path.read_text().replace('"site_id": ""', f'"site_id": "{site_id}"'))
    return point_id


def test_a_site_gets_its_id_once(catalog: Catalog) -> None:
    site = catalog.settle_site()
    assert len(site.site_id) == 32
    assert catalog.settle_site() == site == Catalog(catalog.directory).read_site()
    other = Catalog(catalog.directory.parent / "other")
    other.prepare()
    assert other.settle_site().site_id != site.site_id


def test_a_site_with_a_lost_file_takes_the_id_of_its_points(catalog: Catalog) -> None:
    commit_as(catalog, 0, "a" * 32)
    assert catalog.settle_site().site_id == "a" * 32
    assert catalog.get_point(histories.name_night(0)).state is PointState.VERIFIED


def test_a_point_of_another_site_is_foreign_until_it_is_adopted(catalog: Catalog) -> None:
    site = catalog.settle_site()
    own, foreign = commit_as(catalog, 0, site.site_id), commit_as(catalog, 1, "b" * 32)
    assert [point.state for point in catalog.list_points()] == [PointState.VERIFIED, PointState.FOREIGN]
    assert find_newest_verified(catalog).point_id == own  # type: ignore[union-attr]
    assert resolve_point(catalog, "latest").point_id == own
    assert resolve_point(catalog, foreign.text).point_id == foreign
    catalog.adopt(Adoption(point_id=foreign.text, reason="the old host's", adopted_at=TAKEN_AT))
    assert [point.state for point in catalog.list_points()] == [PointState.VERIFIED, PointState.VERIFIED]
    assert resolve_point(catalog, "latest").point_id == foreign


def test_a_copied_directory_is_the_same_site(catalog: Catalog, tmp_path: Path) -> None:
    commit_as(catalog, 0, catalog.settle_site().site_id)
    copied = shutil.copytree(catalog.directory, tmp_path / "another-host")
    assert [point.state for point in Catalog(copied).list_points()] == [PointState.VERIFIED]


def test_a_point_ahead_of_the_clock_does_not_count_and_can_be_restored_by_id(
    catalog: Catalog,
) -> None:
    now = histories.name_night(0)
    histories.add_point(catalog, now)
    ahead = RecoveryPointId.from_time(datetime.now(timezone.utc) + timedelta(days=3650))
    histories.add_point(catalog, ahead)
    assert [point.state for point in catalog.list_points()] == [PointState.VERIFIED, PointState.AHEAD]
    assert resolve_point(catalog, "latest").point_id == now
    assert find_newest_verified(catalog).point_id == now  # type: ignore[union-attr]
    assert resolve_point(catalog, ahead.text).point_id == ahead
    assert catalog.get_point(ahead).get_path(ArtifactKind.DATABASE).exists()


def test_a_directory_below_missing_ones_is_created_for_its_owner(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "new" / "backups")
    catalog.prepare()
    catalog.prepare()
    assert (mode_of(catalog.directory), list_files(catalog.directory)) == (0o700, [])


def test_a_manifest_of_another_point_is_damage(catalog: Catalog) -> None:
    add_point(catalog)
    other = RecoveryPointId("20261123_020000")
    catalog.manifest_path(ID).rename(catalog.manifest_path(other))
    assert catalog.read_manifest(ID) is None
    with pytest.raises(VerificationError, match=POINT):
        catalog.read_manifest(other)


def test_a_damaged_site_file_is_recreated_only_where_all_points_name_one_site(catalog: Catalog) -> None:
    manifest = add_point(catalog, is_committed=False)
    catalog.write_manifest(manifest.model_copy(update={"site_id": "a" * 32}))
    (catalog.directory / "site.json").write_text("{")
    assert catalog.settle_site().site_id == "a" * 32
    assert catalog.read_site() == catalog.settle_site()
    other = manifest.model_copy(update={"point_id": "20261123_020000", "site_id": "b" * 32})
    catalog.write_manifest(other)
    (catalog.directory / "site.json").write_text("{")
    assert catalog.settle_site().site_id not in {"a" * 32, "b" * 32}
    assert len(list(catalog.directory.glob("site.json.damaged-*"))) == 2
    (catalog.directory / "site.json").unlink()
    assert catalog.settle_site().site_id not in {"a" * 32, "b" * 32}


@pytest.mark.parametrize("damage", ["missing", "empty", "a folder"])
def test_without_a_site_file_points_of_several_sites_belong_to_none(catalog: Catalog, damage: str) -> None:
    """None is selected or removed, each can be restored by its id, and the next backup is taken."""
    path = catalog.directory / "site.json"
    own, foreign = commit_as(catalog, 0, catalog.settle_site().site_id), commit_as(catalog, 1, "b" * 32)
    path.unlink()
    if damage == "empty":
        path.touch()
    elif damage == "a folder":
        path.mkdir()
    assert [point.state for point in catalog.list_points()] == [PointState.FOREIGN, PointState.FOREIGN]
    with pytest.raises(ConfigurationError):
        resolve_point(catalog, "latest")
    assert (
        measure_freshness(catalog, TAKEN_AT).describe()
        == "none; 2 of another site, or of a site whose site.json is lost"
    )
    assert [resolve_point(catalog, point_id.text).point_id for point_id in (own, foreign)] == [own, foreign]
    assert [catalog.get_point(point_id) for point_id in (own, foreign)] == list(catalog.list_points())
    new = commit_as(catalog, 2, catalog.settle_site().site_id)
    assert resolve_point(catalog, "latest").point_id == new
    assert [point.state for point in catalog.list_points()][:2] == [PointState.FOREIGN, PointState.FOREIGN]
    assert (
        measure_freshness(catalog, TAKEN_AT)
        .describe()
        .endswith(" h old; 2 of another site, or of a site whose site.json is lost")
    )


def test_a_point_is_adopted_once_and_other_adoptions_stay(catalog: Catalog) -> None:
    """The first adoption creates the directory's own id."""
    first, other, again = (
        Adoption(point_id=point_id, reason=reason, adopted_at=TAKEN_AT)
        for point_id, reason in ((POINT, "moved"), ("20261123_020000", "moved"), (POINT, "moved again"))
    )
    for adoption in (first, other, again):
        catalog.adopt(adoption)
    site = catalog.read_site()
    assert site is not None
    assert site.adopted == (other, again)
    assert catalog.settle_site() == site


def test_a_small_file_has_known_fields_only(catalog: Catalog) -> None:
    add_point(catalog)
    catalog.write_verification(
        catalog.read_verification(ID).with_results((make_result(Check.DUMP_IS_STORED),))
    )
    for path in (catalog.manifest_path(ID), catalog.verification_path(ID)):
        assert "null" not in path.read_text()


def test_results_of_another_point_are_refused_with_the_file_name(catalog: Catalog) -> None:
    other = RecoveryPointId("20261123_020000")
    catalog.write_verification(catalog.read_verification(ID))
    catalog.verification_path(ID).rename(catalog.verification_path(other))
    with pytest.raises(
        VerificationError, match=f"verification_{other}.json belongs to recovery point {POINT}"
    ):
        catalog.read_verification(other)


def test_a_file_that_cannot_be_removed_is_an_error_that_names_the_directory(catalog: Catalog) -> None:
    with pytest.raises(StorageError, match=f"{catalog.directory} cannot be used: No such file"):
        catalog.remove_file(catalog.directory / "gone")


@pytest.mark.parametrize("is_folder", [False, True], ids=["another file", "folder"])
def test_a_non_artifact_hides_no_artifact_after_it(catalog: Catalog, is_folder: bool) -> None:
    add_point(catalog)
    if is_folder:
        (catalog.directory / DUMP_NAME.replace("schedgen", "a")).mkdir()
    else:
        (catalog.directory / "a.gz").write_bytes(b"")
    [point] = catalog.list_points()
    assert {artifact.path.name for artifact in point.artifacts} == {DUMP_NAME, ARCHIVE_NAME}


@pytest.mark.parametrize("ids", ["a", "ab"], ids=["one site", "points of two sites"])
def test_a_temporarily_unreadable_site_file_stays_as_it_is(catalog: Catalog, ids: str) -> None:
    """A disk or a network may fail for a moment: the next read succeeds, and adoptions must survive."""
    for day, letter in enumerate(ids):
        histories.add_point(catalog, histories.name_night(day))
        path = catalog.manifest_path(histories.name_night(day))
        path.write_text(json.dumps({**json.loads(path.read_text()), "site_id": letter * 32}))
    site_path = catalog.directory / "site.json"
    site_path.symlink_to("/proc/self/mem")  # its first page cannot be read: an I/O error
    if len(ids) == 1:
        assert catalog.settle_site().site_id == "a" * 32
    else:
        with pytest.raises(UnreadableFileError, match=r"site\.json cannot be read: Input/output error"):
            catalog.settle_site()
    assert site_path.is_symlink()
    assert list(catalog.directory.glob("site.json.*")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_files_written_by_root_belong_to_the_service_user(catalog: Catalog) -> None:
    """The backup user must be able to read it after `sudo schedgen-backups adopt` and similar commands."""
    os.chown(catalog.directory, 65534, 65533)
    catalog.settle_site()
    accept_missing(catalog, [AcceptedObject(key="c", reason="lost", accepted_at=TAKEN_AT)])
    write_pin(catalog, Pin(point_id=POINT, reason="kept", pinned_at=TAKEN_AT))
    os.chown(catalog.directory / "site.json", 65532, 65533)
    catalog.adopt(Adoption(point_id=POINT, reason="moved", adopted_at=TAKEN_AT))
    owners = {
        path.name: (path.stat().st_uid, path.stat().st_gid) for path in catalog.directory.glob("*.json")
    }
    assert owners == {
        "site.json": (65532, 65533),
        "missing_objects.json": (65534, 65533),
        f"pin_{POINT}.json": (65534, 65533),
    }
