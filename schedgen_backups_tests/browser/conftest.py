"""A browser page, and the site and servers of the edge tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from schedgen_backups_tests.edge.conftest import application, seeded_application, site, weed

__all__ = ["application", "page", "seeded_application", "site", "weed"]
PATIENCE_MILLISECONDS = 180_000


@pytest.fixture
def page() -> Iterator[Page]:
    """Yield a page of the system's Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program is not None, "Chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        # Some kernels let root use no sandbox, and /dev/shm may be small.
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        opened = browser.new_page(viewport={"width": 1400, "height": 900})
        opened.set_default_timeout(PATIENCE_MILLISECONDS)
        yield opened
        browser.close()
