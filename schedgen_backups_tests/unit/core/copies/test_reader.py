"""Reading parts of a copy, and copies that were damaged."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.copies.layout import (
    COMMIT_NAME,
    PACK_LIST_NAME,
    make_local_recipe_name,
    make_recipe_name,
    read_pack_list,
)
from schedgen_backups.core.copies.reader import join_ranges
from schedgen_backups.core.errors import ConfigurationError, LockHeldError, StorageError, VerificationError
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.formats.packed_file import read_local_recipe
from schedgen_backups.core.formats.recipe import (
    Recipe,
    Segment,
    Segments,
    read_recipe,
    slice_segments,
    write_recipe,
)
from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.encryption import Decryptor, PlainEncryptor
from schedgen_backups.core.packs.local_packs import LocalPacks
from schedgen_backups.core.packs.pack_files import StoredFile
from schedgen_backups.core.settings import Layout
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups_tests.support.artifacts import damage, list_files
from schedgen_backups_tests.support.copies import (
    KEYS,
    CopiedSite,
    list_objects,
    make_point,
    make_point_id,
)
from schedgen_backups_tests.support.memory_store import MemoryStore


class CountingStore(MemoryStore):
    """Counts the bytes that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_bytes = 0

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        data = super().get_range(key, offset, length, version_id=version_id)
        self.read_bytes += len(data)
        return data


def make_site(folder: Path, *, size_bytes: int = 20_000) -> tuple[CopiedSite, CountingStore]:
    store = CountingStore()
    site = CopiedSite(folder, store, pack_bytes=4 << 20)
    make_point(site.catalog, 0, list_objects(300, size_bytes=size_bytes))
    site.copy(0)
    return site, store


def test_one_object_is_read_without_the_rest(tmp_path: Path) -> None:
    site, store = make_site(tmp_path / "backups")
    reader = site.open_reader(0)
    artifact = reader.manifest.artifact(ArtifactKind.BUCKET)
    assert artifact is not None
    catalog = reader.fetch_descriptions(tmp_path / "fetched")
    reader.fetch_index(catalog.directory, artifact)
    before = store.read_bytes
    path = catalog.get_point(make_point_id(0)).get_path(ArtifactKind.BUCKET)
    with open_archive(path) as archive:
        entry = next(entry for entry in archive.read_entries() if entry.key == "pdf/0123.pdf")
    reader.fetch_ranges(catalog.directory, artifact, [(entry.offset, entry.length)])
    with open_archive(path) as archive:
        body = b"".join(archive.read_object(entry))
    assert body == list_objects(124, size_bytes=20_000)["pdf/0123.pdf"]
    recipe_bytes = sum(file.size_bytes for file in reader.pack_list.files if "recipe" in file.name)
    assert store.read_bytes - before - recipe_bytes <= 20_000 + (256 << 10)


@pytest.mark.parametrize(
    "family", ["packs/", "recipe", "manifest", "verification", PACK_LIST_NAME, COMMIT_NAME]
)
@pytest.mark.parametrize("how", ["altered", "shortened", "removed"])
def test_a_damaged_copy_is_refused(tmp_path: Path, family: str, how: str) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    make_point(site.catalog, 0, list_objects(20))
    site.copy(0)
    stored = next(each for each in site.store.list("") if family in each.key)
    data = site.store.get_range(stored.key, 0, stored.size_bytes)
    site.store.delete(stored)
    if how != "removed":
        # In the commit mark, the digest is what matters.
        place = data.index(b"packs_sha256") + 30 if family == COMMIT_NAME else len(data) // 2
        site.store.put_new(stored.key, damage(data, 8 * place) if how == "altered" else data[:-1])
    (tmp_path / "fetched").mkdir()
    with pytest.raises(VerificationError):
        site.open_reader(0).fetch(tmp_path / "fetched")


