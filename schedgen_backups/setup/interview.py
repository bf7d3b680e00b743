"""Ask the questions of `setup`: each value is checked at once, each group by using it.

Without a terminal nothing is asked: flags, environment and environment file must contain all answers.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol
from zoneinfo import ZoneInfo

import typer

from schedgen_backups.alerts.service import AlertService, send_test_alert
from schedgen_backups.cli.app import out
from schedgen_backups.cli.progress import print_precondition_results, show_work
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.config.presets import NO_PRESET
from schedgen_backups.config.reader import DEFAULTS
from schedgen_backups.config.site_directories import refuse_shared_directory
from schedgen_backups.core.errors import BackupError, ConfigurationError
from schedgen_backups.core.patterns import matches_any_key
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.settings import Layout
from schedgen_backups.core.verify.live_system import check_consistency, describe_consistency
from schedgen_backups.doctor.checks import examine_bucket, examine_database
from schedgen_backups.doctor.results import PreconditionResult, Verdict
from schedgen_backups.doctor.space import find_layout_advice
from schedgen_backups.setup.draft import Draft
from schedgen_backups.setup.plan import Deployment, check_local_zone, check_path, make_calendar
from schedgen_backups.setup.questions import (
    BUCKET,
    CHANNELS,
    DATABASE,
    DIRECTORY,
    FLAGS_ONLY,
    LAYOUT,
    MAIL,
    NAME,
    REFERENCES,
    TIMES,
    Question,
    find_problem,
)
from schedgen_backups.setup.references import Offer, find_offers

NOTHING = "-"
"""Input that clears a value."""
_OBJECTS_LIMIT = 100_000
"""Maximum number of objects whose sizes are added up: a few seconds."""


class Ask(Protocol):
    """Asks a group of questions."""

    def __call__(self, *, is_again: bool) -> None:
        """Ask; `is_again` when the answers did not work."""
        ...


@dataclass
class Interview:
    """The answers that are known, and the questions for the rest."""

    known: Config
    """Values of flags, environment and environment file."""
    written: Mapping[str, str]
    """Values that are already in the environment file: its channels were tested when they were added."""
    given: frozenset[str]
    """Variables set by flags: asked for only if they are wrong."""
    is_interactive: bool
    is_test_alert_allowed: bool
    draft: Draft | None = None
    """File in which answers are kept after each group of questions; None to keep none."""
    answers: dict[str, str] = field(default_factory=dict[str, str])
    others: tuple[Config, ...] = ()
    """The other sites, which must not share the directory."""

    def ask_all(self, deployment: Deployment) -> dict[str, str]:
        """Return the tested value of every variable that setup asks for.

        Without a terminal, raise ConfigurationError if one is wrong.
        """
        is_elsewhere = deployment is Deployment.COMPOSE
        if any(self.known.values.get(question.name, "").strip() for question in FLAGS_ONLY):
            # First, since the other groups are tried with these settings.
            self._ask_group("flags", FLAGS_ONLY, lambda: None)
        self._ask_group("database", DATABASE, lambda: self._try_database(is_elsewhere=is_elsewhere))
        self._ask_group("bucket", BUCKET, lambda: self._try_bucket(is_elsewhere=is_elsewhere))
        try_references = partial(self._try_references, is_elsewhere=is_elsewhere)
        if self.is_interactive and not self.given & {question.name for question in REFERENCES}:
            offers = self._find_offers(is_elsewhere=is_elsewhere)
            self._ask_until_right("references", partial(self._ask_references, offers), try_references)
        else:
            self._ask_group("references", REFERENCES, try_references)
        times = TIMES if is_elsewhere else (DIRECTORY, *TIMES)
        self._ask_group("schedule and retention", times, lambda: self._try_times(deployment))
        if not is_elsewhere:
            self._advise_on_layout()
        self._ask_group("alerts", (NAME, *CHANNELS), self._try_channels)
        values = self.config.values
        if not values.get("BACKUP_ALERT_WEBHOOK_URL") and not values.get("BACKUP_ALERT_EMAIL"):
            out.print(
                "[yellow]No alerts are sent for failures.[/] Set BACKUP_ALERT_WEBHOOK_URL or "
                "BACKUP_ALERT_EMAIL, or check `schedgen-backups status`."
            )
        if not values.get("BACKUP_NAME"):
            out.print(
                "[yellow]This installation has no name:[/] alerts name the machine and the database instead. "
                "Set BACKUP_NAME to distinguish staging from production."
            )
        return self.answers

    def _ask_group(self, subject: str, questions: Iterable[Question], attempt: Callable[[], None]) -> None:
        asked = tuple(questions)

        def ask(*, is_again: bool) -> None:
            for question in asked:
                self._ask(question, is_again=is_again)
            if subject == "alerts" and self.answers["BACKUP_ALERT_EMAIL"]:
                for question in MAIL:
                    self._ask(question, is_again=is_again)

        self._ask_until_right(subject, ask, attempt)

    def _ask_until_right(self, subject: str, ask: Ask, attempt: Callable[[], None]) -> None:
        """Ask and try until it works or the user keeps the answers anyway; then store them in the draft."""
        is_again = False
        while True:
            ask(is_again=is_again)
            try:
                attempt()
                break
            except BackupError as error:
                if not self.is_interactive:
                    raise
                out.print(f"[bold red]{escape(subject)}:[/] {escape(error.message)}")
                if error.hint:
                    out.print(f"[bold]What to do:[/] {escape(error.hint)}")
            if typer.confirm("Keep these answers anyway?", default=False):
                break
            is_again = True
        if self.draft is not None:
            self.draft.write(self.answers)

    def _ask_references(self, offers: tuple[Offer, ...], *, is_again: bool) -> None:
        """Offer what was found in the database; the user can also enter a SELECT."""
        known = {
            question.name: self.known.values.get(question.name, "").strip() or DEFAULTS[question.name]
            for question in REFERENCES
        }
        nothing = "no reference query: no check notices when an object is missing"
        for number, text in () if is_again else enumerate((nothing, *(offer.text for offer in offers))):
            out.print(f"  [bold]{number}[/]  {escape(text)}")

        def take(text: str) -> dict[str, str]:
            answer = text.strip()
            if answer == "0":
                return {"BACKUP_PRESET": NO_PRESET, "BACKUP_REFERENCE_QUERY": ""}
            if answer.isascii() and answer.isdecimal():
                if int(answer) > len(offers):
                    raise typer.BadParameter(
                        f"enter a number from 0 to {len(offers)}, or a SELECT of one column"
                    )
                return offers[int(answer) - 1].values
            return {**known, "BACKUP_REFERENCE_QUERY": answer}

        default = known["BACKUP_REFERENCE_QUERY"] or ("1" if offers else "0")
        self.answers |= typer.prompt(
            "Query that returns the keys of the objects (a number, or a SELECT of one column)",
            default=default,
            value_proc=take,
        )

    def _find_offers(self, *, is_elsewhere: bool) -> tuple[Offer, ...]:
        config = self.config
        try:
            if is_elsewhere and not self._are_servers_known_here():
                return ()
            with show_work(out, "searching for the keys of the objects"):
                return find_offers(config.database, config.bucket, config.capture.transfer)
        except BackupError as error:
            out.print(f"[yellow]references:[/] no suggestions: {escape(error.message)}")
            return ()

    def _are_servers_known_here(self) -> bool:
        config = self.config
        return all(map(_is_known_here, (config.database.host, config.bucket.endpoint.rpartition(":")[0])))

    def _try_references(self, *, is_elsewhere: bool) -> None:
        config = self.config
        # Without a terminal, the preset may be the default: missing tables must not stop setup, and `doctor`
        # reports them.
        is_chosen = self.is_interactive or bool(config.values.get("BACKUP_REFERENCE_QUERY", "").strip())
        if (
            not config.capture.references.is_configured
            or not is_chosen
            or (is_elsewhere and not self._are_servers_known_here())
        ):
            return
        out.print(escape(describe_consistency(check_consistency(config.live_application))))

    def _ask(self, question: Question, *, is_again: bool) -> None:
        found = self.answers.get(question.name, self.known.values.get(question.name, "").strip())
        is_asked = question.is_asked(self.config)
        if not is_asked and not found:
            return
        known = found if question.name in self.answers else found or DEFAULTS[question.name]
        is_settled = question.name in self.given or not is_asked
        if not self.is_interactive or (is_settled and not is_again):
            problem = find_problem(question, known)
            if not problem:
                self.answers[question.name] = known
                return
            if not self.is_interactive:
                raise ConfigurationError(
                    problem,
                    hint="Set it by a flag, in the environment or in .env; `setup --help` lists the flags.",
                )
            out.print(f"[bold red]{escape(problem)}[/]")

        def take(text: str) -> str:
            value = "" if text.strip() == NOTHING else text.strip()
            problem = find_problem(question, value)
            if problem:
                raise typer.BadParameter(problem)
            return value

        hint = (
            " (Enter keeps the current value)"
            if question.is_hidden and known
            else ""
            if question.is_required or known
            else " (Enter for none)"
        )
        self.answers[question.name] = typer.prompt(
            question.text + hint,
            default=known,
            hide_input=question.is_hidden,
            show_default=bool(known) and not question.is_hidden,
            value_proc=take,
        )

    @property
    def config(self) -> Config:
        """The configuration with the answers so far."""
        return self.known.with_values(self.answers)

    def _try_database(self, *, is_elsewhere: bool) -> None:
        config = self.config
        settings = config.database
        if is_elsewhere and not _is_known_here(settings.host):
            out.print(
                f"{escape(settings.host)} is not known on this machine, only in the containers' network: "
                "`backup-cli doctor` tests it there."
            )
            return
        results = examine_database(settings, config.capture)
        # The image brings its own pg_dump.
        _judge([result for result in results if not (is_elsewhere and result.subject == "pg_dump")])

    def _try_bucket(self, *, is_elsewhere: bool) -> None:
        config = self.config
        settings = config.bucket
        host = settings.endpoint.rpartition(":")[0]
        if is_elsewhere and not _is_known_here(host):
            out.print(
                f"{escape(host)} is not known on this machine, only in the containers' network: "
                "`backup-cli doctor` tests it there."
            )
            return
        _judge(list(examine_bucket(settings, config.capture.transfer)))

    def _advise_on_layout(self) -> None:
        """Print why points in packs are advised, and ask for the layout; nothing if they are not."""
        try:
            if self.config.capture.layout is Layout.PACKS:
                return
            with show_work(out, "comparing the size of the bucket with the disk"):
                size_bytes, is_all = self._measure_bucket()
                advice = find_layout_advice(self.config, least_bytes=size_bytes)
        except BackupError as error:
            # Of answers that were kept although they did not work.
            out.print(f"[yellow]layout:[/] no advice: {escape(error.message)}")
            return
        if advice is None:
            return
        cut = "" if is_all else f" (of the first {_OBJECTS_LIMIT} objects)"
        out.print(f"[yellow]layout:[/] {escape(advice.detail)}{cut}. {escape(advice.fix)}")
        if self.is_interactive and LAYOUT.name not in self.given:
            self._ask_group("layout", (LAYOUT,), lambda: self.config.check("capture"))

    def _measure_bucket(self) -> tuple[int, bool]:
        """Return the size of the objects that are backed up, and whether all were listed."""
        config = self.config
        excluded = config.capture.exclusions.objects
        stall_timeout_seconds = config.capture.transfer.stall_timeout_seconds
        size_bytes, count = 0, 0
        with BucketClient(config.bucket, threads=1, stall_timeout_seconds=stall_timeout_seconds) as client:
            for listed in client.list_objects():
                if count == _OBJECTS_LIMIT:
                    return size_bytes, False
                count += 1
                if not matches_any_key(excluded, listed.key):
                    size_bytes += listed.size_bytes
        return size_bytes, True

    def _try_times(self, deployment: Deployment) -> None:
        config = refuse_shared_directory(self.config, self.others)
        config.check("backup_directory", "capture", "schedule", "retention")
        if deployment in {Deployment.SYSTEMD, Deployment.CRON}:
            check_path(self.config.backup_directory)
        if deployment is Deployment.SYSTEMD:
            make_calendar(self.answers["BACKUP_SCHEDULE"])
        if deployment is Deployment.CRON:
            check_local_zone(ZoneInfo(self.answers["BACKUP_TIMEZONE"]))

    def _try_channels(self) -> None:
        config = self.config
        service = AlertService(config)
        names = [question.name for question in (*CHANNELS, *MAIL)]
        is_new = any(
            (config.values.get(name) or DEFAULTS[name]) != (self.written.get(name) or DEFAULTS[name])
            for name in names
        )
        if not self.is_test_alert_allowed or not is_new or not service.notifier.channels:
            return
        refused = [delivery for delivery in send_test_alert(service.notifier) if not delivery.is_accepted]
        if refused:
            raise ConfigurationError(
                "; ".join(
                    f"{delivery.channel} did not accept the test alert: {delivery.answer}"
                    for delivery in refused
                ),
                hint="Check the address, and that this machine can reach it.",
            )
        out.print("Every channel accepted a test alert.")


def _judge(results: list[PreconditionResult]) -> None:
    problems = [result for result in results if result.verdict is Verdict.PROBLEM]
    if problems:
        raise ConfigurationError(
            "; ".join(result.detail for result in problems),
            hint=" ".join(result.fix for result in problems if result.fix),
        )
    print_precondition_results(out, results)


def _is_known_here(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
