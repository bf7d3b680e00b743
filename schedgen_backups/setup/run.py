"""The steps of `setup`: ask, plan, show or write, start the schedule, take a first backup.

Setup can be repeated: steps that are done are not done again.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from schedgen_backups.cli.app import CommandEnd, out
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import load_config_to_write
from schedgen_backups.config.env_file import FILE_NAME, EnvironmentFile, choose_file_to_write, find_checkout
from schedgen_backups.config.reader import read_value_files
from schedgen_backups.config.variables import FILE_SUFFIX
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.selection import find_newest_verified
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.setup import install
from schedgen_backups.setup.draft import Draft
from schedgen_backups.setup.interview import Interview
from schedgen_backups.setup.plan import (
    CRON_FILE,
    UNITS,
    Deployment,
    Place,
    PlannedFile,
    describe_env,
    merge_env,
    plan_cron,
    plan_units,
)

UNIT_DIR = Path("/etc/systemd/system")
PROGRAM = "schedgen-backups"


@dataclass(frozen=True)
class Wishes:
    """Flags that concern the machine."""

    unit_dir: Path
    cron_dir: Path
    state_dir: Path
    log_dir: Path
    service_user: str
    application_compose: Path | None
    is_started: bool
    is_first_backup_wanted: bool


def set_up(
    flags: dict[str, str],
    wishes: Wishes,
    wanted: Deployment | None,
    file: EnvironmentFile,
    *,
    is_interactive: bool,
    is_dry: bool,
) -> None:
    """Set up this machine, or print what would be done.

    `flags` maps variables to values; `file` is the environment file in use.
    """
    checkout = find_checkout()
    deployment = wanted or _choose(checkout, wishes, is_interactive=is_interactive)
    sources = install.find_sources() if deployment is not Deployment.NONE else checkout or Path.cwd()
    application = _find_application(sources, wishes) if deployment is Deployment.COMPOSE else None
    env_path = application.parent / FILE_NAME if application else file.path or choose_file_to_write()
    # Only with a terminal: a script gives all answers in each call.
    draft = Draft(env_path)
    kept = draft.read() if is_interactive and not is_dry else {}
    if kept:
        out.print("The answers of the unfinished setup are the defaults of the questions; Enter keeps them.")
    config = load_config_to_write(env_path).with_values({**kept, **flags})
    if config.file.error is not None:
        raise config.file.error
    old_text = env_path.read_text(encoding="utf-8") if env_path.exists() else ""
    written, _problems = read_value_files(config.file.values, config.file)
    interview = Interview(
        config,
        written,
        frozenset(flags),
        is_interactive,
        is_test_alert_allowed=not is_dry,
        draft=draft if is_interactive and not is_dry else None,
    )
    answers = interview.ask_all(deployment)
    own = _leave_files_alone(answers, config.file, written)
    values = {**own, **(install.make_compose_values(sources) if application else {})}
    new_text = merge_env(old_text or _read_example(checkout), values)
    place = Place(
        project=sources,
        env_file=env_path,
        bin_dir=Path(sys.executable).parent,
        state=wishes.state_dir,
        points=interview.config.backup_directory,
        log=wishes.log_dir,
        user=install.find_service_user(wishes.service_user),
    )
    files = _plan_files(deployment, sources, wishes, place, answers)
    if is_dry:
        _print_plan(env_path, old_text, new_text, files)
        return
    _write(env_path, old_text, new_text, files, place, deployment)
    draft.remove()
    # Two deployments that start the same backups would conflict.
    for other in {Deployment.SYSTEMD, Deployment.CRON} - {deployment}:
        _remove_files(other, wishes)
    if application:
        is_done = _finish_compose(application, sources, wishes, is_interactive=is_interactive)
        program = shlex.join([*install.make_compose_words(application, sources), "run", "--rm", "backup-cli"])
    else:
        is_done = _finish_here(deployment, wishes, place, own, files)
        program = PROGRAM
    if is_done:
        out.print("[bold green]A recovery point was taken and verified.[/]")
    _print_next(deployment, program, place.bin_dir)


def _choose(checkout: Path | None, wishes: Wishes, *, is_interactive: bool) -> Deployment:
    found = install.detect(checkout)
    present = find_present(wishes)
    best = present or next(iter(found))
    for deployment, seen in found.items():
        out.print(
            f"  [bold]{deployment.value}[/]  "
            f"{escape(seen)}{' (already installed)' if deployment is present else ''}"
        )
    if not is_interactive:
        return best

    def take(text: str) -> Deployment:
        try:
            return Deployment(text.strip())
        except ValueError as error:
            raise typer.BadParameter(
                f"enter one of {', '.join(deployment.value for deployment in Deployment)}"
            ) from error

    return typer.prompt("What starts the backups", default=best.value, value_proc=take)


def find_present(wishes: Wishes) -> Deployment | None:
    """Return the deployment that setup installed here; None if there is none, or it has no files."""
    if any((wishes.unit_dir / name).exists() for name in UNITS):
        return Deployment.SYSTEMD
    if (wishes.cron_dir / CRON_FILE).exists():
        return Deployment.CRON
    application = wishes.application_compose or install.find_application(find_checkout())
    env_path = application.parent / FILE_NAME if application is not None else None
    if env_path is None or not env_path.is_file():
        return None
    # A variable of our compose file, which is not part of the configuration.
    return (
        Deployment.COMPOSE
        if f"{install.SOURCE_VARIABLE}=" in env_path.read_text(encoding="utf-8", errors="replace")
        else None
    )


def remove(wishes: Wishes, file: EnvironmentFile) -> None:
    """Remove what setup installed, and print what is kept: settings, recovery points, history and logs."""
    present = find_present(wishes)
    removed = [
        path
        for deployment in (Deployment.SYSTEMD, Deployment.CRON)
        for path in _remove_files(deployment, wishes)
    ]
    if present is Deployment.COMPOSE:
        out.print(
            "Remove the containers with `docker compose … down` and both compose files. The volumes contain "
            "the recovery points; `down -v` would remove them."
        )
    elif not removed:
        out.print("No deployment is installed here.")
    kept = [
        str(path)
        for path in (file.path, wishes.state_dir, wishes.log_dir)
        if path is not None and path.exists()
    ]
    out.print(
        escape(
            f"Not removed: {', '.join([*kept, 'the recovery points'])}, and the user that runs the backups."
        )
    )


def _remove_files(deployment: Deployment | None, wishes: Wishes) -> tuple[Path, ...]:
    """Stop the deployment's units and remove its files; return the removed files."""
    files = {
        Deployment.SYSTEMD: [wishes.unit_dir / name for name in UNITS],
        Deployment.CRON: [wishes.cron_dir / CRON_FILE],
    }
    paths = files.get(deployment, []) if deployment is not None else []
    uses_systemctl = (
        deployment is Deployment.SYSTEMD
        and install.SYSTEMD_RUNS.is_dir()
        and wishes.unit_dir == UNIT_DIR
        and any(map(Path.exists, paths))
    )
    if uses_systemctl:
        install.stop_units()
    removed = install.remove_files(paths)
    if uses_systemctl:
        install.reload_units()
    for path in removed:
        out.print(f"removed: {escape(str(path))}")
    return removed


