"""The file of sites (BACKUP_SITES_FILE, TOML): several applications, each with a backup directory of its own.

    [defaults]
    smtp_host = "mail.example.org"

    [sites.shop]
    backup_dir = "/var/backups/shop"
    postgres_host = "db1"
    postgres_db = "shop"
    postgres_password_file = "shop.password"      # or postgres_password_env = "SHOP_PASSWORD"
    minio_bucket = "shop-pdfs"
    minio_secret_key_env = "SHOP_SECRET_KEY"
    backup_schedule = "0 3 * * *"

The keys are the settings of docs/reference/settings.md in lower case. What a site does not set comes from
`defaults`, then from the environment and the environment file. A site that is described wrongly does not
affect the others: what is wrong is a problem of its settings.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from schedgen_backups.config.config import Config, load_config
from schedgen_backups.config.env_file import EnvironmentFile
from schedgen_backups.config.reader import list_names, read_value_files
from schedgen_backups.config.site_directories import SiteDirectories
from schedgen_backups.config.toml_file import read_toml
from schedgen_backups.config.variables import (
    FILE_SUFFIX,
    LIBPQ_VARIABLES,
    METRICS_VARIABLE,
    SITES_VARIABLE,
    VARIABLES,
)
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.model import PartName
from schedgen_backups.site_names import RESERVED_SITE_NAMES, SITE_NAME_PATTERN

_NAME_LIMIT = 31
SITE_NAME_HINT = "use at most 31 small letters, digits and single underscores, and begin with a letter"
_ENV_SUFFIX = "_env"
_DEFAULTS = "defaults"
_UNREADABLE = ""
"""In the place of a setting: why the file of a site cannot be read."""
_Table = Mapping[str, Any]
_HINT = "docs/sites.md shows how sites are described."
_SECRETS = frozenset(variable.name for variable in VARIABLES if variable.is_secret)
OWN_SETTINGS = frozenset({"BACKUP_DIR", "POSTGRES_DB", "MINIO_BUCKET"})
"""Without these in its own table, a site would be the one of the environment, or another one."""
_SETTINGS = frozenset(variable.name for variable in VARIABLES) - {SITES_VARIABLE} | frozenset(LIBPQ_VARIABLES)
_KEYS = frozenset(
    {
        *(name.lower() for name in _SETTINGS),
        *(f"{name}{FILE_SUFFIX}".lower() for name in _SETTINGS),
        *(f"{name.lower()}{_ENV_SUFFIX}" for name in _SETTINGS),
    }
)


@dataclass(frozen=True)
class UnusableValue:
    """In the place of a setting's value: why there is none."""

    reason: str


@dataclass(frozen=True)
class DeclaredSite:
    """A site that another file than the file of sites describes, such as the one of a Dagster component."""

    file: Path
    """Relative paths start at its directory."""
    name: str
    table: Mapping[str, Any] = field(repr=False)


def load_declared_sites(declared: Sequence[DeclaredSite]) -> tuple[Config, ...]:
    """Return the configuration of every declared site, in order; never raise.

    What a site does not set comes from the environment and the environment file. A site with the name or the
    directory of an earlier one is a site with that problem.
    """
    base = load_config()
    sites: list[Config] = []
    names: set[str] = set()
    directories = SiteDirectories()
    for index, each in enumerate(declared):
        site = _make_site(base, each.file, each.name, {}, each.table)
        if site.site_name in names:
            site = replace(
                site.with_problems({"BACKUP_DIR": f"{each.file}: another site is named {each.name!r}, too"}),
                site_name=_make_name(f"{each.file} {index}"),
            )
        site = replace(site, _reload=partial(_load_declared_site, declared, index))
        names.add(site.site_name)
        sites.append(directories.add(site))
    return tuple(sites)


def _load_declared_site(declared: Sequence[DeclaredSite], index: int) -> Config:
    return load_declared_sites(declared)[index]


def load_sites() -> tuple[Config, ...]:
    """Return the configuration of every site, in order; without a file of sites, that of the only one.

    ConfigurationError when the file cannot be read, is not TOML or holds no site. In a directory, each file
    is read on its own, and one that cannot be used is a site with that problem.
    """
    base = load_config()
    path = find_sites_file(base)
    return (base,) if path is None else read_sites(base, path)


def read_sites(base: Config, path: Path) -> tuple[Config, ...]:
    """Return the configuration of every site of this file or directory; errors as `load_sites`."""
    defaults, tables = _read_folder(path) if path.is_dir() else _read_tables(path)
    sites: list[Config] = []
    directories = SiteDirectories()
    for name, table in tables.items():
        site = _make_site(base, path, name, defaults, table)
        sites.append(directories.add(site))
    return tuple(sites)


