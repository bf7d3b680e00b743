"""How a drill of a sample is shown: in the UI, by `list`, in metrics and the monthly report."""

from __future__ import annotations

from datetime import datetime, timezone

import dagster as dg
import pytest

from schedgen_backups_tests.edge.defs.test_drill import evaluations_of, name_servers
from schedgen_backups_tests.support.inbox import Watcher, open_inbox
from schedgen_backups_tests.support.sites import Site, failures_of

pytestmark = [pytest.mark.edge]


def test_a_sample_is_shown_as_a_sample_everywhere_and_raises_no_alert(site: Site) -> None:
    name_servers(site)
    site.set(DRILL_OBJECTS="sample:5")
    with open_inbox() as inbox, dg.DagsterInstance.from_config(str(site.home)) as instance:
        site.set(BACKUP_ALERT_WEBHOOK_URL=inbox.url)
        assert site.run(instance).success
        result = site.run(instance, "restore_drill_job")
        assert failures_of(result) == {}
        equal = evaluations_of(result)["point_is_equal"]
        assert (equal.passed, equal.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert "bucket_is_equal sample: " in (equal.description or "")
        Watcher("alert_outbox", instance).evaluate(2)
        assert inbox.texts == []
    [point] = site.points()
    [row] = [
        line.split()
        for line in site.cli("list", COLUMNS="200").stdout.splitlines()
        if line.startswith(point.point_id.text)
    ]
    assert row[row.index("verified") + 1 :][:3] == ["coherent", "sample", "sample"]
    metrics = site.cli("metrics").stdout
    for level in ("restored", "equal"):
        [value] = [
            line.split()[-1]
            for line in metrics.splitlines()
            if line.startswith("schedgen_backup_level{") and f'level="{level}"' in line
        ]
        assert float(value) == -1
    report = site.cli("report", "--month", f"{datetime.now(timezone.utc):%Y-%m}", "--to", "report.html")
    assert report.code == 0, report.stderr
    page = " ".join((site.folder / "report.html").read_text().split())
    assert '<td class="good">restored and equal</td>' not in page
    assert "bucket_is_equal: sample, " in page


@pytest.mark.parametrize("text", ["sample", "sample:0", "referenced:x", "some", "all:3"])
def test_a_wrong_choice_of_objects_fails_the_drill(
    text: str, site: Site, instance: dg.DagsterInstance
) -> None:
    site.set(DRILL_OBJECTS=text)
    [failure] = failures_of(site.run(instance, "restore_drill_job")).values()
    assert "DRILL_OBJECTS is invalid, expected all, sample:N or referenced:N" in failure.description
