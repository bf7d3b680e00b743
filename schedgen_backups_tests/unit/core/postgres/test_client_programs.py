"""Which of several client programs is chosen for a server, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.core.errors import ClientProgramError
from schedgen_backups.core.postgres.client_programs import find_client
from schedgen_backups.core.settings import DatabaseSettings

SETTINGS = DatabaseSettings("127.0.0.1", 5432, "app", "secret", "app", "disable")


def install(folder: Path, version: str) -> Path:
    """Install programs that print this version and do nothing else."""
    folder.mkdir(parents=True)
    for name in ("pg_dump", "pg_dumpall", "psql"):
        path = folder / name
        path.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n", encoding="utf-8")
        path.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    "version",
    ["13.22", "14.19", "15.14", "16.10 (Debian 16.10-1)", "16.11", "17.6", "18.0", "18beta1", "19.0"],
)
def test_programs_of_august_2025_and_newer_are_accepted(version: str, tmp_path: Path) -> None:
    assert version.startswith(find_client(SETTINGS, 13, install(tmp_path / "bin", version)).version)


@pytest.mark.parametrize(
    "version", ["12.22", "13.21", "14.18", "15.13 (Debian 15.13-0+deb12u1)", "16.9", "17.5", "17.0", "17rc1"]
)
def test_older_ones_are_refused_with_what_to_install(version: str, tmp_path: Path) -> None:
    """A name with a newline became a command in their dumps (CVE-2025-8715)."""
    with pytest.raises(ClientProgramError, match="before August 2025") as caught:
        find_client(SETTINGS, 11, install(tmp_path / "bin", version))
    assert "16.10" in caught.value.hint


def test_programs_older_than_the_server_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClientProgramError, match="an older pg_dump cannot dump a newer server"):
        find_client(SETTINGS, 18, install(tmp_path / "bin", "17.6"))


def test_a_folder_without_programs_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ClientProgramError, match="PG_BIN_DIR"):
        find_client(SETTINGS, 18, tmp_path)
