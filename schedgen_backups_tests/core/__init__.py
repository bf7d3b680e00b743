"""Tests of `schedgen_backups.core` that need no server."""
