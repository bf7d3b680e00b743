"""Values read from files: NAME_FILE instead of NAME."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from schedgen_backups.config.config import load_config
from schedgen_backups.config.targets import read_bucket_target, read_database_target
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups_tests.support.sites import Site

pytestmark = [pytest.mark.edge]


def write(folder: Path, value: str) -> str:
    path = folder / "value"
    path.write_text(value, encoding="utf-8")
    return str(path)


def test_a_backup_reads_its_password_from_a_file(site: Site) -> None:
    password = os.environ["POSTGRES_PASSWORD"]
    site.unset("POSTGRES_PASSWORD")
    site.set(POSTGRES_PASSWORD_FILE=write(site.folder, f"{password}\n"))
    result = site.cli("backup")
    assert result.code == 0, result.stderr
    assert len(site.points()) == 1


def test_the_env_file_may_name_files(site: Site) -> None:
    site.unset("POSTGRES_PASSWORD")
    site.env.write_text(f"POSTGRES_PASSWORD_FILE={write(site.folder, 'from-a-file')}\n")
    assert load_config().database.password == "from-a-file"


def test_an_empty_value_lets_the_file_apply(site: Site) -> None:
    """Compose passes variables that are not set as empty ones."""
    site.set(POSTGRES_PASSWORD="", POSTGRES_PASSWORD_FILE=write(site.folder, "from-a-file"))
    assert load_config().database.password == "from-a-file"


def test_a_missing_value_file_is_an_error_not_an_empty_value(site: Site) -> None:
    site.set(BACKUP_ALERT_WEBHOOK_URL_FILE=str(site.folder / "none"))
    with pytest.raises(
        ConfigurationError,
        match=r"BACKUP_ALERT_WEBHOOK_URL_FILE names a file that cannot be read \(No such file",
    ):
        _ = load_config().alerts


def test_a_binary_value_file_is_named_without_its_content(site: Site) -> None:
    path = Path(write(site.folder, ""))
    path.write_bytes(b"canary-\xff")
    site.set(BACKUP_ALERT_WEBHOOK_URL_FILE=str(path))
    with pytest.raises(ConfigurationError, match="names a file that is not UTF-8 text") as raised:
        _ = load_config().alerts
    assert "canary" not in f"{raised.value} {raised.value.hint}"


def test_value_and_file_together_are_refused(site: Site) -> None:
    site.set(
        POSTGRES_PASSWORD="from-the-environment", POSTGRES_PASSWORD_FILE=write(site.folder, "from-a-file")
    )
    with pytest.raises(
        ConfigurationError, match="POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are both set"
    ) as raised:
        _ = load_config().database
    assert "from-" not in f"{raised.value} {raised.value.hint}"


def test_a_restore_reads_its_password_from_a_file(site: Site) -> None:
    site.set(
        RESTORE_POSTGRES_PASSWORD_FILE=write(site.folder, "of-the-restore"), RESTORE_POSTGRES_HOST="host"
    )
    assert read_database_target("postgresql://me@host:5432/name", load_config()).password == "of-the-restore"


def test_a_restore_with_a_missing_password_file_uses_no_other_password(site: Site) -> None:
    site.set(
        RESTORE_POSTGRES_PASSWORD_FILE=str(site.folder / "none"),
        RESTORE_MINIO_SECRET_KEY_FILE=str(site.folder / "none"),
    )
    with pytest.raises(ConfigurationError, match="RESTORE_POSTGRES_PASSWORD_FILE"):
        read_database_target("restored", load_config())
    with pytest.raises(ConfigurationError, match="RESTORE_MINIO_SECRET_KEY_FILE"):
        read_bucket_target("restored", load_config())
