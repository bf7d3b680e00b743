"""The alarms of deploy/monitoring as promtool sees them: valid, and each fires when it must and only then.

promtool computes them from series that are written down here, in its own time. `test_alarms` has the same
alarms in a real Prometheus that is fed by a real site.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from schedgen_backups.cli.main import app
from schedgen_backups.core.metrics.families import FAMILIES, PREFIX
from schedgen_backups_tests.support.prometheus import (
    FILES,
    PROJECT,
    RULES,
    find_prometheus_program,
    read_rules,
)

pytestmark = [pytest.mark.edge]

HOUR, DAY = 3600, 86400
NOW = 3 * HOUR
"""promtool's time begins at 0; values before are negative."""
ADVANCING = f"0+60x{NOW // 60 + 60}"
"""The present time, at each minute."""
STOPPED = "0+60x90 5400x200"
GONE_AT_2H = "0+60x120 stale"
GIB = 1 << 30

HEALTHY: Mapping[str, float | str] = {
    "metrics_written_timestamp_seconds": ADVANCING,
    "settings_wrong": 0,
    "last_verified_timestamp_seconds": NOW - 10 * HOUR,
    "oldest_verified_timestamp_seconds": NOW - 30 * DAY,
    "last_attempt_timestamp_seconds": NOW - 10 * HOUR + 5,
    "last_failure_timestamp_seconds": NOW - 4 * DAY,
    "max_age_seconds": 26 * HOUR,
    "schedule_gap_seconds": 24 * HOUR,
    "broken_points": 0,
    "directory_free_bytes": 100 * GIB,
    "next_point_bytes": 10 * GIB,
    "next_point_temporary_bytes": 0,
    'last_size_bytes{half="database"}': GIB,
    'last_size_bytes{half="bucket"}': 9 * GIB,
    'previous_size_bytes{half="database"}': GIB,
    'previous_size_bytes{half="bucket"}': 9 * GIB,
    'level{level="stored"}': 1,
    'level{level="coherent"}': -1,
    'level{level="equal"}': 1,
    'level_passed_timestamp_seconds{level="stored"}': NOW - 10 * HOUR,
    'level_passed_timestamp_seconds{level="restored"}': NOW - 2 * DAY,
    'level_passed_timestamp_seconds{level="equal"}': NOW - 2 * DAY,
    "alert_channels": 1,
    "alert_channels_failing": 0,
    "alerts_spooled": 0,
    "daemon_tick_timestamp_seconds": ADVANCING,
    "drill_timestamp_seconds": NOW - 2 * DAY,
    "drill_passed": 1,
    "drill_rto_seconds": 600,
    "drill_max_age_seconds": 8 * DAY,
    "drill_max_duration_seconds": 4 * HOUR,
    'copy_last_point_timestamp_seconds{store="nas"}': NOW - 10 * HOUR,
    'copy_max_age_seconds{store="nas"}': 26 * HOUR,
    'copy_points{store="nas"}': 20,
    'copy_lacking_points{store="nas"}': 0,
    'copy_proof_timestamp_seconds{store="nas", proof="listed"}': NOW - 20 * HOUR,
    'copy_proof_timestamp_seconds{store="nas", proof="reread"}': NOW - 20 * DAY,
    'copy_problems{store="nas", kind="stranger"}': 0,
    'copy_problems{store="nas", kind="listing"}': 0,
    'copy_problems{store="nas", kind="reread"}': 0,
    'copy_reread_limit_seconds{store="nas"}': 30 * DAY,
    'copy_locked_until_timestamp_seconds{store="nas"}': NOW + 20 * DAY,
    'copy_lock_seconds{store="nas"}': 30 * DAY,
    'copy_failing{store="nas"}': 0,
}
"""A site with everything, by the port: metric with its other labels → value, or promtool's series."""
CRON_ONLY: Mapping[str, float | str] = {
    "metrics_written_timestamp_seconds": ADVANCING,
    "last_verified_timestamp_seconds": NOW - 10 * HOUR,
    "oldest_verified_timestamp_seconds": NOW - 10 * HOUR,
    "max_age_seconds": 26 * HOUR,
    "schedule_gap_seconds": 24 * HOUR,
    "drill_max_age_seconds": 8 * DAY,
    "drill_max_duration_seconds": 4 * HOUR,
    "alert_channels": 0,
    "alert_channels_failing": 0,
    "alerts_spooled": 0,
    "broken_points": 0,
    'level{level="stored"}': 1,
    'level{level="equal"}': -1,
}
"""A new site with a file for node_exporter: no daemon, no drill, no store."""
SECOND_STORE = {
    re.sub('store="nas"', 'store="offsite"', metric): value
    for metric, value in HEALTHY.items()
    if 'store="nas"' in metric
}

