"""`restore_job` of a site of several databases and buckets: one part is restored, and no other is touched."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg
import pytest

from schedgen_backups.config.sites import load_installation
from schedgen_backups.core.restore.log import read_restore_log
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups.defs.site import build_installation_definitions
from schedgen_backups.demo.seed import destroy_application
from schedgen_backups_tests.support.command_server import QUIET
from schedgen_backups_tests.support.servers import client_of, run
from schedgen_backups_tests.support.site_parts import Parts, read_bodies
from schedgen_backups_tests.support.sites import execute_job, failures_of

pytestmark = [pytest.mark.edge]

_OP = "shop__restore_recovery_point"


class Shop:
    """The site `shop`, with one verified recovery point, in which a test may change `main` and `pdfs`."""

    def __init__(self, parts: Parts, instance: dg.DagsterInstance) -> None:
        self.parts = parts
        self._instance = instance
        self._definitions = build_installation_definitions(load_installation())
        backup = execute_job(self._definitions.resolve_job_def("shop__backup_job"), instance, None)
        assert failures_of(backup) == {}
        assert all(each.passed for each in backup.get_asset_check_evaluations())

    def launch(self, **config: object) -> dg.ExecuteInProcessResult:
        run_config = {**QUIET, "ops": {_OP: {"config": config}}}
        job = self._definitions.resolve_job_def("shop__restore_job")
        return job.execute_in_process(instance=self._instance, run_config=run_config, raise_on_error=False)

    def read(self) -> Mapping[str, object]:
        """Return everything in the databases and buckets, by name."""
        rows = {name: read_rows(database) for name, database in self.parts.databases.items()}
        return {**rows, **{name: read_bodies(bucket) for name, bucket in self.parts.buckets.items()}}


def read_rows(database: DatabaseSettings) -> dict[str, list[tuple[str, ...]]]:
    tables = run(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    return {name: run(database, f"SELECT t::text FROM {name} t ORDER BY 1") for (name,) in tables}


@pytest.fixture
def shop(parts: Parts, instance: dg.DagsterInstance) -> Shop:
    # The other way round, since the application of the session must not be changed.
    own = Parts(
        parts.site,
        {"main": parts.databases["reports"], "reports": parts.databases["main"]},
        {"pdfs": parts.buckets["images"], "images": parts.buckets["pdfs"]},
    )
    own.write()
    return Shop(own, instance)


def test_a_destroyed_part_is_restored_and_the_others_are_untouched(shop: Shop) -> None:
    before = shop.read()
    main, pdfs = shop.parts.databases["main"], shop.parts.buckets["pdfs"]
    destroy_application(main, pdfs)
    destroyed = shop.read()
    target = {"part": "main", "database": main.database, "bucket": pdfs.bucket}
    assert failures_of(shop.launch(**target)) == {}
    assert shop.read() == destroyed != before
    restored = shop.launch(**target, confirm=main.database, reason="a disk broke")
    assert failures_of(restored) == {}
    assert shop.read() == before
    found, points = restored.asset_observations_for_node(_OP)
    assert found.metadata["part"].value == "main"
    assert found.metadata["is_equal"].value is True
    assert points.asset_key == dg.AssetKey(["shop", "recovery_point"])
    assert [entry.result for entry in read_restore_log(shop.parts.site.directory)] == ["done: equal"]


def test_tables_rows_objects_and_files_of_a_part_are_restored(shop: Shop) -> None:
    before = shop.read()
    main, pdfs = shop.parts.databases["main"], shop.parts.buckets["pdfs"]
    [(job_id, key)] = run(
        main, "SELECT id::text, s3_key FROM jobs WHERE s3_key IS NOT NULL ORDER BY id LIMIT 1"
    )
    condition = f"id = '{job_id}'"
    rows = {"part": "main", "tables": ["jobs"], "write": "missing", "confirm": main.database}

    run(main, f"DELETE FROM jobs WHERE {condition}")
    assert failures_of(shop.launch(**rows)) == {}
    assert shop.read() == before
    run(main, f"DELETE FROM jobs WHERE {condition}")
    client_of(pdfs).remove_object(pdfs.bucket, key)
    assert failures_of(shop.launch(**rows, where=condition, key_column="s3_key")) == {}
    assert shop.read() == before
    client_of(pdfs).remove_object(pdfs.bucket, key)
    assert failures_of(shop.launch(part="main", objects=[key], confirm=pdfs.bucket)) == {}
    assert shop.read() == before
    images = before["images"]
    assert isinstance(images, dict)
    image = next(iter(images))
    assert failures_of(shop.launch(part="images", objects=[image], to_folder="out", confirm="out")) == {}
    assert (shop.parts.site.directory / "restored" / "out" / image).read_bytes() == images[image]
    assert shop.read() == before


@pytest.mark.parametrize("part", ["", "sales", "pdfs", "shop/main"])
def test_without_the_name_of_a_part_nothing_is_written_and_the_names_are_listed(
    shop: Shop, part: str
) -> None:
    """The bucket `pdfs` is restored with `main`, which refers to it."""
    pdfs = shop.parts.buckets["pdfs"]
    for key in read_bodies(pdfs):
        client_of(pdfs).remove_object(pdfs.bucket, key)
    destroyed = shop.read()
    for config in (
        {"bucket": pdfs.bucket, "confirm": pdfs.bucket},
        {"objects": ["*"], "confirm": pdfs.bucket},
        {"objects": ["*"], "to_folder": "out", "confirm": "out"},
    ):
        failures = failures_of(shop.launch(part=part, **config))
        assert "main, reports, images" in failures[_OP].description + str(failures[_OP].metadata)
    assert shop.read() == destroyed
    assert not (shop.parts.site.directory / "restored").exists()


def test_an_empty_configuration_names_the_parts(shop: Shop) -> None:
    [found] = shop.launch().asset_observations_for_node(_OP)
    assert "`part`" in str(found.metadata["how_to_restore"].value)
    assert "main, reports, images" in str(found.metadata["how_to_restore"].value)