def test_a_pack_of_other_bytes_that_were_encrypted_for_us_is_refused(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    make_point(site.catalog, 0, list_objects(20))
    site.copy(0)
    first, second = list(site.store.list(KEYS.packs))[1:3]
    data = site.store.get_range(second.key, 0, second.size_bytes)
    site.store.delete(first)
    site.store.put_new(first.key, data)
    (tmp_path / "fetched").mkdir()
    with pytest.raises(VerificationError, match="its digest is another one"):
        site.open_reader(0).fetch(tmp_path / "fetched")


def test_without_the_key_nothing_is_read(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    make_point(site.catalog, 0, list_objects(2))
    site.copy(0)
    site.decryptor = Decryptor([])
    (tmp_path / "fetched").mkdir()
    with pytest.raises(ConfigurationError, match="no private key"):
        site.open_reader(0).fetch(tmp_path / "fetched")


def test_a_fetched_point_is_a_verified_point_of_its_own_site_once_it_is_read(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    make_point(site.catalog, 0, list_objects(2))
    site.copy(0)
    (tmp_path / "fetched").mkdir()
    point = site.open_reader(0).fetch(tmp_path / "fetched").get_point(make_point_id(0))
    assert not point.is_foreign
    assert point.problems == ()
    assert point.unread_files != (), "what was checked on another disk is checked again here"


LAST_LINE = f"# sha256 {'0' * 64}\n"
SEGMENTS = st.lists(
    st.builds(Segment, st.sampled_from(("a-1", "b.age")), st.integers(0, 100), st.integers(1, 50)), max_size=8
)


@given(SEGMENTS, st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), max_size=5))
def test_slices_cover_exactly_the_ranges(segments: list[Segment], ranges: list[tuple[int, int]]) -> None:
    places = [(each.pack, each.offset + index) for each in segments for index in range(each.length)]
    wanted = {at for offset, length in ranges for at in range(offset, offset + length) if at < len(places)}
    found: dict[int, tuple[str, int]] = {}
    for offset, segment in slice_segments(segments, join_ranges(ranges)):
        for index in range(segment.length):
            assert offset + index not in found
            found[offset + index] = (segment.pack, segment.offset + index)
    assert found == {at: places[at] for at in wanted}


@given(SEGMENTS)
def test_a_recipe_is_read_as_it_was_written(segments: list[Segment]) -> None:
    recipe = Recipe(Segments(segments), "0" * 64)
    written = write_recipe(recipe)
    read = read_recipe("x", written)
    assert (list(read.segments), read.sha256) == (segments, "0" * 64)
    assert read.packs == tuple(dict.fromkeys(segment.pack for segment in segments))
    assert read.size_bytes == sum(segment.length for segment in segments)
    lines = gzip.decompress(written).decode("ascii").splitlines()
    assert lines[:-1] == [f"{each.pack} {each.offset} {each.length}" for each in segments]


@given(SEGMENTS)
def test_neighbours_are_joined_and_cover_the_same_bytes(segments: list[Segment]) -> None:
    joined = Segments()
    for each in segments:
        for index in range(each.length):
            joined.join(Segment(each.pack, each.offset + index, 1))
    whole = [(0, sum(segment.length for segment in segments))]
    assert list_places(slice_segments(joined, whole)) == list_places(slice_segments(segments, whole))
    for before, after in pairwise(joined):
        assert (before.pack, before.offset + before.length) != (after.pack, after.offset)


def list_places(parts: Iterable[tuple[int, Segment]]) -> list[tuple[str, int]]:
    return [(each.pack, each.offset + index) for _at, each in parts for index in range(each.length)]


def test_a_recipe_takes_little_memory() -> None:
    tracemalloc.start()
    try:
        segments = Segments(Segment("20261001_020000-0000.age", 3 * index, 2) for index in range(50_000))
        assert tracemalloc.get_traced_memory()[0] < 25 * 50_000
        data = write_recipe(Recipe(segments, "0" * 64))
        assert tracemalloc.get_traced_memory()[1] < 65 * 50_000, "a fifth of the lines at a time"
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        assert read_recipe("x", data).size_bytes == 100_000
        assert tracemalloc.get_traced_memory()[1] - before < 40 * 50_000
    finally:
        tracemalloc.stop()


def test_a_recipe_larger_than_any_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = Segments(Segment("a", 3 * index, 2) for index in range(100))
    data = write_recipe(Recipe(segments, "0" * 64))
    size_bytes = len(gzip.decompress(data))
    monkeypatch.setattr("schedgen_backups.core.formats.recipe._LARGEST_RECIPE_BYTES", size_bytes)
    assert read_recipe("x", data).size_bytes == 200
    monkeypatch.setattr("schedgen_backups.core.formats.recipe._LARGEST_RECIPE_BYTES", size_bytes - 1)
    with pytest.raises(VerificationError, match="not a recipe"):
        read_recipe("x", data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a 1 2\n",
        "a 1 2\n# sha256 00\n",
        "../a 1 2\n" + LAST_LINE,
        "a -1 2\n" + LAST_LINE,
        LAST_LINE + "a 1 2\n",
        LAST_LINE * 2,
        "a" * 101 + " 1 2\n" + LAST_LINE,
        "a 0 999999999999999999\n" * 5 + LAST_LINE,
        f"# pack 20261001_020000-0000 {1 << 59} {'0' * 64}\n20261001_020000-0000 0 2\n# bytes 2\n",
    ],
)
def test_what_is_not_a_recipe_is_refused(text: str) -> None:
    with pytest.raises(VerificationError, match="not a recipe"):
        read_recipe("x", gzip.compress(text.encode()))


