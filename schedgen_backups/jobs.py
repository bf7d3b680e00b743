"""The jobs: `backup_job` takes, checks and seals one recovery point; the schedule, the UI and the command line run the same.

A job is a selection of assets with their checks; add one when a run of another kind is wanted. Work belongs to the assets, times to `schedules`.
"""

from __future__ import annotations

import dagster as dg

from schedgen_backups.assets import database_dump, minio_archive, recovery_point

backup_job = dg.define_asset_job(
    "backup_job",
    selection=dg.AssetSelection.assets(database_dump, minio_archive, recovery_point),
    description="Takes a recovery point of the database and the bucket, verifies it and seals it.",
)
