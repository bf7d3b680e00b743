"""Databases in encodings other than UTF-8, with such names and rows.

Captured, verified, restored, drilled, equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from uuid import uuid4

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.check_results import CheckStatus
from schedgen_backups.core.drill.drill import drill_point
from schedgen_backups.core.formats.dump_file import open_dump
from schedgen_backups.core.model import Origin, RecoveryPointId
from schedgen_backups.core.restore.point import RestoreRequest, prepare_restore, restore_point
from schedgen_backups.core.restore.service import RestoreOptions, RestoreService
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, DrillSettings
from schedgen_backups.core.verify.commit import commit_point
from schedgen_backups_tests.support.artifacts import (
    POINT,
    make_capture,
    make_live,
    make_transfer,
    publish_archive,
    publish_dump,
)
from schedgen_backups_tests.support.dumps import restore
from schedgen_backups_tests.support.restores import compare_database
from schedgen_backups_tests.support.servers import connect, run

pytestmark = pytest.mark.integration

WORDS = {
    "LATIN1": "Aufträge",
    "LATIN9": "Prix en €",
    "WIN1252": "“Übung”",
    "KOI8R": "Заказы",
    "EUC_JP": "注文",
    "ISO_8859_5": "Заказы",
}
SIMILAR = ("LATIN9", "ISO_8859_5")


def create(server: EmbeddedPostgres, encoding: str) -> DatabaseSettings:
    name = f"test_{uuid4().hex}"
    run(
        server.settings("postgres"),
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C' LOCALE_PROVIDER libc",
    )
    return server.settings(name)


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.exhaustive if name in SIMILAR else ()) for name in WORDS]
)
def pair(
    request: pytest.FixtureRequest, postgres_server: EmbeddedPostgres
) -> Iterator[tuple[str, DatabaseSettings, DatabaseSettings]]:
    source, target = create(postgres_server, request.param), create(postgres_server, request.param)
    yield WORDS[request.param], source, target
    for database in (source, target):
        postgres_server.drop_database(database.database)


def fill(database: DatabaseSettings, word: str) -> None:
    with connect(database) as connection:
        connection.execute("SET client_encoding = 'UTF8'")
        statements = f"""CREATE SCHEMA "{word}"; CREATE TABLE "{word}"."{word}" ("{word}" text PRIMARY KEY);
            INSERT INTO "{word}"."{word}" VALUES ('{word}'); CREATE TABLE jobs (s3_key text);
            INSERT INTO jobs VALUES ('{word}');
            CREATE TABLE big (a text);
            INSERT INTO big SELECT repeat('x', 1000) FROM generate_series(1, 3000)"""
        connection.execute(statements.encode())


def test_names_and_rows_in_another_encoding_make_a_restorable_point(
    pair: tuple[str, DatabaseSettings, DatabaseSettings], bucket: BucketSettings, tmp_path: Path
) -> None:
    word, source, target = pair
    fill(source, word)
    catalog = Catalog(tmp_path / "backups")
    catalog.prepare()
    path = publish_dump(catalog, source, dump_jobs=2)
    with open_dump(path) as dump:
        assert (word, word) in {(table.schema_name, table.name) for table in dump.tables}
    publish_archive(catalog, bucket)
    live = make_live(source, bucket)
    commit_point(catalog, RecoveryPointId(POINT), origin=Origin(run_id="a run"), live=live)
    restore(path, target)
    assert [
        result.summary for result in compare_database(path, target, make_transfer()) if not result.is_passed
    ] == []
    report = drill_point(
        catalog,
        None,
        make_transfer(),
        DrillSettings(tmp_path / "scratch"),
        source=source,
        drilled_by="a test",
    )
    of_database = [result for result in report.results if result.check.value.startswith("database_")]
    assert [result.summary for result in of_database if result.status is not CheckStatus.PASSED] == []


def test_a_key_that_is_not_utf_8_harms_no_other(postgres_server: EmbeddedPostgres, tmp_path: Path) -> None:
    source = create(postgres_server, "SQL_ASCII")
    try:
        with connect(source) as connection:
            connection.execute("SET client_encoding = 'SQL_ASCII'")
            connection.execute(b"CREATE TABLE odd (text text); INSERT INTO odd VALUES ('\xe9')")
            connection.execute(
                b"CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES ('key-\xe9'), ('key-\xc3\xa9'), "
                b"('b'), ('z'), ('key-\xe9')"
            )
        catalog = Catalog(tmp_path / "backups")
        catalog.prepare()
        path = publish_dump(catalog, source)
        with open_dump(path) as dump:
            assert list(chain.from_iterable(dump.read_references())) == ["b", "key-\\xe9", "key-é", "z"]
            assert dump.record.row_count == 6
    finally:
        postgres_server.drop_database(source.database)


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP", "SQL_ASCII"])
def test_restores_create_and_swap_a_database_in_another_encoding(
    encoding: str, postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Its template is UTF-8; the second dump is still written in the database's own encoding."""
    source = create(postgres_server, encoding)
    made = source.with_database(f"{source.database}_made")
    try:
        if encoding in WORDS:
            fill(source, WORDS[encoding])
        else:
            run(
                source,
                "CREATE TABLE jobs (s3_key text); INSERT INTO jobs VALUES (E'\\xe9'); CREATE TABLE kept AS "
                "SELECT E'\\xfc'::text AS t",
            )
        catalog = Catalog(tmp_path / "backups")
        catalog.prepare()
        publish_dump(catalog, source)
        point = catalog.get_point(RecoveryPointId(POINT))
        assert restore_point(
            RestoreRequest(point, made, None, creates_targets=True), make_transfer()
        ).is_equal
        service = RestoreService(catalog, make_capture(), RestoreOptions("a test"), report=lambda _text: None)
        request = RestoreRequest(point, source, None, is_swap=True)
        with prepare_restore(request, make_transfer()) as prepared:
            assert service.restore_whole(prepared).is_equal
        states = [result.status for result in catalog.read_verification(RecoveryPointId(POINT)).results]
        assert set(states) == {CheckStatus.PASSED}
    finally:
        for (name,) in run(
            postgres_server.settings("postgres"),
            f"SELECT datname FROM pg_database WHERE datname LIKE '{source.database}%'",
        ):
            postgres_server.drop_database(str(name))