def load_installation() -> tuple[Config, ...]:
    """Return the configuration of every site; never raise.

    When the file of sites cannot be used, one site whose work fails with that reason and whose alerts go
    where the environment says.
    """
    try:
        return load_sites()
    except ConfigurationError as error:
        return (load_config().with_problems({"BACKUP_DIR": error.message}),)


def reload_sites(sites: Sequence[Config]) -> dict[str, Config]:
    """Return the configuration of these sites by name, read again as by `reload`, the file once for all."""
    try:
        loaded = {site.site_name: site for site in load_sites() if site.site_name}
    except ConfigurationError:  # `reload` makes it a problem of each site
        loaded = {}
    return {site.site_name: loaded.get(site.site_name) or site.reload() for site in sites}


def inherit_settings(base: Config, path: Path, name: str) -> Config:
    """Return what a site of this name has before its own table is written; errors as `read_sites`."""
    defaults, _tables = _read_tables(path)
    return _make_site(base, path, name, defaults, {})


def load_site(name: str) -> Config:
    """Return the configuration of this site, or of a part of one (`SITE/NAME`).

    ConfigurationError if it is not described.
    """
    sites = {site.site_name: site for site in load_sites()}
    name, divided, part = name.partition("/")
    if name in sites:
        return sites[name].select_part(part) if divided else sites[name]
    names = ", ".join(filter(None, sites))
    raise ConfigurationError(
        f"unknown site {name!r}",
        hint=f"The sites are {names}." if names else f"{SITES_VARIABLE} describes sites.",
    )


def require_one_site(sites: Sequence[Config]) -> Config:
    """Return the only site; ConfigurationError that names the sites when there are several."""
    if len(sites) == 1:
        return sites[0]
    raise ConfigurationError(
        "there are several sites, and none was named",
        hint=f"Add --site NAME before the command: {', '.join(site.site_name for site in sites)}.",
    )


def find_sites_file(base: Config) -> Path | None:
    """Return the file or directory of sites; None without one, ConfigurationError if the path is wrong."""
    if base.file.error is not None:  # each part of the site reports it
        return None
    reader = base.open_reader()
    path = reader.path(SITES_VARIABLE)
    reader.check()
    return path


def _read_tables(path: Path) -> tuple[_Table, dict[str, _Table | None]]:
    """Return the table of defaults, and that of each site by name; None for another value."""
    tables = _read_toml(path)
    defaults, sites = _as_table(tables.pop("defaults", {})), _as_table(tables.pop("sites", {}))
    if tables or sites is None or defaults is None:
        raise ConfigurationError(
            f"{path} may only contain [defaults] and tables [sites.NAME]"
            + (f", not {', '.join(sorted(tables))}" if tables else ""),
            hint=_HINT,
        )
    if not sites:
        raise ConfigurationError(f"{path} describes no site", hint=_HINT)
    return defaults, {name: _as_table(table) for name, table in sites.items()}


def _read_folder(path: Path) -> tuple[_Table, dict[str, _Table | None]]:
    """Return the same of a directory with NAME.toml for each site, and perhaps defaults.toml.

    The text of an error stands in the place of a table, under the key that no setting has.
    """
    tables: dict[str, _Table | None] = {}
    for file in sorted(path.glob("*.toml")):
        try:
            tables[file.stem] = _read_toml(file)
        except ConfigurationError as error:
            tables[file.stem] = {_UNREADABLE: error.message}
    defaults = tables.pop(_DEFAULTS, {}) or {}
    if not tables:
        raise ConfigurationError(f"{path} holds no file NAME.toml", hint=_HINT)
    return defaults, tables


def _read_toml(path: Path) -> dict[str, Any]:
    return read_toml(path, what="file of sites", variable=SITES_VARIABLE, hint=_HINT)


def _as_table(value: Any) -> _Table | None:
    # The keys of a TOML table are text.
    return cast("_Table", value) if isinstance(value, dict) else None


