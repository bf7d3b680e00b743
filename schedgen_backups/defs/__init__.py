"""What Dagster sees: assets, checks, jobs, schedules, sensors, hooks, resources (docs.dagster.io,
"Definitions").

Add a definition here. It calls `core` and turns the result into metadata. No SQL, no file format, no text of
an alert. Imports everything below `definitions`; only `definitions` and `runs` import it.
"""
