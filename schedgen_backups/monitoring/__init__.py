"""Alerts made from what Dagster records about runs and ticks.

Add here what can fail without a hook noticing. No definitions live here: `defs` calls these functions from
sensors. Only `ticks` uses private Dagster names.
"""
