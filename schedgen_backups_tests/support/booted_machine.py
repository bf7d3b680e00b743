"""Boot a Debian by systemd, on this machine's files changed only in memory, in namespaces.

Processes, mounts, host name, network (loopback alone) and the cgroup tree are the booted machine's; clock and
kernel are shared. Of this machine's own configuration nothing is started. It takes root, overlayfs, cgroup v2
and Debian's systemd, and no container engine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from schedgen_backups_tests.support.sites import wait_until

SYSTEMD = Path("/lib/systemd/systemd")
PYTHON_AT = "/opt/python"
"""Where the machine has the Python that runs the tests: an installation below /root cannot be read by a
service."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
END_SECONDS = 120

# $1: a folder, $2: the Python's prefix. The machine's root is $1/root; what was mounted there stays over a
# reboot. Hidden: units, scripts of System V, clusters of PostgreSQL, mounts, journals and timers' stamps of
# this machine.
_MAKE_ROOT = """
mount -t tmpfs -o mode=755,size=4g none "$1"
cd "$1"
mkdir changes work root cgroup
mount -t overlay -o lowerdir=/,upperdir="$1/changes",workdir="$1/work" none root
for path in etc/systemd/system etc/init.d etc/postgresql var/lib/systemd var/log opt srv; do
  mkdir -p "root/$path"
  mount -t tmpfs -o mode=755 none "root/$path"
done
rm -rf root/etc/rc?.d
: >root/etc/fstab
mkdir "root$3"
mount --bind "$2" "root$3"
mount -o remount,bind,ro "root$3"
echo "$3/lib" >root/etc/ld.so.conf.d/00-python-of-the-tests.conf
chroot root /sbin/ldconfig
mount -t cgroup2 none cgroup
echo made
# Until nobody holds the other end.
exec cat
"""

# $1: the folder, $2: the name of the machine's cgroup. The machine gets file systems for its own namespaces,
# and must not set this machine's kernel parameters, clock and modules. systemd hands credentials to services
# through mounts that must be shared; in a container it leaves that to who made it (mount_setup in
# src/shared/mount-setup.c of systemd 252).
_ENTER = """
mkdir -p "$1/cgroup/$2"
echo 0 >"$1/cgroup/$2/cgroup.procs"
exec unshare --mount --propagation private --pid --fork --kill-child --uts --ipc --net --cgroup sh -euc "$3" sh "$1/root"
"""  # noqa: E501 - a line of the shell
_BOOT = """
cd "$1"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 none dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 none dev/shm
mount -t tmpfs -o mode=755 none run
mount -t tmpfs -o mode=1777 none tmp
pivot_root . mnt
exec chroot . sh -euc 'umount -l /mnt
mount --make-rshared /
exec env -i container=test PATH="$PATH" setpriv --bounding-set -sys_time,-sys_module,-sys_rawio,-syslog /lib/systemd/systemd'
"""  # noqa: E501 - a line of the shell

_TRY_TO_MOUNT = """
mount -t tmpfs none /mnt
cd /mnt
mkdir changes work root cgroup
mount -t overlay -o lowerdir=/,upperdir=/mnt/changes,workdir=/mnt/work none root
mount -t cgroup2 none cgroup
"""


def find_reason_not_to_boot() -> str | None:
    """Return what is missing here."""
    if os.geteuid() != 0:
        return "it takes root"
    if not SYSTEMD.is_file():
        return "Debian's systemd is not installed"
    words = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--cgroup",
        "sh",
        "-euc",
        _TRY_TO_MOUNT,
    ]
    tried = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else tried.stderr.strip()


