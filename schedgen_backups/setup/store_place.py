"""Where the file of stores is, who reads it, and which of this machine's folders the copying program sees.

In containers, the directory of secrets is mounted as /run/secrets and one folder as /copies
(docker/compose.yaml).
"""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from schedgen_backups.config.config import Config
from schedgen_backups.config.stores import STORES_VARIABLE
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.store.location import StoreLocation

FILE_NAME = "stores.toml"
FOLDER_VARIABLE = "BACKUP_COPIES"
"""Variable of docker/compose.yaml: the folder of this host that is mounted as /copies."""
EXTRAS_VARIABLE = "BACKUP_EXTRAS"
"""Variable of docker/compose.yaml: the extras that the image is built with."""
_SECRETS_VARIABLE = "BACKUP_SECRETS"
_DEFAULT_SECRETS = "/etc/schedgen-backups/secrets"
_DEFAULT_EXTRAS = "containers"
_SECRETS_AT = "/run/secrets"
_FOLDER_AT = "/copies"
_CONTAINER_USER = 10001
"""User of the image (docker/Dockerfile)."""
_EXTRAS = {"gs": "gcs", "sftp": "sftp"}
"""Scheme → extra that brings the store's library."""


@dataclass
class StorePlace:
    """The file of stores of a deployment on this machine."""

    path: Path
    """On this machine."""
    value: str
    """BACKUP_STORES_FILE, as the program that copies sees it."""
    owner: tuple[int, int] | None = None
    """User and group that copy; None if they are those of setup."""
    values: dict[str, str] = field(default_factory=dict[str, str])
    """Further variables that the added stores need."""

    @property
    def file_owner(self) -> tuple[int, int] | None:
        """Owner of the written files in a container; None for that of the environment file."""
        return None

    def find_url(self, url: str) -> str:
        """Return the URL as the program that copies sees it; ConfigurationError if it cannot reach it."""
        return url

    def find_local_url(self, url: str) -> str:
        """Return the URL as it is on this machine."""
        return url

    def note_store(self, url: str) -> None:
        """Remember what the deployment needs for this store, by its URL on this machine."""

    def is_known_here(self, location: StoreLocation) -> bool:
        """Return whether this machine can reach the store."""
        del location
        return True


@dataclass
class ContainerPlace(StorePlace):
    """The same for containers: other paths, and a network of their own."""

    folder: str = ""
    """Folder of this machine that is mounted as /copies; empty if there is none yet."""
    extras: str = _DEFAULT_EXTRAS

    @property
    def file_owner(self) -> tuple[int, int] | None:
        """The image's user."""
        return self.owner

    def find_url(self, url: str) -> str:
        """Return file:///copies/… for a folder in the one that is mounted, otherwise the URL."""
        parts = urlsplit(url)
        if parts.scheme != "file":
            return url
        path = Path(unquote(parts.path))
        mounted = Path(self.folder or path)
        if not path.is_relative_to(mounted):
            raise ConfigurationError(
                f"{path} is not in {mounted}, which {FOLDER_VARIABLE} mounts into the containers",
                hint=f"Use a folder in it, or set {FOLDER_VARIABLE} in .env to one that contains both.",
            )
        return f"file://{Path(_FOLDER_AT) / path.relative_to(mounted)}"

    def find_local_url(self, url: str) -> str:
        """Return the URL of the mounted folder on this machine."""
        parts = urlsplit(url)
        path = Path(unquote(parts.path))
        if parts.scheme != "file" or not self.folder or not path.is_relative_to(_FOLDER_AT):
            return url
        return f"file://{Path(self.folder) / path.relative_to(_FOLDER_AT)}"

    def note_store(self, url: str) -> None:
        """Mount its folder, and build the image with its library."""
        parts = urlsplit(url)
        if parts.scheme == "file" and not self.folder:
            self.folder = self.values[FOLDER_VARIABLE] = unquote(parts.path)
        extra = _EXTRAS.get(parts.scheme, "")
        if extra and extra not in self.extras.split(","):
            self.extras = self.values[EXTRAS_VARIABLE] = f"{self.extras},{extra}"

    def is_known_here(self, location: StoreLocation) -> bool:
        """Return whether this machine knows the server's name and the mounted folder."""
        parts = urlsplit(location.endpoint or location.url)
        if parts.scheme == "file":
            return not Path(unquote(parts.path)).is_relative_to(_FOLDER_AT)
        if not location.endpoint and parts.scheme != "sftp":
            return True
        try:
            socket.getaddrinfo(parts.hostname, None)
        except OSError:
            return False
        return True


def find_place(config: Config, env_path: Path, user: str) -> StorePlace:
    """Return the place that BACKUP_STORES_FILE names, otherwise the one beside the environment file.

    `user` runs the backups; empty for the user of setup. ConfigurationError if the variable is invalid.
    """
    reader = config.open_reader()
    path = reader.path(STORES_VARIABLE)
    reader.check()
    login = pwd.getpwnam(user) if user and os.geteuid() == 0 else None
    return StorePlace(
        path or env_path.with_name(FILE_NAME).absolute(),
        config.values.get(STORES_VARIABLE, "").strip() or str(env_path.with_name(FILE_NAME).absolute()),
        (login.pw_uid, login.pw_gid) if login is not None and login.pw_uid != 0 else None,
    )


def find_container_place(config: Config, env_path: Path, variables: Mapping[str, str]) -> ContainerPlace:
    """Return the place in the directory of secrets; `variables` are those of the compose file.

    ConfigurationError if the containers' file is elsewhere, or could not be read there.
    """
    secrets = env_path.parent.absolute() / (variables.get(_SECRETS_VARIABLE, "") or _DEFAULT_SECRETS)
    value = config.values.get(STORES_VARIABLE, "").strip() or f"{_SECRETS_AT}/{FILE_NAME}"
    if not Path(value).is_relative_to(_SECRETS_AT):
        raise ConfigurationError(
            f"{STORES_VARIABLE} {value} is not in {_SECRETS_AT}, where the containers see {secrets}",
            hint=f"Move the file to {secrets}, and name it {_SECRETS_AT}/{FILE_NAME} (docs/stores.md).",
        )
    if os.geteuid() not in {0, _CONTAINER_USER}:
        raise ConfigurationError(
            f"only root can write a file of stores into {secrets} that the containers can read",
            hint="Run setup as root, or add a store by hand (docs/stores.md).",
        )
    return ContainerPlace(
        secrets / Path(value).relative_to(_SECRETS_AT),
        value,
        (_CONTAINER_USER, _CONTAINER_USER),
        folder=variables.get(FOLDER_VARIABLE, ""),
        extras=variables.get(EXTRAS_VARIABLE, "") or _DEFAULT_EXTRAS,
    )
