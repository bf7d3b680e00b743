"""Which tables are shared by several sessions, and that these end when reading the rows fails."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schedgen_backups.core.formats.records import TableEntry
from schedgen_backups.core.restore.parallel_load import ReadTable, RowSessions, is_wide

TABLE = TableEntry(
    schema_name="s",
    name="t",
    columns="(a)",
    expected_rows=1,
    rows=1,
    size_bytes=1,
    sha256="",
    offset=0,
    length=1,
)


class _SessionsWithoutServer(RowSessions):
    """They take blocks as real sessions do; then the rows turn out to be damaged."""

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
    """Make threads switch as often as possible, to provoke races."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.takes_seconds
@pytest.mark.no_cover  # Python 3.11 cannot trace threads that start while others switch this often
@pytest.mark.usefixtures("frequent_switches")
def test_a_load_with_damaged_rows_always_ends() -> None:
    rounds: list[int] = []

    def load_damaged_rows() -> None:
        for number in range(1000):
            sessions = _SessionsWithoutServer(
                cast("Any", SimpleNamespace(artifact=None, target=None)), TABLE, "", count=4
            )
            with pytest.raises(ValueError, match="damaged rows"):
                sessions.load(cast("ReadTable", None))
            rounds.append(number)

    loading = threading.Thread(target=load_damaged_rows, daemon=True)
    loading.start()
    loading.join(60)
    assert len(rounds) == 1000


@pytest.mark.parametrize(
    ("length", "size_bytes", "rows", "is_shared"),
    [
        (8 << 20, 16 << 20, 8192, True),
        ((8 << 20) - 1, 16 << 20, 8192, False),
        (8 << 20, (16 << 20) - 1, 8192, False),
        (8 << 20, 0, 0, True),
        (1 << 30, 1 << 31, 1 << 24, False),
    ],
)
def test_only_large_tables_with_large_rows_are_shared(
    length: int, size_bytes: int, rows: int, is_shared: bool
) -> None:
    assert (
        is_wide(TABLE.model_copy(update={"length": length, "size_bytes": size_bytes, "rows": rows}))
        is is_shared
    )
