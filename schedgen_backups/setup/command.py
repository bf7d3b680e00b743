"""The command `setup`: its flags, and how it ends.

A new question gets a flag here, unless it is a secret: those come from a file, the environment or a hidden prompt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import CommandEnd, app, get_config, out
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.exit_codes import CANCELLED_EXIT_CODE
from schedgen_backups.setup.plan import LOG_AT, STATE_AT, Deployment
from schedgen_backups.setup.run import UNIT_DIR, Wishes, set_up
from schedgen_backups.setup.run import remove as remove_deployment

FileOption = Annotated[Path | None, typer.Option(metavar="FILE", help="File whose content is this secret.")]
TextOption = Annotated[str | None, typer.Option(help="Answer to the question of this name.")]


@app.command()
def setup(
    context: typer.Context,
    *,
    deployment: Annotated[Deployment | None, typer.Option(help="What starts the backups; asked for by default.")] = None,
    postgres_host: TextOption = None,
    postgres_port: TextOption = None,
    postgres_user: TextOption = None,
    postgres_db: TextOption = None,
    postgres_password_file: FileOption = None,
    minio_endpoint: TextOption = None,
    minio_secure: TextOption = None,
    minio_bucket: TextOption = None,
    minio_access_key: TextOption = None,
    minio_secret_key_file: FileOption = None,
    preset: TextOption = None,
    reference_query: TextOption = None,
    backup_dir: TextOption = None,
    schedule: TextOption = None,
    timezone: TextOption = None,
    retention_days: TextOption = None,
    name: TextOption = None,
    alert_webhook_url_file: FileOption = None,
    alert_email: TextOption = None,
    smtp_host: TextOption = None,
    smtp_port: TextOption = None,
    smtp_security: TextOption = None,
    smtp_user: TextOption = None,
    smtp_password_file: FileOption = None,
    unit_dir: Annotated[Path, typer.Option(help="Where systemd's units go.")] = UNIT_DIR,
    cron_dir: Annotated[Path, typer.Option(help="Where cron's file goes.")] = Path("/etc/cron.d"),
    state_dir: Annotated[Path, typer.Option(help="DAGSTER_HOME of systemd and cron.")] = Path(STATE_AT),
    log_dir: Annotated[Path, typer.Option(help="Where cron's log goes.")] = Path(LOG_AT),
    service_user: Annotated[str, typer.Option(help="Who runs the backups of systemd and cron.")] = "",
    application_compose: Annotated[Path | None, typer.Option(help="The application's compose file; its folder has the .env.")] = None,
    start: Annotated[bool, typer.Option("--start", help="compose: build and start the containers now, without asking.")] = False,
    first_backup: Annotated[bool, typer.Option("--first-backup/--no-first-backup", help="Take and verify a first recovery point.")] = True,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: flags, environment, .env and defaults.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, secrets masked, and write nothing.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take away timer, units or cron's file; settings and recovery points stay.")] = False,
) -> None:
    """Ask for what a backup needs, try each answer, write .env, install what starts the backups, and take a first one. Safe to call again."""
    flags = {
        "POSTGRES_HOST": postgres_host,
        "POSTGRES_PORT": postgres_port,
        "POSTGRES_USER": postgres_user,
        "POSTGRES_DB": postgres_db,
        "POSTGRES_PASSWORD": _read_secret(postgres_password_file),
        "MINIO_ENDPOINT": minio_endpoint,
        "MINIO_SECURE": minio_secure,
        "MINIO_BUCKET": minio_bucket,
        "MINIO_ACCESS_KEY": minio_access_key,
        "MINIO_SECRET_KEY": _read_secret(minio_secret_key_file),
        "BACKUP_PRESET": preset,
        "BACKUP_REFERENCE_QUERY": reference_query,
        "BACKUP_DIR": backup_dir,
        "BACKUP_SCHEDULE": schedule,
        "BACKUP_TIMEZONE": timezone,
        "BACKUP_RETENTION_DAYS": retention_days,
        "BACKUP_NAME": name,
        "BACKUP_ALERT_WEBHOOK_URL": _read_secret(alert_webhook_url_file),
        "BACKUP_ALERT_EMAIL": alert_email,
        "SMTP_HOST": smtp_host,
        "SMTP_PORT": smtp_port,
        "SMTP_SECURITY": smtp_security,
        "SMTP_USER": smtp_user,
        "SMTP_PASSWORD": _read_secret(smtp_password_file),
    }
    wishes = Wishes(
        unit_dir=unit_dir.absolute(),
        cron_dir=cron_dir.absolute(),
        state_dir=state_dir.absolute(),
        log_dir=log_dir.absolute(),
        service_user=service_user,
        application_compose=application_compose,
        is_started=start,
        is_first_backup_wanted=first_backup,
    )
    if remove:
        remove_deployment(wishes, get_config(context).file)
        return
    if not yes and not sys.stdin.isatty():
        raise ConfigurationError(
            "there is no terminal to ask on", hint="Call it with --yes; `schedgen-backups setup --help` has a flag for every question."
        )
    try:
        given = {name: value for name, value in flags.items() if value is not None}
        set_up(given, wishes, deployment, get_config(context).file, is_interactive=not yes, is_dry=dry_run)
    except (typer.Abort, KeyboardInterrupt):
        # typer would end with 1, which is the database's.
        out.print("Cancelled. The answers of finished groups are kept for the next call of setup; what was written before stays.")
        raise CommandEnd(CANCELLED_EXIT_CODE) from None


def _read_secret(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read", hint="Is it there, and text, and readable by you?") from error
