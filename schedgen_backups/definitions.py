"""The Dagster definitions that workspace.yaml loads, built from this process's environment."""

from __future__ import annotations

from schedgen_backups.config.config import load_config
from schedgen_backups.defs.site import build_site_definitions

defs = build_site_definitions(load_config())