def forge(site: CopiedSite, name: str, plain: bytes, **fields: object) -> None:
    """Replace a file of the copy as somebody can who may write to the store and knows a public key."""
    reader = site.open_reader(0)
    suffix = site.encryptor.suffix
    data = site.encryptor.encrypt(plain)
    forged = StoredFile(name=name + suffix, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    others = [each for each in reader.pack_list.files if each.name != forged.name]
    pack_list = reader.pack_list.model_copy(update={"files": (*others, forged), **fields})
    packs = pack_list.model_dump_json().encode()
    commit = read_pack_list(site.store, KEYS, make_point_id(0))[0].model_copy(
        update={"packs_sha256": hashlib.sha256(packs).hexdigest()}
    )
    for file_name, contents in (
        (forged.name, data),
        (PACK_LIST_NAME, packs),
        (COMMIT_NAME, commit.model_dump_json().encode()),
    ):
        key = KEYS.file(make_point_id(0), file_name)
        stored = site.store.head(key)
        assert stored is not None
        site.store.delete(stored)
        site.store.put_new(key, contents)


@pytest.mark.parametrize(
    "file_name",
    [
        "../db_x_{id}.sql.gz",
        "db_/../../x_{id}.sql.gz",
        "/root/db_x_{id}.sql.gz",
        "db_x_20200101_000000.sql.gz",
        "minio_x_{id}.tar.gz",
        "manifest_{id}.json",
        "",
    ],
)
def test_a_forged_manifest_writes_nothing_elsewhere(tmp_path: Path, file_name: str) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    make_point(site.catalog, 0, list_objects(2))
    site.copy(0)
    manifest = site.open_reader(0).manifest
    named = manifest.artifacts[0].model_copy(
        update={"kind": ArtifactKind.DATABASE, "file_name": file_name.format(id=make_point_id(0))}
    )
    forged = manifest.model_copy(update={"artifacts": (named,)})
    forge(site, "manifest.json", forged.model_dump_json().encode())
    (tmp_path / "here").mkdir()
    before = list_files(tmp_path)
    with pytest.raises(VerificationError, match="not a file of that point"):
        site.open_reader(0).fetch(tmp_path / "here" / "fetched")
    assert list_files(tmp_path) == before


@pytest.mark.parametrize("layout", [Layout.PACKS], indirect=True, ids=["packs"])
@pytest.mark.parametrize("how", ["name", "digest", "places", "exchanged"])
def test_forged_recipes_of_a_point_in_packs_write_nothing(tmp_path: Path, how: str) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    make_point(site.catalog, 0, list_objects(400))
    site.copy(0)
    reader = site.open_reader(0)
    artifact = reader.manifest.artifact(ArtifactKind.BUCKET)
    assert artifact is not None
    stored_name = make_recipe_name(artifact.file_name)
    path = site.catalog.directory / artifact.file_name
    local = read_local_recipe(path)
    stored = reader.read_recipe(artifact)
    if how == "name":
        lines = gzip.decompress(path.read_bytes()).replace(local.packs[0].encode(), b".pieces.sqlite")
        renamed = gzip.compress(lines)
        changed = artifact.model_copy(
            update={"sha256": hashlib.sha256(renamed).hexdigest(), "size_bytes": len(renamed)}
        )
        others = (each for each in reader.manifest.artifacts if each != artifact)
        manifest = reader.manifest.model_copy(update={"artifacts": (*others, changed)})
        forge(site, "manifest.json", manifest.model_dump_json().encode())
        forge(site, make_local_recipe_name(artifact.file_name), renamed)
        said = "not a recipe"
    elif how == "digest":
        other = write_recipe(replace(local, stated_packs=local.stated_packs[::-1]))
        forge(site, make_local_recipe_name(artifact.file_name), other)
        said = "has changed since it was verified"
    elif how == "places":
        shorter = Segments([*stored.segments][:-1])
        last = [*stored.segments][-1]
        shorter.append(Segment(last.pack, last.offset, last.length - 1))
        shorter.append(Segment(last.pack, last.offset, 1))
        forge(site, stored_name, write_recipe(Recipe(shorter)))
        said = "describe different ones"
    else:
        first, second, *_rest = stored.packs
        names = {first: second, second: first}
        swapped = Segments(replace(each, pack=names.get(each.pack, each.pack)) for each in stored.segments)
        forge(site, stored_name, write_recipe(Recipe(swapped)))
        said = "does not hold the pack"
    (tmp_path / "here").mkdir()
    with pytest.raises(VerificationError, match=said):
        site.open_reader(0).fetch_into(tmp_path / "here" / "fetched")
    left = {file.name for file in (tmp_path / "here").rglob("*") if file.is_file()}
    assert left <= {".lock", ".records.lock"}


@pytest.mark.parametrize("layout", [Layout.PACKS], indirect=True, ids=["packs"])
def test_points_that_share_packs_are_fetched_into_one_directory(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    objects = list_objects(400)
    for night in range(2):
        make_point(site.catalog, night, {**objects, "new": b"%d" % night})
        site.copy(night)
    for night in range(2):
        site.open_reader(night).fetch_into(tmp_path / "fetched")
    fetched = Catalog(tmp_path / "fetched")
    assert [point.problems for point in fetched.list_points()] == [(), ()]
    for point in fetched.list_points():
        with (
            ArtifactFile(point.get_path(ArtifactKind.BUCKET)) as ours,
            ArtifactFile(site.catalog.get_point(point.point_id).get_path(ArtifactKind.BUCKET)) as theirs,
        ):
            assert ours.open_reader().read() == theirs.open_reader().read()


@pytest.mark.parametrize("layout", [Layout.PACKS], indirect=True, ids=["packs"])
def test_a_damaged_pack_in_the_way_is_named_and_kept(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    make_point(site.catalog, 0, list_objects(40))
    site.copy(0)
    pack = max(LocalPacks(site.catalog.directory).find_sizes())
    folder = tmp_path / "fetched" / "packs"
    folder.mkdir(parents=True)
    (folder / pack).write_bytes(b"another")
    with pytest.raises(StorageError, match="already holds a pack"):
        site.open_reader(0).fetch_into(tmp_path / "fetched")
    assert [path.name for path in folder.glob("2*")] == [pack]
    assert (folder / pack).read_bytes() == b"another"
    assert Catalog(tmp_path / "fetched").list_points() == ()


@pytest.mark.parametrize("layout", [Layout.PACKS], indirect=True, ids=["packs"])
def test_packs_are_not_fetched_into_a_directory_that_is_being_written_to(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    make_point(site.catalog, 0, list_objects(4))
    site.copy(0)
    other = Catalog(tmp_path / "fetched")
    other.prepare()
    with other.lock.held("prune"), pytest.raises(LockHeldError, match="prune"):
        site.open_reader(0).fetch_into(other.directory)
    assert other.list_points() == ()


def test_a_recipe_that_unpacks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedgen_backups.core.formats.recipe._LARGEST_RECIPE_BYTES", 10_000)
    line = f"{make_point_id(0)}-0000 0 1\n"
    with pytest.raises(VerificationError, match="not a recipe"):
        read_recipe("x", gzip.compress(f"{line * 1000}# sha256 {'0' * 64}\n".encode()))


def test_a_pack_list_with_a_pack_larger_than_memory_is_refused(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    make_point(site.catalog, 0, list_objects(2))
    site.copy(0)
    packs = site.open_reader(0).pack_list.packs
    huge = packs[0].model_copy(update={"size_bytes": 1 << 40})
    forge(site, "verification.json", b"{}", packs=(huge, *packs[1:]))
    with pytest.raises(VerificationError, match="is damaged"):
        site.open_reader(0).fetch(tmp_path / "fetched")


@pytest.mark.parametrize(
    "line", ["../../../evil 0 5", "x;touch evil 0 5", "$(touch evil) 0 5", "x 0 5;touch evil"]
)
def test_the_script_in_the_store_uses_nothing_but_packs(tmp_path: Path, line: str) -> None:
    store = FolderStore(tmp_path / "store")
    store.prepare()
    site = CopiedSite(tmp_path / "backups", store, encryptor=PlainEncryptor())
    make_point(site.catalog, 0, list_objects(2))
    site.copy(0)
    names = [file.name for file in site.open_reader(0).pack_list.files if file.name.startswith("db_")]
    name = max(names)
    assert name.endswith(".gz.recipe.gz")
    forge(site, name, gzip.compress(f"{line}\n# sha256 {'0' * 64}\n".encode()))
    (tmp_path / "evil").write_bytes(b"mine")
    done = subprocess.run(
        ["sh", "restore.sh", make_point_id(0).text, "none", "out"],
        cwd=tmp_path / "store" / KEYS.site_id,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "is not a recipe" in done.stderr
    assert (tmp_path / "evil").read_bytes() == b"mine"
    assert not list((tmp_path / "store").rglob("evil*"))


@pytest.mark.parametrize("family", ["recipe", "manifest", "pack"])
def test_the_script_in_the_store_fails_if_a_file_is_missing(tmp_path: Path, family: str) -> None:
    store = FolderStore(tmp_path / "store")
    store.prepare()
    site = CopiedSite(tmp_path / "backups", store, encryptor=PlainEncryptor())
    make_point(site.catalog, 0, list_objects(2))
    site.copy(0)

    def run_script() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "restore.sh", make_point_id(0).text, "none", "out"],
            cwd=tmp_path / "store" / KEYS.site_id,
            capture_output=True,
            text=True,
            check=False,
        )

    assert run_script().returncode == 0
    lists = site.open_reader(0).pack_list
    files = lists.packs if family == "pack" else lists.files
    name = next(file.name for file in files if family == "pack" or family in file.name)
    next((tmp_path / "store").rglob(name)).unlink()
    done = run_script()
    assert done.returncode == 1
    assert f"{name} is missing" in done.stderr


@pytest.mark.parametrize("layout", [Layout.PACKS], indirect=True, ids=["packs"])
@pytest.mark.parametrize("how", ["altered", "exchanged", "unlisted"])
def test_the_script_in_the_store_compares_every_pack_with_the_recipe_from_home(
    tmp_path: Path, how: str
) -> None:
    store = FolderStore(tmp_path / "store")
    store.prepare()
    site = CopiedSite(tmp_path / "backups", store, encryptor=PlainEncryptor())
    make_point(site.catalog, 0, list_objects(200))
    site.copy(0)
    reader = site.open_reader(0)
    artifact = reader.manifest.artifact(ArtifactKind.BUCKET)
    assert artifact is not None
    first, second, *_rest = reader.read_recipe(artifact).packs
    folder = tmp_path / "store" / KEYS.site_id
    if how == "altered":
        path = folder / "packs" / first
        path.write_bytes(damage(path.read_bytes(), 800))
    elif how == "exchanged":
        names = {first: second, second: first}
        segments = reader.read_recipe(artifact).segments
        swapped = Segments(replace(each, pack=names.get(each.pack, each.pack)) for each in segments)
        path = folder / "packs" / first
        path.write_bytes((folder / "packs" / second).read_bytes())
        forge(site, make_recipe_name(artifact.file_name), write_recipe(Recipe(swapped)))
    else:
        # A forger leaves it out of the list, too.
        name = make_local_recipe_name(artifact.file_name)
        files = tuple(file for file in reader.pack_list.files if file.name != name)
        forge(site, "verification.json", b"{}", files=files)
        (folder / "points" / make_point_id(0).text / name).unlink()
    done = subprocess.run(
        ["sh", "restore.sh", make_point_id(0).text, "none", "out"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert ("is missing" if how == "unlisted" else "was altered") in done.stderr


def test_what_the_script_restores_is_private(tmp_path: Path, layout: Layout) -> None:
    store = FolderStore(tmp_path / "store")
    store.prepare()
    site = CopiedSite(tmp_path / "backups", store, encryptor=PlainEncryptor())
    make_point(site.catalog, 0, list_objects(2))
    site.copy(0)
    subprocess.run(
        ["sh", "restore.sh", make_point_id(0).text, "none", "out"],
        cwd=tmp_path / "store" / KEYS.site_id,
        check=True,
    )
    restored = list((tmp_path / "store" / KEYS.site_id / "out").iterdir())
    assert len(restored) == (4 if layout is Layout.FILES else 2)
    assert {path.stat().st_mode & 0o77 for path in restored} == {0}


def test_fetching_into_a_directory_in_use_changes_nothing_there(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    for night in range(2):
        make_point(site.catalog, night, list_objects(2 + night))
        site.copy(night)
    other = Catalog(tmp_path / "other")
    other.prepare()
    identity = other.settle_site()
    site.open_reader(0).fetch_into(other.directory)
    assert other.read_site() == identity
    assert other.get_point(make_point_id(0)).problems == ()
    before = {path.name: path.read_bytes() for path in other.directory.iterdir() if path.is_file()}
    with pytest.raises(StorageError, match="already holds"):
        site.open_reader(0).fetch_into(other.directory)
    assert {path.name: path.read_bytes() for path in other.directory.iterdir() if path.is_file()} == before
    site.open_reader(1).fetch_into(other.directory)
    assert [point.point_id for point in other.list_points()] == [make_point_id(0), make_point_id(1)]


def test_a_fetch_that_fails_leaves_no_file_of_the_point(tmp_path: Path) -> None:
    site = CopiedSite(tmp_path / "backups", MemoryStore())
    make_point(site.catalog, 0, list_objects(20))
    site.copy(0)
    site.store.delete(list(site.store.list(KEYS.packs))[-1])
    with pytest.raises(VerificationError):
        site.open_reader(0).fetch_into(tmp_path / "new")
    assert list_files(tmp_path / "new") == []