NAS = 'store="nas"'
ABSENT = "_x240"
"""promtool's notation for no samples."""
CASES: tuple[tuple[str, Mapping[str, float | str], set[str]], ...] = (
    ("everything is well", {}, set()),
    # BackupMetricsMissing; the missing exporter takes all series with it (test below).
    (
        "the file was not written for an hour",
        {
            "metrics_written_timestamp_seconds": STOPPED,
            "daemon_tick_timestamp_seconds": STOPPED,
        },
        {"BackupMetricsMissing"},
    ),
    ("written 58 minutes ago", {"metrics_written_timestamp_seconds": "0+60x122 7320x200"}, set()),
    # BackupTooOld
    ("26.5 hours old", {"last_verified_timestamp_seconds": NOW - 26.5 * HOUR}, {"BackupTooOld"}),
    ("25.9 hours old", {"last_verified_timestamp_seconds": NOW - 25.9 * HOUR}, set()),
    ("no verified point at all", {"last_verified_timestamp_seconds": ABSENT}, {"BackupTooOld"}),
    # BackupSettingsWrong
    ("wrong settings", {"settings_wrong": 1}, {"BackupSettingsWrong"}),
    ("settings that were wrong for three minutes", {"settings_wrong": "0x60 1x3 0x177"}, set()),
    # BackupFailing
    (
        "attempts for more than two days without a point, and a weekly limit",
        {
            "max_age_seconds": 8 * DAY,
            "last_verified_timestamp_seconds": NOW - 60 * HOUR,
            "last_attempt_timestamp_seconds": NOW - 11 * HOUR,
        },
        {"BackupFailing"},
    ),
    (
        "a failure that nothing followed",
        {"last_failure_timestamp_seconds": NOW - 2 * HOUR},
        {"BackupFailing"},
    ),
    ("a failure half an hour ago", {"last_failure_timestamp_seconds": NOW - HOUR / 2}, set()),
    ("a failure before the newest point", {"last_failure_timestamp_seconds": NOW - 11 * HOUR}, set()),
    ("points and levels", {"broken_points": 1}, {"BackupPointBroken"}),
    ("a level failed", {'level{level="equal"}': 0}, {"BackupLevelFailed"}),
    ("a level is unknown", {'level{level="equal"}': -1}, set()),
    (
        "drills run, but nothing was equal for nine days",
        {'level_passed_timestamp_seconds{level="equal"}': NOW - 9 * DAY},
        {"BackupLevelTooOld"},
    ),
    (
        "a level that backups reach is judged by the age of the point",
        {'level_passed_timestamp_seconds{level="stored"}': NOW - 9 * DAY},
        set(),
    ),
    # Drills
    (
        "nine days without a drill are one alarm, not two",
        {
            "drill_timestamp_seconds": NOW - 9 * DAY,
            'level_passed_timestamp_seconds{level="restored"}': NOW - 9 * DAY,
            'level_passed_timestamp_seconds{level="equal"}': NOW - 9 * DAY,
        },
        {"BackupDrillTooOld"},
    ),
    (
        "never a drill, and points for a month",
        {
            "drill_timestamp_seconds": ABSENT,
            'level_passed_timestamp_seconds{level="restored"}': ABSENT,
            'level_passed_timestamp_seconds{level="equal"}': ABSENT,
        },
        {"BackupDrillTooOld"},
    ),
    (
        "never a drill, and points for seven days",
        {
            "oldest_verified_timestamp_seconds": NOW - 7 * DAY,
            "drill_timestamp_seconds": ABSENT,
            'level_passed_timestamp_seconds{level="restored"}': ABSENT,
            'level_passed_timestamp_seconds{level="equal"}': ABSENT,
        },
        set(),
    ),
    ("a drill failed", {"drill_passed": 0}, {"BackupDrillFailed"}),
    ("a drill took five hours", {"drill_rto_seconds": 5 * HOUR}, {"BackupDrillTooSlow"}),
    ("a drill took 3.9 hours", {"drill_rto_seconds": 3.9 * HOUR}, set()),
    # Copies: only the store that is named, which the labels below show.
    (
        "the newest copy is two days old",
        {f"copy_last_point_timestamp_seconds{{{NAS}}}": NOW - 2 * DAY, f"copy_lacking_points{{{NAS}}}": 2},
        {"BackupCopyTooOld nas"},
    ),
    (
        "two days old, but the store has everything",
        {f"copy_last_point_timestamp_seconds{{{NAS}}}": NOW - 2 * DAY},
        set(),
    ),
    ("it lacks a point of this night", {f"copy_lacking_points{{{NAS}}}": 1}, set()),
    (
        "a store without any copy",
        {
            f"copy_last_point_timestamp_seconds{{{NAS}}}": ABSENT,
            f"copy_points{{{NAS}}}": 0,
            f"copy_lacking_points{{{NAS}}}": 20,
        },
        {"BackupCopyTooOld nas"},
    ),
    (
        "a store without any copy of a site that is a day old",
        {
            "oldest_verified_timestamp_seconds": NOW - DAY,
            f"copy_last_point_timestamp_seconds{{{NAS}}}": ABSENT,
            f"copy_points{{{NAS}}}": 0,
            f"copy_lacking_points{{{NAS}}}": 1,
        },
        set(),
    ),
    ("a store fails for hours", {f"copy_failing{{{NAS}}}": "0x30 1x300"}, {"BackupCopyFailing nas"}),
    ("a store failed an hour ago", {f"copy_failing{{{NAS}}}": "0x120 1x300"}, set()),
    (
        "not listed for three days",
        {f'copy_proof_timestamp_seconds{{{NAS}, proof="listed"}}': NOW - 3 * DAY},
        {"BackupCopyNotProved nas"},
    ),
    (
        "a pack was not read for 33 days",
        {f'copy_proof_timestamp_seconds{{{NAS}, proof="reread"}}': NOW - 33 * DAY},
        {"BackupCopyNotProved nas"},
    ),
    (
        "a pack was not read for 31 days",
        {f'copy_proof_timestamp_seconds{{{NAS}, proof="reread"}}': NOW - 31 * DAY},
        set(),
    ),
    (
        "a pack was never read for 33 days",
        {
            f'copy_proof_timestamp_seconds{{{NAS}, proof="reread"}}': ABSENT,
            f"copy_oldest_unread_timestamp_seconds{{{NAS}}}": NOW - 33 * DAY,
        },
        {"BackupCopyNotProved nas"},
    ),
    (
        "a pack has waited a week for its first reading",
        {
            f'copy_proof_timestamp_seconds{{{NAS}, proof="reread"}}': ABSENT,
            f"copy_oldest_unread_timestamp_seconds{{{NAS}}}": NOW - 7 * DAY,
        },
        set(),
    ),
    (
        "locks end in a week of thirty days",
        {f"copy_locked_until_timestamp_seconds{{{NAS}}}": NOW + 7 * DAY},
        {"BackupCopyLockRunsOut nas"},
    ),
    ("locks end in eight days", {f"copy_locked_until_timestamp_seconds{{{NAS}}}": NOW + 8 * DAY}, set()),
    (
        "a file is not locked",
        {f"copy_locked_until_timestamp_seconds{{{NAS}}}": ABSENT},
        {"BackupCopyLockRunsOut nas"},
    ),
    (
        "locks were not asked for",
        {f"copy_locked_until_timestamp_seconds{{{NAS}}}": ABSENT, f"copy_lock_seconds{{{NAS}}}": 0},
        set(),
    ),
    (
        "locks were not read yet",
        {
            f"copy_locked_until_timestamp_seconds{{{NAS}}}": ABSENT,
            f'copy_proof_timestamp_seconds{{{NAS}, proof="listed"}}': ABSENT,
        },
        set(),
    ),
    ("a marker", {f'copy_problems{{{NAS}, kind="stranger"}}': 1}, {"BackupCopyStranger nas"}),
    ("a missing pack", {f'copy_problems{{{NAS}, kind="listing"}}': 1}, {"BackupCopyDamaged nas"}),
    ("an altered pack", {f'copy_problems{{{NAS}, kind="reread"}}': 1}, {"BackupCopyDamaged nas"}),
    # The rest
    ("room for 1.9 points", {"directory_free_bytes": 19 * GIB}, {"BackupSpaceRunsOut"}),
    ("room for 2.1 points", {"directory_free_bytes": 21 * GIB}, set()),
    (
        "room for many points that share packs",
        {"directory_free_bytes": 5 * GIB, "next_point_bytes": GIB, "next_point_temporary_bytes": GIB},
        set(),
    ),
    (
        "no room for the dump of the second point",
        {"directory_free_bytes": 2.9 * GIB, "next_point_bytes": GIB, "next_point_temporary_bytes": GIB},
        {"BackupSpaceRunsOut"},
    ),
    ("a dump of 0.4", {'last_size_bytes{half="database"}': 0.4 * GIB}, {"BackupSizeDropped"}),
    ("a dump of 0.6", {'last_size_bytes{half="database"}': 0.6 * GIB}, set()),
    ("a channel fails", {"alert_channels_failing": 1}, {"BackupChannelNotDelivering"}),
    ("an alert waits", {"alerts_spooled": 1}, {"BackupChannelNotDelivering"}),
    ("an alert has waited ten minutes", {"alerts_spooled": "0x170 1x100"}, set()),
    ("no tick for 1.5 hours", {"daemon_tick_timestamp_seconds": STOPPED}, {"BackupDaemonDead"}),
    ("no tick for 50 minutes", {"daemon_tick_timestamp_seconds": "0+60x130 7800x200"}, set()),
    ("ten minutes ahead", {"metrics_written_timestamp_seconds": "600+60x200"}, {"BackupClockWrong"}),
    ("a minute ahead", {"metrics_written_timestamp_seconds": "60+60x200"}, set()),
)


