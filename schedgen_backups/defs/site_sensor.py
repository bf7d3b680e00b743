"""A sensor of one site, or one that serves the sites of an installation in turn.

What a site does in a tick is the same in both. A shared sensor keeps a cursor for each site. A site whose
part fails is reported by its own channels, and the others go on.
"""

# Dagster's own decorators and functions have partially unknown types.
# pyright: basic

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import dagster as dg
from pydantic import ValidationError

from schedgen_backups.alerts.guides import TICK_AREA
from schedgen_backups.alerts.service import AlertService
from schedgen_backups.config.config import Config
from schedgen_backups.config.sites import reload_sites
from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.notify.alert import Severity
from schedgen_backups.core.notify.incidents import IncidentKey
from schedgen_backups.core.units import count, name_some
from schedgen_backups.monitoring.failures import explain_exception
from schedgen_backups.monitoring.ticks import read_last_cursor
from schedgen_backups.site_names import SiteNames, name_shared

_BEGIN_SECONDS = 25
"""A tick begins no site later than this. Dagster aborts a tick after 60 s, and the part of one site takes at
most 28 s: 18 s of the outbox, and one exchange with a channel that began within them."""


_FAILED = "failed: "


class SiteTick:
    """What the part of one site works with in a tick."""

    def __init__(self, instance: dg.DagsterInstance, config: Config, cursor: str | None) -> None:
        self.instance = instance
        self.config = config
        """As it is now: each tick reads it again."""
        self.cursor = cursor

    def update_cursor(self, cursor: str) -> None:
        """Keep this text for the next tick."""
        self.cursor = cursor


SiteAnswer = dg.RunRequest | list[dg.RunRequest] | str
"""The run or the runs that are due, or why none is."""


_TickAnswer = dg.RunRequest | dg.SensorResult | dg.SkipReason


@dataclass(frozen=True)
class SensorKind:
    """A sensor that sites have."""

    name: str
    """Local name."""
    interval_seconds: int
    description: str


@dataclass(frozen=True)
class SiteSensor:
    """The part of one site in a sensor."""

    kind: SensorKind
    config: Config
    """As it was when the definitions were loaded."""
    evaluate: Callable[[SiteTick], SiteAnswer]
    job_names: tuple[str, ...] = ()
    """Full names of the jobs that it starts. The job is named in each request where there are several."""

    @property
    def names(self) -> SiteNames:
        """The names of the site."""
        return SiteNames(self.config.site_name)

    @property
    def full_name(self) -> str:
        """The name of the sensor where the site has its own."""
        return self.names.qualify(self.kind.name)


class _SiteState(FrozenModel):
    """What a shared sensor keeps of a site."""

    cursor: str | None = None
    reported_by: tuple[str, ...] = ()
    """The sites whose channels reported that this one's part failed; they report its end, too."""


class _SharedCursor(FrozenModel):
    """What a shared sensor keeps between two ticks."""

    sites: dict[str, _SiteState] = {}
    next_site: str = ""
    """The first one to be served: time did not suffice for it in the last tick."""


def make_own_sensor(sensor: SiteSensor, jobs: Mapping[str, dg.JobDefinition]) -> dg.SensorDefinition:
    """Return the sensor of one site, whose jobs these are, by full name."""

    def evaluate(context: dg.SensorEvaluationContext) -> _TickAnswer:
        tick = SiteTick(context.instance, sensor.config.reload(), context.cursor)
        try:
            answer = sensor.evaluate(tick)
        finally:
            if tick.cursor is not None:
                context.update_cursor(tick.cursor)
        if isinstance(answer, str):
            return dg.SkipReason(answer)
        return dg.SensorResult(run_requests=answer) if isinstance(answer, list) else answer

    return _make_sensor(sensor.kind, sensor.full_name, sensor.job_names, jobs, evaluate)


def make_shared_sensors(
    sensors: Sequence[SiteSensor], jobs: Mapping[str, dg.JobDefinition]
) -> list[dg.SensorDefinition]:
    """Return one sensor of each kind, which serves the sites in this order.

    `jobs` are those of all sites, by full name, with their resources.
    """
    by_name: dict[str, list[SiteSensor]] = {}
    for sensor in sensors:
        by_name.setdefault(sensor.kind.name, []).append(sensor)
    return [_make_shared_sensor(group, jobs) for group in by_name.values()]


def _make_shared_sensor(
    group: Sequence[SiteSensor], jobs: Mapping[str, dg.JobDefinition]
) -> dg.SensorDefinition:
    kind = group[0].kind

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        requests, reasons, cursor = _serve_sites(group, context.instance, _read_cursor(context.cursor))
        for site, reason in reasons.items():
            # The tick does not fail with a site, and shows no reasons if another one requests a run.
            log = context.log.error if reason.startswith(_FAILED) else context.log.debug
            log(f"{site}: {reason}")
        context.update_cursor(cursor.model_dump_json())
        if requests:
            return dg.SensorResult(run_requests=requests)
        distinct = set(reasons.values())
        return dg.SkipReason(
            distinct.pop()
            if len(distinct) == 1
            else name_some([f"{site}: {reason}" for site, reason in reasons.items()])
        )

    job_names = tuple(name for sensor in group for name in sensor.job_names)
    return _make_sensor(kind, name_shared(kind.name), job_names, jobs, evaluate)


