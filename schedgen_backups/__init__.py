"""Back up a PostgreSQL database and its S3 bucket as one recovery point.

This package holds the Dagster edge: definitions, assets, checks, resources, jobs, schedules and the command
line. The work is done in `core`, which does not import Dagster. This file imports nothing, so that importing
one part loads only that part.
"""
