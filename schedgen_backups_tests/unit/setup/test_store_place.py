"""Where setup puts the file of stores, and which folders the containers see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from schedgen_backups.config.config import load_config_to_write
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.setup.store_place import ContainerPlace, find_container_place, find_place

pytestmark = [pytest.mark.edge]


def test_the_file_is_beside_the_environment_file_unless_it_is_named(tmp_path: Path) -> None:
    config = load_config_to_write(tmp_path / ".env")
    assert find_place(config, tmp_path / ".env", "").path == tmp_path / "stores.toml"
    named = config.with_values({"BACKUP_STORES_FILE": f"{tmp_path}/elsewhere.toml"})
    assert find_place(named, tmp_path / ".env", "").path == tmp_path / "elsewhere.toml"


def test_the_containers_see_the_file_in_their_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    config = load_config_to_write(tmp_path / ".env")
    place = find_container_place(config, tmp_path / ".env", {"BACKUP_SECRETS": "./secrets"})
    assert (place.path, place.value) == (tmp_path / "secrets/stores.toml", "/run/secrets/stores.toml")
    elsewhere = config.with_values({"BACKUP_STORES_FILE": "/etc/stores.toml"})
    with pytest.raises(ConfigurationError, match="is not in /run/secrets"):
        find_container_place(elsewhere, tmp_path / ".env", {})


def test_only_root_can_write_a_file_that_the_containers_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigurationError, match="only root"):
        find_container_place(load_config_to_write(tmp_path / ".env"), tmp_path / ".env", {})


def test_a_folder_is_mounted_once_and_found_again_on_this_machine() -> None:
    place = ContainerPlace(Path("/x/stores.toml"), "/run/secrets/stores.toml")
    assert place.find_url("file:///mnt/nas") == "file:///copies"
    place.note_store("file:///mnt/nas")
    assert place.values == {"BACKUP_COPIES": "/mnt/nas"}
    assert place.find_url("file:///mnt/nas/b") == "file:///copies/b"
    assert place.find_local_url("file:///copies/b") == "file:///mnt/nas/b"
    with pytest.raises(ConfigurationError, match="/mnt/other is not in /mnt/nas"):
        place.find_url("file:///mnt/other")
    assert place.find_url("s3://bucket") == place.find_local_url("s3://bucket") == "s3://bucket"


def test_the_image_gets_the_library_of_a_store_once() -> None:
    place = ContainerPlace(Path("/x/stores.toml"), "/run/secrets/stores.toml")
    for url in ("sftp://u@h/x", "sftp://u@h/y", "gs://b", "s3://b"):
        place.note_store(url)
    assert place.values == {"BACKUP_EXTRAS": "containers,sftp,gcs"}


def test_a_server_of_the_containers_network_is_not_known_here() -> None:
    place = ContainerPlace(Path("/x/stores.toml"), "/run/secrets/stores.toml")
    assert not place.is_known_here(StoreLocation("s3://b", endpoint="http://no-such-host.invalid:9000"))
    assert not place.is_known_here(StoreLocation("file:///copies"))
    assert place.is_known_here(StoreLocation("s3://b", endpoint="http://127.0.0.1:9000"))
    assert place.is_known_here(StoreLocation("file:///mnt/nas"))
