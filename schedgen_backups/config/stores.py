"""The file of stores (BACKUP_STORES_FILE, TOML): where copies go, who may read them, how long they stay.

    [stores.b2]
    url = "s3://my-bucket/backups"
    endpoint = "https://s3.eu-central-003.backblazeb2.com"
    access_key = "…"
    secret_key_file = "/run/secrets/b2"          # or secret_key_env = "B2_SECRET_KEY"
    recipients = ["age1…", "age1…"]
    lock_days = 30

A store that is described wrongly does not affect the others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schedgen_backups.config.toml_file import read_toml
from schedgen_backups.core.copies.local_folder import CopyState, LocalFolder
from schedgen_backups.core.copies.settings import StoreSettings
from schedgen_backups.core.copies.status import StoreStatus
from schedgen_backups.core.errors import BackupError, ConfigurationError
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.open import open_store
from schedgen_backups.core.system.files import read_small_file

STORES_VARIABLE = "BACKUP_STORES_FILE"
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,30}")
"""Names become names of assets, jobs and folders."""
_Days = Annotated[int, Field(ge=0, le=36500)]
_Path = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RetentionTable(_Table):
    """How long copies stay; by default longer than in the backup directory."""

    hours: Annotated[int, Field(ge=0, le=24 * 366)] = Field(
        default=0,
        description="keep every copy of this many hours, and only the last one of each earlier day within "
        "`days`; 0: every copy of those days is kept",
    )
    days: _Days = Field(default=30, description="keep the copies of this many days, today included")
    weeks: _Days = Field(default=8, description="keep the last copy of each of this many weeks")
    months: _Days = Field(default=12, description="keep the last copy of each of this many months")
    years: _Days = Field(default=0, description="keep the last copy of each of this many years")
    keep_last: Annotated[int, Field(ge=1, le=10000)] = Field(
        default=3, description="minimum number of copies, whatever their age"
    )


class CredentialsTable(_Table):
    """A secret is in a file of its own, or in an environment variable; never in this file."""

    access_key: str = Field("", description="S3 access key, or name of the Azure account")
    access_key_file: _Path | None = Field(None, description="file that holds it instead")
    access_key_env: _Path | None = Field(None, description="environment variable that holds it instead")
    secret_key_file: _Path | None = Field(
        None,
        description="file with the S3 secret key, the Azure account key, the password of SFTP or the "
        "passphrase of its key; it cannot stand in the file of stores",
    )
    secret_key_env: _Path | None = Field(None, description="environment variable that holds it instead")
    key_file: _Path | None = Field(
        None, description="file with the private key of SFTP, or with the service account of Google (JSON)"
    )


class StoreTable(CredentialsTable):
    """One store of the file."""

    url: _Path = Field(
        description="`file:///PATH`, `s3://BUCKET/PREFIX`, `azure://CONTAINER/PREFIX`, "
        "`gs://BUCKET/PREFIX` or `sftp://USER@HOST:PORT/PATH`; required"
    )
    endpoint: str = Field("", description="URL of the S3, Azure or Google server, if not the provider's own")
    region: str = Field("", description="region of S3; empty: `us-east-1`")
    host_key: str = Field(
        "",
        description="public key of the SFTP server, as `ssh-keyscan` prints it without the name; required "
        "there",
    )
    certificates_file: _Path | None = Field(
        None, description="PEM file of the certificate authorities to trust, instead of the public ones"
    )
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=60, description="a request without an answer has failed after this time"
    )
    encryption: Literal["age", "none"] = Field("age", description="`none` stores plain files")
    recipients: list[str] = Field(
        [],
        description="public keys that may read the copies (`age1…`, `ssh-ed25519 …`, `ssh-rsa …`); required "
        "with `age`, and at least two are wise",
    )
    retention: RetentionTable = Field(RetentionTable(), description="a table of its own, below")
    reread_days: Annotated[int, Field(ge=1, le=3650)] = Field(
        default=30, description="every pack and recipe is read back once in this many days"
    )
    max_age_hours: Annotated[int, Field(ge=1, le=8760)] = Field(
        default=26, description="age of the newest copied point from which on there is an alert"
    )
    lock_days: _Days = Field(
        default=0, description="keep what is needed locked for this many days; 0: extend no lock"
    )
    append_only: bool = Field(False, description="whether it is an error that this host can delete there")
    prune: CredentialsTable | None = Field(
        None, description="a table of other credentials, which may read, list, write and delete"
    )


@dataclass(frozen=True)
class StoreEntry:
    """One store of the file: its settings, or why it cannot be used."""

    name: str
    settings: StoreSettings | None
    error: ConfigurationError | None = None

    def require(self) -> StoreSettings:
        """Return the settings; raise the ConfigurationError if there are none."""
        if self.settings is None:
            raise self.error or ConfigurationError(f"the store {self.name} is not described")
        return self.settings

    def read_status(self, backup_directory: Path) -> StoreStatus:
        """Return what is known on this host of the store's copies, without asking the store."""
        folder = LocalFolder(backup_directory, self.name)
        state = folder.read_state(self.settings.location.place) if self.settings else CopyState()
        return StoreStatus(self.name, state, self.settings, self.error.message if self.error else "")


