"""What a failure means to the operator: run kind, severity, next step.

Add a run kind here. Nothing here uses Dagster or a channel: `core.notify` delivers the alerts. Imports only
`config` and `core`.
"""
