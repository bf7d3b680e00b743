"""`status`, `list` and `show` say which copies exist and how old their proofs are, from this host's files."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from schedgen_backups.monitoring.markdown import make_overview
from schedgen_backups_tests.support.site_stores import UNREACHABLE, SiteStores
from schedgen_backups_tests.support.sites import Site

pytestmark = [pytest.mark.edge]


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteStores:
    return SiteStores(Site(tmp_path, UNREACHABLE, monkeypatch))


@pytest.fixture
def copied(stores: SiteStores, instance: dg.DagsterInstance) -> SiteStores:
    """Two points, the older one in both stores, the newer one in `nas` only; no store can be asked."""
    stores.site.set(BACKUP_MAX_AGE_HOURS="8784")
    stores.add("nas", "reread_days = 1\nmax_age_hours = 8760")
    stores.add("usb", "max_age_hours = 8760")
    stores.take_point(0)
    for name in ("nas", "usb"):
        assert stores.run(instance, f"copy_to_{name}_job").success
    stores.take_point(1)
    assert stores.run(instance, "copy_to_nas_job").success
    for name in ("nas", "usb"):
        stores.unmount(name)
    return stores


def read_json(stores: SiteStores, *words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(stores.site.cli(*words, "--json").stdout)
    return answer


def test_status_shows_places_and_the_age_of_each_proof(copied: SiteStores) -> None:
    first, *lines = copied.site.cli("status").stdout.splitlines()
    assert "2 copies, 2 kinds of place, 0 elsewhere" in first
    newest = copied.catalog.list_points()[-1].point_id.text
    assert lines[0].startswith(f"nas: 2 copies, newest {newest} sent 0 min ago, listed 0 min ago, every pack")
    assert "opened never" in lines[0]
    assert lines[1].startswith("usb: 1 copy, newest")
    assert "never read back" in lines[1]


def test_status_as_json_has_every_store(copied: SiteStores) -> None:
    answer = read_json(copied, "status")
    assert answer["copies"] == {"count": 2, "kinds_of_place": 2, "elsewhere": 0}
    nas, usb = answer["stores"]
    assert (nas["name"], nas["copies"], nas["error"], nas["problems"]) == ("nas", 2, None, [])
    assert datetime.now(timezone.utc) - datetime.fromisoformat(nas["listed_at"]) < timedelta(minutes=5)
    assert nas["read_back_since"] is not None
    assert (usb["copies"], usb["read_back_since"]) == (1, None)


def test_list_and_show_name_the_stores_of_each_point(copied: SiteStores) -> None:
    old, new = (point.point_id.text for point in copied.catalog.list_points())
    lines = {line.split()[0]: line for line in copied.site.cli("list").stdout.splitlines()}
    assert "nas, usb" in lines[old]
    assert "nas" in lines[new]
    assert "usb" not in lines[new]
    points = {point["id"]: point for point in read_json(copied, "list")["points"]}
    assert [copy["store"] for copy in points[old]["copies"]] == ["nas", "usb"]
    assert [copy["store"] for copy in points[new]["copies"]] == ["nas"]
    shown = copied.site.cli("show", new).stdout
    assert "copy      nas: " in shown
    assert "sent 0 min ago, listed 0 min ago, every pack read back since 0 min ago, not opened" in shown
    assert "usb: " not in shown
    assert read_json(copied, "show", new)["copies"][0]["opened_at"] is None


def test_the_overview_names_the_stores_of_each_point(copied: SiteStores) -> None:
    new, old = make_overview(copied.catalog, datetime.now(timezone.utc)).splitlines()[2:]
    assert "copy in nas, seen 0 min ago; copy in usb, seen 0 min ago" in old
    assert "copy in nas" in new
    assert "usb" not in new


def test_without_a_store_status_says_that_the_only_copy_is_here(stores: SiteStores) -> None:
    stores.site.unset("BACKUP_STORES_FILE")
    stores.take_point(0)
    [line] = stores.site.cli("status").stdout.splitlines()
    assert "the only copy is on this host (no store is configured)" in line
    assert "copies" not in stores.site.cli("list").stdout


def test_a_store_with_a_problem_is_a_warning(copied: SiteStores) -> None:
    assert copied.site.cli("status").code == 0
    state = copied.read_state("nas").model_copy(update={"reread_problems": ("packs/7 was altered",)})
    copied.write_state("nas", state)
    result = copied.site.cli("status")
    assert (result.code, result.stdout.split(":")[0]) == (1, "WARNING")
    assert "nas: packs/7 was altered" in result.stdout
    assert "the only copy is on this host" in result.stdout


@pytest.mark.parametrize("words", [("list",), ("show", "latest"), ("status",)], ids=lambda words: words[0])
def test_with_a_file_that_cannot_be_read_the_copies_are_unknown(
    stores: SiteStores, words: tuple[str, ...]
) -> None:
    stores.site.set(BACKUP_MAX_AGE_HOURS="8784")
    stores.file.write_text("[stores")
    stores.take_point(0)
    result = stores.site.cli(*words)
    assert result.code == (1 if words == ("status",) else 0)
    assert "unknown: " in result.stdout
    assert "is not TOML" in result.stdout
    answer = read_json(stores, *words)
    assert answer["copies"] is None if words == ("status",) else "error" not in answer


def test_a_store_that_is_described_wrongly_is_shown_with_the_reason(stores: SiteStores) -> None:
    stores.describe("nas", "lock_days = -1")
    stores.take_point(0)
    [store] = read_json(stores, "status")["stores"]
    assert "lock_days" in store["error"]
    assert "nas: cannot be used: " in stores.site.cli("status").stdout
