"""What captures, verifies and restores a recovery point, usable and testable without Dagster.

Nothing here imports Dagster, reads the environment or prints: settings come in as frozen values, results go
out as frozen values, failures as the errors of `core.errors`. An import-linter contract holds this border.
"""
