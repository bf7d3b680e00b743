"""Deliver an alert once per incident: check with `incidents` whether it is due, send it, spool the rest.

The only entry point for hooks, sensors and the command line. If no channel accepts an alert, the caller gets
REFUSED and raises it again later. If only some accept it, it is spooled for the others. A failing channel or
directory never raises: the result of a backup must not depend on it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from enum import Enum
from itertools import repeat
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from schedgen_backups.core.errors import StorageError
from schedgen_backups.core.history.events import AlertDelivered, IncidentBegan, IncidentEnded
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.notify.alert import Alert, Severity
from schedgen_backups.core.notify.channels import Channel, Delivery
from schedgen_backups.core.notify.deliveries import read_last_delivery, record_delivery
from schedgen_backups.core.notify.incidents import (
    FOLDER_NAME,
    Incident,
    IncidentKey,
    IncidentState,
    IncidentStore,
)
from schedgen_backups.core.system.files import read_small_file, write_atomically
from schedgen_backups.core.units import count

_SPOOL_NAME = "spool"
_SPOOL_AGE = timedelta(days=7)
_SILENCE_SECONDS = 3
"""A channel that takes longer to refuse counts as unresponsive and is skipped, because the next alert would
wait as long."""
_FLUSH_SECONDS = 10
"""Maximum duration of sending spooled alerts; new alerts wait for the state's lock meanwhile."""
_LOG = logging.getLogger(__name__)


class Outcome(str, Enum):
    """The result of an alert."""

    ACCEPTED = "accepted"
    SUPPRESSED = "not due: the incident is known"
    REFUSED = "accepted by no channel"
    UNCONFIGURED = "no channel is configured"

    @property
    def is_settled(self) -> bool:
        """Whether the caller need not raise the alert again."""
        return self is not Outcome.REFUSED


class _Spooled(FrozenModel):
    fingerprint: str
    alert: Alert


