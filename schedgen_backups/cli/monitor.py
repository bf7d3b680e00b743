"""The monitoring commands: `status`, `doctor`, `audit`, `alert-test`."""

from __future__ import annotations

from datetime import datetime, timezone

import typer
from rich.table import Table

from schedgen_backups.alerts.service import AlertService, send_test_alert
from schedgen_backups.cli.all_sites import (
    AllSitesOption,
    SiteAnswer,
    print_answer,
    print_answers_of_all_sites,
)
from schedgen_backups.cli.app import CommandEnd, JsonOption, app, err, get_config, out, print_json
from schedgen_backups.cli.copy_status import KnownCopies, list_store_troubles
from schedgen_backups.cli.progress import print_precondition_results, show_work
from schedgen_backups.cli.text import escape, escape_value
from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.selection import list_verified, look_over
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.verify.live_system import check_consistency, describe_consistency
from schedgen_backups.doctor.checks import examine
from schedgen_backups.doctor.results import Verdict
from schedgen_backups.evidence.metrics import write_metrics_file
from schedgen_backups.exit_codes import ALERT_EXIT_CODE, CONFIGURATION_EXIT_CODE, VERIFICATION_EXIT_CODE

_WARNING_SHARE = 0.8
"""Share of the age limit above which `status` warns."""
_STATUS_WARNING, _STATUS_CRITICAL = 1, 2
"""Exit codes of monitoring plugins (Monitoring Plugins Development Guidelines)."""
_LISTED_KEYS = 200


@app.command()
def status(context: typer.Context, *, all_sites: AllSitesOption = False, as_json: JsonOption = False) -> None:
    """Print in one line whether the newest verified recovery point is recent enough, and its copies.

    A line for each store follows, with the age of each proof. Exit code 0 if the point is recent enough; 1 if
    it is almost too old, a point is damaged, something is wrong with the copies or an incident is open; 2 if
    it is too old or there is none; with --all-sites also 4 if the settings of a site are wrong.
    """
    if all_sites:
        print_answers_of_all_sites(context, _answer_status, as_json=as_json)
    else:
        print_answer(_answer_status(get_config(context)), as_json=as_json)


def _answer_status(config: Config) -> SiteAnswer:
    now = datetime.now(timezone.utc)
    write_metrics_file(config)
    service, copies = AlertService(config), KnownCopies(config)
    overview = look_over(service.catalog, now)
    freshness, max_age = overview.freshness, service.settings.max_age
    incidents = [str(incident.key) for incident in service.notifier.read_incidents()]
    verified = [
        point.point_id
        for point in (list_verified(service.catalog) if service.catalog.directory.is_dir() else ())
    ]
    newest = freshness.newest.point_id if freshness.newest is not None else None
    troubles = [copies.error] if copies.error else list_store_troubles(copies.stores, verified, now)
    is_warning = (
        freshness.is_too_old(max_age * _WARNING_SHARE)
        or not overview.is_intact
        or bool(incidents)
        or bool(troubles)
    )
    exit_code = _STATUS_CRITICAL if freshness.is_too_old(max_age) else _STATUS_WARNING if is_warning else 0
    word = {0: "OK", _STATUS_WARNING: "WARNING", _STATUS_CRITICAL: "CRITICAL"}[exit_code]
    parts = [overview.describe_freshness(max_age)]
    if not overview.is_intact or overview.due_count:
        parts.append(overview.describe_intactness())
    if spread := copies.describe_spread(newest, now):
        parts.append(spread)
    if troubles and not copies.error:
        parts.append("; ".join(troubles))
    if incidents:
        parts.append(f"open incidents: {', '.join(incidents)}")
    return SiteAnswer(
        {
            "state": word,
            "id": freshness.newest.point_id.text if freshness.newest is not None else None,
            "age_seconds": freshness.age.total_seconds() if freshness.age is not None else None,
            "max_age_seconds": max_age.total_seconds(),
            "damaged": [point.point_id.text for point in overview.broken],
            "ahead": [point.point_id.text for point in overview.ahead],
            "to_be_read_again": overview.due_count,
            "open_incidents": incidents,
            "copies": copies.spread_to_json(newest, now),
            "stores": copies.stores_to_json(verified, now),
        },
        (
            escape(f"{word}: {'; '.join(parts)}"),
            *(escape(f"{store.name}: {store.describe(now)}") for store in copies.stores),
        ),
        exit_code,
    )


@app.command()
def doctor(context: typer.Context, *, as_json: JsonOption = False) -> None:
    """Check every precondition of a backup: settings, servers, versions, privileges, disk space, clock.

    Exit code 4 if one is not met.
    """
    with show_work(err, "checking settings, servers and disk"):
        results = list(examine(get_config(context)))
    if as_json:
        print_json(
            {
                "results": [
                    {"what": f.subject, "state": f.verdict.value, "detail": f.detail, "fix": f.fix}
                    for f in results
                ]
            }
        )
    else:
        print_precondition_results(out, results)
    raise CommandEnd(
        CONFIGURATION_EXIT_CODE if any(result.verdict is Verdict.PROBLEM for result in results) else 0
    )


@app.command()
def audit(context: typer.Context, *, as_json: JsonOption = False) -> None:
    """Check the live system: list rows whose object is missing, and objects that no row refers to.

    Exit code 3 if the object of a row is missing.
    """
    with show_work(err, "reading the references and listing the bucket"):
        found = check_consistency(get_config(context).live_application)
    if as_json:
        print_json(
            {
                "checked_at": found.checked_at.isoformat(),
                "references": found.reference_count,
                "objects": found.object_count,
                "rows_without_object": list(found.rows_without_object),
                "objects_without_row": list(found.objects_without_row),
                "unreferenced_bytes": found.unreferenced_bytes,
            }
        )
    else:
        out.print(escape(describe_consistency(found)))
        for name, keys in (
            ("row without object", found.rows_without_object),
            ("object without row", found.objects_without_row),
        ):
            for key in keys[:_LISTED_KEYS]:
                out.print(f"{name}: {escape_value(key)}")
            if len(keys) > _LISTED_KEYS:
                err.print(f"{name}: {len(keys) - _LISTED_KEYS} more; --json prints all")
    raise CommandEnd(0 if found.is_coherent else VERIFICATION_EXIT_CODE)


@app.command(name="alert-test")
def send_alert_test(context: typer.Context, *, as_json: JsonOption = False) -> None:
    """Send a test alert through every channel and print the answers.

    Exit code 9 if a channel did not accept it.
    """
    service = AlertService(get_config(context))
    if not service.notifier.channels:
        raise ConfigurationError(
            "no channel is configured", hint="Set BACKUP_ALERT_WEBHOOK_URL or BACKUP_ALERT_EMAIL."
        )
    with show_work(err, "sending a test message to every channel"):
        deliveries = send_test_alert(service.notifier)
    if as_json:
        print_json(
            {
                "deliveries": [
                    {"channel": each.channel, "accepted": each.is_accepted, "answer": each.answer}
                    for each in deliveries
                ]
            }
        )
    else:
        table = Table("channel", "accepted", "answer", box=None, pad_edge=False, header_style="bold")
        for delivery in deliveries:
            table.add_row(
                escape(delivery.channel),
                "[green]yes[/]" if delivery.is_accepted else "[bold red]no[/]",
                escape(delivery.answer),
            )
        out.print(table)
    raise CommandEnd(0 if all(delivery.is_accepted for delivery in deliveries) else ALERT_EXIT_CODE)
