"""Which size changes from one point to the next are reported."""

from __future__ import annotations

import pytest

from schedgen_backups.core.verify.size_change import SizeComparison, SizeVerdict


@pytest.mark.parametrize(
    ("size_bytes", "previous_bytes", "verdict", "percent"),
    [
        (100, None, SizeVerdict.FIRST, 0.0),
        (100, 0, SizeVerdict.FIRST, 0.0),
        (0, 100, SizeVerdict.DROPPED, -100.0),
        (499, 1000, SizeVerdict.DROPPED, -50.1),
        (500, 1000, SizeVerdict.PLAUSIBLE, -50.0),
        (1000, 1000, SizeVerdict.PLAUSIBLE, 0.0),
        (2, 3, SizeVerdict.PLAUSIBLE, -33.3),
        (3000, 1000, SizeVerdict.PLAUSIBLE, 200.0),
        (3001, 1000, SizeVerdict.GREW, 200.1),
    ],
)
def test_only_a_drop_below_half_and_a_rise_above_triple_are_reported(
    size_bytes: int, previous_bytes: int | None, verdict: SizeVerdict, percent: float
) -> None:
    compared = SizeComparison(size_bytes, previous_bytes)
    assert (compared.verdict, compared.change_percent) == (verdict, percent)
