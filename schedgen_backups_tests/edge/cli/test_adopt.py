"""`adopt` for a point of another site and `accept` for missing objects; both decisions are recorded."""

from __future__ import annotations

import json

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.catalog.small_files import BASELINE_NAME
from schedgen_backups.exit_codes import CONFIGURATION_EXIT_CODE
from schedgen_backups_tests.support.histories import add_point, name_night
from schedgen_backups_tests.support.sites import Site

pytestmark = pytest.mark.edge


@pytest.fixture
def catalog(site: Site) -> Catalog:
    catalog = Catalog(site.directory)
    catalog.prepare()
    add_point(catalog, name_night(0))
    catalog.settle_site()
    path = catalog.manifest_path(name_night(0))
    path.write_text(path.read_text().replace('"site_id": ""', f'"site_id": "{"b" * 32}"'))
    return catalog


def test_a_foreign_point_counts_only_after_adopt(site: Site, catalog: Catalog) -> None:
    point_id = name_night(0).text
    assert [entry["state"] for entry in json.loads(site.cli("list", "--json").stdout)["points"]] == [
        "foreign"
    ]
    assert site.cli("status").code == 2
    adopted = site.cli("adopt", point_id, "--reason", "the old host's")
    assert (adopted.code, adopted.stderr) == (0, "")
    assert catalog.get_point(name_night(0)).state is PointState.VERIFIED
    again = site.cli("adopt", point_id, "--reason", "once more")
    assert again.code == CONFIGURATION_EXIT_CODE
    assert "already belongs to this site" in again.stderr


def test_accepted_objects_are_recorded_with_who_and_why(site: Site, catalog: Catalog) -> None:
    done = site.cli("accept-missing", "a.pdf", "b c.pdf", "--reason", "deleted on purpose")
    assert (done.code, done.stdout) == (0, "accepted: 2 missing objects\n")
    recorded = json.loads((catalog.directory / BASELINE_NAME).read_text())["accepted"]
    assert [(each["key"], each["reason"]) for each in recorded] == [
        ("a.pdf", "deleted on purpose"),
        ("b c.pdf", "deleted on purpose"),
    ]
    assert all(each["accepted_by"] for each in recorded)
