"""Makes alerts of what failed, and hands them to the notifier: the same text for the hook, the outbox and the command line.

When something is raised is decided in `hooks` and `sensors`; what Dagster says of it is read in `causes`; how it reaches people is core's business.
Kinds of incidents are named here, so that a failure and its repetition, seen by different parts, are one incident.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from schedgen_backups.alerts.run_kinds import find_run_kind
from schedgen_backups.config.alerts import AlertSettings, read_alert_settings
from schedgen_backups.config.environment import read_backup_directory
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.selection import describe_freshness
from schedgen_backups.core.notify.alert import Alert, Severity
from schedgen_backups.core.notify.channels import Delivery
from schedgen_backups.core.notify.heartbeat import Signal, ping_heartbeat
from schedgen_backups.core.notify.notifier import Notifier, Outcome

RUN_SUBJECT = "run"
"""Stands for a run's end of which no step knows."""
STALE_KIND = "no verified recovery point"
TICK_KIND_PREFIX = "tick: "
CHECK_KIND_PREFIX = "check: "
OUTBOX_KIND_PREFIX = "outbox: "
_SIZE_CHECKS = ("dump_size_is_plausible", "archive_size_is_plausible")


@dataclass(frozen=True)
class Failure:
    """What failed, as far as Dagster knows."""

    subject: str
    """A step, or a job when no step failed."""
    cause: str
    next_step: str
    run_id: str
    job_name: str


class AlertService:
    """Settings, notifier and catalog, as the environment names them at this moment. ConfigurationError when an alert's setting is wrong."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.settings: AlertSettings = read_alert_settings(environment)
        self.catalog = Catalog(read_backup_directory(environment))
        self.notifier = Notifier(self.settings.make_channels(), self.catalog.directory)

    def raise_failure(self, failure: Failure) -> Outcome:
        """People are told of the failed step or run."""
        run_kind = find_run_kind(failure.job_name, failure.subject)
        is_size = failure.subject.endswith(_SIZE_CHECKS)
        return self.raise_trouble(
            f"{run_kind.kind_prefix}{failure.subject} failed",
            Severity.HIGH if is_size else run_kind.severity,
            f"{run_kind.noun} failed: {failure.subject}",
            failure.cause,
            next_step=failure.next_step or run_kind.next_step,
            run_id=failure.run_id,
        )

    def ping_failure(self, failure: Failure) -> bool:
        """The heartbeat service knows that there is no backup; False when there is none, it did not answer, or the run was for something else."""
        if not find_run_kind(failure.job_name, failure.subject).is_backup:
            return False
        return ping_heartbeat(self.settings.heartbeat_url, Signal.FAIL, f"{failure.subject}: {failure.cause}")

    def raise_trouble(self, kind: str, severity: Severity, title: str, cause: str, *, next_step: str = "", run_id: str = "") -> Outcome:
        """People are told of something that is not a failed step."""
        return self.notifier.report_trouble(
            Alert(
                incident=kind,
                severity=severity,
                title=title,
                cause=cause,
                next_step=next_step,
                facts=self._make_facts(run_id),
                link=self.make_link(run_id),
                raised_at=datetime.now(timezone.utc),
            )
        )

    def report_resolved(self, kinds: frozenset[str]) -> Outcome:
        """The incidents of these kinds are over, and people are told once."""
        return self.notifier.report_resolved(kinds, facts=self._make_facts(""), now=datetime.now(timezone.utc))

    def list_open_kinds(self, *prefixes: str) -> frozenset[str]:
        """The kinds of open incidents that begin so."""
        return frozenset(incident.kind for incident in self.notifier.read_incidents() if incident.kind.startswith(prefixes))

    def make_link(self, run_id: str) -> str:
        """The run's page, where somebody said where the UI is."""
        return f"{self.settings.webserver_url}/runs/{run_id}" if self.settings.webserver_url and run_id else ""

    def _make_facts(self, run_id: str) -> dict[str, str]:
        facts = {"last verified recovery point": describe_freshness(self.catalog, datetime.now(timezone.utc))}
        return {**facts, "run": run_id} if run_id else facts


def send_test_alert(notifier: Notifier) -> tuple[Delivery, ...]:
    """Every channel was given a message that says that nothing is wrong; returns what each answered."""
    alert = Alert(
        incident="test",
        severity=Severity.INFO,
        title="Test of schedgen-backups",
        cause="Somebody asked for a test alert. Nothing is wrong.",
        raised_at=datetime.now(timezone.utc),
    )
    return tuple(notifier.send(alert))
