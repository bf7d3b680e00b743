"""A site with folder stores and points made without a server, and its definitions as Dagster loads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from schedgen_backups.config.config import load_config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.copies.local_folder import CopyState, LocalFolder
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups.defs.site import build_site_definitions
from schedgen_backups_tests.support.command_server import QUIET
from schedgen_backups_tests.support.copies import KEY_PAIR, list_objects, make_point
from schedgen_backups_tests.support.sites import Application, Site

UNREACHABLE = Application(
    DatabaseSettings("127.0.0.1", 1, "nobody", "none", "schedgen"),
    BucketSettings("127.0.0.1:1", "nobody", "none", "schedgen-pdfs"),
)
"""Copies need neither database nor bucket."""


@dataclass
class SiteStores:
    """The stores of a site: folders that are mounted or not."""

    site: Site
    texts: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self.file = self.site.folder / "stores.toml"
        self.site.set(BACKUP_STORES_FILE=str(self.file))
        self.catalog = Catalog(self.site.directory)
        self.catalog.prepare()

    def find_folder(self, name: str) -> Path:
        return self.site.folder / f"store-{name}"

    def describe(self, name: str, settings: str = "") -> None:
        """Write a folder store into the file, in place of what it said about this name."""
        self.texts[name] = (
            f'[stores."{name}"]\nurl = "file://{self.find_folder(name)}"\n'
            f'recipients = ["{KEY_PAIR.public}"]\n{settings}\n'
        )
        self.file.write_text("\n".join(self.texts.values()))

    def describe_bucket(self, name: str, bucket: BucketSettings, settings: str = "") -> None:
        """Write a store in this bucket into the file."""
        secret_file = self.site.folder / f"{name}.secret"
        secret_file.write_text(bucket.secret_key)
        self.texts[name] = (
            f'[stores."{name}"]\nurl = "s3://{bucket.bucket}/copies"\nendpoint = "http://{bucket.endpoint}"\n'
            f'access_key = "{bucket.access_key}"\nsecret_key_file = "{secret_file.name}"\n'
            f'recipients = ["{KEY_PAIR.public}"]\n{settings}\n'
        )
        self.file.write_text("\n".join(self.texts.values()))

    def add(self, name: str, settings: str = "") -> None:
        """Describe a folder store, and mount it."""
        self.describe(name, settings)
        FolderStore(self.find_folder(name)).prepare()

    def unmount(self, name: str) -> None:
        """Leave an empty mount point."""
        self.find_folder(name).rename(self.find_folder(f"{name}-disk"))
        self.find_folder(name).mkdir()

    def mount(self, name: str) -> None:
        self.find_folder(name).rmdir()
        self.find_folder(f"{name}-disk").rename(self.find_folder(name))

    def take_point(self, night: int) -> str:
        """Write the verified point of this night into the backup directory; return its id."""
        return make_point(self.catalog, night, list_objects(3)).point_id.text

    def read_state(self, name: str) -> CopyState:
        return LocalFolder(self.site.directory, name).read_state()

    def write_state(self, name: str, state: CopyState) -> None:
        folder = LocalFolder(self.site.directory, name)
        folder.prepare()
        folder.write_state(state)

    def list_copies(self, name: str) -> list[str]:
        """Return the points that are committed in the folder, by its files."""
        return sorted(path.parent.name for path in self.find_folder(name).glob("*/points/*/committed.json"))

    def load(self) -> dg.Definitions:
        """Return the definitions of the site as they are when the code location loads now."""
        return build_site_definitions(load_config())

    def run(
        self, instance: dg.DagsterInstance, job_name: str, tags: Mapping[str, str] | None = None
    ) -> dg.ExecuteInProcessResult:
        """Run a job of the site to its end in this process."""
        job = self.load().resolve_job_def(job_name)
        return job.execute_in_process(
            instance=instance, tags=dict(tags or {}), raise_on_error=False, run_config=QUIET
        )
