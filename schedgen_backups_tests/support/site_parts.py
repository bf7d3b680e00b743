"""A site of two databases and two buckets, in a file of sites; the fixture is in `edge/conftest.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.servers import client_of
from schedgen_backups_tests.support.sites import Application, Site, environment_of

DATABASE_KEYS = ("POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_USER", "POSTGRES_DB")
BUCKET_KEYS = ("MINIO_ENDPOINT", "MINIO_ACCESS_KEY", "MINIO_BUCKET", "MINIO_REGION")


@dataclass(frozen=True)
class Parts:
    """A site `shop` of two databases and two buckets, the first of each the application of `site`."""

    site: Site
    databases: Mapping[str, DatabaseSettings]
    buckets: Mapping[str, BucketSettings]

    def write(self, *, layout: str = "files", **changes: str) -> None:
        """Describe the site; `changes` are texts of the file with what stands in their place."""
        lines = ["[sites.shop]", f'backup_dir = "{self.site.directory}"', f'backup_layout = "{layout}"']
        for name, database in self.databases.items():
            values = environment_of(Application(database, self.buckets["pdfs"]), self.site.directory)
            lines += [f"[sites.shop.databases.{name}]", *_describe(values, DATABASE_KEYS)]
            self.site.set(**{f"{name.upper()}_PASSWORD": database.password})
            lines.append(f'postgres_password_env = "{name.upper()}_PASSWORD"')
            lines += ['bucket = "pdfs"'] if name == "main" else []
        for name, bucket in self.buckets.items():
            values = environment_of(Application(self.databases["main"], bucket), self.site.directory)
            lines += [f"[sites.shop.buckets.{name}]", *_describe(values, BUCKET_KEYS)]
            self.site.set(**{f"{name.upper()}_SECRET_KEY": bucket.secret_key})
            lines.append(f'minio_secret_key_env = "{name.upper()}_SECRET_KEY"')
        text = "\n".join(lines)
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (self.site.folder / "sites.toml").write_text(text)


def _describe(values: Mapping[str, str], keys: tuple[str, ...]) -> list[str]:
    return [f'{key.lower()} = "{values[key]}"' for key in keys]


def read_bodies(bucket: BucketSettings) -> dict[str, bytes]:
    client = client_of(bucket)
    keys = [each.object_name for each in client.list_objects(bucket.bucket, recursive=True)]
    return {key: client.get_object(bucket.bucket, key).read() for key in keys if key}