def write_series(
    values: Mapping[str, float | str], *, site: str, job: str, instance: str
) -> list[dict[str, str]]:
    own = f'site="{site}", job="{job}", instance="{instance}"'
    series = []
    for metric, value in values.items():
        name, _brace, labels = metric.rstrip("}").partition("{")
        written = value if isinstance(value, str) else f"{value}x{NOW // 60 + 60}"
        series.append(
            {"series": f"{PREFIX}{name}{{{own}{', ' if labels else ''}{labels}}}", "values": written}
        )
    return series


def check_alarms(
    folder: Path, series: list[dict[str, str]], expected: set[str], *, minute: int = NOW // 60
) -> None:
    """Assert that exactly these alarms fire at that minute: `NAME` or `NAME STORE`, all of the site `a`."""
    samples = []
    for alarm in sorted(expected):
        name, _space, store = alarm.partition(" ")
        labels = f'alertname="{name}", site="a"' + (f', store="{store}"' if store else "")
        samples.append({"labels": f"{{{labels}}}", "value": 1})
    question = {
        "expr": 'max by (alertname, site, store) (ALERTS{alertstate="firing"})',
        "eval_time": f"{minute}m",
        "exp_samples": samples,
    }
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [question]}],
    }
    path = folder / "test.yml"
    path.write_text(json.dumps(document), encoding="utf-8")
    words = [find_prometheus_program("promtool"), "test", "rules", path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def list_series(changed: Mapping[str, float | str]) -> list[dict[str, str]]:
    values = {**HEALTHY, **SECOND_STORE, **changed}
    return [
        *write_series(values, site="a", job="schedgen-backups", instance="one:9854"),
        *write_series(CRON_ONLY, site="b", job="node", instance="two:9100"),
        {"series": 'up{job="schedgen-backups", instance="one:9854"}', "values": "1x240"},
        {"series": 'up{job="node", instance="two:9100"}', "values": "1x240"},
    ]


@pytest.mark.parametrize(
    ("changed", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_exactly_the_alarm_that_is_meant_fires(
    tmp_path: Path, changed: Mapping[str, float | str], expected: set[str]
) -> None:
    check_alarms(tmp_path, list_series(changed), expected)


def test_every_alarm_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fired = {alarm.partition(" ")[0] for _name, _changed, expected in CASES for alarm in expected}
    assert fired == {rule["alert"] for rule in read_rules()}


def test_a_host_that_is_gone_is_one_alarm(tmp_path: Path) -> None:
    """Whatever else was wrong there: nothing of it is known any more."""
    dying = {
        metric: GONE_AT_2H if value == ADVANCING else f"{value}x119 stale"
        for metric, value in {**HEALTHY, "broken_points": 1}.items()
    }
    series = [
        *(
            each
            for each in list_series(dying)
            if not each["series"].startswith(("up", "schedgen_backup_copy"))
        ),
        {"series": 'up{job="schedgen-backups", instance="one:9854"}', "values": "1x120 0x120"},
    ]
    check_alarms(tmp_path, series, {"BackupMetricsMissing"})
    check_alarms(tmp_path, series, {"BackupPointBroken"}, minute=122)


def test_copies_that_were_never_listed_are_an_alarm_after_two_days(tmp_path: Path) -> None:
    minutes = 50 * 60
    changed = {
        "metrics_written_timestamp_seconds": f"0+60x{minutes}",
        f"copy_points{{{NAS}}}": f"3x{minutes}",
    }
    series = write_series(changed, site="a", job="schedgen-backups", instance="one:9854")
    check_alarms(tmp_path, series, set(), minute=47 * 60)
    check_alarms(tmp_path, series, {"BackupCopyNotProved nas"}, minute=49 * 60)


def test_a_missed_scrape_neither_starts_nor_ends_an_alarm(tmp_path: Path) -> None:
    def miss(minute: int, first: float, step: int = 0) -> str:
        return f"{first}+{step}x{minute - 1} stale {first + step * (minute + 1)}+{step}x100"

    minute = NOW // 60 - 1
    missed = {
        metric: miss(minute, 0, 60) if value == ADVANCING else miss(minute, float(value))
        for metric, value in HEALTHY.items()
    }
    for at in (minute, minute + 1):
        check_alarms(tmp_path, list_series(missed), set(), minute=at)
        firing = {**missed, "broken_points": miss(minute, 1)}
        check_alarms(tmp_path, list_series(firing), {"BackupPointBroken"}, minute=at)


def test_a_target_that_never_answered_is_an_alarm(tmp_path: Path) -> None:
    series = [
        *write_series(CRON_ONLY, site="a", job="node", instance="two:9100"),
        {"series": 'up{job="schedgen-backups", instance="one:9854"}', "values": "0x240"},
    ]
    with pytest.raises(AssertionError, match=r'alertname="BackupMetricsMissing"\} 1'):
        check_alarms(tmp_path, series, set())


def test_without_any_series_there_is_an_alarm(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r'alertname="BackupMetricsMissing"\} 1'):
        check_alarms(tmp_path, [{"series": "other", "values": "1x240"}], set())


def test_promtool_accepts_the_rules_and_the_example() -> None:
    for words in (("check", "rules", RULES), ("check", "config", FILES / "prometheus.example.yml")):
        done = subprocess.run(
            [find_prometheus_program("promtool"), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_amtool_accepts_the_example() -> None:
    words = [find_prometheus_program("amtool"), "check-config", FILES / "alertmanager.example.yml"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_sends_each_severity_to_a_receiver() -> None:
    words = [find_prometheus_program("amtool"), "config", "routes", "test", "--verify.receivers=backups"]
    words.append(f"--config.file={FILES / 'alertmanager.example.yml'}")
    for severity in {rule["labels"]["severity"] for rule in read_rules()}:
        labels = ("alertname=BackupTooOld", f"severity={severity}")
        assert subprocess.run([*words, *labels], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("rule", read_rules(), ids=lambda rule: rule["alert"])
def test_each_alarm_says_how_bad_it_is_where_and_what_to_do(rule: dict) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    summary, description, runbook = (
        rule["annotations"][key] for key in ("summary", "description", "runbook_url")
    )
    assert "$labels.site" in summary
    assert "$labels.site" in description or "$labels.instance" in description
    if rule["alert"].startswith("BackupCopy"):
        assert "$labels.store" in summary
    page, _hash, section = runbook.removeprefix("https://schedgen-backups.example/docs/").partition("#")
    text = (PROJECT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    headings = {line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")}
    assert not section or section in headings
    assert f"\n### {rule['alert']}\n" in (PROJECT / "docs" / "monitoring.md").read_text(encoding="utf-8")


def test_the_alarms_use_only_metrics_that_exist() -> None:
    known = {family.full_name for family in FAMILIES}
    used = set(re.findall(rf"\b{PREFIX}\w+", RULES.read_text(encoding="utf-8")))
    assert used <= known


def test_deploy_writes_the_files_with_links_to_this_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUP_DOCUMENTATION_URL", "https://docs.example.org/backups/")
    monkeypatch.setenv("BACKUP_ENV_FILE", str(tmp_path / ".env"))
    (tmp_path / ".env").touch(mode=0o600)
    folder = tmp_path / "monitoring"
    answer = CliRunner().invoke(app, ["deploy", "monitoring", "--to", str(folder)])
    assert answer.exit_code == 0, answer.output
    assert {path.name for path in folder.iterdir()} == {path.name for path in FILES.iterdir()}
    written = yaml.safe_load((folder / "rules.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert [rule["expr"] for rule in written] == [rule["expr"] for rule in read_rules()]
    links = {rule["annotations"]["runbook_url"] for rule in written}
    assert "https://docs.example.org/backups/alerts/backup-failed" in links
    assert all(link.startswith("https://docs.example.org/backups/") for link in links)


def test_the_placeholder_of_the_links_is_that_of_the_project() -> None:
    project = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    [documentation] = re.findall(r'^Documentation = "(.+)"$', project, re.MULTILINE)
    assert all(rule["annotations"]["runbook_url"].startswith(f"{documentation}/") for rule in read_rules())
    assert yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["name"] == "schedgen-backups"
