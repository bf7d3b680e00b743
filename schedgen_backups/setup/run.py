"""The steps of `setup`: ask, plan, show or write, start the schedule, take a first backup.

Setup can be repeated: steps that are done are not done again.
"""

from __future__ import annotations

import io
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import typer
from dotenv import dotenv_values

from schedgen_backups.cli.app import CommandEnd, out
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config, load_config_to_write
from schedgen_backups.config.env_file import FILE_NAME, EnvironmentFile, choose_file_to_write, find_checkout
from schedgen_backups.config.reader import read_value_files
from schedgen_backups.config.stores import STORES_VARIABLE
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
from schedgen_backups.setup.store_place import StorePlace, find_container_place, find_place
from schedgen_backups.setup.stores import StoresPlan, plan_stores

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
    user = install.find_service_user(wishes.service_user)
    owner = user if deployment in {Deployment.SYSTEMD, Deployment.CRON} else ""
    variables = {name: value or "" for name, value in dotenv_values(stream=io.StringIO(old_text)).items()}
    stores = _plan_stores(
        interview,
        lambda config: (
            find_container_place(config, env_path, variables)
            if application
            else find_place(config, env_path, owner)
        ),
        is_dry=is_dry,
    )
    own = _leave_files_alone(answers, config.file, written)
    values = {
        **own,
        **(install.make_compose_values(sources) if application else {}),
        **(stores.place.values if stores is not None else {}),
    }
    new_text = merge_env(old_text or _read_example(checkout), values)
    place = Place(
        project=sources,
        env_file=env_path,
        bin_dir=Path(sys.executable).parent,
        state=wishes.state_dir,
        points=interview.config.backup_directory,
        log=wishes.log_dir,
        user=user,
        stores=stores.folders if stores is not None else (),
    )
    files = _plan_files(deployment, sources, wishes, place, answers)
    if is_dry:
        if stores is not None:
            _print_stores_plan(stores)
        _print_plan(env_path, old_text, new_text, files)
        return
    if stores is not None and stores.added:
        # Before the environment file names it.
        _write_stores(stores, owner)
    _write(env_path, old_text, new_text, files, place, deployment)
    draft.remove()
    # Two deployments that start the same backups would conflict.
    for other in {Deployment.SYSTEMD, Deployment.CRON} - {deployment}:
        _remove_files(other, wishes)
    names = [store.name for store in stores.added] if stores is not None else []
    if application:
        is_done = _finish_compose(application, sources, wishes, names, is_interactive=is_interactive)
        program = shlex.join([*install.make_compose_words(application, sources), "run", "--rm", "backup-cli"])
    else:
        is_done = _finish_here(deployment, wishes, place, own, files, names)
        program = PROGRAM
    if is_done:
        out.print("[bold green]A recovery point was taken and verified.[/]")
    _print_next(deployment, program, place.bin_dir)
    if stores is not None and stores.names:
        _print_next_of_stores(stores.names, program)


def _plan_stores(
    interview: Interview, find: Callable[[Config], StorePlace], *, is_dry: bool
) -> StoresPlan | None:
    """Ask for stores and add BACKUP_STORES_FILE to the answers; None if setup cannot know them."""
    config = interview.config
    named = config.values.get(STORES_VARIABLE, "").strip()
    plan = None
    try:
        place = find(config)
    except ConfigurationError as error:
        # The operator's own mount, for example.
        out.print(f"[yellow]stores:[/] {escape(error.message)}. {escape(error.hint)}")
    else:
        plan = plan_stores(
            config,
            place,
            is_new_file=named != interview.written.get(STORES_VARIABLE, ""),
            is_interactive=interview.is_interactive,
            is_dry=is_dry,
        )
        # A missing file, named for stores that were left out, would fail every tick of the sensor.
        if plan.names or (named and place.path.exists()):
            interview.answers[STORES_VARIABLE] = place.value
    if STORES_VARIABLE not in interview.answers and not interview.written.get(STORES_VARIABLE, ""):
        out.print(
            "[yellow]No store of copies:[/] the backup directory holds the only copy of the recovery points. "
            "docs/stores.md describes stores."
        )
    return plan


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
        install.stop_units([path.name for path in paths if path.exists()])
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


