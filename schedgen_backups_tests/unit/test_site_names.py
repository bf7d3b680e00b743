"""Names of sites: what Dagster sees, and which site a name belongs to."""

from __future__ import annotations

import pytest

from schedgen_backups.alerts.run_kinds import COPY, DRILL, RETENTION, find_run_kind
from schedgen_backups.site_names import InstallationNames, SiteNames

NAMES = [
    "backup_job",
    "copy_to_disk_job",
    "offsite_copy__disk_copy_is_complete",
    "__ASSET_JOB",
    "daily_backup_schedule",
]


@pytest.mark.parametrize("site", ["", "acme", "acme_2"])
@pytest.mark.parametrize("local", NAMES)
def test_a_local_name_comes_back_from_the_full_one(site: str, local: str) -> None:
    names = SiteNames(site)
    assert names.localize(names.qualify(local)) == local


def test_the_site_without_a_name_changes_no_name() -> None:
    names = SiteNames()
    assert [names.qualify(local) for local in NAMES] == NAMES
    assert names.make_asset_path("offsite_copy", "disk") == ("offsite_copy", "disk")
    assert (names.group, names.resource_key, names.directory_pool) == ("backup", "backup", "backup_directory")
    assert names.make_tag(".dagster/backup_heartbeat") == ".dagster/backup_heartbeat"


def test_every_name_of_a_site_has_its_name() -> None:
    names = SiteNames("acme")
    assert names.qualify("backup_job") == "acme__backup_job"
    assert names.make_asset_path("database_dump") == ("acme", "database_dump")
    assert (names.group, names.resource_key, names.directory_pool) == (
        "acme",
        "backup__acme",
        "backup_directory__acme",
    )
    assert names.make_tag(".dagster/backup_heartbeat") == ".dagster/backup_heartbeat.acme"


@pytest.mark.parametrize("site", ["Acme", "a__b", "_a", "a_", "a-b", "1a", "a b", "offsite_copy"])
def test_a_name_that_dagster_cannot_use_or_that_is_ambiguous_is_refused(site: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a site"):
        SiteNames(site)


def test_two_sites_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two sites"):
        InstallationNames((SiteNames("acme"), SiteNames("acme")))


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("acme__backup_job", "acme"),
        ("acme_2__offsite_copy__disk_copy_is_complete", "acme_2"),
        ("remove_old_runs_job", "acme"),
        ("offsite_copy__disk_copy_is_complete", "acme"),
        ("removed_site__backup_job", "acme"),
        ("__ASSET_JOB", "acme"),
        ("a_job_of_another_location", "acme"),
    ],
)
def test_what_no_site_made_belongs_to_the_first(name: str, owner: str) -> None:
    installation = InstallationNames((SiteNames("acme"), SiteNames("acme_2")))
    assert installation.find_owner(name) == SiteNames(owner)


def test_what_no_site_made_belongs_to_the_site_without_a_name_if_there_is_one() -> None:
    installation = InstallationNames((SiteNames("acme"), SiteNames()))
    assert installation.keeper == SiteNames()
    assert installation.find_owner("backup_job") == SiteNames()
    assert installation.find_owner_of_asset(("offsite_copy", "disk")) == SiteNames()
    assert installation.find_owner_of_asset(("acme", "database_dump")) == SiteNames("acme")
    assert installation.find_owner_of_asset(("acme",)) == SiteNames()


def test_a_sites_jobs_and_steps_have_the_run_kinds_of_their_local_names() -> None:
    names = SiteNames("acme")
    for full_name, kind in [
        ("acme__prune_job", RETENTION),
        ("acme__restore_drill_job", DRILL),
        ("acme__copy_to_disk_job", COPY),
    ]:
        assert find_run_kind(names.localize(full_name), "") is kind
    assert find_run_kind("__ASSET_JOB", names.localize("acme__offsite_copy__disk_copy_is_complete")) is COPY
