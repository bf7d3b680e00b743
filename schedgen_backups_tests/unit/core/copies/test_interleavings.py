"""Two writers and a pruner at the same time, in any order, with kills: no committed copy lacks a pack."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.copies.layout import COMMIT_NAME, list_copies
from schedgen_backups.core.copies.proof import prove_listing
from schedgen_backups.core.copies.prune import Pruner
from schedgen_backups.core.errors import BackupError, StoreUnreachableError
from schedgen_backups.core.packs.encryption import PlainEncryptor
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.settings import Layout
from schedgen_backups.core.store.protocol import Store, StoredObject
from schedgen_backups_tests.support.copies import FIRST_NIGHT, KEYS, CopiedSite, list_objects, make_point
from schedgen_backups_tests.support.memory_store import MemoryStore

# To the store, encrypted packs are others of the same kind, and these orders take seconds.
pytestmark = pytest.mark.parametrize("layout", Layout, indirect=True, ids=[each.value for each in Layout])

NIGHTS = 10
_Result = TypeVar("_Result")


class Call:
    """One call of a store that waits for its turn."""

    def __init__(self, run: Callable[[], object], *, is_risky: bool) -> None:
        self.run = run
        self.is_risky = is_risky
        """Whether it can make a copy incomplete: it commits or deletes."""
        self.result: object = None
        self.error: BaseException | None = None
        self.is_done = threading.Event()

    def execute(self) -> None:
        try:
            self.result = self.run()
        except BackupError as error:
            self.error = error


class Actor:
    """A writer or the pruner: a thread whose calls of the store wait for their turn."""

    def __init__(self, store: Store, act: Callable[[Store], None]) -> None:
        self.calls: queue.Queue[Call] = queue.Queue()
        self.thread = threading.Thread(target=act, args=(TurnStore(store, self.calls),), daemon=True)
        self.thread.start()

    def await_call(self) -> Call | None:
        """Return its next call; None when it has ended."""
        while True:
            try:
                return self.calls.get(timeout=0.005)
            except queue.Empty:
                if not self.thread.is_alive() and self.calls.empty():
                    return None


class TurnStore:
    """Hands every call to the scheduler."""

    label = "memory"

    def __init__(self, store: Store, calls: queue.Queue[Call]) -> None:
        self._store = store
        self._calls = calls

    def _wait(self, run: Callable[[], _Result], *, is_risky: bool = False) -> _Result:
        call = Call(run, is_risky=is_risky)
        self._calls.put(call)
        call.is_done.wait()
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value]

    def put_new(self, key: str, data: bytes) -> None:
        self._wait(lambda: self._store.put_new(key, data), is_risky=key.endswith(COMMIT_NAME))

    def get_range(self, key: str, offset: int, length: int, *, version_id: str = "") -> bytes:
        return self._wait(lambda: self._store.get_range(key, offset, length, version_id=version_id))

    def head(self, key: str, *, version_id: str = "") -> StoredObject | None:
        return self._wait(lambda: self._store.head(key, version_id=version_id))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return iter(self._wait(lambda: list(self._store.list(prefix))))

    def delete(self, stored: StoredObject) -> None:
        self._wait(lambda: self._store.delete(stored), is_risky=True)

    def extend_lock(self, stored: StoredObject, until: datetime) -> None:
        self._wait(lambda: self._store.extend_lock(stored, until))


class Clock:
    """The store's clock."""

    def __init__(self) -> None:
        self.time = FIRST_NIGHT + timedelta(days=NIGHTS)

    def __call__(self) -> datetime:
        return self.time.replace(microsecond=0)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup directory of ten nights that share about half of their objects."""
    folder = tmp_path_factory.mktemp("points")
    objects = list_objects(12, size_bytes=150)
    for night in range(NIGHTS):
        chosen = Random(night).sample(sorted(objects), 6)  # noqa: S311 - nothing secret
        make_point(Catalog(folder), night, {key: objects[key] for key in chosen})
    return folder


def write_nights(site: CopiedSite, nights: list[int], notes: set[str]) -> Callable[[Store], None]:
    def act(store: Store) -> None:
        site.store = store
        for night in nights:
            try:
                site.copy(night)
            except BackupError as error:
                notes.add(f"copying: {type(error).__name__}")

    return act


def prune_often(times: int, notes: set[str]) -> Callable[[Store], None]:
    def act(store: Store) -> None:
        for _time in range(times):
            try:
                policy = RetentionPolicy(keep_days=1, keep_last=2)
                report = Pruner(store, KEYS, policy).prune()
                if report.removed_packs:
                    notes.add("packs removed")
            except BackupError as error:
                notes.add(f"pruning: {type(error).__name__}")

    return act


def assert_whole(store: Store) -> None:
    proof = prove_listing(store, KEYS)
    # A copy that is being removed loses its commit mark first.
    assert proof.problems == ()


def play(folder: Path, points: Path, steps: Iterator[tuple[int, int, str]]) -> None:
    """Give turns to the actors as the steps say: who, hours that pass, and whether it is killed."""
    clock = Clock()
    store = MemoryStore(now=clock)
    notes = set[str]()
    actors = [
        Actor(store, write_nights(make_site(folder / "one", points, store), [0, 2, 4, 5, 6, 8, 0], notes)),
        Actor(store, write_nights(make_site(folder / "two", points, store), [1, 3, 4, 7, 9, 1, 5], notes)),
        Actor(store, prune_often(12, notes)),
    ]
    while actors:
        who, hours, kill = next(steps)
        actor = actors[who % len(actors)]
        call = actor.await_call()
        if call is None:
            actors.remove(actor)
            continue
        clock.time += timedelta(hours=hours)
        if kill != "before":
            call.execute()
        if kill in {"before", "after"}:
            call.error = StoreUnreachableError("killed")
        if call.is_risky:
            assert_whole(store)
        call.is_done.set()
    assert_whole(store)
    for note in notes:
        event(note)
    event(f"copies left: {len(list_copies(store, KEYS))}")


def make_site(folder: Path, points: Path, store: Store) -> CopiedSite:
    return CopiedSite(folder, store, encryptor=PlainEncryptor(), pack_bytes=400, points=points)


def make_steps(seed: int, hours: int, kills: int) -> Iterator[tuple[int, int, str]]:
    """Yield random turns: mostly several in a row for one actor, so that others get far behind."""
    random = Random(seed)  # noqa: S311 - nothing secret
    while True:
        who = random.randrange(3)
        for _turn in range(random.choice((1, 2, 5, 20, 60, 100))):
            is_killed = random.randrange(1000) < kills
            yield (
                who,
                random.choice((0, 0, hours)),
                random.choice(("before", "after")) if is_killed else "",
            )


def run_interleaving(points: Path, seed: int, hours: int, kills: int) -> None:
    with TemporaryDirectory() as folder:
        play(Path(folder), points, make_steps(seed, hours, kills))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), hours=st.integers(1, 30), kills=st.sampled_from((0, 0, 5, 20)))
def test_no_committed_copy_lacks_a_pack(points: Path, seed: int, hours: int, kills: int) -> None:
    run_interleaving(points, seed, hours, kills)


@pytest.mark.exhaustive
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), hours=st.integers(1, 30), kills=st.sampled_from((0, 0, 5, 20)))
def test_no_committed_copy_lacks_a_pack_in_a_thousand_interleavings(
    points: Path, seed: int, hours: int, kills: int
) -> None:
    run_interleaving(points, seed, hours, kills)
