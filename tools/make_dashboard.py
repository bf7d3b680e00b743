"""The dashboard for Grafana, built with Grafana's own typed builders: deploy/monitoring/dashboard.json.

`make docs` writes it, with Python 3.11 or newer: the builders need it. A test asks a real Prometheus each
expression.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode, VizOrientation
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from schedgen_backups.core.metrics import families
from schedgen_backups.core.metrics.families import MetricFamily

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_RED, _ORANGE, _GREEN = "red", "orange", "green"
_ALARMS = 'count by (alertname, alertstate) (ALERTS{alertname=~"Backup.*"})'


def name(family: MetricFamily, *matchers: str) -> str:
    """Return the selector of a metric for the chosen sites."""
    labels = ", ".join(('site=~"$site"', *matchers))
    return f"{family.full_name}{{{labels}}}"


def age(family: MetricFamily, *matchers: str) -> str:
    """Return the expression of the time since a metric's moment."""
    return f"time() - {name(family, *matchers)}"


def _ask(
    expression: str, legend: str = "{{site}}", *, ref: str = "A", is_table: bool = False
) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).legend_format(legend).datasource(SOURCE).ref_id(ref)
    return query.format(PromQueryFormat.TABLE).instant() if is_table else query.range()


def _limits(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    config = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE)
    return config.steps([Threshold(value=value, color=color) for value, color in steps])


def _plot(
    title: str, unit: str, *queries: tuple[str, str], width: int = 8, description: str = ""
) -> timeseries.Panel:
    panel = timeseries.Panel().title(title).description(description).unit(unit).min(0)
    for ref, (expression, legend) in zip("ABC", queries, strict=False):
        panel = panel.with_target(_ask(expression, legend, ref=ref))
    panel = panel.override_by_regexp(
        "/limit/",
        [
            DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}),
            DynamicConfigValue("color", {"mode": "fixed", "fixedColor": _RED}),
        ],
    )
    return panel.datasource(SOURCE).line_width(2).fill_opacity(5).span(width).height(8)


def _show(
    title: str,
    unit: str,
    query: str,
    limits: dashboard.ThresholdsConfig,
    *,
    legend: str = "{{site}}",
    width: int = 6,
) -> stat.Panel:
    panel = stat.Panel().title(title).unit(unit).with_target(_ask(query, legend)).thresholds(limits)
    panel = panel.graph_mode(BigValueGraphMode.NONE).orientation(VizOrientation.HORIZONTAL)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.datasource(SOURCE).no_value("unknown").span(width).height(6)


def _matrix(title: str, unit: str, query: str, *, rows: str, columns: str, width: int = 12) -> table.Panel:
    """Return a table with a row and a column for each value of two labels."""
    options = {"rowField": rows, "columnField": columns, "valueField": "Value", "emptyValue": "empty"}
    panel = table.Panel().title(title).unit(unit).with_target(_ask(query, "", is_table=True))
    panel = panel.transformations([DataTransformerConfig("groupingToMatrix", options=options)])
    return panel.datasource(SOURCE).no_value("unknown").span(width).height(8)


def _colour(panel: table.Panel, column: str, least: float) -> table.Panel:
    """Show a column in green from this value on, otherwise in red."""
    steps = [{"value": None, "color": _RED}, {"value": least, "color": _GREEN}]
    return panel.override_by_name(
        column,
        [
            DynamicConfigValue("thresholds", {"mode": "absolute", "steps": steps}),
            DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
        ],
    )


def _list_proofs() -> Iterable[stat.Panel | table.Panel]:
    share = f"({age(families.LAST_VERIFIED)}) / {name(families.MAX_AGE)}"
    yield _show("Age of the newest verified point", "s", age(families.LAST_VERIFIED), _limits((None, _GREEN)))
    yield _show(
        "Share of the allowed age", "percentunit", share, _limits((None, _GREEN), (0.8, _ORANGE), (1, _RED))
    )
    yield _show("Damaged points", "none", name(families.POINTS_BROKEN), _limits((None, _GREEN), (1, _RED)))
    yield _show("Last drill", "s", age(families.DRILL_ENDED), _limits((None, _GREEN))).description(
        "Time since the last restore drill of a local point ended."
    )
    yield _matrix(
        "Age of each proof, by site", "s", age(families.LEVEL_PASSED), rows="site", columns="level"
    ).description("Time since a point last reached each verification level.")
    places = _matrix(
        "3-2-1: places of the newest point", "none", name(families.PLACES), rows="site", columns="what"
    ).description("Three copies, two kinds of place, one elsewhere.")
    for what, least in (("copies", 3), ("kinds", 2), ("elsewhere", 1)):
        places = _colour(places, what, least)
    yield places
    by_store = f'label_join({age(families.COPY_PROVED)}, "place", " / ", "site", "store")'
    yield _matrix("Age of each proof, by store", "s", by_store, rows="place", columns="proof")
    problems = f'label_join({name(families.COPY_PROBLEMS)}, "place", " / ", "site", "store")'
    yield _matrix("What the last proof found wrong", "none", problems, rows="place", columns="kind")


