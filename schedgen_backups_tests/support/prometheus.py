"""A Prometheus, a node_exporter and their tools for tests of the alarms, from .ci/prometheus or PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports

PROJECT = Path(__file__).resolve().parents[2]
FILES = PROJECT / "deploy" / "monitoring"
RULES = FILES / "rules.yml"
_UNPACKED = PROJECT / ".servers" / "prometheus" / "usr" / "bin"
_PATIENCE_SECONDS = 60


def find_prometheus_program(name: str) -> Path:
    """Return the path of the program. CI unpacks it; elsewhere the test is skipped without it."""
    found = shutil.which(name, path=f"{_UNPACKED}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not here: .ci/prometheus unpacks it")
    return Path(found)


def read_rules() -> list[dict[str, Any]]:
    """Return the alarms of deploy/monitoring/rules.yml."""
    [group] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return group["rules"]


def read_dashboard_expressions() -> list[str]:
    """Return the expression of each query of each panel of the dashboard."""
    dashboard = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


class Prometheus:
    """A Prometheus on loopback with the given rules and targets; a context manager, also repeatedly."""

    def __init__(
        self,
        folder: Path,
        rules: Mapping[str, Any],
        jobs: Mapping[str, Sequence[str]],
        *,
        interval: str,
        lookback: str = "5m",
    ) -> None:
        self.folder = folder
        self._interval = interval
        self._lookback = lookback
        [port] = free_ports(1)
        self._address = f"{LOOPBACK}:{port}"
        folder.mkdir()
        (folder / "rules.yml").write_text(json.dumps(rules), encoding="utf-8")
        config = {
            "global": {
                "scrape_interval": interval,
                "scrape_timeout": interval,
                "evaluation_interval": interval,
            },
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(targets)}]}
                for job, targets in jobs.items()
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")

    def __enter__(self) -> Prometheus:
        words = [
            find_prometheus_program("prometheus"),
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address={self._address}",
            # Debian's default is in /usr/share, where nothing is unpacked.
            f"--web.console.templates={self.folder}",
            f"--web.console.libraries={self.folder}",
            f"--web.local-assets={self.folder}",
            # Samples of any age stay.
            "--storage.tsdb.retention.time=100y",
            f"--query.lookback-delta={self._lookback}",
        ]
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(words, stdout=self._log, stderr=subprocess.STDOUT)
        wait_for(self._is_ready, "Prometheus is ready")
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def ask(self, expression: str, at: datetime | None = None) -> list[dict[str, Any]]:
        """Return the samples of the expression, by default now; AssertionError if it is refused."""
        time_of_it = {"time": at.timestamp()} if at is not None else {}
        query = urllib.parse.urlencode({"query": expression, **time_of_it})
        answer = self._get(f"/api/v1/query?{query}")
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        result = answer["data"]["result"]
        return result if answer["data"]["resultType"] == "vector" else []

    def ask_range(
        self, expression: str, begin: datetime, end: datetime, step: timedelta
    ) -> list[dict[str, Any]]:
        """Return the series of the expression, with a value at each step at which it has one."""
        times = {"start": begin.timestamp(), "end": end.timestamp(), "step": step.total_seconds()}
        answer = self._get(f"/api/v1/query_range?{urllib.parse.urlencode({'query': expression, **times})}")
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        return answer["data"]["result"]

    def fill(self, lines: Iterable[str]) -> None:
        """Add samples of the past, `series value seconds`; seen after the next start."""
        path = self.folder / "samples.txt"
        path.write_text("\n".join([*lines, "# EOF\n"]), encoding="utf-8")
        words = [find_prometheus_program("promtool"), "tsdb", "create-blocks-from", "openmetrics"]
        # Otherwise a block for every two hours, for each of which it reads the whole file.
        words.append("--max-block-duration=720h")
        done = subprocess.run(
            [*words, path, self.folder / "data"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def fill_alarms(
        self, rules: Sequence[Mapping[str, Any]], begin: datetime, end: datetime, step: timedelta
    ) -> None:
        """Add when these alarms were firing in the past, without the minutes for which they wait first."""
        lines: list[str] = []
        for rule in rules:
            own = {"alertname": rule["alert"], "alertstate": "firing", **rule["labels"]}
            for series in self.ask_range(rule["expr"], begin, end, step):
                labels = {**series["metric"], **own}
                labels.pop("__name__", None)
                text = ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
                lines += [f"ALERTS{{{text}}} 1 {at}" for at, _value in series["values"]]
        self.fill(lines)

    def read_value(self, expression: str) -> float | None:
        """Return the value of an expression with one sample; None without any."""
        samples = self.ask(expression)
        assert len(samples) <= 1, samples
        return float(samples[0]["value"][1]) if samples else None

    def list_alarms(self, state: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the alarms that are pending or firing by name; of several of a name, the last."""
        alerts = self._get("/api/v1/alerts")["data"]["alerts"]
        return {
            alert["labels"]["alertname"]: alert
            for alert in alerts
            if state is None or alert["state"] == state
        }

    def list_rule_errors(self) -> list[str]:
        """Return the last error of each rule that could not be evaluated."""
        groups = self._get("/api/v1/rules")["data"]["groups"]
        return [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")]

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()
        with suppress(OSError), urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5):
            return True
        return False

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://{self._address}{path}", timeout=20) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)


def wait_for(condition: Any, what: str, seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait until the condition holds; AssertionError when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.1)
