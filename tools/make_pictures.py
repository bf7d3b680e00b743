"""Make the pictures of the dashboard and of reports in docs/images: `python -m tools.make_pictures`.

Needs Chromium and `.ci/prometheus`; takes two minutes. The dashboard and one of the reports show a month that
is made up (schedgen_backups_tests/support/made_up_month.py), another report shows the demo.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import typer
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from schedgen_backups.config.variables import ENV_FILE_VARIABLE
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups_tests.support import made_up_month
from schedgen_backups_tests.support.watched_month import FIRST, watching
from tools.dashboard_page import Span, ask_panels, render_page

PROJECT = Path(__file__).resolve().parents[1]
IMAGES = PROJECT / "docs" / "images"
SPAN = Span(FIRST, made_up_month.END, timedelta(hours=1))
_COLOURS = 256
"""Of a picture: half of the bytes, and no difference is visible."""


@contextmanager
def open_browser() -> Generator[Browser, None, None]:
    """Yield the system's Chromium; FileNotFoundError without it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise FileNotFoundError("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        # Some kernels let root use no sandbox, and /dev/shm may be small.
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


def write_report(directory: Path, month: str, to: Path, name: str) -> None:
    """Write the report of a backup directory with the command, and no settings but these."""
    empty_file = directory.with_suffix(".env")
    empty_file.touch(mode=0o600)
    settings = {
        ENV_FILE_VARIABLE: str(empty_file),
        # The page shows it: a path of this machine says nothing. It starts at the file of settings.
        "BACKUP_DIR": directory.name,
        "BACKUP_NAME": name,
        "BACKUP_SCHEDULE": "0 2 * * *",
        "BACKUP_TIMEZONE": "UTC",
        "DRILL_SCHEDULE": "0 4 * * 0",
        "DRILL_MAX_MINUTES": "240",
    }
    words = [sys.executable, "-m", "schedgen_backups.cli.main", "report", "--month", month, "--to", str(to)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **settings}
    subprocess.run(words, cwd=directory.parent, env=environment, check=True, stdout=subprocess.DEVNULL)


def print_page(browser: Browser, page: Path, to: Path) -> None:
    """Print a page on A4, as the browser's own dialogue would."""
    opened = browser.new_page()
    opened.goto(page.as_uri())
    opened.pdf(path=to, format="A4", prefer_css_page_size=True)
    opened.close()


def shoot(browser: Browser, page: Path, to: Path, *, width: int = 1000, is_dark: bool = False) -> None:
    """Make a picture of the whole page."""
    opened = browser.new_page(
        viewport={"width": width, "height": 800}, color_scheme="dark" if is_dark else "light"
    )
    opened.goto(page.as_uri())
    shot = Image.open(BytesIO(opened.screenshot(full_page=True))).convert("RGB")
    opened.close()
    shot.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(to, optimize=True)
    typer.echo(f"{to.relative_to(PROJECT)}: {to.stat().st_size // 1000} kB")


def draw_dashboard(browser: Browser, folder: Path) -> None:
    """Make the picture of the dashboard."""
    page = folder / "dashboard.html"
    with watching(folder) as prometheus:
        subtitle = f"Two sites in {made_up_month.NAME}, which is made up; in one of them something fails."
        page.write_text(render_page(ask_panels(prometheus, SPAN), subtitle), encoding="utf-8")
    shoot(browser, page, IMAGES / "dashboard.png", width=1600)


def draw_reports(browser: Browser, folder: Path) -> None:
    """Make pictures and prints of the reports of the demo, of a month with failures, and of an empty one."""
    failing = made_up_month.plan_failing_month(folder / "failures", "production")
    failing.advance(made_up_month.END)
    Catalog(folder / "empty").prepare()
    subprocess.run(
        [sys.executable, "-m", "schedgen_backups.cli.main", "demo"], check=True, stdout=subprocess.DEVNULL
    )
    this_month = f"{datetime.now(timezone.utc):%Y-%m}"
    for name, directory, month in (
        ("demo", PROJECT / ".demo" / "run" / "backups", this_month),
        ("failures", failing.directory, made_up_month.NAME),
        ("empty", folder / "empty", made_up_month.NAME),
    ):
        page = folder / f"report-{name}.html"
        write_report(directory, month, page, "demo" if name == "demo" else "production")
        shoot(browser, page, IMAGES / f"report-{name}.png")
        print_page(browser, page, IMAGES / f"report-{name}.pdf")
    shoot(browser, folder / "report-demo.html", IMAGES / "report-demo-dark.png", is_dark=True)


def main() -> None:
    """Make all of them."""
    with TemporaryDirectory() as name, open_browser() as browser:
        draw_dashboard(browser, Path(name))
        draw_reports(browser, Path(name))


if __name__ == "__main__":
    main()
