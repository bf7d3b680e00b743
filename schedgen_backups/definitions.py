"""The Dagster definitions that workspace.yaml loads, built from the environment and the file of sites."""

from __future__ import annotations

from schedgen_backups.config.sites import load_installation
from schedgen_backups.defs.site import build_installation_definitions

defs = build_installation_definitions(load_installation())
