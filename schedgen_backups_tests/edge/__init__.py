"""Tests of the Dagster edge on real Dagster instances."""
