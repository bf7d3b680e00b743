"""A comma in the folder of the drill's own S3 server belongs to the folder's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.core.servers.seaweedfs import EmbeddedS3

pytestmark = pytest.mark.integration


def test_an_s3_server_starts_in_a_folder_with_a_comma(tmp_path: Path) -> None:
    """In its option, SeaweedFS takes a comma for a separator of folders."""
    with EmbeddedS3(tmp_path / "a,b" / "s3") as server:
        assert server.settings("bucket").bucket == "bucket"
    assert (tmp_path / "a,b" / "s3" / "data").is_dir()
