"""Backs up a PostgreSQL database and its S3 bucket as one recovery point.

The Dagster edge (definitions, assets, checks, resources, jobs, schedules, cli) lives in this package; what
does the work lives in `core`, which knows nothing of Dagster. This file stays free of imports, so that
importing any part costs only that part.
"""
