"""What a site shows outsiders: metrics by both doors, and receipts that verify.

All tests share one site with one recovery point.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from schedgen_backups.core.history.events import DrillEnded, PointCommitted, RestoreEnded, RunStarted
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.receipts.receipts import list_receipts
from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups.demo.seed import SeedSummary
from schedgen_backups_tests.support.prometheus import find_prometheus_program
from schedgen_backups_tests.support.sites import Application, Site, wait_until

pytestmark = [pytest.mark.edge]


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, seeded_application: tuple[Application, SeedSummary]
) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as monkeypatch, dg.DagsterInstance.ephemeral() as instance:
        made = Site(tmp_path_factory.mktemp("evidence"), seeded_application[0], monkeypatch)
        (made.folder / "metrics").mkdir()
        made.set(BACKUP_METRICS_FILE=str(find_metrics(made)), BACKUP_NAME="production")
        assert made.run(instance).success
        yield made


def find_metrics(site: Site) -> Path:
    return site.folder / "metrics" / "schedgen.prom"


def read_value(text: str, name: str) -> float:
    [line] = [
        line for line in text.splitlines() if line.startswith(f'schedgen_backup_{name}{{site="production"')
    ]
    return float(line.rpartition(" ")[2])


def test_a_run_writes_the_file_that_other_users_can_read(site: Site) -> None:
    path = find_metrics(site)
    text = path.read_text()
    [point] = site.points()
    assert read_value(text, "last_verified_timestamp_seconds") == point.point_id.taken_at.timestamp()
    assert read_value(text, "last_attempt_timestamp_seconds") >= point.point_id.taken_at.timestamp()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_status_writes_the_file_too(site: Site) -> None:
    find_metrics(site).unlink()
    assert site.cli("status").code == 0
    assert read_value(find_metrics(site).read_text(), "pinned_points") >= 0


def test_a_file_that_cannot_be_written_stops_nothing_and_doctor_says_so(site: Site) -> None:
    moved = site.folder / "moved"
    find_metrics(site).parent.rename(moved)
    try:
        answer = site.cli("status")
        assert answer.code == 0
        assert "the metrics cannot be written" in answer.stderr
        assert "cannot be written by this user" in site.cli("doctor").stdout
    finally:
        moved.rename(find_metrics(site).parent)


@pytest.mark.parametrize(
    ("name", "reason"), [("points/x.prom", "is inside BACKUP_DIR"), ("x.txt", "does not end with .prom")]
)
def test_a_file_that_nobody_would_read_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setenv(
        "BACKUP_METRICS_FILE", str(site.directory.parent / name.replace("points", site.directory.name))
    )
    assert reason in site.cli("doctor").stdout


def test_the_command_prints_what_the_file_has(site: Site) -> None:
    assert site.cli("status").code == 0
    answer = site.cli("metrics")
    assert answer.code == 0

    def without_times(text: str) -> list[str]:
        return [
            line for line in text.splitlines() if "written_timestamp" not in line and "free_bytes" not in line
        ]

    assert without_times(answer.stdout) == without_times(find_metrics(site).read_text())


def test_the_port_serves_what_is_true_at_the_scrape(site: Site) -> None:
    [port] = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "schedgen_backups.cli.main", "metrics", "--listen", f"127.0.0.1:{port}"],
        stderr=subprocess.DEVNULL,
    )

    def scrape() -> str:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer,
        ):
            return answer.read().decode()
        return ""

    try:
        wait_until(lambda: "last_verified" in scrape(), "the port answers")
        [point] = site.points()
        manifest = site.directory / f"manifest_{point.point_id}.json"
        content = manifest.read_bytes()
        manifest.write_bytes(b"{")
        try:
            assert "last_verified" not in scrape()
        finally:
            manifest.write_bytes(content)
        assert "last_verified" in scrape()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("address", ["9854", "host:0", "a b:1", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(site: Site, address: str) -> None:
    answer = site.cli("metrics", "--listen", address)
    assert (answer.code, "is not an address" in answer.stderr) == (4, True)


def test_a_point_a_drill_and_a_restore_leave_receipts_that_verify(site: Site, tmp_path: Path) -> None:
    assert site.cli("drill", "latest").code == 0
    assert site.cli("restore-objects", "latest", "*", "--to", str(tmp_path / "out")).code == 0
    answer = site.cli("receipts", "verify", "--json")
    assert answer.code == 0, answer.stdout
    found = json.loads(answer.stdout)["receipts"]
    events = {"point committed", "drill ended", "restore ended"}
    assert events <= {receipt["event"] for receipt in found}
    [point] = site.points()
    assert all(
        receipt["subjects"] == [f"manifest_{point.point_id}.json"]
        for receipt in found
        if receipt["event"] in events
    )
    kinds = {type(event) for event in History(site.directory).read().events}
    assert {RunStarted, PointCommitted, DrillEnded, RestoreEnded} <= kinds
    receipts = map(_read_statement, list_receipts(site.directory))
    versions = {each["event"]["event"]: each["versions"] for each in receipts}
    assert set(versions["point committed"]) == {"schedgen-backups", "PostgreSQL", "pg_dump"}
    assert set(versions["drill ended"]) == {"schedgen-backups", "PostgreSQL (target)", "psql"}
    assert re.match("[0-9]+[.][0-9]+", versions["drill ended"]["PostgreSQL (target)"])


def _read_statement(receipt: Path) -> dict[str, Any]:
    return json.loads(base64.b64decode(json.loads(receipt.read_bytes())["payload"]))["predicate"]


def test_promtool_finds_no_fault_in_the_exposition(site: Site) -> None:
    answer = site.cli("metrics")
    assert answer.code == 0
    words = [find_prometheus_program("promtool"), "check", "metrics"]
    done = subprocess.run(words, input=answer.stdout, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_report_has_the_point_of_this_month(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shell command may contain a token.
    monkeypatch.setenv("BACKUP_AFTER_COMMAND", "curl --header token-canary")
    [point] = site.points()
    month = f"{point.point_id.taken_at:%Y-%m}"
    for name in ("report.html", "report.json"):
        answer = site.cli("report", "--month", month, "--to", str(tmp_path / name))
        assert answer.code == 0, answer.stderr
        assert "1 recovery point" in answer.stdout
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert [each["point_id"] for each in report["points"]] == [point.point_id.text]
    assert report["points"][0]["checks_passed"] >= 7
    assert report["invalid_receipts"] == []
    assert report["valid_receipts"] >= 1
    page = (tmp_path / "report.html").read_text()
    assert point.point_id.text in page
    assert report["settings"]["BACKUP_AFTER_COMMAND"] == "set"
    for secret in (
        site.application.database.password,
        site.application.bucket.secret_key,
        "token-canary",
    ):
        assert secret not in page + json.dumps(report)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--month", "2026-13"), "is not a month"),
        (("--month", "2126-01"), "has not begun"),
        (("--to", "report.pdf"), "does not end with"),
        (("--to", "none/report.html"), "cannot be written"),
    ],
)
def test_a_report_that_cannot_be_made_says_why(site: Site, words: tuple[str, str], reason: str) -> None:
    answer = site.cli("report", *(("--to", "report.html") if words[0] == "--month" else ()), *words)
    assert answer.code in {4, 6}
    assert reason in answer.stderr


def test_nothing_to_verify_is_not_success(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = list_receipts(site.directory)[0]
    monkeypatch.setenv("BACKUP_DIR", str(tmp_path / "other"))
    answer = site.cli("receipts")
    assert (answer.code, "no receipts in" in answer.stderr) == (8, True)
    answer = site.cli("receipts", "verify", str(receipt))
    assert (answer.code, "no public key is known" in answer.stdout) == (3, True)


def test_a_file_of_stores_that_cannot_be_read_fails_the_metrics(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without their series, no alarm would know of the stores."""
    monkeypatch.setenv("BACKUP_STORES_FILE", "/nowhere/stores.toml")
    answer = site.cli("metrics")
    assert (answer.code, "BACKUP_STORES_FILE" in answer.stderr) == (4, True)