def _find_application(checkout: Path, wishes: Wishes) -> Path:
    found = wishes.application_compose or install.find_application(checkout)
    if found is None or not found.is_file():
        raise ConfigurationError(
            "the application's compose file was not found",
            hint="Give its path: --application-compose /srv/app/docker-compose.yml",
        )
    return found.absolute()


def _read_example(checkout: Path | None) -> str:
    example = checkout / ".env.example" if checkout is not None else None
    return example.read_text(encoding="utf-8") if example is not None and example.is_file() else ""


def _leave_files_alone(
    answers: dict[str, str], file: EnvironmentFile, written: Mapping[str, str]
) -> dict[str, str]:
    """Return the answers without those that the environment file sets by NAME_FILE: both must not be set."""
    kept: dict[str, str] = {}
    for name, value in answers.items():
        if file.values.get(name + FILE_SUFFIX, "").strip():
            if written.get(name) != value:
                raise ConfigurationError(
                    f"{name} differs from the file that {name}{FILE_SUFFIX} names", hint="Change that file."
                )
        else:
            kept[name] = value
    return kept


def _plan_files(
    deployment: Deployment, sources: Path, wishes: Wishes, place: Place, answers: dict[str, str]
) -> tuple[PlannedFile, ...]:
    deploy = sources / "deploy"
    if deployment is Deployment.SYSTEMD:
        return plan_units(
            deploy, wishes.unit_dir, place, answers["BACKUP_SCHEDULE"], answers["BACKUP_TIMEZONE"]
        )
    if deployment is Deployment.CRON:
        return plan_cron(deploy, wishes.cron_dir, place, answers["BACKUP_SCHEDULE"])
    return ()


def _print_plan(env_path: Path, old_text: str, new_text: str, files: tuple[PlannedFile, ...]) -> None:
    out.print(
        f"[bold]{escape(str(env_path))}[/] "
        f"{'is unchanged' if old_text == new_text else 'would be written, mode 0600:'}"
    )
    if old_text != new_text:
        for line in describe_env(old_text, new_text):
            out.print(escape(line), soft_wrap=True)
    for file in files:
        is_same = install.is_as_planned(file)
        out.print(f"[bold]{escape(str(file.path))}[/] {'is unchanged' if is_same else 'would be written:'}")
        if not is_same:
            out.print(escape(file.text), soft_wrap=True)
    out.print("Nothing was written.")