def read_stores(path: Path, timezone: tzinfo, values: Mapping[str, str]) -> tuple[StoreEntry, ...]:
    """Return the stores of this file in its order.

    `values` are variables besides those of the process for `…_env`. Relative paths start at the folder of the
    file. ConfigurationError when the file cannot be read or is not TOML.
    """
    tables = read_toml(path, what="file of stores", variable=STORES_VARIABLE, hint=_HINT)
    stores: Any = tables.pop("stores", {})
    if tables or not isinstance(stores, dict):
        raise ConfigurationError(
            f"{path} may only contain tables [stores.NAME]"
            + (f", not {', '.join(sorted(tables))}" if tables else ""),
            hint=_HINT,
        )
    # The keys of a TOML table are text.
    return tuple(
        _read_store(path, str(name), table, timezone, values)  # pyright: ignore[reportUnknownArgumentType]
        for name, table in stores.items()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    )


_HINT = "docs/stores.md shows how stores are described."


def _read_store(path: Path, name: str, table: object, zone: tzinfo, values: Mapping[str, str]) -> StoreEntry:
    try:
        if not NAME_PATTERN.fullmatch(name):
            raise ConfigurationError(
                f"{path}: {name!r} cannot be the name of a store",
                hint="Use at most 31 small letters, digits and underscores, and begin with a letter.",
            )
        return StoreEntry(name, _make_settings(path, name, StoreTable.model_validate(table), zone, values))
    except ValidationError as error:
        # Never the value: it may be a misplaced secret.
        problems = [
            _explain(".".join(map(str, each["loc"])), each["type"], each["msg"]) for each in error.errors()
        ]
        return StoreEntry(
            name,
            None,
            ConfigurationError(f"{path}: store {name}: {'; '.join(problems)}", hint=_HINT),
        )
    except BackupError as error:
        message = error.message if name in error.message else f"store {name}: {error.message}"
        return StoreEntry(name, None, ConfigurationError(message, hint=error.hint))


def _explain(setting: str, kind: str, message: str) -> str:
    if not setting:
        return "it is not a table [stores.NAME]"
    if setting.rpartition(".")[2] == "secret_key":
        return f"{setting}: a secret cannot stand in this file; name its file in secret_key_file"
    explained = {"extra_forbidden": "unknown setting", "missing": "it is required"}
    return f"{setting}: {explained.get(kind, message)}"


def _make_settings(
    path: Path, name: str, store: StoreTable, zone: tzinfo, values: Mapping[str, str]
) -> StoreSettings:
    location = _make_location(path, store, store, values)
    retention = store.retention
    settings = StoreSettings(
        name=name,
        location=location,
        recipients=tuple(store.recipients),
        is_encrypted=store.encryption == "age",
        retention=RetentionPolicy(
            keep_days=retention.days,
            keep_hours=retention.hours,
            keep_last=retention.keep_last,
            keep_weeks=retention.weeks,
            keep_months=retention.months,
            keep_years=retention.years,
            timezone=zone,
        ),
        reread_days=store.reread_days,
        max_age_hours=store.max_age_hours,
        lock_days=store.lock_days,
        is_append_only=store.append_only,
        prune_location=_make_location(path, store, store.prune, values) if store.prune is not None else None,
    )
    if settings.recipients and not settings.is_encrypted:
        raise ConfigurationError(
            "it has recipients and says that nothing is encrypted", hint="Remove one of the two."
        )
    # Both raise when what they are given is wrong; neither asks the store.
    settings.make_encryptor()
    open_store(location)
    return settings


def _make_location(
    path: Path, store: StoreTable, credentials: CredentialsTable, values: Mapping[str, str]
) -> StoreLocation:
    folder = path.absolute().parent
    return StoreLocation(
        url=store.url,
        endpoint=store.endpoint,
        region=store.region,
        access_key=credentials.access_key
        or _read_secret(
            folder, "access_key", credentials.access_key_file, credentials.access_key_env, values
        ),
        secret_key=_read_secret(
            folder, "secret_key", credentials.secret_key_file, credentials.secret_key_env, values
        ),
        key_file=folder / credentials.key_file if credentials.key_file else None,
        host_key=store.host_key,
        certificates_path=folder / store.certificates_file if store.certificates_file else None,
        timeout_seconds=store.timeout_seconds,
    )


def _read_secret(
    folder: Path, name: str, file: str | None, variable: str | None, values: Mapping[str, str]
) -> str:
    if file and variable:
        raise ConfigurationError(f"it has both {name}_file and {name}_env", hint="Remove one of the two.")
    if variable:
        value = os.environ.get(variable) or values.get(variable, "")
        if not value:
            raise ConfigurationError(
                f"the environment variable {variable}, which {name}_env names, is not set",
                hint="Set it for the user and the service that run backups.",
            )
        return value
    if file:
        try:
            return read_small_file(folder / file).decode("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigurationError(
                f"the file that {name}_file names cannot be read: {reason}",
                hint="Check path and permissions.",
            ) from error
    return ""
