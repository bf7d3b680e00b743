"""Apply the plan of `setup`: write files, create directories, start timers and containers, run commands.

Add what must happen on the machine. `plan` makes the texts of the files, `interview` asks the `questions`.
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
from schedgen_backups.setup.plan import SERVICE_USER, Deployment, Place, PlannedFile

SYSTEMD_RUNS = Path("/run/systemd/system")
"""sd_booted(3): it exists if systemd is the init system."""
DOCKER_SOCKET = Path("/var/run/docker.sock")
APPLICATION_FILES = ("docker-compose.yml", "docker-compose.yaml", "compose.yaml", "compose.yml")
SOURCE_VARIABLE = "SCHEDGEN_BACKUPS_SOURCE"
"""Variable of docker/compose.yaml: the directory that the image is built from."""
_COMPOSE_TIMEOUT_SECONDS = 60


def find_sources() -> Path:
    """Return the directory with deploy/ and docker/ of this installation.

    Raise ConfigurationError if it was installed without them.
    """
    project = find_project()
    if (
        project is None
        or not (project / "deploy" / "systemd").is_dir()
        or not (project / "docker" / "compose.yaml").is_file()
    ):
        raise ConfigurationError(
            "this installation does not contain deploy/ and docker/",
            hint="Install the wheel, or run setup from a checkout (make, pip install --editable .), or "
            "choose --deployment none.",
        )
    return project


def find_application(checkout: Path | None) -> Path | None:
    """Return the application's compose file if it is in the checkout's parent directory."""
    if checkout is None:
        return None
    found = (checkout.parent / name for name in APPLICATION_FILES)
    return next((path for path in found if path.is_file()), None)


def detect(checkout: Path | None) -> dict[Deployment, str]:
    """Return the deployments that are possible on this machine with what was detected, best first."""
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
    """Return the user that runs the backups: the given one, by default SERVICE_USER, otherwise this user.

    Raise ConfigurationError if the given user does not exist.
    """
    name = wanted or SERVICE_USER
    try:
        pwd.getpwnam(name)
    except KeyError as error:
        if wanted:
            raise ConfigurationError(
                f"the user {wanted} does not exist",
                hint=f"useradd --system --shell /usr/sbin/nologin {wanted}",
            ) from error
        return pwd.getpwuid(os.geteuid()).pw_name
    return name


def write_env(path: Path, text: str, owner: str) -> Path | None:
    """Write the environment file atomically, with the mode of `close_to_others`.

    Return the path of the copy of the old file, None without one.
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
    """Let only the user of the backups read the file; without a name, only its owner.

    Root's commands trust only a file that root owns. So root stays the owner, and the user reads it through a
    group without other members (0640). A user without such a group becomes the owner (0600).
    """
    with _translate(path):
        _close(path, owner)


def write_private(path: Path, data: bytes, owner: str | tuple[int, int]) -> None:
    """Write a file with a secret atomically for the user of the backups.

    `owner` is its name, for the mode of `close_to_others`, or user and group of a container.
    """
    with _translate(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(owner, tuple):
            write_atomically(path, data, owner=owner)
        else:
            write_atomically(path, data)
            _close(path, owner)


@contextmanager
def acting_as(owner: tuple[int, int] | None) -> Generator[None, None, None]:
    """Create files as this user and group in the block, if this process is root's; None changes nothing."""
    if owner is None or os.geteuid() != 0:
        yield
        return
    user, group = owner
    before = os.getgroups(), os.getegid()
    os.setgroups([group])
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[1])
        os.setgroups(before[0])


def write_planned(files: Sequence[PlannedFile]) -> tuple[Path, ...]:
    """Write the files whose text differs; return their paths."""
    written: list[Path] = []
    for file in files:
        with _translate(file.path):
            if not is_as_planned(file):
                file.path.parent.mkdir(parents=True, exist_ok=True)
                _write_whole(file.path, file.text, file.mode)
                written.append(file.path)
    return tuple(written)


