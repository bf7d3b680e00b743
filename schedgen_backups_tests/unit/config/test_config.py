"""The configuration as one value: read once, each part separately, and the environment above the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedgen_backups.config.config import Config, load_config
from schedgen_backups.config.targets import read_bucket_target, read_database_target
from schedgen_backups.config.variables import ENV_FILE_VARIABLE, NAMES, VARIABLES
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.formats.pack_reader import NO_KEYS

COMPLETE = {
    "POSTGRES_PASSWORD": "password-canary",
    "MINIO_ACCESS_KEY": "key",
    "MINIO_SECRET_KEY": "secret-canary",
    "BACKUP_ALERT_WEBHOOK_URL": "http://127.0.0.1:9/hook-canary",
}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, ENV_FILE_VARIABLE, "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


def write_env(folder: Path, **values: str) -> Path:
    path = folder / "env"
    path.touch(mode=0o600)
    path.write_text(
        "".join(f"{name}='{value}'\n" for name, value in {**COMPLETE, **values}.items()), encoding="utf-8"
    )
    return path


def load(folder: Path, **values: str) -> Config:
    return load_config(write_env(folder, **values))


def test_a_config_is_constant_until_it_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(tmp_path, POSTGRES_HOST="before")
    write_env(tmp_path, POSTGRES_HOST="after")
    monkeypatch.setenv("MINIO_BUCKET", "after")
    assert (config.database.host, config.bucket.bucket) == ("before", "schedgen-pdfs")
    again = config.reload()
    assert (again.database.host, again.bucket.bucket) == ("after", "after")


def test_the_files_of_secrets_are_read_once_too(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the file\n", encoding="utf-8")
    config = load(
        tmp_path, DRILL_POSTGRES_PASSWORD_FILE=str(secret), DRILL_DATABASE_URL="postgresql://me@host/postgres"
    )
    secret.unlink()
    assert config.drill.database is not None
    assert config.drill.database.password == "of the file"


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"POSTGRES_PORT": "x"}, "database"),
        ({"MINIO_ENDPOINT": "http://minio"}, "bucket"),
        ({"BACKUP_DOWNLOAD_THREADS": "eight"}, "capture"),
        ({"BACKUP_NICE": "20"}, "schedule"),
        ({"BACKUP_RETENTION_DAYS": "0"}, "retention"),
        ({"BACKUP_RETENTION_HOURS": "0"}, "retention"),
        ({"BACKUP_ALERT_ON_SUCCESS": "perhaps"}, "alerts"),
        ({"DRILL_MAX_MINUTES": "soon"}, "drill"),
    ],
)
def test_a_wrong_part_leaves_the_others_usable(wrong: dict[str, str], part: str, tmp_path: Path) -> None:
    config = load(tmp_path, **wrong)
    [name] = wrong
    parts = {"database", "bucket", "backup_directory", "capture", "schedule", "retention", "alerts", "drill"}
    errors: dict[str, ConfigurationError] = {}
    for other in parts:
        try:
            getattr(config, other)
        except ConfigurationError as error:
            errors[other] = error
    assert errors.keys() == {part}
    assert f"{name} is invalid, expected " in errors[part].message
    assert str(tmp_path / "env") in errors[part].hint


def test_several_wrong_parts_are_reported_in_one_message(tmp_path: Path) -> None:
    config = load(tmp_path, POSTGRES_PORT="x", BACKUP_NICE="20")
    with pytest.raises(ConfigurationError) as raised:
        config.check("database", "capture", "schedule")
    assert all(name in raised.value.message for name in ("POSTGRES_PORT", "BACKUP_NICE"))


def test_the_environment_overrides_the_file_even_when_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_HOST", "of-the-environment")
    monkeypatch.setenv("BACKUP_ALERT_WEBHOOK_URL", "")
    config = load(tmp_path, POSTGRES_HOST="of-the-file")
    assert (config.database.host, config.alerts.webhook_urls) == ("of-the-environment", ())


@pytest.mark.parametrize(
    ("in_process", "in_file"), [("", "_FILE"), ("_FILE", "")], ids=["value over file", "file over value"]
)
def test_a_variable_and_its_file_are_one_setting(
    in_process: str, in_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setting both is an error within one place, but not across the two."""
    texts = {name: tmp_path / name for name in ("process", "file")}
    for name, path in texts.items():
        path.write_text(f"of the {name}", encoding="utf-8")
    monkeypatch.setenv(
        f"SMTP_PASSWORD{in_process}", str(texts["process"]) if in_process else "of the process"
    )
    named = {f"SMTP_PASSWORD{in_file}": str(texts["file"]) if in_file else "of the file"}
    config = load(tmp_path, BACKUP_ALERT_EMAIL="a@example.com", SMTP_HOST="mail", **named)
    assert config.alerts.mail is not None
    assert config.alerts.mail.password == "of the process"


