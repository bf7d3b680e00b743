"""A directory with points of one application accepts no backup of another one.

This is checked before any server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from schedgen_backups.core.capture.capture import take_bucket_archive, take_database_dump
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError, ConfigurationError
from schedgen_backups.core.settings import BucketSettings, CaptureSettings, DatabaseSettings
from schedgen_backups_tests.support.artifacts import list_files, make_capture
from schedgen_backups_tests.support.histories import add_point, name_night

NOBODY = 9  # the discard port: nothing listens there
DATABASE = DatabaseSettings("127.0.0.1", NOBODY, "u", "p", "schedgen")
BUCKET = BucketSettings(f"127.0.0.1:{NOBODY}", "key", "secret", "schedgen-pdfs")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    add_point(catalog, name_night(0))
    return catalog


def dump(catalog: Catalog, name: str, capture: CaptureSettings) -> None:
    take_database_dump(catalog, DATABASE.with_database(name), capture, name_night(1))


def archive(catalog: Catalog, name: str, capture: CaptureSettings) -> None:
    take_bucket_archive(catalog, BUCKET.with_bucket(name), capture, name_night(1))


@pytest.mark.parametrize("take", [dump, archive])
def test_another_source_is_refused_before_anything_is_read_or_written(
    catalog: Catalog, take: Callable[[Catalog, str, CaptureSettings], None]
) -> None:
    before = list_files(catalog.directory)
    with pytest.raises(ConfigurationError, match="not from somebody-elses") as caught:
        take(catalog, "somebody-elses", make_capture())
    assert "BACKUP_ALLOW_NEW_SOURCE=true" in caught.value.hint
    assert list_files(catalog.directory) == before


@pytest.mark.parametrize("take", [dump, archive])
def test_another_source_is_accepted_on_request(
    catalog: Catalog, take: Callable[[Catalog, str, CaptureSettings], None]
) -> None:
    """The backup proceeds to the server, which does not exist."""
    with pytest.raises(BackupError) as caught:
        take(
            catalog,
            "somebody-elses",
            replace(make_capture(stall_timeout_seconds=1), is_new_source_allowed=True),
        )
    assert not isinstance(caught.value, ConfigurationError)
