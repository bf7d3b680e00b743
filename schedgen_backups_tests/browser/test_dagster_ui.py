"""An operator's tasks in the Dagster UI: back up, find damage, drill and restore.

Screenshots go to SCREENSHOTS if it is set; the best are in docs/images. `edge/` tests what the runs do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from schedgen_backups.core.catalog.check_results import CheckStatus, VerificationLevel
from schedgen_backups.core.catalog.points import PointListing, PointState
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups_tests.browser.conftest import PATIENCE_MILLISECONDS
from schedgen_backups_tests.edge.runs.test_cancel import running_dagster
from schedgen_backups_tests.support.servers import run
from schedgen_backups_tests.support.sites import Site, wait_until

LOCATION = "schedgen_backups.definitions"
ASSETS = ("live_system", "database_dump", "minio_archive", "recovery_point", "restore_drill")
CHECKS = ("archive_is_readable", "every_object_is_archived", "references_resolve")


class Operator:
    """An operator in front of the UI."""

    def __init__(self, page: Page, site: Site, address: str) -> None:
        self.page, self.site, self.address = page, site, address

    def shoot(self, name: str) -> None:
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            self.page.wait_for_timeout(2500)
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def visit(self, path: str) -> None:
        self.page.goto(f"{self.address}/{path}")

    def visit_lineage(self) -> None:
        self.visit(f"locations/{LOCATION}/asset-groups/backup/lineage")
        for asset in ASSETS:
            expect(self.page.get_by_text(asset, exact=True).first).to_be_visible()

    def launch(self, job: str, config: str = "") -> str:
        """Launch the job from its Launchpad with this configuration; return the run's final status."""
        self.visit(f"locations/{LOCATION}/jobs/{job}/playground")
        if config:
            self.page.locator(".CodeMirror").first.click()
            self.page.keyboard.press("Control+A")
            self.page.keyboard.insert_text(config)
        self.page.get_by_role("button", name="Launch Run").click()
        self.page.wait_for_url("**/runs/*")
        ended = self.page.get_by_text("Success", exact=True).or_(self.page.get_by_text("Failure", exact=True))
        expect(ended.first).to_be_visible()
        return ended.first.inner_text()

    def wait_for_points(self, *states: PointState) -> PointListing:
        wait_until(
            lambda: [point.state for point in self.site.points()] == list(states), f"the points are {states}"
        )
        return self.site.points()[-1]


@pytest.fixture
def operator(site: Site, page: Page) -> Iterator[Operator]:
    [port] = free_ports(1)
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    site.set(BACKUP_NAME="Schedule Generator")
    with running_dagster(site, port):
        yield Operator(page, site, f"http://{LOOPBACK}:{port}")


def back_up_and_inspect(operator: Operator) -> PointListing:
    """Back up with the button that materializes everything."""
    page = operator.page
    operator.visit_lineage()
    page.get_by_role("button", name="Materialize all").click()
    point = operator.wait_for_points(PointState.VERIFIED)
    assert point.verification.level(VerificationLevel.RESTORED).status is CheckStatus.UNKNOWN
    operator.visit("assets/minio_archive?view=checks")
    for check in CHECKS:
        expect(page.get_by_text(check, exact=True).first).to_be_visible()
    expect(page.get_by_text("Passed").first).to_be_visible()
    expect(page.get_by_text("Failed", exact=True)).to_have_count(0)
    operator.shoot("checks")
    return point


def drill_twice(operator: Operator) -> None:
    page = operator.page
    for _time in range(2):
        assert operator.launch("restore_drill_job") == "Success"
    operator.shoot("run-green")
    assert operator.site.points()[-1].verification.level(VerificationLevel.EQUAL).status is CheckStatus.PASSED
    operator.visit("assets/restore_drill?view=checks")
    expect(page.get_by_text("point_is_equal", exact=True).first).to_be_visible()
    expect(page.get_by_text("operator_checks_hold")).to_have_count(0)
    operator.shoot("drill-checks")
    operator.visit("assets/restore_drill?view=overview")
    page.get_by_role("button", name="Plots").click()
    expect(page.get_by_text("rto_seconds").first).to_be_visible()
    operator.shoot("drill-plots")
    operator.visit_lineage()
    operator.shoot("lineage-green")


def list_all_points(operator: Operator, point: PointListing) -> None:
    """The table appears after a backup; the check shows what a drill changed in it."""
    page = operator.page
    operator.visit("assets/recovery_point?view=overview")
    expect(page.get_by_text("proofs, copies, pin, labels, reason")).to_be_visible()
    expect(page.get_by_text(point.point_id.text).first).to_be_visible()
    operator.shoot("overview")
    path = "assets/recovery_point?view=checks&checkDetail=recovery_point_is_intact"
    operator.visit(path)
    page.get_by_role("button", name="Execute all").click()

    def is_fresh() -> bool:
        operator.visit(path)
        page.get_by_text("Show Markdown").first.click()
        expect(page.get_by_text("proofs, copies, pin, labels, reason")).to_be_visible()
        return page.get_by_text(re.compile(r"restored \d+ min ago")).count() > 0

    wait_until(is_fresh, "the check shows the drill")
    operator.shoot("overview-in-check")


def damage_and_see_red(operator: Operator) -> None:
    page, site = operator.page, operator.site
    site.flip_bit(ArtifactKind.BUCKET)
    assert operator.launch("verify_job") == "Failure"
    operator.shoot("run-red")
    operator.wait_for_points(PointState.FAILED)
    operator.visit("assets/recovery_point?view=checks")
    page.get_by_role("button", name="Execute all").click()
    expect(page.get_by_text("Failed").first).to_be_visible()
    operator.visit_lineage()
    operator.shoot("lineage-red")


def restore_from_the_launchpad(operator: Operator) -> None:
    site = operator.site
    database = site.application.database
    name = f"{database.database}_restored"
    config = f"ops:\n  restore_recovery_point:\n    config:\n      database: {name}\n"
    operator.visit(f"locations/{LOCATION}/jobs/restore_job/playground")
    expect(operator.page.get_by_text("restore_recovery_point").first).to_be_visible()
    operator.shoot("launchpad")
    assert operator.launch("restore_job") == "Success"
    operator.shoot("launchpad-untouched")
    try:
        assert operator.launch("restore_job", config) == "Success"
        operator.shoot("restore-said")
        assert operator.launch("restore_job", f"{config}      confirm: {name}\n") == "Success"
        counted = "SELECT count(*) FROM jobs"
        assert run(database.with_database(name), counted) == run(database, counted)
    finally:
        run(database, f"DROP DATABASE IF EXISTS {name}")
    operator.visit("runs")
    expect(operator.page.get_by_text("restore_job").first).to_be_visible()
    operator.shoot("runs")


@pytest.mark.timeout(1800)
def test_an_operator_backs_up_drills_finds_damage_and_restores(operator: Operator) -> None:
    point = back_up_and_inspect(operator)
    drill_twice(operator)
    list_all_points(operator, point)
    damage_and_see_red(operator)
    assert operator.launch("backup_job") == "Success"
    operator.wait_for_points(PointState.FAILED, PointState.VERIFIED)
    restore_from_the_launchpad(operator)
