"""The configuration of a site, read once per command, run and tick, and passed on as one value."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from schedgen_backups.config.alerts import AlertSettings, read_alerts, read_metrics_file
from schedgen_backups.config.capture import read_capture, read_commands
from schedgen_backups.config.drill import read_drill
from schedgen_backups.config.encryption import check_encryption, read_identity_file, read_staging
from schedgen_backups.config.env_file import EnvironmentFile, find_environment_file
from schedgen_backups.config.reader import Reader, list_names, read_value_files
from schedgen_backups.config.schedules import (
    DefinitionSettings,
    HousekeepingSettings,
    ScheduleSettings,
    read_definition_settings,
    read_housekeeping,
    read_retention,
    read_schedule,
    read_timezone,
)
from schedgen_backups.config.sources import read_bucket, read_database, read_database_server
from schedgen_backups.config.stores import STORES_VARIABLE, StoreEntry, read_stores
from schedgen_backups.config.ui import UiSettings, read_ui
from schedgen_backups.config.variables import (
    CERTIFICATES_VARIABLE,
    ENV_FILE_VARIABLE,
    NAMES,
    PACK_IDENTITY_VARIABLE,
)
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.copies.settings import StoreSettings
from schedgen_backups.core.copies.status import StoreStatus
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.formats.pack_reader import NO_KEYS, PackKeys
from schedgen_backups.core.model import ArtifactKind, PartName
from schedgen_backups.core.packs.identity_file import IdentityFile
from schedgen_backups.core.retention.plan import RetentionPolicy
from schedgen_backups.core.settings import (
    BucketSettings,
    CaptureSettings,
    CommandSettings,
    DatabaseSettings,
    DrillSettings,
)
from schedgen_backups.core.verify.live_system import LiveApplication

Part = Literal[
    "database",
    "database_server",
    "bucket",
    "backup_directory",
    "capture",
    "schedule",
    "retention",
    "stores",
    "alerts",
    "drill",
    "ui",
    "git_directory",
    "commands",
]
"""A property of Config that may raise."""
_KINDS_BY_SETTING: Mapping[str, frozenset[ArtifactKind]] = {
    "database": frozenset({ArtifactKind.DATABASE}),
    "database_server": frozenset({ArtifactKind.DATABASE}),
    "bucket": frozenset({ArtifactKind.BUCKET}),
    "capture": frozenset(),
}
"""What each database, bucket or both of a site have for themselves, and which of them."""


@dataclass(frozen=True, eq=False)
class Config:
    """The settings of a site, from its environment and its environment file at one moment.

    Each part is parsed at its first use, and raises a ConfigurationError that names every missing or invalid
    variable of that part. An invalid part does not affect the others. The parts are frozen values; pass on
    the part that is needed.
    """

    file: EnvironmentFile
    values: Mapping[str, str] = field(repr=False)
    """Every variable that is set, unparsed."""
    _file_problems: Mapping[str, str] = field(repr=False)
    _named_file: Path | None = None
    _points_directory: Path | None = None
    _points_keys: PackKeys | None = None
    store: str = ""
    """The store from which the recovery points were fetched; empty for the site's own."""
    site_name: str = ""
    """Name in the file of sites; empty for the site that the environment describes."""
    _reload: Callable[[], Config] | None = None
    _parts: tuple[Config, ...] = ()
    part: PartName | None = None
    """Which part of a site of several databases or buckets this is; None for a whole site."""
    part_count: int = 1
    """How many parts the site has of which this is one."""
    _installation_file: EnvironmentFile | None = None

    @property
    def parts(self) -> tuple[Config, ...]:
        """Each database with its bucket, or one of them alone, as a site of its own; one in most sites."""
        return self._parts or (self,)

    @property
    def is_divided(self) -> bool:
        """Whether the site has several databases or buckets, or only one of the two kinds."""
        return bool(self._parts)

    def with_parts(
        self,
        parts: Sequence[tuple[PartName, Mapping[str, str], Mapping[str, str]]],
        problems: Mapping[str, str],
    ) -> Config:
        """Return a copy with these parts: name, values and problems of each. `problems` are of the whole."""
        return replace(
            self,
            _file_problems=MappingProxyType({**self._file_problems, **problems}),
            _parts=tuple(
                replace(
                    self,
                    values=MappingProxyType({**self.values, **values}),
                    _file_problems=MappingProxyType({**self._file_problems, **problems}),
                    part=name,
                    part_count=len(parts),
                )
                for name, values, problems in parts
            ),
        )

    @property
    def command_words(self) -> tuple[str, ...]:
        """How a command on this site, or on this part of one, begins."""
        if not self.site_name:
            return ("schedgen-backups",)
        part = f"/{self.part.database or self.part.bucket}" if self.part is not None else ""
        return ("schedgen-backups", "--site", f"{self.site_name}{part}")

    def select_part(self, name: str) -> Config:
        """Return the part with the database or the bucket of this name, whose catalog shows only its files.

        ConfigurationError if there is none.
        """
        for part in self._parts:
            if part.part is not None and name == (part.part.database or part.part.bucket):
                return replace(part, _reload=lambda: self.reload().select_part(name))
        names = ", ".join(part.part.database or part.part.bucket for part in self._parts if part.part)
        raise ConfigurationError(
            f"the site {self.site_name} has no part {name!r}",
            hint=f"Its parts are {names}." if names else "It has one database and one bucket: name the site.",
        )

    @property
    def installation_file(self) -> EnvironmentFile:
        """The environment file of the installation, also if another file describes the site."""
        return self._installation_file or self.file

    def reload(self) -> Config:
        """Read the configuration of the same site again; never raise.

        If the file of sites cannot be read or does not describe the site any more, backups fail with that
        reason, and alerts go where they went before.
        """
        try:
            current = self._reload() if self._reload is not None else load_config(self._named_file)
        except ConfigurationError as error:
            # Without its parts, which would go on with the settings of before.
            whole = replace(self, _parts=())
            current = whole.with_problems(dict.fromkeys(("POSTGRES_DB", "MINIO_BUCKET"), error.message))
        if self._points_directory is not None:
            keys = self._points_keys or NO_KEYS
            current = current.with_points_in(self._points_directory, store=self.store, keys=keys)
        return replace(current, site_name=self.site_name, _reload=self._reload)

    def with_points_in(self, directory: Path, *, store: str, keys: PackKeys) -> Config:
        """Return a copy whose recovery points are in this directory, also after `reload`.

        They were fetched from this store, and these keys open their packs.
        """
        return replace(
            self,
            _points_directory=directory,
            _points_keys=keys,
            store=store,
            _parts=tuple(part.with_points_in(directory, store=store, keys=keys) for part in self._parts),
        )

    def with_values(self, values: Mapping[str, str]) -> Config:
        """Return a copy with these values instead of those that were read."""
        problems = {name: problem for name, problem in self._file_problems.items() if name not in values}
        return replace(
            self,
            values=MappingProxyType({**self.values, **values}),
            _file_problems=MappingProxyType(problems),
            _parts=tuple(part.with_values(values) for part in self._parts),
        )

    def with_problems(self, problems: Mapping[str, str]) -> Config:
        """Return a copy in which these settings, given by name, are wrong for these reasons, in each part."""
        return replace(
            self,
            _file_problems=MappingProxyType({**self._file_problems, **problems}),
            _parts=tuple(part.with_problems(problems) for part in self._parts),
        )

    def check(self, *parts: Part) -> None:
        """Raise one ConfigurationError that names everything that is wrong with these parts.

        With one error at a time, each fix would cost a night. What a site has for each of its databases and
        buckets is checked for each.
        """
        errors: list[ConfigurationError] = []
        for part in parts:
            for holder in self._find_holders(part):
                try:
                    getattr(holder, part)
                except ConfigurationError as error:
                    errors.append(error)
        if errors:
            messages = dict.fromkeys(error.message for error in errors)
            raise ConfigurationError(
                "; ".join(messages), hint=" ".join(dict.fromkeys(error.hint for error in errors))
            )

    def _find_holders(self, part: Part) -> tuple[Config, ...]:
        """Return the parts of the site that have this for themselves, or the site."""
        kinds = _KINDS_BY_SETTING.get(part)
        if kinds is None or not self._parts:
            return (self,)
        return tuple(each for each in self._parts if each.part is not None and kinds <= each.part.kinds)

    def open_reader(self) -> Reader:
        """Return a reader of single variables; ConfigurationError if the environment file is unusable."""
        if self.file.error is not None:
            raise self.file.error
        return self._make_reader()

    @cached_property
    def database(self) -> DatabaseSettings:
        """Connection settings of the database."""
        reader = self.open_reader()
        settings = read_database(reader)
        reader.check()
        return settings

    @cached_property
    def database_server(self) -> DatabaseSettings:
        """The same without the password, for those who only need to know which server it is."""
        reader = self.open_reader()
        settings = read_database_server(reader)
        reader.check()
        return settings

    @cached_property
    def bucket(self) -> BucketSettings:
        """Connection settings of the bucket."""
        reader = self.open_reader()
        settings = read_bucket(reader)
        reader.check()
        return settings

    @property
    def backup_directory(self) -> Path:
        """Absolute path of the directory of the recovery points; it may not exist."""
        return self._points_directory or self.site_directory

    @cached_property
    def site_directory(self) -> Path:
        """The directory of the site's own recovery points, of its alerts and its history.

        It differs from `backup_directory` while a command works on points that were fetched from a store.
        """
        reader = self.open_reader()
        directory = reader.path("BACKUP_DIR")
        reader.check()
        if directory is None:
            raise ConfigurationError("BACKUP_DIR is not set", hint=self.file.advice)
        return directory

    @property
    def alert_directory(self) -> Path:
        """Directory for the state of alerts: the site's, or one in DAGSTER_HOME while BACKUP_DIR is wrong.

        ConfigurationError if BACKUP_DIR is wrong and DAGSTER_HOME is not set.
        """
        try:
            return self.site_directory
        except ConfigurationError:
            home = os.environ.get("DAGSTER_HOME")
            if not home:
                raise
            return Path(home).expanduser() / "alerts" / (self.site_name or "site")

    @cached_property
    def git_directory(self) -> Path | None:
        """Checkout of the application, whose commit is recorded with each point; None if it is not set."""
        reader = self.open_reader()
        directory = reader.path("BACKUP_GIT_DIRECTORY")
        reader.check()
        return directory

    @cached_property
    def commands(self) -> CommandSettings:
        """Commands that run before and after a backup."""
        reader = self.open_reader()
        settings = read_commands(reader)
        reader.check()
        return settings

    @cached_property
    def capture(self) -> CaptureSettings:
        """Settings of taking a recovery point and of transferring data."""
        reader = self.open_reader()
        settings = read_capture(reader)
        reader.check()
        check_encryption(settings, reader.text(PACK_IDENTITY_VARIABLE))
        return settings

    @cached_property
    def schedule(self) -> ScheduleSettings:
        """When backups run, and their limits on this machine."""
        reader = self.open_reader()
        settings = read_schedule(reader)
        reader.check()
        return settings

    @cached_property
    def housekeeping(self) -> HousekeepingSettings:
        """When a report is made, and how long Dagster keeps runs."""
        reader = self.open_reader()
        settings = read_housekeeping(reader)
        reader.check()
        return settings

    @cached_property
    def retention(self) -> RetentionPolicy:
        """Rules for keeping recovery points."""
        reader = self.open_reader()
        policy = read_retention(reader)
        reader.check()
        return policy

    @cached_property
    def stores(self) -> tuple[StoreEntry, ...]:
        """The stores of copies; those that are described wrongly carry their error."""
        reader = self.open_reader()
        path = reader.path(STORES_VARIABLE)
        timezone = read_timezone(reader)
        reader.check()
        return read_stores(path, timezone, self.values) if path is not None else ()

    def read_store_statuses(self) -> list[StoreStatus]:
        """Return what is known on this host of the copies in every store; no store is asked.

        ConfigurationError if the file cannot be read.
        """
        return [entry.read_status(self.backup_directory) for entry in self.stores]

    def find_store(self, name: str) -> StoreSettings:
        """Return the settings of this store; ConfigurationError if it does not exist or they are wrong."""
        for entry in self.stores:
            if entry.name == name:
                return entry.require()
        names = ", ".join(entry.name for entry in self.stores)
        raise ConfigurationError(
            f"unknown store {name!r}",
            hint=f"The stores are {names}." if names else "BACKUP_STORES_FILE describes stores.",
        )

    @cached_property
    def alerts(self) -> AlertSettings:
        """Recipients and channels of alerts, and the age limit of recovery points."""
        reader = self.open_reader()
        settings = read_alerts(reader)
        reader.check()
        return settings

    @cached_property
    def drill(self) -> DrillSettings:
        """Target and checks of restore drills."""
        reader = self.open_reader()
        # A variable of Dagster, not a setting of ours: its history contains the logs of runs.
        homes = (Path(os.environ["DAGSTER_HOME"]).expanduser(),) if os.environ.get("DAGSTER_HOME") else ()
        files = (self.file.path,) if self.file.path is not None else ()
        keys = (self.pack_identity_file.path,) if self.pack_identity_file is not None else ()
        hidden = (self.site_directory, *homes, *files, *keys, *filter(None, (self._find_staging(),)))
        settings = read_drill(
            reader, self.backup_directory, hidden_paths=tuple(path.absolute() for path in hidden)
        )
        reader.check()
        return settings

    @cached_property
    def metrics_file(self) -> Path | None:
        """The file into which metrics are written; None if there is none.

        Other users read it, which they cannot within the backup directory.
        """
        return read_metrics_file(self.open_reader(), self.site_directory)

    @cached_property
    def ui(self) -> UiSettings:
        """Host names of the Dagster UI, and who may log in."""
        reader = self.open_reader()
        settings = read_ui(reader)
        reader.check()
        return settings

    @cached_property
    def definitions(self) -> DefinitionSettings:
        """What Dagster needs when the code location loads; never raises."""
        return read_definition_settings(self._make_reader())

    @property
    def live_application(self) -> LiveApplication:
        """The live database and bucket."""
        return LiveApplication(self.database, self.bucket, self.capture.transfer, self.capture.references)

    def open_catalog(self) -> Catalog:
        """Open the backup directory; raise ConfigurationError if it does not exist."""
        if not self.backup_directory.is_dir():
            raise ConfigurationError(
                f"BACKUP_DIR {self.backup_directory} is not a directory",
                hint="Set BACKUP_DIR, or take the first backup.",
            )
        return self.make_catalog()

    def make_catalog(self) -> Catalog:
        """Return the backup directory, which may not exist, with the keys of its packs."""
        return Catalog(self.backup_directory, self.pack_keys, self._find_staging(), part=self.part)

    def _find_staging(self) -> Path | None:
        """Return where backups stage files, if it is not in the backup directory."""
        reader = self.open_reader()
        staging = read_staging(reader, self.site_directory) if self._points_directory is None else None
        reader.check()
        return staging

    @property
    def pack_keys(self) -> PackKeys:
        """What opens encrypted packs; the file of keys is read at the first use, and may be wrong."""
        if self._points_keys is not None:
            return self._points_keys
        return self.pack_identity_file or NO_KEYS

    @cached_property
    def pack_identity_file(self) -> IdentityFile | None:
        """The file of private keys for the packs of the backup directory; None if it is not set.

        ConfigurationError if it lies in that directory, whose disk is to reveal nothing.
        """
        return read_identity_file(self.open_reader(), self.site_directory)

    def _make_reader(self) -> Reader:
        return Reader(self.values, self._file_problems, self.file)