def _list_objectives() -> Iterable[timeseries.Panel]:
    yield _plot(
        "RPO: age of the newest verified point",
        "s",
        (age(families.LAST_VERIFIED), "{{site}}"),
        (name(families.MAX_AGE), "{{site}} limit"),
    )
    yield _plot(
        "RTO: recovery time of the last drill",
        "s",
        (name(families.DRILL_RTO), "{{site}}"),
        (name(families.DRILL_MAX_DURATION), "{{site}} limit"),
    )
    yield _plot(
        "RPO of the last drill",
        "s",
        (name(families.DRILL_RPO), "{{site}}"),
        description="Age of the data when the drill began.",
    )


def _list_points() -> Iterable[timeseries.Panel]:
    size, temporary = name(families.NEXT_POINT), name(families.NEXT_POINT_TEMPORARY)
    limit = (f"2 * {size} + {temporary}", "{{site}} limit: two points")
    free = families.FREE_BYTES.full_name
    yield _plot("Size of the newest point", "bytes", (name(families.LAST_SIZE), "{{site}} {{half}}"))
    yield _plot("Duration of the newest backup", "s", (name(families.LAST_DURATION), "{{site}}"))
    yield _plot(
        "Rows and objects",
        "short",
        (name(families.LAST_ROWS), "{{site}} rows"),
        (name(families.LAST_OBJECTS), "{{site}} objects"),
    )
    yield _plot(
        "Reused objects",
        "percentunit",
        (f"{name(families.LAST_REUSED)} / {name(families.LAST_OBJECTS)}", "{{site}}"),
        description="Share of the objects that were copied from an older archive.",
    )
    yield _plot("Points by state", "none", (name(families.POINTS), "{{site}} {{state}}"))
    yield _plot(
        "References without an object",
        "none",
        (name(families.MISSING_REFERENCES), "{{site}} {{verdict}}"),
        (name(families.NEWLY_MISSING), "{{site}} newly missing"),
    )
    yield _plot(
        "Space",
        "bytes",
        (name(families.FREE_BYTES), "{{site}} free"),
        (name(families.STORED_BYTES), "{{site}} points"),
        limit,
    )
    yield _plot(
        "Space in 30 days",
        "bytes",
        (f'predict_linear({free}{{site=~"$site"}}[7d], 30 * 86400)', "{{site}} forecast"),
        limit,
        description="The trend of the last seven days; below the limit, space runs out.",
    )
    yield _plot(
        "Points that still fit", "none", (f"({name(families.FREE_BYTES)} - {temporary}) / {size}", "{{site}}")
    )


def _list_copies() -> Iterable[timeseries.Panel]:
    yield _plot(
        "Age of the newest copy",
        "s",
        (age(families.COPY_POINT), "{{site}} {{store}}"),
        (name(families.COPY_MAX_AGE), "{{site}} {{store}} limit"),
    )
    yield _plot("Points that a store lacks", "none", (name(families.COPY_LACKING), "{{site}} {{store}}"))
    yield _plot(
        "Time until the first lock ends",
        "s",
        (f"{name(families.COPY_LOCKED_UNTIL)} - time()", "{{site}} {{store}}"),
        (f"{name(families.COPY_LOCK)} / 4 > 0", "{{site}} {{store}} limit"),
    )
    yield _plot("Copies", "none", (name(families.COPY_POINTS), "{{site}} {{store}}"))
    yield _plot(
        "Oldest pack that was never read back",
        "s",
        (age(families.COPY_OLDEST_UNREAD), "{{site}} {{store}}"),
        (name(families.COPY_REREAD_LIMIT), "{{site}} {{store}} limit"),
    )
    yield _plot("Stores that cannot be used", "none", (name(families.COPY_FAILING), "{{site}} {{store}}"))


def _list_alerts() -> Iterable[timeseries.Panel | table.Panel]:
    yield _plot(
        "Incidents",
        "none",
        (name(families.INCIDENTS), "{{site}} open"),
        (name(families.SPOOLED), "{{site}} alerts not delivered"),
        (name(families.CHANNELS_FAILING), "{{site}} channels failing"),
    )
    yield _plot("Age of the oldest incident", "s", (age(families.OLDEST_INCIDENT), "{{site}}"))
    yield _plot(
        "Signs of life",
        "s",
        (age(families.WRITTEN), "{{site}} metrics written"),
        (age(families.DAEMON_TICK), "{{site}} tick of the daemon"),
        description="Time since each; a line that ends is what BackupMetricsMissing reports.",
    )
    yield _plot("Alarms", "none", (_ALARMS, "{{alertname}} {{alertstate}}"), width=16)
    yield _matrix("Version", "none", name(families.BUILD_INFO), rows="site", columns="version", width=8)


def make_dashboard() -> str:
    """Return the dashboard as JSON."""
    built = (
        dashboard.Dashboard("Backups")
        .uid("schedgen-backups")
        .description("Recovery points of database and bucket: docs/monitoring.md of schedgen-backups")
        .tags(["backup"])
        .timezone("utc")
        .refresh("1m")
        .time("now-30d", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .editable()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("site")
            .label("site")
            .datasource(SOURCE)
            .query(f"label_values({families.MAX_AGE.full_name}, site)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    )
    for title, panels in (
        ("Proofs", _list_proofs()),
        ("Objectives", _list_objectives()),
        ("Recovery points", _list_points()),
        ("Copies in stores", _list_copies()),
        ("Alerts", _list_alerts()),
    ):
        built = built.with_row(dashboard.Row(title))
        for panel in panels:
            built = built.with_panel(panel)
    content = json.loads(json.dumps(built.build(), cls=JSONEncoder))
    for number, panel in enumerate(content["panels"], start=1):
        panel["id"] = number
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
