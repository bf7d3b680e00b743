"""Writes which test passed on which S3 server, with known gaps.

`make exhaustive` keeps the report in docs/results/.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import pytest

_OUTCOMES = {"passed": "passed", "failed": "FAILED", "skipped": "skipped", "xfailed": "differs"}


class ServerReport:
    """Collects the outcomes of a run, on the controller of a parallel one."""

    def __init__(
        self, path: Path, servers: Sequence[str], versions: Mapping[str, str], *, title: str, folder: str = ""
    ) -> None:
        self._path = path
        self._title = title
        self._folder = folder
        self._servers = servers
        self._versions = versions
        self._outcomes: dict[str, dict[str, str]] = defaultdict(dict)
        self._reasons: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name, server = self._split(report.nodeid)
        if not server or (report.when != "call" and report.outcome == "passed"):
            return
        reason = getattr(report, "wasxfail", None)
        outcome = "xfailed" if reason is not None and report.outcome == "skipped" else report.outcome
        self._outcomes[name][server] = _OUTCOMES[outcome]
        if reason:
            self._reasons[name, server] = reason

    def pytest_sessionfinish(self) -> None:
        if not self._outcomes:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n".join(self._write()) + "\n", encoding="utf-8")

    def _split(self, node_id: str) -> tuple[str, str]:
        """Return the test without the server, and the server; empty if the test does not run on several."""
        if self._folder not in node_id:
            return node_id, ""
        # The longest first: one name may begin with another.
        for server in sorted(self._servers, key=len, reverse=True):
            name, count = re.subn(rf"(?<=[\[-]){server}-?(?=[^\[]*\]$)", "", node_id, count=1)
            if count:
                return name.replace("[]", "").replace("-]", "]").removeprefix(
                    "schedgen_backups_tests/integration/"
                ), server
        return node_id, ""

    def _write(self) -> list[str]:
        servers = [
            server
            for server in self._servers
            if any(server in outcomes for outcomes in self._outcomes.values())
        ]
        several = {name: outcomes for name, outcomes in sorted(self._outcomes.items()) if len(outcomes) > 1}
        lines = [
            f"# {self._title}",
            "",
            (
                f"Written by `make exhaustive` on {datetime.now(timezone.utc):%Y-%m-%d}. *differs*: the "
                "server lacks something, and the test shows what"
            ),
            "becomes of it: unknown, unproven, or a clear refusal. Never green.",
            "",
            "| server | " + " | ".join(_OUTCOMES.values()) + " |",
            "| --- |" + " --- |" * len(_OUTCOMES),
        ]
        for server in servers:
            counts = Counter(outcomes[server] for outcomes in several.values() if server in outcomes)
            lines.append(
                f"| {server} {self._versions.get(server, '')} | "
                + " | ".join(str(counts[outcome]) for outcome in _OUTCOMES.values())
                + " |"
            )
        lines += ["", "## Tests that did not pass on every server", ""]
        lines += ["| test | " + " | ".join(servers) + " | why |", "| --- |" + " --- |" * (len(servers) + 1)]
        for name, outcomes in several.items():
            if set(outcomes.values()) != {"passed"}:
                why = "; ".join(
                    sorted(
                        {self._reasons[name, server] for server in servers if (name, server) in self._reasons}
                    )
                )
                cells = " | ".join(outcomes.get(server, "") for server in servers)
                lines.append(f"| `{name.replace('|', chr(92) + '|')}` | {cells} | {why} |")
        return lines