def _write(
    env_path: Path,
    old_text: str,
    new_text: str,
    files: tuple[PlannedFile, ...],
    place: Place,
    deployment: Deployment,
) -> None:
    owner = place.user if deployment in {Deployment.SYSTEMD, Deployment.CRON} else ""
    if old_text == new_text:
        install.close_to_others(env_path, owner)
        out.print(f"unchanged: {escape(str(env_path))}")
    else:
        kept = install.write_env(env_path, new_text, owner)
        out.print(
            f"written: {escape(str(env_path))}" + (f", old file kept as {escape(kept.name)}" if kept else "")
        )
    if deployment is not Deployment.COMPOSE:
        install.make_folders(place, deployment)
    written = install.write_planned(files)
    for file in files:
        out.print(f"{'written' if file.path in written else 'unchanged'}: {escape(str(file.path))}")


def _finish_here(
    deployment: Deployment,
    wishes: Wishes,
    place: Place,
    values: dict[str, str],
    files: tuple[PlannedFile, ...],
) -> bool:
    if deployment is Deployment.SYSTEMD and install.SYSTEMD_RUNS.is_dir() and wishes.unit_dir == UNIT_DIR:
        install.start_timer()
        out.print("schedgen-backup.timer is enabled")
    elif files and deployment is Deployment.SYSTEMD:
        out.print(
            "the timer is not enabled yet; run: systemctl daemon-reload && systemctl enable --now "
            "schedgen-backup.timer"
        )
    if not wishes.is_first_backup_wanted:
        return False
    if place.points.is_dir() and (newest := find_newest_verified(Catalog(place.points))) is not None:
        out.print(f"a verified recovery point already exists: {newest.point_id}")
        return True
    out.print("first recovery point:")
    for arguments in (("backup", "--reason", "setup"), ("verify", "latest")):
        code = install.run_command_line(arguments, place, deployment, values)
        if code != 0:
            out.print(
                f"[bold red]{' '.join(arguments)} failed with exit code {code}.[/] Everything else is set "
                "up; "
                "`schedgen-backups doctor` shows more."
            )
            raise CommandEnd(code)
    return True


def _finish_compose(application: Path, sources: Path, wishes: Wishes, *, is_interactive: bool) -> bool:
    words = install.make_compose_words(application, sources)
    commands = [[*words, "up", "-d", "--build"], [*words, "run", "--rm", "backup-cli", "doctor"]]
    if wishes.is_first_backup_wanted:
        commands += [
            [*words, "run", "--rm", "backup-cli", "backup", "--reason", "setup"],
            [*words, "run", "--rm", "backup-cli", "verify", "latest"],
        ]
    if not wishes.is_started and not (
        is_interactive and typer.confirm("Build and start the containers now?", default=False)
    ):
        out.print("Nothing was started. To start, run:")
        for command in commands:
            out.print(f"  {escape(' '.join(command))}", soft_wrap=True)
        return False
    for command in commands:
        code = install.run_visibly(command, application.parent)
        if code != 0:
            raise ConfigurationError(
                f"{' '.join(command)} failed with exit code {code}",
                hint="docs/deploy.md describes the steps without setup.",
            )
    return wishes.is_first_backup_wanted


def _print_next(deployment: Deployment, program: str, bin_dir: Path) -> None:
    taken_by = {
        Deployment.COMPOSE: "Dagster's schedule takes the next backups: see the UI, http://127.0.0.1:3000.",
        Deployment.SYSTEMD: "The timer takes the next backups: systemctl list-timers schedgen-backup.timer. "
        "UI and daemon: docs/deploy.md.",
        Deployment.CRON: "cron takes the next backups, in this machine's local time. UI, daemon and log "
        "rotation: docs/deploy.md.",
        Deployment.NONE: f"`{PROGRAM} serve` starts the Dagster UI and the schedule, until Ctrl-C.",
    }
    out.print(f"{taken_by[deployment]}\nNext:")
    if program == PROGRAM and shutil.which(PROGRAM) != str(bin_dir / PROGRAM):
        out.print(escape(f'  export PATH={shlex.quote(str(bin_dir))}:"$PATH"'))
    out.print(escape(f"  {program} status"))
    out.print(escape(f"  {program} drill    # restore drill"))
    out.print("docs/BACKUP_QUICK_REFERENCE.md lists the other commands on one page.")
