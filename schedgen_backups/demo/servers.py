"""Sets up what the demo and its UI need: both servers, an environment that points to them, a Dagster home of their own.

Everything lies in one folder and on loopback; the operators' own .env and .dagster are not touched. What is played on this stage is the
business of `story` and `workshop`.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schedgen_backups.config.variables import VARIABLES
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings

DATABASE = "schedgen"
BUCKET = "schedgen-pdfs"


@dataclass(frozen=True)
class Stage:
    """The two running servers and the folder that holds everything."""

    folder: Path
    postgres: EmbeddedPostgres
    s3: EmbeddedS3

    @property
    def database(self) -> DatabaseSettings:
        """The application's database."""
        return self.postgres.settings(DATABASE)

    @property
    def bucket(self) -> BucketSettings:
        """The application's bucket."""
        return self.s3.settings(BUCKET)

    @property
    def backup_directory(self) -> Path:
        """Where the demo's recovery points are."""
        return self.folder / "backups"


@contextmanager
def open_stage(folder: Path) -> Generator[Stage, None, None]:
    """Both servers run within the block, and this process's environment points to them."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with EmbeddedPostgres(folder / "postgres") as postgres, EmbeddedS3(folder / "s3") as s3:
        stage = Stage(folder, postgres, s3)
        before = dict(os.environ)
        os.environ.update(_make_environment(stage))
        try:
            yield stage
        finally:
            os.environ.clear()
            os.environ.update(before)


def _make_environment(stage: Stage) -> dict[str, str]:
    # As in production: the backup's key may only read, the restore's may write.
    database, bucket, writer = stage.database, stage.s3.read_only_settings(BUCKET), stage.bucket
    return {
        # Nothing of the operators' own .env counts here: no alert of the demo may reach them.
        **{variable.name: "" for variable in VARIABLES},
        "DAGSTER_HOME": str(stage.folder / "dagster"),
        "POSTGRES_HOST": database.host,
        "POSTGRES_PORT": str(database.port),
        "POSTGRES_USER": database.user,
        "POSTGRES_PASSWORD": database.password,
        "POSTGRES_DB": database.database,
        "PG_BIN_DIR": str(stage.postgres.bin_dir),
        "MINIO_ENDPOINT": bucket.endpoint,
        "MINIO_ACCESS_KEY": bucket.access_key,
        "MINIO_SECRET_KEY": bucket.secret_key,
        "MINIO_BUCKET": bucket.bucket,
        "MINIO_REGION": bucket.region,
        "BACKUP_DIR": str(stage.backup_directory),
        "RESTORE_MINIO_ACCESS_KEY": writer.access_key,
        "RESTORE_MINIO_SECRET_KEY": writer.secret_key,
    }
