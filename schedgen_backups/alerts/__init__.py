"""What a failure means to people: kinds of runs, severity, the next step.

Add a kind of run here. It knows no Dagster, and no channel: `core.notify` delivers. Imports `config` and
`core` only.
"""
