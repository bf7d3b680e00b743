"""Create and remove the empty bucket into which a drill restores."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from minio.deleteobjects import DeleteObject

from schedgen_backups.core.drill.scratch_folder import ScratchFolder, ServerBucket
from schedgen_backups.core.errors import BucketError
from schedgen_backups.core.s3.client import BucketClient
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, DrillSettings

_STALL_TIMEOUT_SECONDS = 60.0
"""Requests here carry no object bodies."""


@dataclass(frozen=True)
class ScratchBucket:
    """The empty bucket and a description of its server."""

    settings: BucketSettings
    description: str


class _BucketMaker(BucketClient):
    """A client that can create and remove its bucket."""

    def make(self) -> None:
        with self.translate_errors(""):
            self._client.make_bucket(self._bucket)

    def remove(self) -> None:
        """Remove the bucket with all its objects and old versions; do nothing when it does not exist."""
        with self.translate_errors(""):
            if not self._client.bucket_exists(self._bucket):
                return
            entries = self.list_versions() if self.is_versioned() is True else self.list_objects()
            doomed = (DeleteObject(entry.key, entry.version_id) for entry in entries)
            for error in self._client.remove_objects(self._bucket, doomed):
                raise BucketError(
                    f"object {error.name!r} of the scratch bucket {self._bucket} was not removed: "
                    f"{error.message}"
                )
            self._client.remove_bucket(self._bucket)


@contextmanager
def open_scratch_bucket(folder: ScratchFolder, drill: DrillSettings) -> Generator[ScratchBucket, None, None]:
    """Provide an empty bucket within the block; remove bucket and server afterwards.

    BucketError when the server refuses.
    """
    if drill.bucket is None:
        with EmbeddedS3(folder.path / "s3") as server:
            settings = server.settings(folder.bucket_name)
            _make_bucket(settings)
            yield ScratchBucket(settings, "an embedded S3 server")
        return
    settings = drill.bucket.with_bucket(folder.bucket_name)
    made = ServerBucket(endpoint=settings.endpoint, name=settings.bucket)
    folder.write_record(bucket=made)
    try:
        _make_bucket(settings)
        yield ScratchBucket(settings, f"the S3 server at {settings.endpoint}")
    finally:
        remove_server_bucket(settings, made)
        folder.write_record(bucket=None)


def remove_server_bucket(server: BucketSettings, made: ServerBucket) -> None:
    """Remove the scratch bucket with its objects; BucketError when that fails."""
    client = _BucketMaker(
        server.with_bucket(made.name), threads=1, stall_timeout_seconds=_STALL_TIMEOUT_SECONDS
    )
    with client:
        client.remove()


def _make_bucket(settings: BucketSettings) -> None:
    client = _BucketMaker(settings, threads=1, stall_timeout_seconds=_STALL_TIMEOUT_SECONDS)
    with client:
        client.make()
