"""Capture, verify and restore recovery points, without Dagster.

Nothing here imports Dagster, reads the environment or prints. Settings and results are frozen values;
failures are the errors of `core.errors`. An import-linter contract enforces the imports.
"""
