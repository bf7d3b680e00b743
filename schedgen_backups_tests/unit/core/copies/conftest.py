"""Each test of copies runs with points as files and with points in packs."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from schedgen_backups.core.settings import Layout
from schedgen_backups_tests.support.copies import LAYOUT


@pytest.fixture(params=Layout, ids=lambda layout: layout.value, autouse=True)
def layout(request: pytest.FixtureRequest) -> Generator[Layout, None, None]:
    """Write the points of the test in this layout."""
    token = LAYOUT.set(request.param)
    try:
        yield request.param
    finally:
        LAYOUT.reset(token)
