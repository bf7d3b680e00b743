"""What Dagster records about runs and ticks, turned into alerts.

Add here what can fail without a hook noticing. No definitions: `defs` wires these functions into sensors.
Private Dagster names are used in `ticks` only.
"""
