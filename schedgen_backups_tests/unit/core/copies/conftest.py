"""Each test of copies runs with points as files, in packs, and in encrypted packs."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from schedgen_backups.core.settings import Layout
from schedgen_backups_tests.support.copies import ENCRYPTION, LAYOUT, encrypt_for_host

ENCRYPTED = "encrypted"
"""In packs that are encrypted, for others than the store is."""


@pytest.fixture(
    params=(*Layout, ENCRYPTED),
    ids=lambda layout: layout.value if isinstance(layout, Layout) else layout,
    autouse=True,
)
def layout(request: pytest.FixtureRequest) -> Generator[Layout, None, None]:
    """Write the points of the test in this layout."""
    is_encrypted = request.param == ENCRYPTED
    chosen = Layout.PACKS if is_encrypted else request.param
    token = LAYOUT.set(chosen)
    encryption = ENCRYPTION.set(encrypt_for_host() if is_encrypted else None)
    try:
        yield chosen
    finally:
        LAYOUT.reset(token)
        ENCRYPTION.reset(encryption)
