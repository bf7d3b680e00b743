"""The index of pieces answers like a plain table, whatever it holds of what comes next."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schedgen_backups.core.errors import StorageError
from schedgen_backups.core.formats.recipe import Segment
from schedgen_backups.core.packs.pack_files import StoredFile
from schedgen_backups.core.packs.piece_index import NewPack, PieceIndex
from schedgen_backups_tests.support.artifacts import damage

DIGESTS = [hashlib.sha256(bytes([number])).digest() for number in range(12)]
PACKS = ("one", "two", "three")
_packs = st.sets(st.sampled_from(PACKS))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(PACKS), st.lists(st.sampled_from(DIGESTS), unique=True)),
        st.tuples(st.just("choose"), _packs),
        st.tuples(st.just("forget"), _packs),
        st.tuples(st.just("distrust"), st.sampled_from(PACKS)),
        st.tuples(st.just("find"), st.sampled_from(DIGESTS)),
    ),
    max_size=20,
)


# Each step is written to a disk that other tests may keep busy.
@settings(deadline=None)
@given(steps=STEPS)
def test_every_piece_is_found_where_it_was_put_last_while_its_pack_is_usable(
    steps: list[tuple[Any, ...]],
) -> None:
    places: dict[bytes, Segment] = {}
    known: set[str] = set()
    usable: set[str] = set()
    with TemporaryDirectory() as folder, PieceIndex(Path(folder) / "index") as index:
        for step, *values in steps:
            if step == "add":
                name, digests = values
                if name in known:
                    continue
                pieces = tuple((digest, 10 * place, 10) for place, digest in enumerate(digests))
                index.add(NewPack(StoredFile(name=name, size_bytes=1, sha256="0" * 64), 200, pieces))
                places.update((digest, Segment(name, start, length)) for digest, start, length in pieces)
                known.add(name)
                usable.add(name)
            elif step == "choose":
                index.choose_usable(values[0])
                usable = known & set(values[0])
            elif step == "forget":
                index.forget(values[0])
                known -= set(values[0])
                usable &= known
                places = {digest: place for digest, place in places.items() if place.pack in known}
            elif step == "distrust":
                index.distrust(values[0])
                places = {digest: place for digest, place in places.items() if place.pack != values[0]}
            found = {digest: index.find(digest) for digest in DIGESTS}
            assert found == {
                digest: place if (place := places.get(digest)) and place.pack in usable else None
                for digest in DIGESTS
            }


def use(path: Path) -> None:
    """Do with an index what a backup does."""
    with PieceIndex(path) as index:
        now = datetime.now(timezone.utc)
        assert all(time is None or now - time for time in index.find_rereads().values())
        index.list_packs()
        index.choose_usable(["pack-1", "pack-2"])
        for digest in DIGESTS:
            index.find(digest)
        index.set_aside("pack-2")
        index.take_back("pack-2")
        index.forget(["pack-1"])
        index.add(NewPack(StoredFile(name="new", size_bytes=1, sha256="0" * 64), 1, ((b"x" * 32, 0, 1),)))


def test_a_damaged_index_fails_once_at_most(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with PieceIndex(path) as index:
        for number in range(20):
            pieces = tuple((hashlib.sha256(bytes([number, n])).digest(), 10 * n, 10) for n in range(20))
            name = f"pack-{number}"
            index.add(NewPack(StoredFile(name=name, size_bytes=200, sha256="0" * 64), 200, pieces))
            index.record_reread(name, datetime.now(timezone.utc))
    data = path.read_bytes()
    picked = Random(1)  # noqa: S311 - the same places each time
    places = [*range(8 * 16, 8 * 60), *(picked.randrange(8 * len(data)) for _ in range(300))]
    failures = 0
    for place in places:
        path.write_bytes(damage(data, place))
        try:
            use(path)
        except StorageError:
            failures += 1
            use(path)
    assert failures < len(places) / 20
