"""A MinIO server from a `minio` program on PATH, for those tests that can run against the real thing.

It has the surface of `EmbeddedS3`. Only tests use it: the demo takes SeaweedFS, which pip can install.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from minio import Minio

from schedgen_backups.core.errors import BucketUnreachableError, ConfigurationError
from schedgen_backups.core.servers.loopback import LOOPBACK, file_tail, free_ports, write_private_file
from schedgen_backups.core.settings import BucketSettings

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

START_ATTEMPTS = 3
START_TIMEOUT_SECONDS = 30.0
TERMINATION_GRACE_SECONDS = 10.0
POLL_SECONDS = 0.1
ROOT_USER = "schedgen-root"


class MinioServer:
    """A MinIO server on 127.0.0.1; a context manager. The directory keeps its data and its root password.

    MinIO knows no read-only keys without its admin API, so `read_only_settings` is missing here.
    """

    def __init__(self, directory: Path, *, port: int | None = None) -> None:
        program = shutil.which("minio")
        if program is None:
            raise ConfigurationError("no minio program is on PATH", hint="these tests run without it on SeaweedFS")
        self.directory = directory.absolute()
        self._program = program
        self._wanted_port = port
        self._port: int | None = None
        self._password = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """The server takes requests. BucketUnreachableError with the log's tail when it does not in time."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        password_file = self.directory / "password"
        if not password_file.exists():
            write_private_file(password_file, secrets.token_hex(20))
        self._password = password_file.read_text(encoding="utf-8")
        for _ in range(START_ATTEMPTS):
            port, console_port = free_ports(2)
            port = self._wanted_port or port
            self._process = self._launch(port, console_port)
            if self._becomes_ready(self._process, port):
                self._port = port
                return self
            self.stop()
        raise BucketUnreachableError(
            f"the MinIO server in {self.directory} does not start:\n{self.log_tail()}",
            hint="the lines above are the server's own",
        )

    def stop(self) -> None:
        """The server has ended. Does nothing when it does not run."""
        self._port = None
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(TERMINATION_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    @property
    def endpoint(self) -> str:
        """`host:port` of the S3 interface. BucketUnreachableError when stopped."""
        if self._port is None:
            raise BucketUnreachableError("the MinIO server is not running", hint="call start() first")
        return f"{LOOPBACK}:{self._port}"

    def settings(self, bucket: str) -> BucketSettings:
        """One of its buckets, present or not, with the keys that may do everything."""
        return BucketSettings(self.endpoint, ROOT_USER, self._password, bucket)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that the server wrote to its log."""
        return file_tail(self.directory / "log", lines)

    def _launch(self, port: int, console_port: int) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("wb") as log:
            return subprocess.Popen(
                [
                    *(self._program, "server", str(self.directory / "data"), "--quiet"),
                    *("--address", f"{LOOPBACK}:{port}", "--console-address", f"{LOOPBACK}:{console_port}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={name: value for name, value in os.environ.items() if not name.startswith("MINIO_")}
                | {
                    "MINIO_ROOT_USER": ROOT_USER,
                    "MINIO_ROOT_PASSWORD": self._password,
                    "MINIO_BROWSER": "off",
                    # No question to the vendor whether there is a newer version.
                    "MINIO_UPDATE": "off",
                },
                start_new_session=True,
            )

    def _becomes_ready(self, process: subprocess.Popen[bytes], port: int) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if _is_live(port):
                # Liveness comes before the object layer; a listing needs that layer.
                settings = BucketSettings(f"{LOOPBACK}:{port}", ROOT_USER, self._password, "")
                Minio(
                    settings.endpoint,
                    access_key=settings.access_key,
                    secret_key=settings.secret_key,
                    secure=False,
                    region=settings.region,
                ).list_buckets()
                return process.poll() is None
            time.sleep(POLL_SECONDS)
        return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()


def _is_live(port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", "/minio/health/live")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
