"""The alarms of deploy/monitoring in a real Prometheus: each fault fires the one that is meant, and no other.

Two sites: `port` is scraped from a real `metrics --listen`, its points are real backups; `file` has real
files, which a real node_exporter shows. Only durations differ: a second of scraping and evaluation, and
`SHORTER` in the rules. "No other" means: from the moment of the fault until the alarm has fired for some
further evaluations, no other alarm of any site was firing at any of them.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.notify.ticks import read_ticks
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups.demo.seed import SeedSummary
from schedgen_backups_tests.support.copies import FIRST_NIGHT, list_objects, make_point
from schedgen_backups_tests.support.prometheus import (
    Prometheus,
    find_prometheus_program,
    read_dashboard_expressions,
    read_rules,
    wait_for,
)
from schedgen_backups_tests.support.site_stores import SiteStores
from schedgen_backups_tests.support.sites import Application, Site

pytestmark = [pytest.mark.edge]

SHORTER = (
    (r"\[7d\]", "[3m]"),
    (r"\[2h\]", "[5s]"),
    # The hour without a file, without a tick, and after a failure.
    (r"> 3600\b", "> 15"),
)
_HAS_NO_VALUE = re.compile("_drill_(rto|rpo|timestamp)_|_incident_oldest_|_locked_until_|_copy_lock_")
"""Nothing was drilled, locked or wrong here."""
_HOLDS_SECONDS = 4
"""An alarm is watched this much longer, which is four evaluations."""
_DAEMON = """
import sys, time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from schedgen_backups.core.notify import ticks
ticks.RECORD_INTERVAL = timedelta(0)
while True:
    ticks.record_tick(Path(sys.argv[1]), "alert_outbox", datetime.now(timezone.utc))
    time.sleep(1)
