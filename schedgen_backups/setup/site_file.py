"""The texts of a site that is added to the file of sites: its table, and the files of its secrets.

Pure functions from values to texts. Everything else in the file of sites is kept byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schedgen_backups.config.config import Config
from schedgen_backups.config.reader import resolve_path
from schedgen_backups.config.sites import OWN_SETTINGS
from schedgen_backups.config.variables import (
    FILE_SUFFIX,
    LIBPQ_VARIABLES,
    SITES_VARIABLE,
    VARIABLE_GROUPS,
    VARIABLES,
)
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.setup.store_file import format_value, parse_tables

PATHS = frozenset(
    {
        "BACKUP_DIR",
        "BACKUP_GIT_DIRECTORY",
        "BACKUP_METRICS_FILE",
        "BACKUP_PACK_IDENTITY_FILE",
        "BACKUP_STAGING_DIR",
        "BACKUP_STORES_FILE",
        "DRILL_DIR",
        "DRILL_SQL_CHECKS",
        "PG_BIN_DIR",
    }
)
"""Settings that are paths; a relative one starts at the directory of the file that sets it."""
_OF_THE_INSTALLATION = "The Dagster UI"
"""Group of variables that belong to no site."""
_WAY_OUT = "Edit the file yourself: docs/sites.md shows how sites are described."


@dataclass(frozen=True)
class NewSite:
    """A site that is added to a file of sites."""

    name: str
    table: Mapping[str, str]
    """Its settings in lower case, without secrets."""
    files: Mapping[str, bytes] = field(repr=False)
    """Its secrets: name of a file beside the file of sites → contents."""

    @property
    def text(self) -> str:
        """Its table as TOML."""
        lines = [f"{key} = {format_value(value)}" for key, value in self.table.items()]
        return "\n".join([f"[sites.{self.name}]", *lines, ""])


def make_site(name: str, config: Config) -> NewSite:
    """Return the site of this name with every setting of `config`, whose paths become absolute.

    A secret of the environment file goes into a file; one of the process's environment stays there.
    """
    table: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for group in VARIABLE_GROUPS:
        for variable in group.variables if group.title != _OF_THE_INSTALLATION else ():
            key, value = variable.name.lower(), config.values.get(variable.name, "").strip()
            if variable.name in OWN_SETTINGS:
                value = value or variable.default
            if path := config.values.get(variable.name + FILE_SUFFIX, "").strip():
                table[f"{key}_file"] = _make_absolute(path, config)
            elif not value or variable.name == SITES_VARIABLE:
                continue
            elif not variable.is_secret:
                table[key] = _make_absolute(value, config) if variable.name in PATHS else value
            elif config.file.values.get(variable.name, "").strip() == value:
                table[f"{key}_file"] = f"{name}.{key}"
                files[f"{name}.{key}"] = f"{value}\n".encode()
            else:
                table[f"{key}_env"] = variable.name
    table.update({each.lower(): config.values[each] for each in LIBPQ_VARIABLES if config.values.get(each)})
    return NewSite(name, table, files)


def make_added_site(name: str, inherited: Config, answers: Mapping[str, str]) -> NewSite:
    """Return the site of this name with those answers that differ from what it inherits."""
    table: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for variable in VARIABLES:
        key, answer = variable.name.lower(), answers.get(variable.name)
        known = inherited.values.get(variable.name, "").strip() or variable.default
        if answer is None or (answer == known and variable.name not in OWN_SETTINGS):
            continue
        if answer and variable.is_secret:
            table[f"{key}_file"] = f"{name}.{key}"
            files[f"{name}.{key}"] = f"{answer}\n".encode()
        elif not variable.is_secret:
            table[key] = answer
    return NewSite(name, table, files)


def add_site(text: str, site: NewSite) -> str:
    """Return the file of sites with this one added.

    ConfigurationError if it has the site already, or says anything else afterwards.
    """
    before = _parse(text)
    if site.name in before:
        raise ConfigurationError(f"the file describes the site {site.name} already", hint=_WAY_OUT)
    kept = text if not text or text.endswith("\n") else f"{text}\n"
    merged = f"{kept}\n{site.text}" if kept.strip() else kept + site.text
    try:
        found = _parse(merged)
    except ConfigurationError:
        found = {}
    if found != {**before, site.name: dict(site.table)}:
        raise ConfigurationError(f"the site {site.name} cannot be added to this file", hint=_WAY_OUT)
    return merged


def _make_absolute(path: str, config: Config) -> str:
    try:
        return str(resolve_path(path, config.file))
    except ValueError:  # the settings are wrong, and stay so
        return path


def _parse(text: str) -> dict[str, Any]:
    return parse_tables(text, kind="sites", hint=_WAY_OUT)