def _print_stores_plan(stores: StoresPlan) -> None:
    for store in stores.added:
        out.print(f"[bold]{escape(str(stores.place.path))}[/] would be written, mode 0600, with:")
        out.print(escape(store.text), soft_wrap=True)
        for name in store.files:
            out.print(
                f"[bold]{escape(str(stores.place.path.with_name(name)))}[/] would be written, mode 0600"
            )


def _write_stores(stores: StoresPlan, owner: str) -> None:
    """Write the file of stores with its secrets; nothing of them stays if that fails."""
    place = stores.place
    files = {place.path.with_name(name): data for store in stores.added for name, data in store.files.items()}
    if stores.old_text:
        kept = place.path.with_name(f"{place.path.name}.old-{datetime.now(timezone.utc):%Y%m%d_%H%M%S}")
        files[kept] = stores.old_text.encode()
    made = [path for path in files if not path.exists()]
    try:
        for path, data in files.items():
            install.write_private(path, data, place.file_owner or owner)
        install.write_private(place.path, stores.new_text.encode(), place.file_owner or owner)
    except BaseException:
        install.remove_files(made)
        raise
    for path in (*files, place.path):
        out.print(f"written: {escape(str(path))}")


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
    new_stores: list[str],
) -> bool:
    if deployment is Deployment.SYSTEMD and install.SYSTEMD_RUNS.is_dir() and wishes.unit_dir == UNIT_DIR:
        install.start_timer()
        out.print("schedgen-backup.timer is enabled")
    elif files and deployment is Deployment.SYSTEMD:
        out.print(
            "the timer is not enabled yet; run: systemctl daemon-reload && systemctl enable --now "
            "schedgen-backup.timer"
        )
    try:
        is_key_made = install.run_command_line(("receipts", "show-key"), place, deployment, values) == 0
    except ConfigurationError as error:
        out.print(f"[yellow]{escape(error.message)}.[/] {escape(error.hint)}")
        is_key_made = False
    if not is_key_made:
        out.print("[yellow]The key of receipts was not made:[/] the first recovery point makes it.")
    if not wishes.is_first_backup_wanted:
        return False
    if place.points.is_dir() and (newest := find_newest_verified(Catalog(place.points))) is not None:
        out.print(f"a verified recovery point already exists: {newest.point_id}")
        return True
    out.print("first recovery point:")
    copies = (("stores", "copy", name) for name in new_stores)
    for arguments in (("backup", "--reason", "setup"), ("verify", "latest"), *copies):
        code = install.run_command_line(arguments, place, deployment, values)
        if code != 0:
            out.print(
                f"[bold red]{' '.join(arguments)} failed with exit code {code}.[/] Everything else is set "
                "up; "
                "`schedgen-backups doctor` shows more."
            )
            raise CommandEnd(code)
    return True


def _finish_compose(
    application: Path, sources: Path, wishes: Wishes, new_stores: list[str], *, is_interactive: bool
) -> bool:
    words = install.make_compose_words(application, sources)
    commands = [
        [*words, "up", "-d", "--build"],
        *(
            [*words, "run", "--rm", "backup-cli", *arguments]
            for arguments in (("doctor",), ("receipts", "show-key"))
        ),
    ]
    if wishes.is_first_backup_wanted:
        commands += [
            [*words, "run", "--rm", "backup-cli", "backup", "--reason", "setup"],
            [*words, "run", "--rm", "backup-cli", "verify", "latest"],
            *([*words, "run", "--rm", "backup-cli", "stores", "copy", name] for name in new_stores),
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


def _print_next_of_stores(names: list[str], program: str) -> None:
    for name in names:
        out.print(escape(f"  {program} stores copy {name}    # the daemon does it after each backup"))
    out.print(
        escape(
            f"On another machine with a private key, `{PROGRAM} drill --from {names[0]} --identity FILE` "
            "proves that a copy can be restored (docs/stores.md)."
        )
    )
