"""The Dagster component `schedgen_backups.BackupSite`: a site in another Dagster project, from `defs.yaml`.

    type: schedgen_backups.BackupSite
    attributes:
      name: shop
      backup_dir: /var/backups/shop
      postgres_db: shop
      postgres_password_env: SHOP_PASSWORD

The attributes are those of a site in the file of sites (`config/sites.py`). Dagster refuses a whole code
location if one component raises an error. So no attribute does: what is wrong is a problem of the site, whose
work fails with that reason (docs.dagster.io, "Components").
"""

# Dagster's component tree and pydantic's factory of models have partially unknown types.
# pyright: basic

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, create_model

from schedgen_backups.config.sites import (
    BUCKET_KEY,
    SOURCE_TABLES,
    DeclaredSite,
    UnusableValue,
    load_declared_sites,
    may_set,
)
from schedgen_backups.config.variables import LIBPQ_VARIABLES, SITES_VARIABLE, VARIABLES, Variable
from schedgen_backups.defs.site import build_embedded_definitions
from schedgen_backups.site_names import SITE_NAME_PATTERN

_NAME = "name"
_NAME_PATTERN = f"^{SITE_NAME_PATTERN.pattern}$"
_TEXT: dict[str, Any] = {"type": "string"}
_VALUE: dict[str, Any] = {
    "anyOf": [
        {"type": ["string", "integer", "boolean"]},
        {"type": "array", "items": {"type": "string"}},
    ]
}


class BackupSite(dg.Component, dg.Resolvable, dg.Model):
    """A backup of a PostgreSQL database and its S3 bucket as one recovery point, with proof that it restores.

    Makes the assets NAME/database_dump, NAME/minio_archive, NAME/recovery_point and NAME/restore_drill with
    checks, jobs, schedules and sensors. Attributes are the settings of schedgen-backups in lower case. A
    secret is in a file (…_file) or in an environment variable (…_env).
    """

    name: str = ""
    """First part of the asset keys."""
    settings: Mapping[str, Any] = Field(default_factory=dict, repr=False)
    """The other attributes."""
    _path: Path | None = PrivateAttr(default=None)

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """Return what tools show of the component."""
        return dg.ComponentTypeSpec(
            owners=["team:operations"],
            produces=["asset", "asset_check", "job", "schedule", "sensor", "resource"],
        )

    @classmethod
    def model(cls) -> type[BaseModel]:
        """Return the model of the attributes in `defs.yaml`, which accepts every value."""
        return _make_model()

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> BackupSite:
        """Return the component with the values of its templates."""
        attributes = {
            key: _resolve_attribute(context.at_path(key), key, value)
            for key, value in model.model_dump(exclude_unset=True).items()
        }
        site = cls(name=str(attributes.pop(_NAME, "")), settings=attributes)
        site._path = dg.ComponentLoadContext.from_resolution_context(context).path
        return site

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the definitions of the site."""
        declared = self._find_all(context)
        sites = load_declared_sites([each._declare(context.path) for each in declared])  # noqa: SLF001 our own
        own = next(place for place, each in enumerate(declared) if each is self)
        return build_embedded_definitions(sites[own])

    def _find_all(self, context: dg.ComponentLoadContext) -> list[BackupSite]:
        """Return all components of this kind in the project, which must not share names and directories."""
        if self._path is None and context.path == context.defs_module_path:
            return [self]  # Python code made it and builds it itself, outside a project
        return context.component_tree.get_all_components(BackupSite)

    def _declare(self, fallback: Path) -> DeclaredSite:
        path = self._path or fallback
        return DeclaredSite(path / "defs.yaml" if path.is_dir() else path, self.name, self.settings)


def _resolve_attribute(context: dg.ResolutionContext, key: str, value: Any) -> object:
    """Return the value of an attribute; of databases and buckets, each setting is resolved for itself."""
    return _resolve_table(context, value) if key in SOURCE_TABLES else _resolve(context, value)


def _resolve_table(context: dg.ResolutionContext, value: Any) -> object:
    if not isinstance(value, Mapping):
        return _resolve(context, value)
    # A key in YAML may be a number, which no table of the file of sites has.
    return {str(key): _resolve_table(context.at_path(str(key)), each) for key, each in value.items()}


def _resolve(context: dg.ResolutionContext, value: Any) -> object:
    try:
        resolved = context.resolve_value(value)
    except Exception:  # noqa: BLE001 a template runs any code; its error would end the whole location
        return UnusableValue("is a template that cannot be evaluated")
    if resolved is None and value is not None:
        return UnusableValue("is a template without a value")
    return resolved


@cache
def _make_model() -> type[BaseModel]:
    settings: dict[str, dict[str, Any]] = {}
    for variable in VARIABLES:
        if variable.name != SITES_VARIABLE:
            settings.update(_describe_setting(variable))
    for name in LIBPQ_VARIABLES:
        settings[name.lower()] = {**_VALUE, "description": "Handed on to libpq as it is."}
    schemas = {
        _NAME: {
            "type": "string",
            "pattern": _NAME_PATTERN,
            "description": "Name of the site, the first part of its asset keys: at most 31 small letters, "
            "digits and single underscores.",
        },
        **settings,
        **{table: _describe_sources(kind, settings) for table, kind in SOURCE_TABLES.items()},
    }
    fields: dict[str, Any] = {name: _make_field(schema) for name, schema in schemas.items()}
    return create_model(
        "BackupSiteAttributes",
        # The schema names unknown keys for editors and `dg check yaml`; at run time they are problems of the
        # site, since an error of the model would take the whole location down.
        __config__=ConfigDict(
            extra="allow", json_schema_extra={"additionalProperties": False, "required": [_NAME]}
        ),
        **fields,
    )


def _describe_setting(variable: Variable) -> dict[str, dict[str, Any]]:
    """Return the schema of each attribute that gives this setting, by name."""
    name = variable.name.lower()
    value = {name: {**_VALUE, "default": variable.default, "description": variable.meaning}}
    return {
        **({} if variable.is_secret else value),
        f"{name}_file": {**_TEXT, "description": f"File that holds {name}: {variable.meaning}"},
        f"{name}_env": {
            **_TEXT,
            "description": f"Environment variable that holds {name}: {variable.meaning}",
        },
    }


def _describe_sources(kind: str, settings: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of the attribute that holds a table for each database, or for each bucket."""
    properties = {key: schema for key, schema in settings.items() if may_set(kind, key)}
    if kind == "database":
        properties[BUCKET_KEY] = {
            **_TEXT,
            "description": "Name in `buckets` of the bucket to which the rows of this database refer.",
        }
    return {
        "type": "object",
        "description": f"Each {kind} of a site that has several or only one kind, by a name: its settings, "
        "and those that differ from the site's.",
        "propertyNames": {"pattern": _NAME_PATTERN},
        "additionalProperties": {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
        },
    }


def _make_field(schema: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the definition of an attribute that this schema describes, and that accepts every value."""

    def replace_schema(generated: dict[str, Any]) -> None:
        generated.pop("default")
        generated.update(schema)

    return (Any, Field(default=None, json_schema_extra=replace_schema))
