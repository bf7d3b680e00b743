"""The Dagster definitions: assets, checks, jobs, schedules, sensors, hooks and resources.

Add a definition here (docs.dagster.io, "Definitions"). It calls `core` and turns the result into metadata.
SQL, file formats and the texts of alerts live elsewhere. Imports everything below `definitions`; only
`definitions` and `runs` import it, and Dagster by the name `schedgen_backups.BackupSite`.
"""
