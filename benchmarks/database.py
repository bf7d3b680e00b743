"""Benchmarks of the database: capture, restore and a single table.

Capture competes with the old script and pg_dump's own formats, restore with `gunzip | psql`. Every contestant
reads from the same server and writes to the same disk.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from threading import Event

from benchmarks.paired import Contestant, Timing, run_in_turn
from benchmarks.shell import has_program, run_shell, size_of
from schedgen_backups.core.capture.capture import take_database_dump
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.postgres.client_programs import find_client
from schedgen_backups.core.postgres.connection import make_client_environment
from schedgen_backups.core.restore.database import prepare_database
from schedgen_backups.core.restore.load import DatabaseLoad
from schedgen_backups.core.restore.tables import TableRequest, prepare_tables
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.settings import CaptureSettings, DatabaseSettings
from schedgen_backups.core.verify.files import verify_dump

CAPTURE, RESTORE, TABLE = "database capture", "database restore", "one table"
SCRIPT, LIMIT, OURS, VERIFIED = (
    "pg_dump \\| gzip (the script)",
    "pg_dump > /dev/null (limit)",
    "schedgen-backups",
    "schedgen-backups, verified",
)
OURS_JOBS = "schedgen-backups --jobs 2"
STOCK_RESTORE = "gunzip \\| psql (the script)"


def make_point_ids() -> Iterator[RecoveryPointId]:
    """Yield an id for each capture of a benchmark."""
    return (RecoveryPointId(f"20261122_{number // 60:02}{number % 60:02}00") for number in itertools.count())


def measure_database(
    postgres: EmbeddedPostgres, settings: DatabaseSettings, folder: Path, *, rounds: int
) -> tuple[Timing, ...]:
    """Measure capture, restore and a single table."""
    catalog = Catalog(folder / "database-points")
    catalog.prepare()
    options = CaptureSettings()
    client = find_client(settings, postgres.server_version, None)
    environment = make_client_environment(settings)
    dump = f"'{client.pg_dump}' --no-password"
    ids = make_point_ids()
    newest: list[RecoveryPointId] = []

    def capture() -> int:
        newest.append(next(ids))
        return take_database_dump(catalog, settings, options, newest[-1]).size_bytes

    def capture_and_verify() -> int:
        size_bytes = capture()
        assert all(result.is_passed for result in verify_dump(path_of(newest[-1])))
        return size_bytes

    def path_of(point_id: RecoveryPointId) -> Path:
        return catalog.get_point(point_id).get_path(ArtifactKind.DATABASE)

    def into(name: str, command: str) -> Contestant:
        target = folder / name
        return Contestant(
            lambda: (
                run_shell(f"rm -rf '{target}'; {command.format(target=target)}", environment),
                size_of(target),
            )[1]
        )

    contestants = {
        SCRIPT: into("script.sql.gz", dump + " | gzip > '{target}'"),
        OURS: Contestant(capture, lambda: forget(catalog, newest)),
        VERIFIED: Contestant(capture_and_verify, lambda: forget(catalog, newest)),
        LIMIT: Contestant(lambda: (run_shell(f"{dump} > /dev/null", environment), 0)[1]),
        "pg_dump -Fc": into("custom.dump", dump + " -Fc -f '{target}'"),
        "pg_dump -Fd -j2": into("directory.dump", dump + " -Fd -j2 -f '{target}'"),
    }
    if has_program("pigz"):
        contestants["pg_dump \\| pigz"] = into("pigz.sql.gz", dump + " | pigz > '{target}'")
    timings = run_in_turn(CAPTURE, contestants, rounds=rounds)
    return (
        *timings,
        *_measure_restore(postgres, folder, path_of(newest[-1]), options, rounds=rounds),
        *_measure_table(catalog, newest[-1], settings, options, rounds=rounds),
    )


def forget(catalog: Catalog, newest: list[RecoveryPointId]) -> None:
    """Remove all files but the newest, so that the disk does not fill."""
    for point in catalog.list_points():
        if not newest or point.point_id != newest[-1]:
            for artifact in point.artifacts:
                artifact.path.unlink()


def _measure_restore(
    postgres: EmbeddedPostgres, folder: Path, path: Path, options: CaptureSettings, *, rounds: int
) -> tuple[Timing, ...]:
    target = postgres.create_database("restored")
    script = folder / "script.sql.gz"

    def renew() -> None:
        postgres.drop_database(target.database)
        postgres.create_database(target.database)

    def stock() -> int:
        run_shell(
            f"gunzip -c '{script}' | '{postgres.bin_dir}/psql' -X -q -v ON_ERROR_STOP=1",
            make_client_environment(target),
        )
        return 0

    def ours(jobs: int) -> int:
        with prepare_database(path, target, options.transfer) as prepared:
            DatabaseLoad(
                prepared,
                replace_contents=False,
                jobs=jobs,
                roles=None,
                stop=Event(),
                on_progress=lambda _size_bytes: None,
            ).run()
        return 0

    contestants = {
        STOCK_RESTORE: Contestant(stock, renew),
        OURS: Contestant(lambda: ours(1), renew),
        OURS_JOBS: Contestant(lambda: ours(2), renew),
    }
    return run_in_turn(RESTORE, contestants, rounds=rounds)


def _measure_table(
    catalog: Catalog,
    point_id: RecoveryPointId,
    settings: DatabaseSettings,
    options: CaptureSettings,
    *,
    rounds: int,
) -> tuple[Timing, ...]:
    def ours() -> int:
        request = TableRequest(catalog.get_point(point_id), ("users",), settings, side_name="one_table")
        with prepare_tables(request, options.transfer) as prepared:
            return prepared.tables[0].size_bytes

    return run_in_turn(TABLE, {OURS: Contestant(ours)}, rounds=rounds)
