"""No secret leaves the environment: none in output, Dagster's storage, the backup directory or arguments.

Every password and key here is a unique value. The test searches all places for it, in each form it could
take.
"""

from __future__ import annotations

import base64
import gzip
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.servers import run
from schedgen_backups_tests.support.sites import Application, CliResult, Site

pytestmark = [pytest.mark.edge]

CANARY = "canary-4711 p@ss%41:word"


@pytest.fixture
def reader(application: Application, weed: EmbeddedS3) -> Iterator[Application]:
    """Return the application as seen by a backup with few rights.

    A read-only role and key pair with their own passwords.
    """
    server = application.database
    run(server, f"CREATE ROLE edge_canary LOGIN PASSWORD '{CANARY}' IN ROLE pg_read_all_data")
    yield Application(
        replace(server, user="edge_canary", password=CANARY),
        weed.read_only_settings(application.bucket.bucket),
    )
    run(server, "DROP ROLE edge_canary")


def make_recording_bin_dir(folder: Path, real_bin_dir: Path) -> tuple[Path, Path]:
    """Return a folder with client programs that record their arguments, and the file of that record."""
    bin_dir, log = folder / "recording-bin", folder / "arguments"
    bin_dir.mkdir()
    for program in real_bin_dir.iterdir():
        link = bin_dir / program.name
        if program.name in {"pg_dump", "pg_dumpall", "psql"}:
            noted = shlex.quote(str(log))
            link.write_text(
                f'#!/bin/sh\nprintf "%s\\n" "$0" "$@" >> {noted}\nexec {shlex.quote(str(program))} "$@"\n',
                encoding="utf-8",
            )
            link.chmod(0o755)
        else:
            link.symlink_to(program)
    return bin_dir, log


def forms_of(secret: str) -> dict[str, bytes]:
    """Return the secret as it is, as in a URL, and as in a header."""
    return {
        "plain": secret.encode(),
        "quoted": quote(secret, safe="").encode(),
        "base64": base64.b64encode(secret.encode()),
    }


def read_all(folder: Path) -> dict[Path, bytes]:
    """Return every file below the folder, unpacked where it is packed."""
    contents: dict[Path, bytes] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            contents[path] = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return contents


def run_everything(site: Site, database: DatabaseSettings, bucket: BucketSettings) -> dict[str, CliResult]:
    """Run good and failing backups, `doctor`, lists and a restore, with secrets in the environment."""
    [dead_port] = free_ports(1)
    url = f"postgresql://{database.user}@{database.host}:{database.port}/{database.database}"
    failing = {"POSTGRES_PASSWORD": f"{CANARY} but wrong", "MINIO_SECRET_KEY": f"{CANARY} but wrong"}
    return {
        "backup": site.cli("backup", "--reason", "a canary"),
        "refused backup": site.cli("backup", **failing),
        "unreachable backup": site.cli(
            "backup", "--json", POSTGRES_PORT=str(dead_port), MINIO_ENDPOINT=f"127.0.0.1:{dead_port}"
        ),
        "wrong settings": site.cli("backup", POSTGRES_PORT="x", MINIO_ENDPOINT="http://x", MINIO_SECURE="x"),
        "doctor": site.cli("doctor", "--json"),
        "refused doctor": site.cli("doctor", **failing),
        "list": site.cli("list", "--json"),
        "restore": site.cli("restore", "latest", "--database", url, "--bucket", bucket.bucket),
        "refused restore": site.cli(
            "restore", "latest", "--database", url, RESTORE_POSTGRES_PASSWORD=f"{CANARY} but wrong"
        ),
    }


def test_no_secret_is_printed_stored_or_passed_as_an_argument(
    site: Site,
    reader: Application,
    database: DatabaseSettings,
    weed_bucket: BucketSettings,
    postgres_bin_dir: Path,
) -> None:
    bin_dir, arguments = make_recording_bin_dir(site.folder, postgres_bin_dir)
    secrets = {
        "POSTGRES_PASSWORD": reader.database.password,
        "MINIO_SECRET_KEY": reader.bucket.secret_key,
        "RESTORE_POSTGRES_PASSWORD": database.password,
        "RESTORE_MINIO_SECRET_KEY": weed_bucket.secret_key,
    }
    assert len(set(secrets.values())) == len(secrets)
    site.set(
        **secrets,
        POSTGRES_USER=reader.database.user,
        MINIO_ACCESS_KEY=reader.bucket.access_key,
        RESTORE_MINIO_ACCESS_KEY=weed_bucket.access_key,
        PG_BIN_DIR=str(bin_dir),
    )
    results = run_everything(site, database, weed_bucket)
    codes = {name: result.code for name, result in results.items()}
    # The search proves nothing unless the runs did something.
    assert codes == {
        "backup": 0,
        "refused backup": 1,
        "unreachable backup": 1,
        "wrong settings": 4,
        "doctor": 0,
        "refused doctor": 4,
        "list": 0,
        "restore": 0,
        "refused restore": 1,
    }
    recorded = arguments.read_text(encoding="utf-8")
    assert all(f"{bin_dir}/{program}" in recorded for program in ("pg_dump", "pg_dumpall", "psql"))
    places = {name: f"{result.stdout}\n{result.stderr}".encode() for name, result in results.items()}
    places |= {
        str(path): data for folder in (site.home, site.directory) for path, data in read_all(folder).items()
    }
    places["arguments"] = recorded.encode()
    assert any(place.endswith(".db") and b"STEP_FAILURE" in data for place, data in places.items())
    found = [
        (variable, form, place)
        for variable, secret in secrets.items()
        for form, text in forms_of(secret).items()
        for place, data in places.items()
        if text in data
    ]
    assert found == []