def _make_site(base: Config, path: Path, name: str, defaults: _Table, table: _Table | None) -> Config:
    # A site whose name nothing can bear has definitions, too, so that its work fails with that reason.
    usable = name if is_site_name(name) else _make_name(name)
    folder = path if path.is_dir() else path.parent
    file = EnvironmentFile(path, (path,), folder.absolute())
    problems = _Problems(path)
    if not is_site_name(name):
        problems.add(
            "BACKUP_DIR",
            f"{name!r} cannot be the name of a site: {SITE_NAME_HINT}",
        )
    if table is None:
        problems.add("BACKUP_DIR", f"it holds no table [sites.{name}]")
    own = problems.translate(
        f"site {name}", {key: value for key, value in (table or {}).items() if key not in SOURCE_TABLES}
    )
    sources = _SourceTables.read(name, table or {}, problems)
    if sources is not None:
        for each in sorted(OWN_SETTINGS & own.keys() - {"BACKUP_DIR"}):
            problems.add(each, f"site {name} sets {each.lower()} beside its tables of databases and buckets")
            del own[each]
    for each in OWN_SETTINGS - {key.removesuffix(FILE_SUFFIX) for key in own} - problems.found.keys():
        if sources is None or each == "BACKUP_DIR":
            problems.add(each, f"site {name} does not set {each.lower()}")
    shared = {
        key: value
        for key, value in problems.translate("defaults", defaults).items()
        if list_names(key).isdisjoint(own)
    }
    settings = {"BACKUP_NAME": name, **shared, **own}
    named = {plain for key in settings for plain in list_names(key)}
    inherited = {
        key: value
        for key, value in base.values.items()
        if key != SITES_VARIABLE and key not in OWN_SETTINGS and key not in named
    }
    values, unreadable = read_value_files({**inherited, **settings}, file)
    metrics = Path(values.get(METRICS_VARIABLE, ""))
    if metrics.name and METRICS_VARIABLE not in own:
        # Sites that share the setting would overwrite each other's file.
        values[METRICS_VARIABLE] = str(metrics.with_name(f"{metrics.stem}-{usable}{metrics.suffix}"))
    site = Config(
        file,
        MappingProxyType(values),
        MappingProxyType({**unreadable, **problems.found}),
        site_name=usable,
        _reload=partial(load_site, usable),
        _installation_file=base.file,
    )
    return site if sources is None else sources.divide(site, {**inherited, **settings})


def _make_name(text: str) -> str:
    return f"site_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def is_site_name(name: str) -> bool:
    """Return whether a site can have this name."""
    return (
        SITE_NAME_PATTERN.fullmatch(name) is not None
        and len(name) <= _NAME_LIMIT
        and name not in RESERVED_SITE_NAMES
    )


