"""A Prometheus that has watched two sites for a month: `production`, where things fail, and `staging`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

from schedgen_backups_tests.support.made_up_month import (
    BEGIN,
    END,
    MadeUpMonth,
    plan_failing_month,
    plan_quiet_month,
)
from schedgen_backups_tests.support.prometheus import Prometheus, read_rules
from schedgen_backups_tests.support.small_disk import mount_small_disk

STEP = timedelta(hours=1)
"""Time between two scrapes. A real one is much shorter; nothing else differs."""
FIRST = BEGIN + timedelta(hours=3)
"""The first scrape, after the first backup."""


@contextmanager
def watching(folder: Path) -> Iterator[Prometheus]:
    """Yield a running Prometheus that has the metrics and the alarms of the month."""
    # A disk of its own has the free space that the points leave; the machine's changes with anything.
    disk = folder / "disk"
    disk.mkdir()
    with mount_small_disk(disk, "24m") if os.geteuid() == 0 else nullcontext():
        sites = (
            plan_failing_month(disk / "production", "production"),
            plan_quiet_month(disk / "staging", "staging"),
        )
        lines = list(_scrape(sites))
    prometheus = Prometheus(folder / "prometheus", {"groups": []}, {}, interval="1h", lookback="65m")
    prometheus.fill(lines)
    with prometheus:
        prometheus.fill_alarms(read_rules(), FIRST, END, STEP)
    with prometheus:
        yield prometheus


def _scrape(sites: Sequence[MadeUpMonth]) -> Iterator[str]:
    """Yield each sample of the month as OpenMetrics has it, with the labels of the job that scrapes it."""
    now = FIRST
    while now <= END:
        for site in sites:
            site.advance(now)
            target = f'job="schedgen-backups",instance="{site.name}:9854"'
            yield f"up{{{target}}} 1 {now.timestamp():.0f}"
            for line in site.measure(now).splitlines():
                series, _brace, value = line.rpartition("} ")
                if not line.startswith("#"):
                    yield f"{series},{target}}} {value} {now.timestamp():.0f}"
        now += STEP