def is_as_planned(file: PlannedFile) -> bool:
    """Return whether the file already has this text."""
    return file.path.is_file() and file.path.read_text(encoding="utf-8") == file.text


def make_folders(place: Place, deployment: Deployment) -> None:
    """Create the directories of points, state and log, private to the user of the backups."""
    folders = [place.points] if deployment is Deployment.NONE else [place.points, place.state]
    for folder in [*folders, *([place.log] if deployment is Deployment.CRON else [])]:
        with _translate(folder):
            if not folder.is_dir():
                folder.mkdir(parents=True, mode=0o750)
                _give(folder, place.user)


def start_timer() -> None:
    """Load the units and enable the timer; raise ConfigurationError with systemctl's message."""
    for words in (("daemon-reload",), ("enable", "--now", "schedgen-backup.timer")):
        _run(["systemctl", *words])


def stop_units(installed: Sequence[str]) -> None:
    """Stop and disable those of our units; raise ConfigurationError with systemctl's message.

    An earlier version did not install them all, and systemctl refuses a unit that does not exist.
    """
    _run(
        ["systemctl", "disable", "--now", *(name for name in installed if name != "schedgen-backup.service")]
    )


def reload_units() -> None:
    """Make systemd notice that the units were removed."""
    _run(["systemctl", "daemon-reload"])


def remove_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Remove the files that exist; return their paths."""
    removed: list[Path] = []
    for path in paths:
        with _translate(path):
            if path.is_file() or path.is_symlink():
                path.unlink()
                removed.append(path)
    return tuple(removed)


def make_compose_words(application: Path, sources: Path) -> list[str]:
    """Return the `docker compose` command with the application's file and ours."""
    return ["docker", "compose", "-f", str(application), "-f", str(sources / "docker" / "compose.yaml")]


def make_compose_values(sources: Path) -> dict[str, str]:
    """Return the variables of this machine that our compose file needs."""
    values = {SOURCE_VARIABLE: str(sources)}
    if DOCKER_SOCKET.exists():
        values["DOCKER_GID"] = str(DOCKER_SOCKET.stat().st_gid)
    return values


def run_visibly(words: Sequence[str], folder: Path) -> int:
    """Run the program on this terminal; return its exit code."""
    return subprocess.run(words, cwd=folder, check=False).returncode


def run_command_line(
    arguments: Sequence[str], place: Place, deployment: Deployment, values: Mapping[str, str]
) -> int:
    """Run `schedgen-backups` as the user of the backups, with the written .env; return its exit code.

    ConfigurationError if that user cannot run it.
    """
    # The child process needs this environment, such as PATH, but with the answers instead of its settings.
    environment = {**os.environ, **values, ENV_FILE_VARIABLE: str(place.env_file)}
    if deployment in {Deployment.SYSTEMD, Deployment.CRON}:
        environment[HOME_VARIABLE] = str(place.state)
    user = place.user if os.geteuid() == 0 and place.user != pwd.getpwuid(0).pw_name else None
    group = pwd.getpwnam(user).pw_gid if user else None
    words = [sys.executable, "-m", "schedgen_backups.cli.main", *arguments]
    try:
        done = subprocess.run(
            words,
            cwd=place.project,
            env=environment,
            user=user,
            group=group,
            extra_groups=[] if user else None,
            check=False,
        )
    except OSError as error:
        raise ConfigurationError(
            f"{user or 'this user'} cannot run {sys.executable} in {place.project}: {error.strerror}",
            hint="Give the user access to both, or install the program elsewhere.",
        ) from error
    return done.returncode


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
            f"{' '.join(words)} failed with exit code {done.returncode}: {done.stderr.strip()}",
            hint="docs/deploy.md describes the steps without setup.",
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
    """Return whether the user is the only member of its group, so that root can share a file only with it."""
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
    """Convert an OSError in the block to a StorageError that names the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}",
            hint="Run setup as a user who can write it, or use another directory.",
        ) from error
