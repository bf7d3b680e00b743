"""What an operator does in the Dagster UI: materialise a backup, see its checks green, open the Launchpad of a restore.

Screenshots go to SCREENSHOTS where that is set; the best of them are in docs/images. What the runs do is tested in `edge/`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from schedgen_backups.core.catalog.catalog import PointState
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups_tests.browser.conftest import PATIENCE_MILLISECONDS
from schedgen_backups_tests.edge.runs.test_cancel import running_dagster
from schedgen_backups_tests.support.sites import Site, wait_until

LOCATION = "schedgen_backups.definitions"
CHECKS = ("archive_is_readable", "every_object_is_archived", "references_resolve")


def shoot(page: Page, name: str) -> None:
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.wait_for_timeout(1500)
        page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.mark.timeout(1200)
def test_a_backup_is_materialised_its_checks_are_green_and_a_restore_waits_in_the_launchpad(site: Site, page: Page) -> None:
    [port] = free_ports(1)
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    address = f"http://{LOOPBACK}:{port}"
    with running_dagster(site, port):
        page.goto(f"{address}/locations/{LOCATION}/jobs/backup_job")
        page.get_by_role("button", name="Materialize all").click()
        wait_until(lambda: [point.state for point in site.points()] == [PointState.VERIFIED], "the recovery point is committed and verified")
        page.goto(f"{address}/assets/minio_archive?view=checks")
        for check in CHECKS:
            expect(page.get_by_text(check, exact=True).first).to_be_visible()
        expect(page.get_by_text("Passed").first).to_be_visible()
        expect(page.get_by_text("Failed", exact=True)).to_have_count(0)
        shoot(page, "checks")
        page.goto(f"{address}/locations/{LOCATION}/asset-groups/recovery_point/lineage")
        for asset in ("database_dump", "minio_archive", "recovery_point"):
            expect(page.get_by_text(asset, exact=True).first).to_be_visible()
        shoot(page, "assets")
        page.goto(f"{address}/locations/{LOCATION}/jobs/restore_job/playground")
        expect(page.get_by_text("restore_recovery_point").first).to_be_visible()
        expect(page.get_by_role("button", name="Launch Run")).to_be_visible()
        shoot(page, "launchpad")
    assert [point.state for point in site.points()] == [PointState.VERIFIED]