def _make_sensor(
    kind: SensorKind,
    name: str,
    job_names: Sequence[str],
    jobs: Mapping[str, dg.JobDefinition],
    evaluate: Callable[[dg.SensorEvaluationContext], _TickAnswer],
) -> dg.SensorDefinition:
    return dg.SensorDefinition(
        name=name,
        evaluation_fn=evaluate,
        # A name where that suffices: Dagster would bind the resources of a job by copying the sensor.
        job_name=job_names[0] if len(job_names) == 1 else None,
        jobs=[jobs[each] for each in job_names] if len(job_names) > 1 else None,
        minimum_interval_seconds=kind.interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=kind.description,
    )


def _read_cursor(text: str | None) -> _SharedCursor:
    try:
        return _SharedCursor.model_validate_json(text or "")
    except ValidationError:  # none, or of another version
        return _SharedCursor()


def _serve_sites(
    group: Sequence[SiteSensor], instance: dg.DagsterInstance, before: _SharedCursor
) -> tuple[list[dg.RunRequest], dict[str, str], _SharedCursor]:
    """Serve the sites until time is over; return the runs that are due, the reasons, and the cursor."""
    requests: list[dg.RunRequest] = []
    reasons: dict[str, str] = {}
    names = [sensor.config.site_name for sensor in group]
    states = {name: state for name, state in before.sites.items() if name in names}
    first = names.index(before.next_site) if before.next_site in names else 0
    current = reload_sites([sensor.config for sensor in group])
    ends_at = time.monotonic() + _BEGIN_SECONDS
    for sensor in [*group[first:], *group[:first]]:
        site = sensor.config.site_name
        if reasons and time.monotonic() >= ends_at:
            return requests, reasons, _SharedCursor(sites=states, next_site=site)
        answer, states[site] = _serve_site(sensor, instance, states.get(site), current)
        if isinstance(answer, str):
            reasons[site] = answer
        else:
            due = answer if isinstance(answer, list) else [answer]
            reasons[site] = f"{count(len(due), 'run')} requested"
            requests += [_mark(request, site) for request in due]
    return requests, reasons, _SharedCursor(sites=states)


def _serve_site(
    sensor: SiteSensor,
    instance: dg.DagsterInstance,
    state: _SiteState | None,
    current: Mapping[str, Config],
) -> tuple[SiteAnswer, _SiteState]:
    """Do the part of one site; return its answer and state. Report the error if it fails."""
    if state is None:  # new, or it had a sensor of its own before
        state = _SiteState(cursor=read_last_cursor(instance, sensor.full_name))
    tick = SiteTick(instance, current[sensor.config.site_name], state.cursor)
    try:
        answer = sensor.evaluate(tick)
    except Exception as error:  # noqa: BLE001 - other sites must go on; the reason is in the alert
        cause = explain_exception(error).cause
        reported_by = dict.fromkeys((*state.reported_by, *_report_failure(sensor, cause, current)))
        return f"{_FAILED}{cause}", _SiteState(cursor=tick.cursor, reported_by=tuple(reported_by))
    _report_success(sensor, state.reported_by, current)
    return answer, _SiteState(cursor=tick.cursor)


def _mark(request: dg.RunRequest, site: str) -> dg.RunRequest:
    """Return the request with a key that no other site has: Dagster starts one run per key and sensor."""
    return dg.RunRequest(
        run_key=f"{site} {request.run_key}",
        run_config=request.run_config,
        tags=request.tags,
        job_name=request.job_name,
    )


def _make_key(sensor: SiteSensor) -> IncidentKey:
    # Not the name of a sensor: the outbox takes that for resolved with the sensor's next good tick.
    site = sensor.config.site_name or "the site"
    return IncidentKey(area=TICK_AREA, subject=f"{sensor.kind.name} of {site}")


def _report_failure(sensor: SiteSensor, cause: str, current: Mapping[str, Config]) -> tuple[str, ...]:
    """Send an alert to the site's channels, or those of another site if its own cannot be used.

    Return the site whose channels they were; nothing if no site has right settings.
    """
    key, site = _make_key(sensor), sensor.config.site_name
    for name in (site, *(other for other in current if other != site)):
        with suppress(BackupError, OSError):
            AlertService(current[name]).raise_trouble(
                key,
                Severity.CRITICAL,
                f"No run was started: {key.subject}",
                cause,
                next_step="`schedgen-backups doctor` checks the settings.",
            )
            return (name,)
    return ()


def _report_success(sensor: SiteSensor, reported_by: tuple[str, ...], current: Mapping[str, Config]) -> None:
    key = _make_key(sensor)
    for name in {sensor.config.site_name, *reported_by} & current.keys():
        with suppress(BackupError, OSError):  # runs report what is wrong with the site
            service = AlertService(current[name])
            if key in service.list_open_keys(TICK_AREA):
                service.report_resolved({key})