class _Problems:
    """What is wrong with a site: by the variable whose reader is to report it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, str] = {}

    def add(self, name: str, problem: str) -> None:
        """Add a problem with the setting of this name."""
        said = (self.found.get(name, ""), f"{self.path}: {problem}")
        self.found[name] = "; ".join(filter(None, said))

    def translate(self, where: str, table: _Table) -> dict[str, str]:
        """Return the variables that a table sets; add what is wrong with it."""
        values: dict[str, str] = {}
        for key, value in table.items():
            if key == _UNREADABLE:
                self.add("BACKUP_DIR", f"{where}: {value}")
            elif key not in _KEYS:
                self._add_unknown(where, key)
            elif isinstance(value, UnusableValue):
                self.add(_name_of(key), f"{where}: {key} {value.reason}")
            elif (text := _to_text(value)) is None:
                self.add(
                    _name_of(key), f"{where}: {key} is neither text, number, true, false nor a list of texts"
                )
            elif key.endswith(_ENV_SUFFIX) and key not in _PLAIN_KEYS:
                values[_name_of(key)] = os.environ.get(text, "")
                if not values[_name_of(key)]:
                    self.add(
                        _name_of(key),
                        f"{where}: {key} names the environment variable {text}, which is not set",
                    )
            elif key.upper() in _SECRETS:
                self.add(key.upper(), f"{where}: {key}: a secret cannot stand in this file; use {key}_file")
            else:
                values[key.upper()] = text
        return values

    def _add_unknown(self, where: str, key: str) -> None:
        nearest = get_close_matches(key, sorted(_KEYS), n=1)
        guess = f"; did you mean {nearest[0]}?" if nearest else ""
        # With the setting that is probably meant, so that the work which needs it fails with this reason.
        self.add(_name_of(nearest[0]) if nearest else "BACKUP_DIR", f"{where}: {key} is not a setting{guess}")


_PLAIN_KEYS = frozenset(name.lower() for name in _SETTINGS)


def _name_of(key: str) -> str:
    """Return the variable that a key is about, without what says where its value is."""
    if key in _PLAIN_KEYS:
        return key.upper()
    return key.removesuffix(_ENV_SUFFIX).removesuffix(FILE_SUFFIX.lower()).upper()


SOURCE_TABLES = {"databases": "database", "buckets": "bucket"}
"""The tables of a site that hold a table for each of its databases or buckets, and what one of them is."""
BUCKET_KEY = "bucket"
"""In the table of a database: to which bucket of the site its rows refer."""
_FOREIGN_PREFIXES = {"database": ("MINIO_",), "bucket": ("POSTGRES_",)}


def may_set(kind: str, key: str) -> bool:
    """Return whether the table of a database or a bucket can have this key."""
    # None may change the other half or where the points are.
    name = _name_of(key)
    return key in _KEYS and name != "BACKUP_DIR" and not name.startswith(_FOREIGN_PREFIXES[kind])


@dataclass(frozen=True)
class _SourceTables:
    """The databases and buckets of a site that does not have exactly one of each."""

    site: str
    path: Path
    databases: Mapping[str, _Table]
    buckets: Mapping[str, _Table]

    @classmethod
    def read(cls, site: str, table: _Table, problems: _Problems) -> _SourceTables | None:
        """Return the tables; None for a site without. Add what is wrong with their names."""
        if not any(kind in table for kind in SOURCE_TABLES):
            return None
        found: dict[str, dict[str, _Table]] = {}
        for kind in SOURCE_TABLES:
            tables = _as_table(value := table.get(kind, {}))
            if tables is None:
                reason = value.reason if isinstance(value, UnusableValue) else "must hold a table for each"
                problems.add("BACKUP_DIR", f"site {site}: {kind} {reason}")
            found[kind] = {name: _as_table(each) or {} for name, each in (tables or {}).items()}
        names = [name for tables in found.values() for name in tables]
        for name in dict.fromkeys(names):
            if not is_site_name(name):
                problems.add(
                    "BACKUP_DIR", f"site {site}: {name!r} cannot be the name of a database or a bucket"
                )
            if names.count(name) > 1:
                problems.add("BACKUP_DIR", f"site {site}: {name} is the name of a database and of a bucket")
        if not names:
            problems.add("BACKUP_DIR", f"site {site} has neither a database nor a bucket")
        return cls(site, problems.path, found["databases"], found["buckets"])

    def divide(self, site: Config, settings: Mapping[str, str]) -> Config:
        """Return the site with a part for each database, and for each bucket to which none refers."""
        several = (
            f"{self.path}: site {self.site} has databases and buckets of its own: name one of them, as "
            f"{self.site}/{next(iter((*self.databases, *self.buckets)), 'NAME')}"
        )
        parts = [PartName(name, self._find_bucket(table)) for name, table in self.databases.items()]
        referred = {part.bucket for part in parts}
        parts += [PartName("", name) for name in self.buckets if name not in referred]
        return site.with_parts(
            [(name, *self._read_part(name, site, settings)) for name in parts],
            dict.fromkeys(("POSTGRES_DB", "MINIO_BUCKET"), several),
        )

    def _find_bucket(self, table: _Table) -> str:
        """Return the bucket to which the database refers; empty for none, or one that does not exist."""
        named = table.get(BUCKET_KEY)
        if named is None and len(self.buckets) == len(self.databases) == 1:
            return next(iter(self.buckets))
        return named if isinstance(named, str) and named in self.buckets else ""

    def _read_part(
        self, name: PartName, site: Config, settings: Mapping[str, str]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return the values and the problems of a part."""
        problems = _Problems(self.path)
        own: dict[str, str] = {}
        for kind, source, tables, required in (
            ("database", name.database, self.databases, "POSTGRES_DB"),
            ("bucket", name.bucket, self.buckets, "MINIO_BUCKET"),
        ):
            where = f"site {self.site}, {kind} {source}"
            if not source:
                problems.add(required, f"site {self.site}: {name} has no {kind}")
                continue
            table = {key: value for key, value in tables[source].items() if key != BUCKET_KEY}
            for key in sorted(key for key in table if not may_set(kind, key)):
                guess = "".join(get_close_matches(key, [BUCKET_KEY, *sorted(_KEYS)], n=1))
                is_known = key in _KEYS
                reason = "belongs elsewhere" if is_known else "is not a setting"
                reason += f"; did you mean {guess}?" if guess and not is_known else ""
                problems.add(required, f"{where}: {key} {reason}")
                del table[key]
            own |= problems.translate(where, table)
            if required not in problems.found and required not in {
                key.removesuffix(FILE_SUFFIX) for key in own
            }:
                problems.add(required, f"{where} does not set {required.lower()}")
        wanted = self.databases.get(name.database, {}).get(BUCKET_KEY)
        if wanted is not None and wanted != name.bucket:
            lack = f"bucket {wanted.reason}" if isinstance(wanted, UnusableValue) else f"no bucket {wanted!r}"
            problems.add("POSTGRES_DB", f"site {self.site}, database {name.database}: {lack}")
        if not name.bucket:
            own["BACKUP_PRESET"], own["BACKUP_REFERENCE_QUERY"] = "none", ""
        named = {plain for key in own for plain in list_names(key)}
        kept = {key: value for key, value in settings.items() if key not in named}
        values, unreadable = read_value_files({**kept, **own}, site.file)
        return values, {**unreadable, **problems.found}


def _to_text(value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, list):
        texts = [each for each in cast("list[object]", value) if isinstance(each, str)]
        return ",".join(texts) if len(texts) == len(cast("list[object]", value)) else None
    return None