def test_a_bad_file_is_an_error_of_every_part_but_not_of_the_definitions(
    tmp_path: Path,
) -> None:
    config = load_config(tmp_path / "none")
    for part in ("database", "backup_directory", "alerts"):
        with pytest.raises(ConfigurationError, match=r"the environment file .* does not exist"):
            getattr(config, part)
    assert config.definitions.backup_cron == "0 2 * * *"


def test_a_relative_path_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = load(tmp_path, BACKUP_DIR="./points", DRILL_SQL_CHECKS="checks.sql")
    assert (config.backup_directory, config.drill.sql_checks_path) == (
        tmp_path / "points",
        tmp_path / "checks.sql",
    )


def test_beside_the_users_own_file_a_relative_path_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery points belong neither in ~/.config or /etc nor in the current directory of a command."""
    monkeypatch.setattr("schedgen_backups.config.env_file.find_checkout", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".config" / "schedgen-backups"
    folder.mkdir(parents=True)
    write_env(folder)
    with pytest.raises(ConfigurationError, match=r"BACKUP_DIR is invalid: a relative path needs a checkout"):
        _ = load_config().backup_directory


def test_tls_variables_apply_to_every_database_and_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ca.pem")
    config = load(tmp_path, PGSSLROOTCERT="/etc/pg.pem", DRILL_DATABASE_URL="postgresql://me@host/postgres")
    wanted = (("PGSSLROOTCERT", "/etc/pg.pem"),)
    databases = (
        config.database,
        config.drill.database,
        read_database_target("postgresql://me@host/name", config),
    )
    assert [database.libpq_variables for database in databases if database is not None] == [wanted] * 3
    assert (
        read_bucket_target("https://host/name", config).certificates_path
        == config.bucket.certificates_path
        == Path("/etc/ca.pem")
    )


def test_the_drills_server_never_gets_the_sources_password(tmp_path: Path) -> None:
    config = load(
        tmp_path, DRILL_DATABASE_URL="postgresql://me@host/postgres", RESTORE_POSTGRES_PASSWORD="canary"
    )
    assert config.drill.database is not None
    assert config.drill.database.password == ""


def test_neither_repr_nor_message_has_a_secret(tmp_path: Path) -> None:
    config = load(tmp_path, BACKUP_HEARTBEAT_URL="http://example.com/heartbeat-canary")
    assert "canary" not in repr(config)
    with pytest.raises(
        ConfigurationError, match="BACKUP_HEARTBEAT_URL is invalid, expected an https address"
    ) as raised:
        _ = config.alerts
    assert "canary" not in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@evil.example/name",
        "postgresql://me@source.example:5433/name",
        "postgresql:///name?user=me",
    ],
)
def test_the_sources_password_goes_to_no_other_server(tmp_path: Path, url: str) -> None:
    config = load(tmp_path, POSTGRES_HOST="source.example")
    assert read_database_target(url, config).password == ""


@pytest.mark.parametrize(
    "target", ["other", "postgresql://me@source.example/other", "postgresql://me@SOURCE.example:5432/other"]
)
def test_a_target_on_the_sources_server_gets_its_password(tmp_path: Path, target: str) -> None:
    assert (
        read_database_target(target, load(tmp_path, POSTGRES_HOST="source.example")).password
        == "password-canary"
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:typed-canary@host/name",
        "postgresql://me@host/name?password=typed-canary",
        "postgresql://me:typed-canary@/name",
    ],
)
def test_a_url_with_a_password_is_refused_and_not_quoted(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="contains a password") as raised:
        read_database_target(url, load(tmp_path, POSTGRES_HOST="host"))
    assert "canary" not in f"{raised.value!r} {raised.value.message} {raised.value.hint}"


def test_a_bucket_url_with_a_key_is_refused_and_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="contains a login") as raised:
        read_bucket_target("http://key:typed-canary@host:9000/name", load(tmp_path))
    assert "canary" not in f"{raised.value!r} {raised.value.message} {raised.value.hint}"


def explain_everything(config: Config) -> str:
    """Return all errors of all parts, as printed."""
    try:
        config.check(
            "database", "bucket", "backup_directory", "capture", "schedule", "retention", "alerts", "drill"
        )
    except ConfigurationError as error:
        return f"{error.message} {error.hint}"
    return ""


@pytest.mark.parametrize(
    "value", ["user:canary@host:9000", "https://user:canary@host/name", "canary", "~canary/x"]
)
def test_a_wrong_value_is_never_quoted(tmp_path: Path, value: str) -> None:
    """A password may have been set in the wrong variable; messages reach alerts and the history of runs."""
    complete = {"BACKUP_ALERT_EMAIL": "a@example.com", "SMTP_HOST": "mail.example.com"}
    messages = [
        explain_everything(load(tmp_path, **{**complete, name + suffix: value})).replace(str(tmp_path), "")
        for name in (variable.name for variable in VARIABLES)
        for suffix in ("", "_FILE")
    ]
    assert sum(bool(text) for text in messages) > len(VARIABLES)
    assert not [text for text in messages if "canary" in text]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POSTGRES_HOST", "user:canary@host"),
        ("POSTGRES_HOST", "postgresql://host"),
        ("POSTGRES_DB", "postgresql://user:canary@host/name"),
        ("POSTGRES_DB", "host=h password=canary"),
        ("POSTGRES_USER", "postgresql://user:canary@host"),
        ("POSTGRES_USER", "user:canary@host"),
        ("MINIO_BUCKET", "http://key:canary@host:9000/name"),
        ("MINIO_REGION", "secret = canary"),
        ("MINIO_ENDPOINT", "key:canary@host:9000"),
        ("DRILL_MINIO_ENDPOINT", "key:canary@host:9000"),
        ("SMTP_HOST", "user:canary@mail.example.com"),
        ("DAGSTER_WEBSERVER_URL", "https://user:canary@host"),
    ],
)
def test_a_login_within_an_address_is_refused(tmp_path: Path, name: str, value: str) -> None:
    """It would appear in every label, message and link."""
    complete = {
        "BACKUP_ALERT_EMAIL": "a@example.com",
        "SMTP_HOST": "mail.example.com",
        "BACKUP_DIR": str(tmp_path),
    }
    config = load(tmp_path, **{**complete, name: value})
    with pytest.raises(ConfigurationError, match=f"{name} is invalid") as raised:
        config.check("database", "bucket", "alerts", "drill")
    assert "canary" not in f"{raised.value.message} {raised.value.hint}"


def test_points_in_another_directory_stay_there_when_the_settings_are_read_again(tmp_path: Path) -> None:
    """A drill reads the settings again; it must not find the site's own points then."""
    config = load(tmp_path, BACKUP_DIR="points")
    fetched = config.with_points_in(tmp_path / "fetched", store="nas", keys=NO_KEYS)
    for each in (fetched, fetched.reload()):
        assert (each.backup_directory, each.store) == (tmp_path / "fetched", "nas")
        assert each.site_directory == config.backup_directory
        assert {tmp_path / "fetched", config.backup_directory} <= set(each.drill.hidden_paths)