"""
"""What a sensor of a daemon leaves at each tick, without the five minutes between two records."""


def shorten(rules: list[dict[str, Any]]) -> dict[str, Any]:
    shortened = []
    for rule in rules:
        expression = rule["expr"]
        for pattern, replacement in SHORTER:
            expression = re.sub(pattern, replacement, expression)
        shortened.append({**rule, "expr": expression, "for": "2s", "keep_firing_for": "1s"})
    return {"groups": [{"name": "shortened", "interval": "1s", "rules": shortened}]}


class Watched:
    """The two sites, the processes that show them, and the Prometheus that watches."""

    def __init__(self, folder: Path, stores: SiteStores, stack: ExitStack) -> None:
        self.folder, self.stores, self.site = folder, stores, stores.site
        self.catalog = stores.catalog
        self.files = folder / "textfiles"
        self.files.mkdir()
        self._stack = stack
        self._port, self._node_port = free_ports(2)
        self.file_site = folder / "file-site"
        self.file_catalog = Catalog(self.file_site)
        self.is_cron_running = threading.Event()
        self.exporter = self.daemon = None
        self.prometheus = Prometheus(
            folder / "prometheus",
            shorten(read_rules()),
            {
                "schedgen-backups": [f"{LOOPBACK}:{self._port}"],
                "node": [f"{LOOPBACK}:{self._node_port}"],
            },
            interval="1s",
        )

    def start(self) -> None:
        self.start_exporter()
        self.start_daemon()
        words = [find_prometheus_program("prometheus-node-exporter"), "--collector.disable-defaults"]
        words += ["--collector.textfile", f"--collector.textfile.directory={self.files}"]
        self._start([*words, f"--web.listen-address={LOOPBACK}:{self._node_port}"])
        self.is_cron_running.set()
        ended = threading.Event()
        cron = threading.Thread(target=self._run_cron, args=(ended,))
        cron.start()
        self._stack.callback(cron.join)
        self._stack.callback(ended.set)
        self._stack.enter_context(self.prometheus)

    def start_exporter(self) -> None:
        words = [sys.executable, "-m", "schedgen_backups.cli.main", "metrics"]
        self.exporter = self._start([*words, "--listen", f"{LOOPBACK}:{self._port}"])

    def start_daemon(self) -> None:
        self.daemon = self._start([sys.executable, "-c", _DAEMON, str(self.site.directory)])

    def ask(self, metric: str, site: str = "port") -> float | None:
        return self.prometheus.read_value(f'schedgen_backup_{metric}{{site="{site}"}}')

    @contextmanager
    def expect(self, *names: str) -> Iterator[None]:
        """Assert that exactly these alarms fire because of what the block does, and that they hold."""
        wait_for(lambda: not self.prometheus.list_alarms(), "no alarm is left")
        begin = time.time()
        yield
        wait_for(lambda: set(names) <= self.prometheus.list_alarms("firing").keys(), f"{names} fire")
        time.sleep(_HOLDS_SECONDS)
        assert set(names) <= self.prometheus.list_alarms("firing").keys()
        assert self.list_fired(begin) == set(names)

    def list_fired(self, begin: float) -> set[str]:
        """Return the alarms of all sites that were firing at any evaluation since then."""
        span = max(1, int(time.time() - begin))
        return {
            sample["metric"]["alertname"]
            for sample in self.prometheus.ask(
                f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{span}s]))'
            )
        }

    def _run_cron(self, ended: threading.Event) -> None:
        while not ended.wait(1):
            if self.is_cron_running.is_set():
                self.site.cli(
                    "status",
                    BACKUP_DIR=str(self.file_site),
                    BACKUP_NAME="file",
                    BACKUP_METRICS_FILE=str(self.files / "schedgen.prom"),
                    BACKUP_STORES_FILE="",
                )

    def _start(self, words: list[Any]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._stack.callback(end, process)
        return process


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()


def find_night(age: timedelta) -> float:
    return (datetime.now(timezone.utc) - age - FIRST_NIGHT) / timedelta(days=1)


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, seeded_application: tuple[Application, SeedSummary]
) -> Iterator[Watched]:
    for name in ("prometheus", "prometheus-node-exporter"):
        find_prometheus_program(name)
    with pytest.MonkeyPatch.context() as monkeypatch, ExitStack() as stack:
        folder = tmp_path_factory.mktemp("alarms")
        (folder / "site").mkdir()
        site = Site(folder / "site", seeded_application[0], monkeypatch)
        site.set(
            BACKUP_NAME="port",
            BACKUP_SCHEDULE="0 2 * * *",
            DRILL_SCHEDULE="0 3 * * 0",
            BACKUP_ALLOW_NEW_SOURCE="true",
        )
        stores = SiteStores(site)
        stores.add("nas", "max_age_hours = 26")
        stores.add("usb", "max_age_hours = 26")
        made = Watched(folder, stores, stack)
        make_point(made.catalog, find_night(timedelta(hours=30)), list_objects(3))  # type: ignore[arg-type]
        make_point(made.file_catalog, find_night(timedelta(hours=2)), list_objects(3))  # type: ignore[arg-type]
        take_point(made)
        take_point(made)
        for name in ("nas", "usb"):
            assert site.cli("stores", "copy", name).code == 0
        assert site.cli("stores", "prove", "nas").code == 0
        made.start()
        for name in ("port", "file"):
            wait_for(lambda name=name: made.ask("max_age_seconds", name) is not None, f"{name} is seen")
        wait_for(lambda: made.ask("daemon_tick_timestamp_seconds") is not None, "the daemon has ticked")
        yield made


def take_point(watched: Watched) -> None:
    """Take a backup as cron does."""
    answer = watched.site.cli("backup", "--reason", "cron")
    assert answer.code == 0, answer.stderr


def test_two_healthy_sites_raise_no_alarm(watched: Watched) -> None:
    time.sleep(_HOLDS_SECONDS)
    wait_for(lambda: not watched.prometheus.list_alarms(), "no alarm is left")
    begin = time.time()
    time.sleep(_HOLDS_SECONDS)
    assert watched.list_fired(begin) == set()
    assert watched.prometheus.list_rule_errors() == []


def test_a_killed_daemon(watched: Watched) -> None:
    assert watched.daemon is not None
    with watched.expect("BackupDaemonDead"):
        watched.daemon.send_signal(signal.SIGKILL)
    # A point that cron takes meanwhile counts, and ends nothing but what it proves.
    before = watched.ask("last_verified_timestamp_seconds")
    tick = watched.ask("daemon_tick_timestamp_seconds")
    assert before is not None
    begin = time.time()
    take_point(watched)
    assert watched.site.cli("stores", "copy", "nas").code == 0
    assert watched.site.cli("stores", "copy", "usb").code == 0
    wait_for(
        lambda: (watched.ask("last_verified_timestamp_seconds") or 0) > before, "the point moves its metric"
    )
    assert watched.ask("daemon_tick_timestamp_seconds") == tick
    assert watched.list_fired(begin) == {"BackupDaemonDead"}
    watched.start_daemon()


def test_a_killed_host(watched: Watched) -> None:
    assert watched.exporter is not None
    with watched.expect("BackupMetricsMissing"):
        watched.exporter.send_signal(signal.SIGKILL)
    assert watched.ask("last_verified_timestamp_seconds") is None
    assert watched.ask("last_verified_timestamp_seconds", "file") is not None
    [alarm] = [watched.prometheus.list_alarms("firing")["BackupMetricsMissing"]]
    assert alarm["labels"]["site"] == "port"
    watched.start_exporter()


def test_a_file_that_is_not_written_any_more(watched: Watched) -> None:
    with watched.expect("BackupMetricsMissing"):
        watched.is_cron_running.clear()
    alarm = watched.prometheus.list_alarms("firing")["BackupMetricsMissing"]
    assert (alarm["labels"]["site"], alarm["labels"]["job"]) == ("file", "node")
    # Its values are still served: that is why the time of writing is one of them.
    assert watched.ask("last_verified_timestamp_seconds", "file") is not None
    watched.is_cron_running.set()


def test_a_file_that_is_gone(watched: Watched) -> None:
    with watched.expect("BackupMetricsMissing"):
        watched.is_cron_running.clear()
        time.sleep(3)
        (watched.files / "schedgen.prom").unlink()
    assert watched.ask("last_verified_timestamp_seconds", "file") is None
    watched.is_cron_running.set()


def test_a_truncated_artifact(watched: Watched) -> None:
    point = watched.catalog.list_points()[-1]
    path = point.get_path(ArtifactKind.BUCKET)
    content = path.read_bytes()
    newest = watched.ask("last_verified_timestamp_seconds")
    with watched.expect("BackupPointBroken"):
        path.write_bytes(content[:-100])
    assert watched.prometheus.read_value('schedgen_backup_points{site="port", state="damaged"}') == 1
    seen = watched.ask("last_verified_timestamp_seconds")
    assert seen is not None
    assert newest is not None
    assert seen < newest
    path.write_bytes(content)


def test_a_store_that_lags(watched: Watched) -> None:
    """Its newest copy is that of 30 hours ago: the others are as if they had not been sent."""
    state = watched.stores.read_state("usb")
    assert len(state.points) > 1
    oldest = min(state.points, key=lambda point: point.point_id)
    with watched.expect("BackupCopyTooOld"):
        watched.stores.write_state("usb", state.model_copy(update={"points": (oldest,)}))
    assert watched.prometheus.list_alarms("firing")["BackupCopyTooOld"]["labels"]["store"] == "usb"
    assert (
        watched.prometheus.read_value('schedgen_backup_copy_lacking_points{site="port", store="usb"}') or 0
    ) > 0
    assert watched.prometheus.read_value('schedgen_backup_copy_lacking_points{site="port", store="nas"}') == 0
    watched.stores.write_state("usb", state)


def test_a_backup_that_fails_and_one_that_follows(watched: Watched) -> None:
    with watched.expect("BackupFailing"):
        assert watched.site.cli("backup", POSTGRES_PORT="1").code != 0
    take_point(watched)
    wait_for(lambda: not watched.prometheus.list_alarms(), "the next point ends it")
    assert read_ticks(watched.site.directory)


def test_every_expression_of_alarms_and_dashboard_is_answered(watched: Watched) -> None:
    """Those of the dashboard with values, but for what a healthy site without locks and incidents lacks."""
    for rule in read_rules():
        watched.prometheus.ask(rule["expr"])
    # An alarm of another test may have ended a moment ago.
    expressions = [each for each in read_dashboard_expressions() if "ALERTS" not in each]
    empty = [each for each in expressions if not watched.prometheus.ask(each.replace("$site", ".*"))]
    assert empty == [each for each in expressions if _HAS_NO_VALUE.search(each)]
