"""A writer's key without the right to delete: it cannot destroy what the store holds."""

from __future__ import annotations

import io
import json
import secrets
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from minio.retention import COMPLIANCE, Retention
from minio.versioningconfig import SUSPENDED, VersioningConfig

from schedgen_backups.core.errors import KeyExistsError, LockedError, StoreError
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.store.open import open_store, probe_store, try_delete_probe
from schedgen_backups.core.store.protocol import ProbedStore
from schedgen_backups_tests.support.s3_programs import VersityServer
from schedgen_backups_tests.support.servers import SharedS3, client_of
from schedgen_backups_tests.support.store_sites import (
    PREFIX,
    LockedS3Site,
    S3Site,
    Servers,
    VersionedS3Site,
    VersionedVersitySite,
    locate_bucket,
)

KEY = "packs/one"
NAME = f"{PREFIX}/{KEY}"


class VersityWithUsers(VersityServer):
    """versitygw with accounts, whose policies bind them as they do not bind its root key."""

    def make_command(self, program: Path, port: int) -> tuple[list[str], dict[str, str]]:
        (self.directory / "users").mkdir(exist_ok=True, mode=0o700)
        (path, *words), variables = super().make_command(program, port)
        return [path, "--iam-dir", str(self.directory / "users"), *words], variables

    def add_user(self, name: str) -> str:
        """Create an account; return its secret key."""
        program, key = self.find(), secrets.token_hex(20)
        admin = self.settings("unused")
        keys = ["--access", admin.access_key, "--secret", admin.secret_key]
        user = ["create-user", "--access", name, "--secret", key, "--role", "user"]
        where = ["--endpoint-url", f"http://{self.endpoint}"]
        subprocess.run([str(program), "admin", *keys, *where, *user], check=True, capture_output=True)
        return key


class AppendOnly:
    """A bucket with versions, and a writer that may put, read and list, but not delete."""

    def __init__(self, site: S3Site, writer: BucketSettings, principal: str) -> None:
        self.site = site
        self.bucket = site.settings.bucket
        site.client.set_bucket_policy(self.bucket, write_policy(self.bucket, principal))
        self.writer = client_of(writer)
        self.store = open_store(locate_bucket(writer), site.capabilities)
        self.pruner = site.open()

    def attacks(self) -> dict[str, Callable[[], Any]]:
        """Return what an intruder with the writer's key would try on the object."""
        version = self.find_version()
        bucket, writer = self.bucket, self.writer
        soon = Retention(COMPLIANCE, datetime.now(timezone.utc) + timedelta(minutes=5))
        return {
            "delete the version": lambda: writer.remove_object(bucket, NAME, version_id=version),
            "hide": lambda: writer.remove_object(bucket, NAME),
            "delete several": lambda: fail_on(writer.remove_objects(bucket, [DeleteObject(NAME, version)])),
            "shorten the lock": lambda: writer.set_object_retention(bucket, NAME, soon, version_id=version),
            "end versions": lambda: writer.set_bucket_versioning(bucket, VersioningConfig(SUSPENDED)),
            "remove the policy": lambda: writer.delete_bucket_policy(bucket),
            "change the policy": lambda: writer.set_bucket_policy(bucket, write_policy(bucket, "*")),
            "end the default lock": lambda: writer.delete_object_lock_config(bucket),
            "remove the bucket": lambda: writer.remove_bucket(bucket),
        }

    def find_version(self) -> str:
        """Return the id of the oldest version."""
        return [*self.pruner.list(KEY)][-1].version_id


def write_policy(bucket: str, principal: str) -> str:
    """Return the policy of an append-only writer."""
    objects, whole = f"arn:aws:s3:::{bucket}/*", f"arn:aws:s3:::{bucket}"
    locks = ["s3:GetObjectRetention", "s3:PutObjectRetention"]
    reads = ["s3:GetObject", "s3:GetObjectVersion"]
    removals = ["s3:DeleteObject", "s3:DeleteObjectVersion", "s3:BypassGovernanceRetention"]
    statements = [
        ("Allow", ["s3:PutObject", *reads, *locks], objects),
        ("Allow", ["s3:ListBucket", "s3:ListBucketVersions"], whole),
        ("Deny", removals, objects),
    ]
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": effect,
                    "Principal": {"AWS": [principal]},
                    "Action": actions,
                    "Resource": [resource],
                }
                for effect, actions, resource in statements
            ],
        }
    )


