"""The report of a configured site: which month, which promises, which settings."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

from schedgen_backups.config.config import Config
from schedgen_backups.config.cron import list_ticks
from schedgen_backups.config.variables import VARIABLES
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import ConfigurationError, StorageError
from schedgen_backups.core.report.content import Report, ReportedSite, compile_report
from schedgen_backups.core.report.page import render_page
from schedgen_backups.core.system.files import write_atomically
from schedgen_backups.core.units import count

_MONTH = re.compile(r"(?P<year>[0-9]{4})-(?P<month>0[1-9]|1[0-2])")
_SUFFIXES = (".html", ".json")


def make_report(config: Config, month: str = "") -> Report:
    """Return the report of this month (`2026-11`) in the operators' time zone, by default the last whole one.

    ConfigurationError if it is not a month, StorageError if the history cannot be read.
    """
    now = datetime.now(timezone.utc)
    zone = config.schedule.timezone
    begin, end = _find_month(month, now.astimezone(zone))
    settings = config.alerts
    site = ReportedSite(
        name=settings.name or "this installation",
        catalog=Catalog(config.site_directory, config.pack_keys),
        scheduled=tuple(list_ticks(config.schedule.cron, zone, begin, end)),
        max_age=settings.max_age,
        max_recovery=timedelta(minutes=config.definitions.drill_max_minutes),
        settings={
            # A shell command may contain a token.
            variable.name: "set" if variable.name.endswith("_COMMAND") else config.values[variable.name]
            for variable in VARIABLES
            if not variable.is_secret and config.values.get(variable.name)
        },
    )
    return compile_report(site, begin, end, now)


def write_report(report: Report, path: Path) -> None:
    """Write the report as the page or as JSON, by the suffix of the file; readable by its owner only.

    ConfigurationError for another suffix, StorageError if it cannot be written.
    """
    if path.suffix not in _SUFFIXES:
        raise ConfigurationError(
            f"{path} does not end with {' or '.join(_SUFFIXES)}", hint="The suffix chooses the format."
        )
    text = render_page(report) if path.suffix == ".html" else report.model_dump_json(indent=1)
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}", hint="Use an existing directory."
        ) from error


def describe_counts(report: Report) -> str:
    """Return how many points, missed backups, drills and incidents it has."""
    return ", ".join(
        (
            count(len(report.points), "recovery point"),
            count(len(report.missed), "missed backup"),
            count(len(report.drills), "drill"),
            count(len(report.incidents), "incident"),
        )
    )


def _find_month(text: str, now: datetime) -> tuple[datetime, datetime]:
    """Return begin and end of the month, aware, in the time zone of `now`."""
    if text:
        found = _MONTH.fullmatch(text)
        if found is None:
            raise ConfigurationError(f"{text!r} is not a month", hint="Write it as 2026-11.")
        first = now.replace(year=int(found["year"]), month=int(found["month"]), day=1)
    else:
        first = (now.replace(day=1) - timedelta(days=1)).replace(day=1)
    begin = datetime(first.year, first.month, 1, tzinfo=now.tzinfo)
    following = begin + timedelta(days=32)
    end = datetime(following.year, following.month, 1, tzinfo=now.tzinfo)
    if begin > now:
        raise ConfigurationError(f"{begin:%Y-%m} has not begun", hint="Name a month that has.")
    return begin, end