def load_config(env_file: Path | None = None) -> Config:
    """Read the environment and the environment file; never raise.

    The file is the given one, otherwise that of BACKUP_ENV_FILE, otherwise the one that is found. A variable
    of the process's environment overrides the file, even if it is empty; NAME and NAME_FILE each override
    both of the file.
    """
    named = os.environ.get(ENV_FILE_VARIABLE, "").strip()
    return _load(find_environment_file(env_file or (Path(named).expanduser() if named else None)), env_file)


def load_config_to_write(env_file: Path) -> Config:
    """Read the environment and this environment file, which may not exist yet."""
    file = find_environment_file(env_file)
    return _load(
        file if env_file.exists() else EnvironmentFile(file.path, file.places, file.folder), env_file
    )


def choose_environment_file(path: Path) -> None:
    """Use this environment file in this process, its runs and the programs that it starts."""
    os.environ[ENV_FILE_VARIABLE] = str(path.absolute())


def _load(file: EnvironmentFile, named: Path | None) -> Config:
    from_process = {
        name: value for name, value in os.environ.items() if name in NAMES or name == CERTIFICATES_VARIABLE
    }
    from_file = {
        name: value for name, value in file.values.items() if from_process.keys().isdisjoint(list_names(name))
    }
    values, problems = read_value_files({**from_file, **from_process}, file)
    return Config(file, MappingProxyType(values), MappingProxyType(problems), named)
