"""Turn failures into alerts for the notifier: the same text for the hook, the outbox and the command line.

Incident keys are made here and in `run_kinds`, so that a failure that several parts report is one incident.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from schedgen_backups.alerts.guides import CLOCK_AREA, FRESHNESS_AREA, POINTS_AREA, find_guide
from schedgen_backups.alerts.run_kinds import RunKind, find_run_kind
from schedgen_backups.config.config import Config
from schedgen_backups.config.site_commands import add_site
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.selection import describe_freshness
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.history.events import RunFailed
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.notify.alert import Alert, Severity
from schedgen_backups.core.notify.channels import Delivery, make_channels
from schedgen_backups.core.notify.heartbeat import Signal, ping_heartbeat
from schedgen_backups.core.notify.incidents import IncidentKey
from schedgen_backups.core.notify.notifier import Notifier, Outcome
from schedgen_backups.site_names import SiteNames

RUN_SUBJECT = "run"
"""Subject of a failed run in which no step failed."""
STALE_KEY = IncidentKey(area=FRESHNESS_AREA, subject="no verified recovery point")
DAMAGE_KEY = IncidentKey(area=POINTS_AREA, subject="damaged")
CLOCK_KEY = IncidentKey(area=CLOCK_AREA, subject="recovery points ahead of it")
STALE_CLOCK_KEY = IncidentKey(area=CLOCK_AREA, subject="no verified recovery point but those ahead of it")
"""A separate incident: an incident that was reported as HIGH would be repeated only daily, although no point
is recent enough."""
_TOLERATED_LOSS = 0.05
"""Share of objects. If more vanished since the last night, single deletions do not explain it (operators,
2026-11-28)."""
_SIZE_CHECKS = ("dump_size_is_plausible", "archive_size_is_plausible")


@dataclass(frozen=True)
class Failure:
    """A failed step or run, as recorded by Dagster."""

    subject: str
    """Full name of a step, or of a job when no step failed."""
    cause: str
    next_step: str
    """Empty when the failure has none."""
    run_id: str
    job_name: str
    """Full name."""


class AlertService:
    """The alerts of one site. Raises ConfigurationError when an alert setting is wrong."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.names = SiteNames(config.site_name)
        self.settings = config.alerts
        self.catalog = Catalog(config.alert_directory)
        name = self.settings.name or config.site_name
        self._installation = name or _describe_place(config)
        channels = make_channels(
            self.settings.webhook_urls, self.settings.mail_recipients, self.settings.mail
        )
        self.notifier = Notifier(channels, self.catalog.directory, name=name)

    def raise_failure(self, failure: Failure) -> Outcome:
        """Send an alert for the failed step or run."""
        run_kind, subject = self.find_run_kind(failure), self.names.localize(failure.subject)
        history = History(self.catalog.directory)
        # While no channel accepts an alert, the same failure of a run is raised again and again. What failed
        # before there was a run is raised once, and tomorrow's is another one.
        record = history.record_once if failure.run_id else history.record
        record(
            RunFailed(
                at=datetime.now(timezone.utc),
                kind=run_kind.area,
                run_id=failure.run_id,
                subject=subject,
                cause=failure.cause,
            )
        )
        is_size = subject.endswith(_SIZE_CHECKS)
        return self.raise_trouble(
            run_kind.make_failure_key(subject),
            Severity.HIGH if is_size else run_kind.severity,
            f"{run_kind.noun} failed: {subject}",
            failure.cause,
            next_step=failure.next_step or run_kind.next_step,
            run_id=failure.run_id,
        )

    def ping_failure(self, failure: Failure) -> bool:
        """Report the failure to the heartbeat service; return whether it was accepted.

        Return False if no service is configured, it did not answer, or the run is not a backup.
        """
        if not self.find_run_kind(failure).is_backup:
            return False
        subject = self.names.localize(failure.subject)
        return ping_heartbeat(
            self.settings.heartbeat_url, Signal.FAIL, f"{subject}: {add_site(failure.cause, self._config)}"
        )

    def find_run_kind(self, failure: Failure) -> RunKind:
        """Return the run kind of the failed step or run."""
        return find_run_kind(self.names.localize(failure.job_name), self.names.localize(failure.subject))

    def raise_trouble(
        self,
        key: IncidentKey,
        severity: Severity,
        title: str,
        cause: str,
        *,
        next_step: str = "",
        run_id: str = "",
    ) -> Outcome:
        """Send an alert for something other than a failed step."""
        return self.notifier.report_trouble(
            key,
            Alert(
                severity=severity,
                title=title,
                cause=add_site(cause, self._config),
                next_step=add_site(next_step, self._config),
                facts={**self._make_facts(run_id), "guide": self._make_guide_link(key)},
                link=self.make_link(run_id),
                raised_at=datetime.now(timezone.utc),
            ),
        )

    def announce(self, title: str, cause: str, next_step: str) -> bool:
        """Send a message that belongs to no incident; return whether a channel accepted it.

        Return True without channels: another attempt would reach nobody either.
        """
        alert = Alert(
            severity=Severity.INFO,
            title=title,
            cause=add_site(cause, self._config),
            next_step=add_site(next_step, self._config),
            facts=self._make_facts(""),
            raised_at=datetime.now(timezone.utc),
        )
        deliveries = self.notifier.send(alert)
        return not deliveries or any(delivery.is_accepted for delivery in deliveries)

    def report_resolved(self, keys: Iterable[IncidentKey]) -> Outcome:
        """Close the open incidents with these keys, with one message for all."""
        return self.notifier.report_resolved(
            frozenset(keys), facts=self._make_facts(""), now=datetime.now(timezone.utc)
        )

    def list_open_keys(self, area: str) -> frozenset[IncidentKey]:
        """Return the keys of the area's open incidents."""
        return frozenset(
            incident.key for incident in self.notifier.read_incidents() if incident.key.area == area
        )

    def make_link(self, run_id: str) -> str:
        """Return the address of the run's page; empty when DAGSTER_WEBSERVER_URL is not set."""
        return (
            f"{self.settings.webserver_url}/runs/{run_id}" if self.settings.webserver_url and run_id else ""
        )

    def _make_guide_link(self, key: IncidentKey) -> str:
        page = find_guide(key).page
        return (
            f"{self.settings.documentation_url}/alerts/{page}"
            if self.settings.documentation_url
            else f"docs/alerts/{page}.md"
        )

    def _make_facts(self, run_id: str) -> dict[str, str]:
        freshness = describe_freshness(self.catalog, datetime.now(timezone.utc))
        facts = {"installation": self._installation, "last verified recovery point": freshness}
        return {**facts, "run": run_id} if run_id else facts


def _describe_place(config: Config) -> str:
    """Return a substitute for BACKUP_NAME: the machine and, if its settings are valid, the database."""
    try:
        return f"{socket.gethostname()}, database {config.database.label}"
    except ConfigurationError:
        return socket.gethostname()


def send_test_alert(notifier: Notifier) -> tuple[Delivery, ...]:
    """Send a test message through every channel; return the result of each."""
    alert = Alert(
        severity=Severity.INFO,
        title="Test of schedgen-backups",
        cause="This is a test alert. Nothing is wrong.",
        raised_at=datetime.now(timezone.utc),
    )
    return tuple(notifier.send(alert))


def judge_warning(check_name: str, figures: Mapping[str, object]) -> Severity:
    """Return the severity of a check's warning; newly missing objects are worse than any other warning."""
    missing, references = figures.get("newly_missing"), figures.get("references")
    if (
        check_name != "references_resolve"
        or not isinstance(missing, int)
        or not isinstance(references, int)
        or not missing
    ):
        return Severity.LOW
    is_emptied = not figures.get("resolved")
    return Severity.CRITICAL if is_emptied or missing > references * _TOLERATED_LOSS else Severity.HIGH
