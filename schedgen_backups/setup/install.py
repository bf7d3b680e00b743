"""Carries out what `setup` planned: writes files when they differ, makes folders, starts timers and
containers, takes the first backup.

Add what must happen on the machine. `plan` decides which files get which text, `interview` what is asked.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from schedgen_backups.config.installation import find_project
from schedgen_backups.config.variables import ENV_FILE_VARIABLE
from schedgen_backups.core.errors import ConfigurationError, StorageError
from schedgen_backups.core.system.files import write_atomically
from schedgen_backups.runs.home import HOME_VARIABLE
from schedgen_backups.setup.plan import SERVICE_USER, UNITS, Deployment, Place, PlannedFile

SYSTEMD_RUNS = Path("/run/systemd/system")
"""sd_booted(3): it is there when systemd is the init system."""
DOCKER_SOCKET = Path("/var/run/docker.sock")
APPLICATION_FILES = ("docker-compose.yml", "docker-compose.yaml", "compose.yaml", "compose.yml")
SOURCE_VARIABLE = "SCHEDGEN_BACKUPS_SOURCE"
"""What docker/compose.yaml calls the folder that the image is built from."""
_COMPOSE_TIMEOUT_SECONDS = 60


def find_sources() -> Path:
    """The folder with deploy/ and docker/ of this installation.

    ConfigurationError when it was installed without.
    """
    project = find_project()
    if (
        project is None
        or not (project / "deploy" / "systemd").is_dir()
        or not (project / "docker" / "compose.yaml").is_file()
    ):
        raise ConfigurationError(
            "deploy/ and docker/ are not beside this installation",
            hint="Install the wheel, or run setup from a checkout (make, pip install --editable .), or "
            "choose --deployment none.",
        )
    return project


def find_application(checkout: Path | None) -> Path | None:
    """Return the application's compose file, where it lies beside the checkout's folder."""
    if checkout is None:
        return None
    found = (checkout.parent / name for name in APPLICATION_FILES)
    return next((path for path in found if path.is_file()), None)


def detect(checkout: Path | None) -> dict[Deployment, str]:
    """Return each deployment that this machine can have with what was seen of it; the best first."""
    found: dict[Deployment, str] = {}
    if _has_compose() and find_application(checkout) is not None:
        found[Deployment.COMPOSE] = f"Docker with compose, and {find_application(checkout)}"
    if SYSTEMD_RUNS.is_dir():
        found[Deployment.SYSTEMD] = "systemd"
    if shutil.which("crontab") or Path("/etc/cron.d").is_dir():
        found[Deployment.CRON] = "cron"
    found[Deployment.NONE] = "Dagster's own schedule, with `make serve`"
    return found


def find_service_user(wanted: str) -> str:
    """The user of the backups: the one that is wanted, by default the documents' where there is one,
    otherwise who runs this.
    """
    name = wanted or SERVICE_USER
    try:
        pwd.getpwnam(name)
    except KeyError as error:
        if wanted:
            raise ConfigurationError(
                f"there is no user {wanted}", hint=f"useradd --system --shell /usr/sbin/nologin {wanted}"
            ) from error
        return pwd.getpwuid(os.geteuid()).pw_name
    return name


def write_env(path: Path, text: str, owner: str) -> Path | None:
    """Write the environment file, whole or not at all, closed to others as by `close_to_others`; return where
    the old one was kept.
    """
    kept = None
    with _translate(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = path.with_name(f"{path.name}.old-{datetime.now(timezone.utc):%Y%m%d_%H%M%S}")
            _write_whole(kept, path.read_text(encoding="utf-8"), 0o600)
            _close(kept, owner)
        _write_whole(path, text, 0o600)
        _close(path, owner)
    return kept


def close_to_others(path: Path, owner: str) -> None:
    """Let nobody but the user of the backups read the file; without a name, nobody but its owner.

    Root's own commands trust only a file of root's, so that root keeps it and the user reads it by a group
    that nobody else is in (0640). A user without such a group owns the file (0600).
    """
    with _translate(path):
        _close(path, owner)


def write_planned(files: Sequence[PlannedFile]) -> tuple[Path, ...]:
    """Each file holds its text; returns those that were written because they differed."""
    written: list[Path] = []
    for file in files:
        with _translate(file.path):
            if not is_as_planned(file):
                file.path.parent.mkdir(parents=True, exist_ok=True)
                _write_whole(file.path, file.text, file.mode)
                written.append(file.path)
    return tuple(written)


def is_as_planned(file: PlannedFile) -> bool:
    """Whether nothing is to be written."""
    return file.path.is_file() and file.path.read_text(encoding="utf-8") == file.text


def make_folders(place: Place, deployment: Deployment) -> None:
    """Points, state and log have their folders, for the user of the backups alone."""
    folders = [place.points] if deployment is Deployment.NONE else [place.points, place.state]
    for folder in [*folders, *([place.log] if deployment is Deployment.CRON else [])]:
        with _translate(folder):
            if not folder.is_dir():
                folder.mkdir(parents=True, mode=0o750)
                _give(folder, place.user)


def start_timer() -> None:
    """Systemd knows the units, and the timer is on. ConfigurationError with what systemctl said otherwise."""
    for words in (("daemon-reload",), ("enable", "--now", "schedgen-backup.timer")):
        _run(["systemctl", *words])


def stop_units() -> None:
    """Nothing of ours is running or started again. ConfigurationError with what systemctl said otherwise."""
    _run(["systemctl", "disable", "--now", *(name for name in UNITS if name != "schedgen-backup.service")])


def reload_units() -> None:
    """Systemd knows that the units are gone."""
    _run(["systemctl", "daemon-reload"])


def remove_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Remove those that are there; return them."""
    removed: list[Path] = []
    for path in paths:
        with _translate(path):
            if path.is_file() or path.is_symlink():
                path.unlink()
                removed.append(path)
    return tuple(removed)


