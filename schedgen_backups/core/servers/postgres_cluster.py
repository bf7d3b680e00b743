"""One PostgreSQL data directory and its programs (initdb, pg_ctl), run as a user other than root.

Add what concerns the directory, its owner or the server process. Ports, passwords, databases and everything
sent over a connection belong to `embedded_postgres`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schedgen_backups.core.errors import DatabaseError
from schedgen_backups.core.servers.loopback import file_tail, make_server_environment

START_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 30
NOBODY_ID = 65534
BUILTIN_LOCALE_SINCE = 17
_NETWORK_PLACE, _COUNT_PLACE = 6, 7
"""Indexes of the launcher's arguments for the network and for the number of hidden paths."""
_SOCKET_LIMIT_BYTES = 107
"""Maximum length of a Unix socket's path (unix(7), sun_path without its final zero)."""
SOCKET_DIRECTORIES = (Path("/run"), Path("/var/run"), Path("/tmp"))  # noqa: S108 - hidden, nothing is written there
"""Directories of the host's Unix sockets, including PostgreSQL's and the Docker engine's. A namespace without
network does not block those, and a connection through one has the identity of the user that runs the
backup."""

# A separate interpreter instead of preexec_fn: forking a process with threads warns from Python 3.12 on. Its
# arguments: a directory, whether to keep the host's network, the number of hidden paths, these paths, the
# program and its own arguments. Within the namespaces the hidden paths are empty. Only the directory stays
# visible, under its name and under its name without symbolic links. The program cannot inspect outside
# processes of the same user either (ptrace(2), "Ptrace access mode checking"). No capability survives the
# exec, since the user is not 0 there, so no mount can be removed.
_NAMESPACE_LAUNCHER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result, what):
    if result:
        raise OSError(ctypes.get_errno(), what)
folder, network, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
hidden, words = sys.argv[4 : 4 + count], sys.argv[4 + count :]
user, group = os.geteuid(), os.getegid()
flags = 0x10000000 | (0x20000 if hidden else 0) | (0x40000000 if network == "none" else 0)
check(libc.unshare(flags), "unshare")
uid_map, gid_map = f"{user or 1000} {user} 1", f"{group or 1000} {group} 1"
for name, text in (("setgroups", "deny"), ("uid_map", uid_map), ("gid_map", gid_map)):
    with open("/proc/self/" + name, "w") as stream:
        stream.write(text)
if hidden:
    kept, places = os.open(folder, os.O_PATH), (os.path.realpath(folder), folder)
    mount = lambda *arguments: check(libc.mount(*arguments), "mount")
    mount(None, b"/", None, 0x44000, None)
    for path in hidden:
        if os.path.isdir(path):
            mount(b"none", os.fsencode(path), b"tmpfs", 0, b"mode=0700,size=1m")
        elif os.path.exists(path):
            mount(b"/dev/null", os.fsencode(path), None, 0x1000, None)
    for place in places:
        os.makedirs(place, mode=0o700, exist_ok=True)
        mount(f"/proc/self/fd/{kept}".encode(), os.fsencode(place), None, 0x5000, None)
    os.close(kept)
    os.chdir(folder)
