"""The command `setup`: from nothing to a first verified recovery point and something that takes the next ones, as often as it is called.

Order of the steps and what is printed. Questions are in `setup_questions`, texts of files in `setup_plan`, what happens on the machine in
`setup_install`. A new question gets a flag here, unless it is a secret: those come from a file, the environment or a hidden prompt.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from dotenv import dotenv_values
from rich.markup import escape

from schedgen_backups.cli.app import CommandEnd, app, out
from schedgen_backups.config.environment import find_project_folder, read_backup_directory
from schedgen_backups.config.reader import FILE_SUFFIX, read_value_files
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.selection import find_newest_verified
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.exit_codes import CANCELLED_EXIT_CODE
from schedgen_backups.runs.home import HOME_VARIABLE
from schedgen_backups.setup import install
from schedgen_backups.setup.interview import Interview
from schedgen_backups.setup.plan import LOG_AT, STATE_AT, Deployment, Place, PlannedFile, describe_env, merge_env, plan_cron, plan_units

_UNIT_DIR = Path("/etc/systemd/system")
FileOption = Annotated[Path | None, typer.Option(metavar="FILE", help="File whose content is this secret.")]
TextOption = Annotated[str | None, typer.Option(help="Answer to the question of this name.")]


@dataclass(frozen=True)
class _Wishes:
    """What flags say of the machine."""

    unit_dir: Path
    cron_dir: Path
    state_dir: Path
    log_dir: Path
    service_user: str
    application_compose: Path | None
    is_started: bool
    is_first_backup_wanted: bool


@app.command()
def setup(
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
    backup_dir: TextOption = None,
    schedule: TextOption = None,
    timezone: TextOption = None,
    retention_days: TextOption = None,
    alert_webhook_url_file: FileOption = None,
    alert_email: TextOption = None,
    smtp_host: TextOption = None,
    smtp_port: TextOption = None,
    smtp_security: TextOption = None,
    smtp_user: TextOption = None,
    smtp_password_file: FileOption = None,
    unit_dir: Annotated[Path, typer.Option(help="Where systemd's units go.")] = _UNIT_DIR,
    cron_dir: Annotated[Path, typer.Option(help="Where cron's file goes.")] = Path("/etc/cron.d"),
    state_dir: Annotated[Path, typer.Option(help="DAGSTER_HOME of systemd and cron.")] = Path(STATE_AT),
    log_dir: Annotated[Path, typer.Option(help="Where cron's log goes.")] = Path(LOG_AT),
    service_user: Annotated[str, typer.Option(help="Who runs the backups of systemd and cron.")] = "",
    application_compose: Annotated[Path | None, typer.Option(help="The application's compose file; its folder has the .env.")] = None,
    start: Annotated[bool, typer.Option("--start", help="compose: build and start the containers now, without asking.")] = False,
    first_backup: Annotated[bool, typer.Option("--first-backup/--no-first-backup", help="Take and verify a first recovery point.")] = True,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: flags, environment, .env and defaults.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, secrets masked, and write nothing.")] = False,
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
        "BACKUP_DIR": backup_dir,
        "BACKUP_SCHEDULE": schedule,
        "BACKUP_TIMEZONE": timezone,
        "BACKUP_RETENTION_DAYS": retention_days,
        "BACKUP_ALERT_WEBHOOK_URL": _read_secret(alert_webhook_url_file),
        "BACKUP_ALERT_EMAIL": alert_email,
        "SMTP_HOST": smtp_host,
        "SMTP_PORT": smtp_port,
        "SMTP_SECURITY": smtp_security,
        "SMTP_USER": smtp_user,
        "SMTP_PASSWORD": _read_secret(smtp_password_file),
    }
    wishes = _Wishes(
        unit_dir=unit_dir.absolute(),
        cron_dir=cron_dir.absolute(),
        state_dir=state_dir.absolute(),
        log_dir=log_dir.absolute(),
        service_user=service_user,
        application_compose=application_compose,
        is_started=start,
        is_first_backup_wanted=first_backup,
    )
    if not yes and not sys.stdin.isatty():
        raise ConfigurationError(
            "there is no terminal to ask on", hint="Call it with --yes; `schedgen-backups setup --help` has a flag for every question."
        )
    try:
        _set_up({name: value for name, value in flags.items() if value is not None}, wishes, deployment, is_interactive=not yes, is_dry=dry_run)
    except (typer.Abort, KeyboardInterrupt):
        # typer would end with 1, which is the database's.
        out.print("Cancelled. What was written before stays; setup can be called again.")
        raise CommandEnd(CANCELLED_EXIT_CODE) from None


def _set_up(flags: dict[str, str], wishes: _Wishes, wanted: Deployment | None, *, is_interactive: bool, is_dry: bool) -> None:
    project = find_project_folder()
    deployment = wanted or _choose(project, is_interactive=is_interactive)
    sources = install.find_sources() if deployment is not Deployment.NONE else project
    application = _find_application(project, wishes) if deployment is Deployment.COMPOSE else None
    env_path = (application.parent if application else project) / ".env"
    old_text = env_path.read_text(encoding="utf-8") if env_path.exists() else ""
    from_file = {name: value for name, value in dotenv_values(env_path).items() if value is not None}
    known = read_value_files({**from_file, **_read_process(project)}) | flags
    answers = Interview(known, read_value_files(from_file), frozenset(flags), is_interactive, is_told=not is_dry).ask_all(deployment)
    own = _leave_files_alone(answers, from_file)
    values = {**own, **(install.make_compose_values(sources) if application else {})}
    new_text = merge_env(old_text or _read_example(project), values)
    place = Place(
        project=project,
        bin_dir=Path(sys.executable).parent,
        state=wishes.state_dir,
        points=read_backup_directory(known | answers),
        log=wishes.log_dir,
        user=install.find_service_user(wishes.service_user),
    )
    files = _plan_files(deployment, sources, wishes, place, answers)
    if is_dry:
        _print_plan(env_path, old_text, new_text, files)
        return
    _write(env_path, old_text, new_text, files, place, deployment)
    if application:
        is_done = _finish_compose(application, sources, wishes, is_interactive=is_interactive)
    else:
        is_done = _finish_here(deployment, wishes, place, own, files)
    _print_next(deployment, is_done=is_done)


def _read_secret(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read", hint="Is it there, and text, and readable by you?") from error


def _choose(project: Path, *, is_interactive: bool) -> Deployment:
    found = install.detect(project)
    best = next(iter(found))
    for deployment, seen in found.items():
        out.print(f"  [bold]{deployment.value}[/]  {escape(seen)}")
    if not is_interactive:
        return best

    def take(text: str) -> Deployment:
        try:
            return Deployment(text.strip())
        except ValueError as error:
            raise typer.BadParameter(f"one of {', '.join(deployment.value for deployment in Deployment)}") from error

    return typer.prompt("What starts the backups", default=best.value, value_proc=take)


def _find_application(project: Path, wishes: _Wishes) -> Path:
    found = wishes.application_compose or install.find_application(project)
    if found is None or not found.is_file():
        raise ConfigurationError("the application's compose file was not found", hint="Name it: --application-compose /srv/app/docker-compose.yml")
    return found.absolute()


def _read_process(project: Path) -> dict[str, str]:
    """The process's environment without what `export_environment` took from the project's .env, which may not be the one that is written."""
    exported = dotenv_values(project / ".env")
    return {name: value for name, value in os.environ.items() if exported.get(name) != value}


def _read_example(project: Path) -> str:
    example = project / ".env.example"
    return example.read_text(encoding="utf-8") if example.is_file() else ""


def _leave_files_alone(answers: dict[str, str], from_file: dict[str, str]) -> dict[str, str]:
    """Values that the .env takes from a file are not written beside that."""
    from_files = read_value_files(from_file)
    kept: dict[str, str] = {}
    for name, value in answers.items():
        if from_file.get(name + FILE_SUFFIX, "").strip():
            if from_files.get(name) != value:
                raise ConfigurationError(f"{name} is another one than in the file of {name}{FILE_SUFFIX}", hint="Change that file.")
        else:
            kept[name] = value
    return kept


def _plan_files(deployment: Deployment, sources: Path, wishes: _Wishes, place: Place, answers: dict[str, str]) -> tuple[PlannedFile, ...]:
    deploy = sources / "deploy"
    if deployment is Deployment.SYSTEMD:
        return plan_units(deploy, wishes.unit_dir, place, answers["BACKUP_SCHEDULE"], answers["BACKUP_TIMEZONE"])
    if deployment is Deployment.CRON:
        return plan_cron(deploy, wishes.cron_dir, place, answers["BACKUP_SCHEDULE"])
    return ()


def _print_plan(env_path: Path, old_text: str, new_text: str, files: tuple[PlannedFile, ...]) -> None:
    out.print(f"[bold]{escape(str(env_path))}[/] {'stays as it is' if old_text == new_text else 'would be written, mode 0600:'}")
    if old_text != new_text:
        for line in describe_env(old_text, new_text):
            out.print(escape(line), soft_wrap=True)
    for file in files:
        is_same = install.is_as_planned(file)
        out.print(f"[bold]{escape(str(file.path))}[/] {'stays as it is' if is_same else 'would be written:'}")
        if not is_same:
            out.print(escape(file.text), soft_wrap=True)
    out.print("Nothing was written.")


def _write(env_path: Path, old_text: str, new_text: str, files: tuple[PlannedFile, ...], place: Place, deployment: Deployment) -> None:
    owner = place.user if deployment in {Deployment.SYSTEMD, Deployment.CRON} else ""
    if old_text == new_text:
        install.close_to_others(env_path, owner)
        out.print(f"unchanged: {escape(str(env_path))}")
    else:
        kept = install.write_env(env_path, new_text, owner)
        out.print(f"written: {escape(str(env_path))}" + (f", the old one is {escape(kept.name)}" if kept else ""))
    if deployment is not Deployment.COMPOSE:
        install.make_folders(place, deployment)
    written = install.write_planned(files)
    for file in files:
        out.print(f"{'written' if file.path in written else 'unchanged'}: {escape(str(file.path))}")


def _finish_here(deployment: Deployment, wishes: _Wishes, place: Place, values: dict[str, str], files: tuple[PlannedFile, ...]) -> bool:
    if deployment is Deployment.SYSTEMD and install.SYSTEMD_RUNS.is_dir() and wishes.unit_dir == _UNIT_DIR:
        install.start_timer()
        out.print("schedgen-backup.timer is on")
    elif files and deployment is Deployment.SYSTEMD:
        out.print("systemd was not told: systemctl daemon-reload && systemctl enable --now schedgen-backup.timer")
    if not wishes.is_first_backup_wanted:
        return False
    if place.points.is_dir() and (newest := find_newest_verified(Catalog(place.points))) is not None:
        out.print(f"a verified recovery point is there already: {newest.point_id}")
        return True
    out.print("first recovery point:")
    for arguments in (("backup", "--reason", "setup"), ("verify", "latest")):
        code = install.run_command_line(arguments, place, deployment, values)
        if code != 0:
            out.print(f"[bold red]{' '.join(arguments)} ended with {code}.[/] Everything else is set up; `schedgen-backups doctor` says more.")
            raise CommandEnd(code)
    return True


def _finish_compose(application: Path, sources: Path, wishes: _Wishes, *, is_interactive: bool) -> bool:
    words = install.make_compose_words(application, sources)
    commands = [[*words, "up", "-d", "--build"], [*words, "run", "--rm", "backup-cli", "doctor"]]
    if wishes.is_first_backup_wanted:
        commands += [[*words, "run", "--rm", "backup-cli", "backup", "--reason", "setup"], [*words, "run", "--rm", "backup-cli", "verify", "latest"]]
    if not wishes.is_started and not (is_interactive and typer.confirm("Build and start the containers now?", default=False)):
        out.print("Nothing was started. When you are ready:")
        for command in commands:
            out.print(f"  {escape(' '.join(command))}", soft_wrap=True)
        return False
    for command in commands:
        code = install.run_visibly(command, application.parent)
        if code != 0:
            raise ConfigurationError(f"{' '.join(command)} ended with {code}", hint="docs/deploy.md has the steps by hand.")
    return wishes.is_first_backup_wanted


def _print_next(deployment: Deployment, *, is_done: bool) -> None:
    taken_by = {
        Deployment.COMPOSE: "The schedule in the Dagster UI, http://127.0.0.1:3000, takes the next ones.",
        Deployment.SYSTEMD: "The timer takes the next ones: systemctl list-timers schedgen-backup.timer. UI and daemon: docs/deploy.md.",
        Deployment.CRON: "cron takes the next ones, by this machine's clock. UI, daemon and the log's rotation: docs/deploy.md.",
        Deployment.NONE: f"`make serve` starts the Dagster UI with the schedule ({HOME_VARIABLE} is .dagster).",
    }
    if is_done:
        out.print("[bold green]A recovery point is taken and verified.[/]")
    out.print(taken_by[deployment])
    out.print("Next: schedgen-backups status · schedgen-backups drill (restores it on trial) · docs/BACKUP_QUICK_REFERENCE.md")