class Notifier:
    """The channels, and the directory of incidents and undelivered alerts."""

    def __init__(self, channels: Sequence[Channel], backup_directory: Path, *, name: str = "") -> None:
        self._name = name
        self._channels = tuple(channels)
        self._folder = backup_directory / FOLDER_NAME
        self._store = IncidentStore(self._folder)
        self._history = History(backup_directory)
        self._silent: set[str] = set()
        """Fingerprints of unresponsive channels. A notifier lives for one tick or step; the next one tries
        them again."""

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The configured channels."""
        return self._channels

    def read_incidents(self) -> tuple[Incident, ...]:
        """Return the open incidents."""
        return self._store.read().incidents

    def report_trouble(self, key: IncidentKey, alert: Alert) -> Outcome:
        """Send the incident's alert if it is due; the incident opens when a channel accepts an alert."""
        with self._state() as state:
            if not state.is_due(key, alert.raised_at):
                self._write(state.with_occurrence(key, alert.raised_at, is_announced=False))
                return Outcome.SUPPRESSED
            incident = state.find(key)
            if incident is not None:
                alert = alert.model_copy(
                    update={"facts": {**alert.facts, "incident": _describe(incident, alert.raised_at)}}
                )
            outcome = self._deliver(alert)
            if outcome.is_settled:
                self._write(state.with_occurrence(key, alert.raised_at, is_announced=True))
                if incident is None:
                    self._history.record(
                        IncidentBegan(
                            at=alert.raised_at,
                            area=key.area,
                            subject=key.subject,
                            severity=alert.severity.value,
                            title=alert.title,
                            cause=alert.cause,
                        )
                    )
            return outcome

    def report_resolved(
        self, keys: frozenset[IncidentKey], *, facts: dict[str, str], now: datetime
    ) -> Outcome:
        """Close the open incidents of these keys with one message; SUPPRESSED if none is open."""
        with self._state() as state:
            over = [incident for incident in state.incidents if incident.key in keys]
            if not over:
                return Outcome.SUPPRESSED
            alert = Alert(
                severity=Severity.INFO,
                title="Backups work again",
                cause="Resolved: "
                + "; ".join(f"{incident.key} ({_describe(incident, now)})" for incident in over),
                facts=facts,
                raised_at=now,
            )
            outcome = self._deliver(alert)
            if outcome.is_settled:
                self._write(state.without(frozenset(incident.key for incident in over)))
                for incident in over:
                    self._history.record(
                        IncidentEnded(
                            at=now,
                            area=incident.key.area,
                            subject=incident.key.subject,
                            began_at=incident.began_at,
                        )
                    )
            return outcome

    def send(self, alert: Alert) -> tuple[Delivery, ...]:
        """Return each channel's answer, without an incident: for tests and good news."""
        alert = self._with_name(alert)
        deliveries = tuple(channel.send(alert) for channel in self._channels)
        for channel, delivery in zip(self._channels, deliveries, strict=True):
            self._record(channel, alert, delivery)
        return deliveries

    def flush_spool(self) -> int:
        """Retry alerts that a channel did not accept before; return how many remain."""
        folder = self._folder / _SPOOL_NAME
        if not folder.is_dir():
            return 0
        with self._state():  # one process at a time, so that no alert is sent twice
            ends_at = time.monotonic() + _FLUSH_SECONDS
            return sum(
                time.monotonic() >= ends_at or self._is_left(path) for path in sorted(folder.glob("*.json"))
            )

    def count_spooled(self) -> int:
        """Return how many alerts a channel has not accepted yet."""
        return sum(1 for _path in (self._folder / _SPOOL_NAME).glob("*.json"))

    def _with_name(self, alert: Alert) -> Alert:
        """Return the alert with the installation's name before its title."""
        return alert.model_copy(update={"title": f"{self._name}: {alert.title}"}) if self._name else alert

    def _ask(self, channel: Channel, alert: Alert) -> Delivery:
        if channel.fingerprint in self._silent:
            return Delivery(
                channel.name, is_accepted=False, answer="skipped: it did not answer the previous alert"
            )
        started_at = time.monotonic()
        delivery = channel.send(alert)
        self._record(channel, alert, delivery)
        if not delivery.is_accepted and time.monotonic() - started_at >= _SILENCE_SECONDS:
            self._silent.add(channel.fingerprint)
        return delivery

    def _record(self, channel: Channel, alert: Alert, delivery: Delivery) -> None:
        """Remember the answer; a channel that refuses again and again is in the history once."""
        now = datetime.now(timezone.utc)
        last = read_last_delivery(self._folder.parent, channel)
        record_delivery(self._folder.parent, channel, delivery, now)
        if delivery.is_accepted or last is None or last.is_accepted or last.answer != delivery.answer:
            self._history.record(
                AlertDelivered(
                    at=now,
                    channel=channel.name,
                    title=alert.title,
                    is_accepted=delivery.is_accepted,
                    answer=delivery.answer,
                )
            )

    def _is_left(self, path: Path) -> bool:
        try:
            spooled = _Spooled.model_validate_json(read_small_file(path))
            channel = next(
                (channel for channel in self._channels if channel.fingerprint == spooled.fingerprint), None
            )
            is_over = datetime.now(timezone.utc) - spooled.alert.raised_at > _SPOOL_AGE
            is_done = is_over or (channel is not None and self._ask(channel, spooled.alert).is_accepted)
        except ValidationError:
            _LOG.warning("spooled alert %s is damaged and will be removed", path.name)
            is_done = True
        except OSError as error:
            _LOG.warning("spooled alert %s cannot be read and is kept: %s", path.name, error.strerror)
            return True
        if is_done:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                _LOG.warning("spooled alert %s cannot be removed: %s", path.name, error.strerror)
        return not is_done

    def _deliver(self, alert: Alert) -> Outcome:
        if not self._channels:
            return Outcome.UNCONFIGURED
        alert = self._with_name(alert)
        refused: list[Channel] = []
        # In parallel: several unresponsive channels together cost no more time than one.
        with ThreadPoolExecutor(len(self._channels), "alert") as pool:
            deliveries = list(pool.map(self._ask, self._channels, repeat(alert)))
        for channel, delivery in zip(self._channels, deliveries, strict=True):
            if not delivery.is_accepted:
                _LOG.warning(
                    "alert %r was not accepted by %s: %s", alert.title, delivery.channel, delivery.answer
                )
                refused.append(channel)
        if len(refused) == len(self._channels):
            return Outcome.REFUSED
        for channel in refused:
            self._spool(channel, alert)
        return Outcome.ACCEPTED

    def _spool(self, channel: Channel, alert: Alert) -> None:
        folder = self._folder / _SPOOL_NAME
        path = folder / f"{alert.raised_at:%Y%m%d_%H%M%S_%f}-{uuid4().hex}.json"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(
                path, _Spooled(fingerprint=channel.fingerprint, alert=alert).model_dump_json().encode()
            )
        except OSError as error:
            _LOG.warning("alert %r cannot be spooled for %s: %s", alert.title, channel.name, error.strerror)

    @contextmanager
    def _state(self) -> Generator[IncidentState, None, None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(self._store.locked())
                state = self._store.read()
            except (
                OSError,
                StorageError,
            ) as error:  # The directory may be what is broken: an extra alert is better than none.
                _LOG.warning(
                    "incidents cannot be stored in %s: %s",
                    self._folder,
                    error.strerror if isinstance(error, OSError) else error.message,
                )
                state = IncidentState()
            yield state

    def _write(self, state: IncidentState) -> None:
        try:
            self._store.write(state)
        except OSError as error:
            _LOG.warning("incidents cannot be stored in %s: %s", self._folder, error.strerror)


def _describe(incident: Incident, now: datetime) -> str:
    hours = (now - incident.began_at).total_seconds() / 3600
    return (
        f"since {incident.began_at:%Y-%m-%d %H:%M} UTC, {hours:.1f} h, seen "
        f"{count(incident.occurrence_count, 'time')}"
    )
