"""The dashboard for Grafana is what its builders make, and asks only for metrics that exist.

`test_alarms` asks a real Prometheus each of its expressions. Grafana itself is not run.
"""

from __future__ import annotations

import json
import re
import sys

import pytest

from schedgen_backups.core.metrics.families import FAMILIES, PREFIX
from schedgen_backups_tests.support.prometheus import FILES, PROJECT, read_dashboard_expressions

pytestmark = [pytest.mark.edge]

DASHBOARD = FILES / "dashboard.json"

if sys.version_info >= (3, 11):
    # Grafana's builders need it.
    from tools.make_dashboard import make_dashboard

    def test_the_file_is_what_the_builders_make() -> None:
        assert DASHBOARD.read_text(encoding="utf-8") == make_dashboard()


def test_it_asks_only_for_metrics_that_exist_and_for_the_chosen_sites() -> None:
    known = {family.full_name for family in FAMILIES}
    for expression in read_dashboard_expressions():
        used = re.findall(rf"\b({PREFIX}\w+)(\{{[^}}]*\}})?", expression)
        assert {name for name, _labels in used} <= known
        assert all('site=~"$site"' in labels for _name, labels in used), expression


def test_panels_and_their_queries_have_ids_of_their_own_and_lie_side_by_side() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = set()
    for panel in panels:
        refs = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(refs)) == len(refs)
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", []))
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, panel["title"]
        assert place["x"] + place["w"] <= 24
        places |= cells


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    text = (PROJECT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    named = re.findall(rf"^\| `({PREFIX}\w+)` \|", text, re.MULTILINE)
    assert sorted(named) == sorted(family.full_name for family in FAMILIES)
