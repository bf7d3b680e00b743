"""A month as operators and auditors see it: the dashboard's panels, and the report on screen and on paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page
from pypdf import PdfReader

from schedgen_backups_tests.support import made_up_month
from schedgen_backups_tests.support.prometheus import Prometheus
from schedgen_backups_tests.support.watched_month import watching
from tools.dashboard_page import ask_panels, render_page
from tools.make_pictures import SPAN, print_page, write_report

NO_STORE = "the site has no store"
HEALTHY_WITHOUT = {
    "Age of each proof, by store": NO_STORE,
    "What the last proof found wrong": NO_STORE,
    "Age of the newest copy": NO_STORE,
    "Points that a store lacks": NO_STORE,
    "Time until the first lock ends": NO_STORE,
    "Copies": NO_STORE,
    "Oldest pack that was never read back": NO_STORE,
    "Stores that cannot be used": NO_STORE,
    "Age of the oldest incident": "nothing failed in the month",
}
"""Panel → why it is empty for a healthy site without stores."""
A4_WIDTH = 794
"""In CSS pixels: 210 mm at 96 to the inch. The page's margins of 12 mm are 45 pixels each."""
A4_POINTS = (595.3, 841.9)
PRINTED_WIDTH = A4_WIDTH - 2 * 45
OVERFLOWING = """width => [...document.body.querySelectorAll('*')]
  .filter(each => each.getBoundingClientRect().right > width + 1 || each.scrollWidth > each.clientWidth + 1
    && getComputedStyle(each).display !== 'inline' && !each.closest('svg'))
  .map(each => `${each.tagName} ${each.className}: ${each.textContent.trim().slice(0, 60)}`)"""
BROKEN_WORDS = """words => [...document.querySelectorAll('td, th')].flatMap(cell => {
  const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), broken = []
  while (texts.nextNode()) for (const word of words) {
    const start = texts.currentNode.data.indexOf(word), range = document.createRange()
    if (start < 0) continue
    range.setStart(texts.currentNode, start)
    range.setEnd(texts.currentNode, start + word.length)
    if (range.getClientRects().length > 1) broken.push(word)
  }
  return broken })"""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with watching(tmp_path_factory.mktemp("watched")) as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a month in which something of every kind failed."""
    folder = tmp_path_factory.mktemp("report")
    month = made_up_month.plan_failing_month(folder / "site", "production")
    month.advance(made_up_month.END)
    write_report(month.directory, made_up_month.NAME, folder / "report.html", "production")
    return folder / "report.html"


def test_every_panel_of_a_site_with_failures_shows_something(
    prometheus: Prometheus, page: Page, tmp_path: Path
) -> None:
    panels = [panel for panel in ask_panels(prometheus, SPAN, site="production") if panel.kind != "row"]
    path = tmp_path / "dashboard.html"
    path.write_text(render_page(panels, ""), encoding="utf-8")
    page.goto(path.as_uri())
    for panel in panels:
        shown = page.locator(f'section[data-title="{panel.title}"]')
        assert shown.locator(".none").count() == 0, panel.title
        drawn = {"timeseries": "svg .serie-0 path", "stat": ".stats b", "table": "td"}[panel.kind]
        assert shown.locator(drawn).count() > 0, panel.title
        assert shown.evaluate("each => each.scrollHeight <= each.clientHeight"), f"{panel.title} is cut"


def test_panels_of_a_healthy_site_are_empty_for_a_reason(prometheus: Prometheus) -> None:
    panels = [panel for panel in ask_panels(prometheus, SPAN, site="staging") if panel.kind != "row"]
    assert {panel.title for panel in panels if panel.is_empty} == HEALTHY_WITHOUT.keys()


def test_the_alarms_of_the_month_are_those_of_its_failures(prometheus: Prometheus) -> None:
    [alarms] = [panel for panel in ask_panels(prometheus, SPAN) if panel.title == "Alarms"]
    assert {series.labels["alertname"] for series in alarms.series} == {
        "BackupCopyDamaged",
        "BackupCopyFailing",
        "BackupCopyNotProved",
        "BackupCopyTooOld",
        "BackupDrillFailed",
        "BackupDrillTooSlow",
        "BackupFailing",
        "BackupLevelFailed",
        "BackupLevelTooOld",
        "BackupPointBroken",
        "BackupTooOld",
    }


def test_the_print_of_a_report_has_every_section(report: Path, page: Page, tmp_path: Path) -> None:
    printed = tmp_path / "report.pdf"
    assert page.context.browser is not None
    print_page(page.context.browser, report, printed)
    sheets = PdfReader(printed).pages
    for sheet in sheets:
        assert (sheet.mediabox.width, sheet.mediabox.height) == pytest.approx(A4_POINTS, abs=1)
    texts = [sheet.extract_text() for sheet in sheets]
    page.goto(report.as_uri())
    headings = page.locator("h1, h2").all_inner_texts()
    assert len(headings) == 15
    for heading in headings:
        [found] = [text for text in texts if re.search(rf"^{re.escape(heading)}$", text, re.MULTILINE)]
        # Not the last line of its sheet: something follows it.
        assert found.rstrip().split("\n")[-1] != heading
    for last in ("older than 7 days", "who and why", "ticket 4711"):
        assert any(last in text for text in texts), last


@pytest.mark.parametrize("media", ["print", "screen"])
def test_nothing_is_wider_than_a_sheet_and_no_name_is_broken(report: Path, page: Page, media: str) -> None:
    width = PRINTED_WIDTH if media == "print" else A4_WIDTH + 200
    page.set_viewport_size({"width": width, "height": 1000})
    page.emulate_media(media=media)  # type: ignore[arg-type]
    page.goto(report.as_uri())
    assert page.evaluate(OVERFLOWING, width) == []
    names = ["2026-10-18 04:00", "20261018_020000", "database_is_equal", "archive_is_stored", "directory"]
    names.append("PostgreSQL")
    assert page.evaluate(BROKEN_WORDS, names) == []


def test_a_sheet_ends_between_rows_and_repeats_the_heads(report: Path, page: Page, tmp_path: Path) -> None:
    printed = tmp_path / "report.pdf"
    assert page.context.browser is not None
    print_page(page.context.browser, report, printed)
    sheets = [sheet.extract_text() for sheet in PdfReader(printed).pages]
    with_points = [text for text in sheets if re.search(r"^[0-9a-f]{64}$", text, re.MULTILINE)]
    assert len(with_points) > 1
    for text in with_points:
        # The digest of a point is on its sheet, below the head of the table.
        assert len(re.findall(r"^[0-9a-f]{64}$", text, re.MULTILINE)) == len(
            re.findall(r"^2026\d{4}_020000 2026-\d\d-\d\d \d\d:\d\d \d+\.\d kB", text, re.MULTILINE)
        )
        assert "SHA-256 of the manifest" in text