class BootedMachine:
    """The machine; `boot` and `power_off` may be called in turns, its disk keeps what was written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"schedgen-backups-test-{uuid4().hex[:8]}"
        self._holder: subprocess.Popen[str] | None = None
        self._launcher: subprocess.Popen[bytes] | None = None
        self._init = 0
        """The id that process 1 of the machine has here; 0 while it is down."""

    def make(self) -> None:
        """The machine has its disk."""
        words = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-euc",
            _MAKE_ROOT,
            "sh",
            str(self._folder),
            sys.base_prefix,
            PYTHON_AT,
        ]
        self._holder = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "made\n"

    @property
    def is_up(self) -> bool:
        """Whether it was booted and not powered off since."""
        return self._launcher is not None

    def path(self, name: str) -> Path:
        """A file on the machine's disk, as this process reaches it, whether the machine is up or not."""
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{self._folder}/root{name}")

    def mount_overlay(self, lower: str, at: str) -> None:
        """The folder of this machine is at that path, to be changed in memory; before the first `boot`."""
        name = f"{self._folder}/overlay-{uuid4().hex[:8]}"
        self.path(at).mkdir(parents=True)
        self._hold("mkdir", f"{name}-changes", f"{name}-work")
        options = f"lowerdir={lower},upperdir={name}-changes,workdir={name}-work"
        self._hold("mount", "-t", "overlay", "-o", options, "none", f"{self._folder}/root{at}")

    def boot(self) -> None:
        """The machine is up: systemd has started all that it was to start, or given up."""
        assert self._holder is not None
        words = ["sh", "-euc", _ENTER, "sh", str(self._folder), self._name, _BOOT]
        with (self._folder / "boot.log").open("wb") as log:
            # Killed, the tests leave no machine behind.
            self._launcher = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._enter_holder(), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": PATH},
                start_new_session=True,
            )
        children = Path(f"/proc/{self._launcher.pid}/task/{self._launcher.pid}/children")

        def is_up() -> bool:
            assert self._launcher is not None
            assert self._launcher.poll() is None, (
                f"systemd did not start: {(self._folder / 'boot.log').read_text(encoding='utf-8')}"
            )
            self._init = int((children.read_text(encoding="ascii").split() or ["0"])[0])
            # Before it has its socket, systemctl finds nobody.
            is_systemd = (
                self._init != 0
                and Path(f"/proc/{self._init}/comm").read_text(encoding="ascii") == "systemd\n"
            )
            return is_systemd and Path(f"/proc/{self._init}/root/run/systemd/private").is_socket()

        wait_until(is_up, "systemd is process 1")
        state = self.try_run("systemctl", "is-system-running", "--wait")[1].strip()
        assert state in {"running", "degraded"}, state

    def power_off(self) -> None:
        """The machine has gone down in order."""
        assert self._launcher is not None
        self.run("systemctl", "poweroff", "--no-block")
        self._launcher.wait(timeout=END_SECONDS)
        self._launcher, self._init = None, 0

    def run(self, *words: str) -> str:
        """Run the program in the machine as root without an environment; return its output."""
        code, seen = self.try_run(*words)
        assert code == 0, f"{words} ended with {code}: {seen}"
        return seen

    def try_run(self, *words: str) -> tuple[int, str]:
        """The program's exit code in the machine, and what it printed."""
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]
        done = subprocess.run(
            [
                "nsenter",
                "--target",
                str(self._init),
                *namespaces,
                "--",
                "env",
                "-i",
                f"PATH={PATH}",
                "LANG=C.UTF-8",
                *words,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=600,
        )
        return done.returncode, done.stdout

    def remove(self) -> None:
        """Nothing is left of the machine."""
        if self._launcher is not None:
            with suppress(ProcessLookupError):
                # The kernel ends every process of a namespace with its first one.
                os.kill(self._init or self._launcher.pid, signal.SIGKILL)
            self._launcher.wait(timeout=END_SECONDS)
        if self._holder is not None:
            self._remove_cgroups()
            # Its input ends, and so does it.
            self._holder.communicate(timeout=END_SECONDS)

    def _remove_cgroups(self) -> None:
        assert self._holder is not None
        top = Path(f"/proc/{self._holder.pid}/root{self._folder}/cgroup/{self._name}")
        if top.is_dir():
            wait_until(
                lambda: "populated 0" in (top / "cgroup.events").read_text(encoding="ascii"),
                "the machine's processes have ended",
            )
            for folder, _folders, _files in os.walk(top, topdown=False):
                Path(folder).rmdir()

    def _enter_holder(self) -> Sequence[str]:
        assert self._holder is not None
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt"]

    def _hold(self, *words: str) -> None:
        subprocess.run([*self._enter_holder(), *words], check=True)


@contextmanager
def booted_machine(folder: Path) -> Generator[BootedMachine, None, None]:
    """A machine with a disk, for the block; not booted yet."""
    machine = BootedMachine(folder)
    try:
        machine.make()
        yield machine
    finally:
        machine.remove()
        shutil.rmtree(folder)