def make_compose_words(application: Path, sources: Path) -> list[str]:
    """`docker compose` with the application's file and ours."""
    return ["docker", "compose", "-f", str(application), "-f", str(sources / "docker" / "compose.yaml")]


def make_compose_values(sources: Path) -> dict[str, str]:
    """What our compose file must be told of this machine."""
    values = {SOURCE_VARIABLE: str(sources)}
    if DOCKER_SOCKET.exists():
        values["DOCKER_GID"] = str(DOCKER_SOCKET.stat().st_gid)
    return values


def run_visibly(words: Sequence[str], folder: Path) -> int:
    """The program ran with this terminal; returns its exit code."""
    return subprocess.run(words, cwd=folder, check=False).returncode


def run_command_line(
    arguments: Sequence[str], place: Place, deployment: Deployment, values: Mapping[str, str]
) -> int:
    """`schedgen-backups` ran as the user of the backups, with the .env that was written; returns its exit
    code.
    """
    # A child process: it needs PATH and all else that this one has, and the answers in place of what this
    # one's environment says.
    environment = {**os.environ, **values, ENV_FILE_VARIABLE: str(place.env_file)}
    if deployment in {Deployment.SYSTEMD, Deployment.CRON}:
        environment[HOME_VARIABLE] = str(place.state)
    user = place.user if os.geteuid() == 0 and place.user != pwd.getpwuid(0).pw_name else None
    group = pwd.getpwnam(user).pw_gid if user else None
    words = [sys.executable, "-m", "schedgen_backups.cli.main", *arguments]
    return subprocess.run(
        words,
        cwd=place.project,
        env=environment,
        user=user,
        group=group,
        extra_groups=[] if user else None,
        check=False,
    ).returncode


def _has_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    words = ["docker", "compose", "version"]
    try:
        return (
            subprocess.run(
                words, capture_output=True, check=False, timeout=_COMPOSE_TIMEOUT_SECONDS
            ).returncode
            == 0
        )
    except subprocess.TimeoutExpired:
        return False


def _run(words: Sequence[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigurationError(
            f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}",
            hint="docs/deploy.md has the steps by hand.",
        )


def _write_whole(path: Path, text: str, mode: int) -> None:
    owner = (path.stat().st_uid, path.stat().st_gid) if path.exists() and os.geteuid() == 0 else None
    write_atomically(path, text.encode(), mode=mode, owner=owner)


def _close(path: Path, owner: str) -> None:
    path.chmod(0o600)
    if not owner or os.geteuid() != 0:
        return
    user = pwd.getpwnam(owner)
    if _is_private(user):
        shutil.chown(path, 0, user.pw_gid)
        path.chmod(0o640)
    else:
        shutil.chown(path, user.pw_uid, user.pw_gid)


def _is_private(user: pwd.struct_passwd) -> bool:
    """Return whether nobody else is in the user's group, so that root may share a file with this user alone."""
    members = {
        *grp.getgrgid(user.pw_gid).gr_mem,
        *(other.pw_name for other in pwd.getpwall() if other.pw_gid == user.pw_gid),
    }
    return user.pw_uid != 0 and members <= {user.pw_name}


def _give(path: Path, owner: str) -> None:
    if os.geteuid() == 0:
        shutil.chown(path, owner, pwd.getpwnam(owner).pw_gid)


@contextmanager
def _translate(path: Path) -> Generator[None, None, None]:
    """OSErrors within the block are StorageErrors that name the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}",
            hint="Run setup as a user who may, or name another folder.",
        ) from error
