"""Tests of what is reported, without a Dagster instance."""
