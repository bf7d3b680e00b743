"""Servers of other kinds of stores on loopback: Azure and Google Cloud Storage stand-ins, and SSH.

`make servers` installs the first two into `.servers`; sshd is Debian's. Each is a process of its own.
"""

from __future__ import annotations

import base64
import getpass
import http.client
import os
import secrets
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from schedgen_backups.core.servers.loopback import (
    LOOPBACK,
    file_tail,
    free_ports,
    make_server_environment,
    write_private_file,
)
from schedgen_backups_tests.support.s3_programs import INSTALLED

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

_START_ATTEMPTS = 3
_START_TIMEOUT_SECONDS = 60.0
_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.1


class StoreProgram(ABC):
    """A server on 127.0.0.1; a context manager. The directory keeps its data."""

    name: ClassVar[str]

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @abstractmethod
    def find(cls) -> Path | None:
        """Return the program's path, or None if it is not installed."""

    @abstractmethod
    def make_command(self, program: Path, port: int) -> tuple[list[str], dict[str, str]]:
        """Return the command's words, and the variables to add to its environment."""

    @abstractmethod
    def is_ready(self, port: int) -> bool:
        """Return whether the server answers. OSError or HTTPException count as no."""

    @property
    def endpoint(self) -> str:
        """Return `host:port`."""
        return f"{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        program = self.find()
        if program is None:
            pytest.skip(f"{self.name} is not installed: make servers, or .ci/run for Debian's packages")
        for _ in range(_START_ATTEMPTS):
            (port,) = free_ports(1)
            self._launch(program, port)
            if self._becomes_ready(port):
                self.port = port
                return self
            self._end()
        raise RuntimeError(f"{self.name} does not start:\n{file_tail(self.directory / 'log', 20)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _launch(self, program: Path, port: int) -> None:
        command, variables = self.make_command(program, port)
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=make_server_environment() | variables,
                start_new_session=True,
            )

    def _becomes_ready(self, port: int) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self.is_ready(port):
                    return self._process.poll() is None
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(_POLL_SECONDS)
        return False

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class Azurite(StoreProgram):
    """Microsoft's stand-in for Azure Blob Storage."""

    name = "azurite"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.account = "schedgen"
        self.key = base64.b64encode(secrets.token_bytes(32)).decode()

    @classmethod
    def find(cls) -> Path | None:
        program = INSTALLED / "azurite" / "node_modules" / ".bin" / "azurite-blob"
        return program if program.exists() and shutil.which("node") else None

    def make_command(self, program: Path, port: int) -> tuple[list[str], dict[str, str]]:
        options = [
            "--silent",
            "--location",
            str(self.directory),
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ]
        where = ["--blobHost", LOOPBACK, "--blobPort", str(port)]
        return [str(program), *options, *where], {"AZURITE_ACCOUNTS": f"{self.account}:{self.key}"}

    def is_ready(self, port: int) -> bool:
        return _answers(port)


class FakeGcsServer(StoreProgram):
    """A stand-in for Google Cloud Storage: its JSON API, without a login."""

    name = "fake-gcs-server"

    @classmethod
    def find(cls) -> Path | None:
        found = shutil.which(INSTALLED / "fake-gcs-server")
        return Path(found) if found else None

    def make_command(self, program: Path, port: int) -> tuple[list[str], dict[str, str]]:
        where = [
            "-scheme",
            "http",
            "-host",
            LOOPBACK,
            "-port",
            str(port),
            "-public-host",
            f"{LOOPBACK}:{port}",
        ]
        return [str(program), "-backend", "memory", "-log-level", "warn", *where], {}

    def is_ready(self, port: int) -> bool:
        return _answers(port)


class SshServer(StoreProgram):
    """Debian's sshd with its SFTP, for the user of the tests, by a key."""

    name = "sftp"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.user = getpass.getuser()
        self.key_file = self.directory / "login"
        self._make_key(self.key_file)
        self._make_key(self.directory / "host")
        self._make_key(self.directory / "other")

    @classmethod
    def find(cls) -> Path | None:
        program = Path("/usr/sbin/sshd")
        return program if program.is_file() and shutil.which("ssh-keygen") else None

    @property
    def host_key(self) -> str:
        """Return the server's public key, as in known_hosts."""
        return _read_public_key(self.directory / "host.pub")

    @property
    def other_key(self) -> str:
        """Return a public key that is not the server's."""
        return _read_public_key(self.directory / "other.pub")

    def make_command(self, program: Path, port: int) -> tuple[list[str], dict[str, str]]:
        if os.geteuid() == 0:
            # Debian's package lets systemd make it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        settings = {
            "ListenAddress": f"{LOOPBACK}:{port}",
            "HostKey": self.directory / "host",
            "PidFile": "none",
            "AuthorizedKeysFile": self.directory / "login.pub",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "AllowUsers": self.user,
            "AllowTcpForwarding": "no",
            "Subsystem": "sftp internal-sftp",
            "ForceCommand": "internal-sftp",
            "MaxStartups": "100",
        }
        file = self.directory / "sshd_config"
        write_private_file(file, "".join(f"{name} {value}\n" for name, value in settings.items()))
        return [str(program), "-D", "-e", "-f", str(file)], {}

    def is_ready(self, port: int) -> bool:
        with socket.create_connection((LOOPBACK, port), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"

    def _make_key(self, path: Path) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)


class PasswordSshServer(SshServer):
    """The same with a password. It needs root: sshd sees another /etc/shadow, in a mount namespace."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.password = secrets.token_hex(12)

    def make_command(self, program: Path, port: int) -> tuple[list[str], dict[str, str]]:
        command, variables = super().make_command(program, port)
        file = self.directory / "sshd_config"
        text = file.read_text(encoding="ascii").replace(
            "\nPasswordAuthentication no\n", "\nPasswordAuthentication yes\nPermitRootLogin yes\n"
        )
        write_private_file(file, text.replace("AuthorizedKeysFile", "PubkeyAuthentication no\n#"))
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"],
            input=self.password,
            capture_output=True,
            text=True,
            check=True,
        )
        shadow = self.directory / "shadow"
        write_private_file(shadow, f"{self.user}:{hashed.stdout.strip()}:19000:0:99999:7:::\n")
        script = 'mount --bind "$0" /etc/shadow && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, str(shadow), *command], variables


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    finally:
        connection.close()
    return True


def _read_public_key(path: Path) -> str:
    return " ".join(path.read_text(encoding="ascii").split()[:2])
