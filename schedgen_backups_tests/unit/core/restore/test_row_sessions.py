"""The sessions that share one table's rows end when reading the rows fails, whatever they are doing then."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.restore.parallel_load import ReadTable, RowSessions

TABLE = TableEntry(schema_name="s", name="t", columns="(a)", expected_rows=1, rows=1, size_bytes=1, sha256="", offset=0, length=1)


class _SessionsWithoutServer(RowSessions):
    """They take blocks as the real ones do, and the rows turn out to be damaged."""

    def _copy(self, is_right: Future[bool]) -> None:
        for _block in iter(self._blocks.get, None):
            pass
        assert not is_right.result()

    def _read(self, read_table: ReadTable, sessions: Sequence[Future[None]]) -> None:
        del read_table
        for _block in range(6):
            self._put(b"x", sessions)
        raise ValueError("damaged rows")


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as they can, so that races are lost."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.no_cover  # Python 3.11 cannot trace threads that start while others switch this often
@pytest.mark.usefixtures("frequent_switches")
def test_a_load_whose_rows_are_damaged_always_ends() -> None:
    rounds: list[int] = []

    def load_damaged_rows() -> None:
        for number in range(1000):
            sessions = _SessionsWithoutServer(cast("Any", SimpleNamespace(artifact=None, target=None)), TABLE, "", count=4)
            with pytest.raises(ValueError, match="damaged rows"):
                sessions.load(cast("ReadTable", None))
            rounds.append(number)

    loading = threading.Thread(target=load_damaged_rows, daemon=True)
    loading.start()
    loading.join(60)
    assert len(rounds) == 1000