os.execv(words[0], words)
"""


@dataclass(frozen=True)
class PostgresCluster:
    """One data directory and how its programs are run: PostgreSQL refuses to run as root."""

    bin_dir: Path
    directory: Path
    launcher: tuple[str, ...] = ()
    user_id: int | None = None

    @property
    def is_confined(self) -> bool:
        """Whether paths are hidden from its programs."""
        return bool(self.launcher) and self.launcher[_COUNT_PLACE] != "0"

    @property
    def has_network(self) -> bool:
        """Whether its programs reach the host's network, loopback included, and are reached over it.

        Without it they are reached over a Unix socket in the directory.
        """
        return not self.launcher or self.launcher[_NETWORK_PLACE] != "none"

    @property
    def data(self) -> Path:
        """The directory that initdb creates; absent until it has succeeded."""
        return self.directory / "data"

    @property
    def data_version(self) -> int:
        """The major version of the data directory."""
        return int((self.data / "PG_VERSION").read_text(encoding="ascii"))

    @property
    def log(self) -> Path:
        """The server's log since its last start."""
        return self.directory / "log"

    def run(self, program: str, *arguments: str, timeout_seconds: int) -> tuple[int, str]:
        """Run a program; return its exit code and output.

        The output goes through a file, since a server would inherit a pipe.
        """
        output = self.directory / "tools.log"
        with output.open("wb") as stream:
            try:
                completed = subprocess.run(
                    [*self.launcher, str(self.bin_dir / program), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    cwd=self.directory,
                    env=make_server_environment(),
                    timeout=timeout_seconds,
                    check=False,
                    user=self.user_id,
                    group=self.user_id,
                    extra_groups=None if self.user_id is None else [],
                )
            except subprocess.TimeoutExpired:
                return 124, f"{program} timed out after {timeout_seconds} s\n{file_tail(output, 20)}"
        return completed.returncode, file_tail(output, 20)

    def take_ownership(self) -> None:
        """Give every file to the user that the server runs as, which PostgreSQL requires."""
        if os.geteuid() != 0:
            return
        owner = self.user_id or 0
        for path in (self.directory, *self.directory.rglob("*")):
            if path.lstat().st_uid != owner:
                os.chown(path, owner, owner, follow_symlinks=False)

    def initialize(self, user: str, version: int) -> None:
        """Create the data directory; it gets its final name only after initdb has succeeded."""
        fresh = self.directory / "data.new"
        if fresh.exists():
            # From a killed initdb; it contains no data yet.
            shutil.rmtree(fresh)
        # The C library's UTF-8 locale is missing on older systems and macOS; the built-in one is always
        # available.
        builtin = (
            ("--locale-provider=builtin", "--builtin-locale=C.UTF-8")
            if version >= BUILTIN_LOCALE_SINCE
            else ()
        )
        arguments = (
            "-D",
            str(fresh),
            "-U",
            user,
            f"--pwfile={self.directory / 'password'}",
            "-A",
            "scram-sha-256",
        )
        code, output = self.run(
            "initdb",
            *arguments,
            "-E",
            "UTF8",
            "--locale=C",
            *builtin,
            "-N",
            timeout_seconds=START_TIMEOUT_SECONDS,
        )
        if code != 0:
            raise DatabaseError(
                f"initdb in {self.directory} failed with code {code}:\n{output}",
                hint="if this runs as root without user namespaces, use an ordinary user, or a directory and "
                "an installation that every user can read",
            )
        fresh.rename(self.data)

    def running_process_id(self) -> int | None:
        """Return the process id of the server that runs on this data directory, or None.

        The number in `postmaster.pid` alone proves nothing: after a crash it may belong to another program.
        """
        try:
            process_id = int((self.data / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0])
        except FileNotFoundError:
            return None
        if sys.platform == "linux":
            try:
                is_ours = Path(f"/proc/{process_id}/cwd").resolve(strict=True) == self.data.resolve()
            except (FileNotFoundError, PermissionError):
                is_ours = False
        else:
            listing = subprocess.run(
                ["ps", "-p", str(process_id), "-o", "args="], capture_output=True, check=False
            )
            is_ours = os.fsencode(self.data) in listing.stdout
        return process_id if is_ours else None

    def stop(self) -> None:
        """Stop the server on this data directory, whoever started it. DatabaseError if it does not stop."""
        if self.running_process_id() is None:
            return
        output = ""
        for mode in ("fast", "immediate"):
            code, output = self.run(
                *("pg_ctl", "-D", str(self.data), "-w", "-t", str(STOP_TIMEOUT_SECONDS), "-m", mode, "stop"),
                timeout_seconds=STOP_TIMEOUT_SECONDS + 5,
            )
            if code == 0 or self.running_process_id() is None:
                return
        raise DatabaseError(
            f"the PostgreSQL server in {self.directory} does not stop:\n{output}",
            hint=f"end process {self.running_process_id()} by hand",
        )

    def stop_at_exit(self, owner_process_id: int) -> None:
        """Like `stop`, but not in a forked child, which ends long before the server's owner."""
        if os.getpid() == owner_process_id and self.directory.exists():
            self.stop()


def cluster_for(bin_dir: Path, directory: Path, hidden_paths: Sequence[Path] = ()) -> PostgresCluster:
    """Return the cluster in `directory`.

    Its programs run in their own namespaces where possible and useful. There they see neither `hidden_paths`
    nor the sockets of other servers. They have no network if a Unix socket in the directory can replace it,
    and PostgreSQL does not see that it is root. Containers with the default seccomp profile do not allow
    this.
    """
    is_root = os.geteuid() == 0
    hidden = [str(path) for path in hidden_paths if path.exists()]
    networks = ("none", "host") if _can_hold_socket(directory) else ("host",)
    confined = [*hidden, *_list_socket_directories(bin_dir)]
    ways = [(paths, network) for network in networks for paths in (confined, hidden)] if hidden else []
    for paths, network in ways + ([([], "host")] if is_root else []):
        # -I -S: the launcher needs nothing from the environment and starts faster without it.
        launcher = (
            sys.executable,
            "-I",
            "-S",
            "-c",
            _NAMESPACE_LAUNCHER,
            str(directory),
            network,
            str(len(paths)),
            *paths,
        )
        if can_launch(launcher, bin_dir, directory):
            return PostgresCluster(bin_dir, directory, launcher=launcher)
    return PostgresCluster(bin_dir, directory, user_id=NOBODY_ID if is_root else None)


def _list_socket_directories(bin_dir: Path) -> list[str]:
    """Return the socket directories that contain no program of the server."""
    there = dict.fromkeys(path.resolve() for path in SOCKET_DIRECTORIES if path.is_dir())
    return [str(path) for path in there if not bin_dir.resolve().is_relative_to(path)]


def _can_hold_socket(directory: Path) -> bool:
    """Return whether a Unix socket in the directory can be used. For libpq a comma ends a host name."""
    return len(os.fsencode(directory / ".s.PGSQL.65535")) <= _SOCKET_LIMIT_BYTES and not set(
        str(directory)
    ) & set('"\n,')


def can_launch(launcher: Sequence[str], bin_dir: Path, directory: Path) -> bool:
    """Return whether PostgreSQL's programs start with this launcher."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        probe = subprocess.run(
            [*launcher, str(bin_dir / "postgres"), "--version"], capture_output=True, check=False
        )
    except OSError:
        return False
    return probe.returncode == 0
