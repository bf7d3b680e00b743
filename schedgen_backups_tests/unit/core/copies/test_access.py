"""Which site of a store is read, and at which time."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.copies.access import CopyAccess, open_access
from schedgen_backups.core.copies.settings import StoreSettings
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups_tests.support.copies import SITE_ID, CopiedSite, list_objects, make_point, make_point_id

OTHER_SITE_ID = "7" * 32


@pytest.fixture
def settings(tmp_path: Path) -> StoreSettings:
    """Return a store with a copy of one site, and a folder that a NAS made."""
    store = FolderStore(tmp_path / "nas")
    store.prepare()
    site = CopiedSite(tmp_path / "backups", store)
    make_point(site.catalog, 0, list_objects(2))
    site.copy(0)
    (tmp_path / "nas" / "@eaDir").mkdir()
    (tmp_path / "nas" / "@eaDir" / "index").write_bytes(b"")
    return StoreSettings("nas", StoreLocation(f"file://{tmp_path / 'nas'}"), is_encrypted=False)


def list_points(access: CopyAccess) -> list[str]:
    return [point_id.text for point_id in access.list_ids()]


@pytest.mark.parametrize(("own_site_id", "site_id"), [("", ""), (SITE_ID, ""), (OTHER_SITE_ID, SITE_ID)])
def test_the_own_site_the_only_one_or_the_one_that_is_named_is_read(
    settings: StoreSettings, own_site_id: str, site_id: str
) -> None:
    access = open_access(settings, [], own_site_id=own_site_id, site_id=site_id)
    assert list_points(access) == [make_point_id(0).text]


def test_the_copies_of_another_site_are_read_only_if_it_is_named(settings: StoreSettings) -> None:
    with pytest.raises(ConfigurationError, match="holds no copies of site 7777") as error:
        open_access(settings, [], own_site_id=OTHER_SITE_ID)
    assert SITE_ID in str(error.value.hint)
    assert "@eaDir" not in str(error.value.hint)


def test_an_earlier_time_of_a_store_without_versions_is_refused(settings: StoreSettings) -> None:
    with pytest.raises(ConfigurationError, match="keeps no versions"):
        open_access(settings, [], version_time=datetime.now(timezone.utc))
