"""The command `deploy`: write a deployment's files into a directory, to install them without `setup`.

Nothing is installed or started. The directory of `compose` contains everything to build the image, so that no
checkout is needed.
"""

from __future__ import annotations

import re
import shutil
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from schedgen_backups.cli.app import JsonOption, app, get_config, out, print_json
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.core.errors import ConfigurationError, StorageError
from schedgen_backups.core.units import count
from schedgen_backups.setup import install
from schedgen_backups.setup.plan import (
    LOG_AT,
    POINTS_AT,
    SERVICE_USER,
    STATE_AT,
    Place,
    PlannedFile,
    plan_cron,
    plan_units,
)

_IMAGE_FILES = (
    "pyproject.toml",
    "README.md",
    ".env.example",
    ".dockerignore",
    "dagster.yaml",
    "workspace.yaml",
)
_IMAGE_FOLDERS = ("docker", "deploy", "locks")
_USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
"""useradd(8), "Caveats"."""
PLACEHOLDER_URL = "https://schedgen-backups.example/docs"
"""Where the rules link to if BACKUP_DOCUMENTATION_URL does not name a place (pyproject.toml)."""
_MANUAL = "docs/schedgen-backups.1"


class Kind(str, Enum):
    """What starts the backups, or what watches them."""

    SYSTEMD = "systemd"
    CRON = "cron"
    COMPOSE = "compose"
    HELM = "helm"
    MONITORING = "monitoring"


@app.command()
def deploy(
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="What starts the backups, or what watches them.")],
    *,
    to: Annotated[
        Path, typer.Option(metavar="DIRECTORY", help="Directory for the files; it must be empty or new.")
    ],
    state_dir: Annotated[Path, typer.Option(help="systemd, cron: DAGSTER_HOME.")] = Path(STATE_AT),
    log_dir: Annotated[Path, typer.Option(help="cron: directory for the log.")] = Path(LOG_AT),
    service_user: Annotated[
        str, typer.Option(help="systemd, cron: user that runs the backups.")
    ] = SERVICE_USER,
    as_json: JsonOption = False,
) -> None:
    """Write a deployment's files, with this installation's programs, schedule and paths.

    Nothing is installed or started.
    """
    config = get_config(context)
    sources = install.find_sources()
    if to.is_symlink() and not to.exists():
        raise ConfigurationError(f"{to} is a dangling symbolic link", hint="Use an empty or new directory.")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigurationError(f"{to} is not an empty directory", hint="Use an empty or new directory.")
    folder = to.absolute()
    if kind in {Kind.SYSTEMD, Kind.CRON}:
        paths = install.write_planned(
            _plan(config, kind, sources, folder, state_dir.absolute(), log_dir.absolute(), service_user)
        )
    else:
        # Only there: wrong settings of alerts must not prevent another deployment.
        documentation_url = config.alerts.documentation_url if kind is Kind.MONITORING else ""
        paths = _copy(kind, sources, folder, documentation_url)
    if as_json:
        print_json({"kind": kind.value, "files": [str(path) for path in paths]})
        return
    out.print(
        f"{count(len(paths), 'file')} written to {escape(str(folder))}; nothing was installed or started"
    )
    out.print(f"[bold]next:[/] {escape(_NEXT[kind].replace('DIR', str(folder)))}")


_NEXT = {
    Kind.SYSTEMD: "copy them to /etc/systemd/system, then run: systemctl daemon-reload && systemctl enable "
    "--now schedgen-backup.timer",
    Kind.CRON: "copy schedgen-backups to /etc/cron.d, and schedgen-backups.logrotate to "
    "/etc/logrotate.d/schedgen-backups",
    Kind.COMPOSE: "SCHEDGEN_BACKUPS_SOURCE=DIR docker compose -f docker-compose.yml -f "
    "DIR/docker/compose.yaml up -d --build",
    Kind.HELM: "fill in secret.example.yaml and values.yaml, then run: helm install backups "
    "dagster/dagster -f "
    "DIR/values.yaml (docs/deploy.md)",
    Kind.MONITORING: "name DIR/rules.yml in rule_files of Prometheus, take over what you need from the "
    "examples, and import DIR/dashboard.json into Grafana (docs/monitoring.md)",
}


def _plan(
    config: Config, kind: Kind, sources: Path, folder: Path, state: Path, log: Path, user: str
) -> tuple[PlannedFile, ...]:
    place = Place(
        project=sources,
        env_file=config.file.path or Path("/etc/schedgen-backups/env"),
        bin_dir=Path(sys.executable).parent,
        state=state,
        points=config.backup_directory if config.file.path is not None else Path(POINTS_AT),
        log=log,
        user=user,
    )
    if not _USER_NAME.fullmatch(user):
        raise ConfigurationError(
            f"invalid user name {user!r}",
            hint="Use lower-case letters, digits, - and _, such as schedgen-backups.",
        )
    cron = config.schedule.cron
    if kind is Kind.SYSTEMD:
        return plan_units(sources / "deploy", folder, place, cron, str(config.schedule.timezone))
    rotation = PlannedFile(
        folder / "schedgen-backups.logrotate",
        (sources / "deploy" / "cron" / "schedgen-backups.logrotate").read_text(encoding="utf-8"),
        0o644,
    )
    return (*plan_cron(sources / "deploy", folder, place, cron), rotation)


def _copy(kind: Kind, sources: Path, folder: Path, documentation_url: str) -> tuple[Path, ...]:
    try:
        if kind is Kind.HELM:
            shutil.copytree(sources / "deploy" / "kubernetes", folder, dirs_exist_ok=True)
        elif kind is Kind.MONITORING:
            shutil.copytree(sources / "deploy" / "monitoring", folder, dirs_exist_ok=True)
            if documentation_url:
                rules = folder / "rules.yml"
                text = rules.read_text(encoding="utf-8").replace(PLACEHOLDER_URL, documentation_url)
                rules.write_text(text, encoding="utf-8")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (*_IMAGE_FILES, _MANUAL):
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(sources / name, folder / name)
            for name in _IMAGE_FOLDERS:
                shutil.copytree(sources / name, folder / name)
            package = Path(__file__).resolve().parents[1]
            shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error}", hint="Use a directory that this user can write to."
        ) from error
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