def fail_on(errors: Any) -> None:
    """Raise S3Error if the server refused a part of a deletion."""
    for error in errors:
        raise S3Error(None, error.code, error.message, None, None, None)  # type: ignore[arg-type]


def make_on_seaweedfs(kind: type[S3Site], servers: Servers) -> AppendOnly:
    site = kind(servers)
    server = servers.find_s3("seaweedfs")
    assert isinstance(server, (EmbeddedS3, SharedS3))
    writer = server.read_only_settings(site.settings.bucket)
    return AppendOnly(site, writer, "arn:aws:iam::000000000000:user/backup")


def find_versitygw(servers: Servers) -> VersityWithUsers:
    if VersityServer.find() is None:
        pytest.skip("versitygw is not installed: make servers")
    return servers.find(
        "versitygw-users", lambda directory, stack: stack.enter_context(VersityWithUsers(directory))
    )


class _SiteWithUsers(VersionedVersitySite):
    def find_settings(self, servers: Servers, bucket: str) -> BucketSettings:
        return find_versitygw(servers).settings(bucket)


def make_on_versitygw(servers: Servers) -> AppendOnly:
    server = find_versitygw(servers)
    site = _SiteWithUsers(servers)
    name = f"writer-{secrets.token_hex(4)}"
    key = server.add_user(name)
    return AppendOnly(site, replace(site.settings, access_key=name, secret_key=key), name)


@pytest.fixture(
    params=["seaweedfs-versions", "seaweedfs-lock", pytest.param("versitygw", marks=pytest.mark.exhaustive)]
)
def append_only(request: pytest.FixtureRequest, store_servers: Servers) -> AppendOnly:
    if request.param == "versitygw":
        return make_on_versitygw(store_servers)
    kinds = {"seaweedfs-versions": VersionedS3Site, "seaweedfs-lock": LockedS3Site}
    return make_on_seaweedfs(kinds[request.param], store_servers)


def read_first(store: ProbedStore, version: str) -> bytes:
    return store.get_range(KEY, 0, 9, version_id=version)


def test_the_writer_writes_reads_and_lists(append_only: AppendOnly) -> None:
    store = append_only.store
    assert probe_store(store, "") == append_only.site.capabilities
    store.put_new(KEY, b"first")
    with pytest.raises(KeyExistsError):
        store.put_new(KEY, b"second")
    assert store.get_range(KEY, 0, 9) == b"first"
    assert [stored.key for stored in store.list("packs/")] == [KEY]
    assert not try_delete_probe(store, "")
    assert try_delete_probe(append_only.pruner, "") != append_only.site.capabilities.has_lock


def test_nothing_that_the_writer_tries_removes_an_object(append_only: AppendOnly) -> None:
    append_only.store.put_new(KEY, b"first")
    version = append_only.find_version()
    for name, attack in append_only.attacks().items():
        if name == "shorten the lock" and not append_only.site.capabilities.has_lock:
            continue
        with pytest.raises(S3Error) as refused:
            attack()
        assert refused.value.code == "AccessDenied", name
        assert append_only.pruner.get_range(KEY, 0, 9) == b"first", name
    stored = append_only.pruner.head(KEY)
    assert stored is not None
    with pytest.raises(StoreError) as kept:
        append_only.store.delete(stored)
    assert isinstance(kept.value, LockedError) == append_only.site.capabilities.has_lock
    assert [each.version_id for each in append_only.pruner.list("packs/")] == [version]


def test_what_the_writer_overwrites_stays_readable(append_only: AppendOnly) -> None:
    append_only.store.put_new(KEY, b"first")
    version = append_only.find_version()
    append_only.writer.put_object(append_only.bucket, NAME, io.BytesIO(b"foreign"), 7)
    newest, oldest = append_only.store.list(KEY)
    assert (newest.size_bytes, newest.is_newest) == (7, True)
    assert (oldest.version_id, oldest.is_newest) == (version, False)
    assert read_first(append_only.store, version) == b"first"


def test_the_writer_extends_locks(store_servers: Servers) -> None:
    append_only = make_on_seaweedfs(LockedS3Site, store_servers)
    append_only.store.put_new(KEY, b"first")
    (stored,) = append_only.store.list(KEY)
    later = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=40)
    append_only.store.extend_lock(stored, later)
    found = append_only.pruner.head(KEY)
    assert found is not None
    assert found.locked_until == later
