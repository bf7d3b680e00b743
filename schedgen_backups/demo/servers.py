"""Set up the demo: both servers, an environment that points to them, and a separate DAGSTER_HOME.

Everything is in one directory and on loopback; the operator's .env and .dagster are not touched.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schedgen_backups.config.config import choose_environment_file
from schedgen_backups.config.variables import NAMES
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.runs.home import HOME_VARIABLE

DATABASE = "schedgen"
BUCKET = "schedgen-pdfs"


@dataclass(frozen=True)
class Stage:
    """The two running servers and the directory that contains everything."""

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
        """Directory of the demo's recovery points."""
        return self.folder / "backups"


@contextmanager
def open_stage(folder: Path) -> Generator[Stage, None, None]:
    """Run both servers during the block; this process's environment then points only to them."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with EmbeddedPostgres(folder / "postgres") as postgres, EmbeddedS3(folder / "s3") as s3:
        stage = Stage(folder, postgres, s3)
        # The demo's runs and its Dagster read the environment; the operator's settings must not reach them.
        before = dict(os.environ)
        for name in NAMES:
            os.environ.pop(name, None)
        os.environ[HOME_VARIABLE] = str(folder / "dagster")
        choose_environment_file(_write_env(stage))
        try:
            yield stage
        finally:
            os.environ.clear()
            os.environ.update(before)


def _write_env(stage: Stage) -> Path:
    """Write the environment file of the demo; return its path."""
    # As in production: the key for backups can only read, the key for restores can write.
    database, bucket, writer = stage.database, stage.s3.read_only_settings(BUCKET), stage.bucket
    values = {
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
    path = stage.folder / "env"
    path.touch(mode=0o600)
    path.write_text("".join(f"{name}='{value}'\n" for name, value in values.items()), encoding="utf-8")
    return path