def test_a_changed_receipt_and_a_changed_manifest_exit_with_3(site: Site, tmp_path: Path) -> None:
    assert site.cli("receipts").code == 0
    [point] = site.points()
    manifest = site.directory / f"manifest_{point.point_id}.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content + b"\n")
    try:
        answer = site.cli("receipts")
        assert (answer.code, "is now another file" in answer.stdout) == (3, True)
    finally:
        manifest.write_bytes(content)
    forged = tmp_path / "forged.json"
    forged.write_bytes(
        list_receipts(site.directory)[0].read_bytes().replace(b'"payload": "e', b'"payload": "f')
    )
    answer = site.cli("receipts", "verify", str(forged))
    assert (answer.code, "0 valid receipts, 1 not valid" in answer.stdout) == (3, True)


def test_a_key_kept_elsewhere_exposes_forged_receipts(site: Site, tmp_path: Path) -> None:
    [key] = (site.directory / "receipts" / "keys").glob("*.pub.pem")
    kept = shutil.copy(key, tmp_path / "kept.pem")
    assert site.cli("receipts", "verify", "--key", str(kept)).code == 0
    assert json.loads(site.cli("receipts", "show-key", "--json").stdout)["public_key"] == key.read_text()
    new = json.loads(site.cli("receipts", "new-key", "--json").stdout)
    assert new["public_key"] != key.read_text()
    assert json.loads(site.cli("receipts", "show-key", "--json").stdout) == new
    assert site.cli("restore-objects", "latest", "*", "--to", str(tmp_path / "out")).code == 0
    assert site.cli("receipts").code == 0
    answer = site.cli("receipts", "verify", "--key", str(kept))
    assert (answer.code, "1 not valid" in answer.stdout) == (3, True)
    assert site.cli("receipts", "new-key", str(kept)).code == 4
