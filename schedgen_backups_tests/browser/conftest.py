"""A browser page, and the site and servers of the edge tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from schedgen_backups_tests.edge.conftest import application, seeded_application, site, weed
from tools.make_pictures import open_browser

__all__ = ["application", "page", "seeded_application", "site", "weed"]
PATIENCE_MILLISECONDS = 180_000


@pytest.fixture
def page() -> Iterator[Page]:
    """Yield a page of the system's Chromium."""
    with open_browser() as browser:
        opened = browser.new_page(viewport={"width": 1400, "height": 900})
        opened.set_default_timeout(PATIENCE_MILLISECONDS)
        yield opened
