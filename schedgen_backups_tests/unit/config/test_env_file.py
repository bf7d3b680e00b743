"""The environment file: where it is searched, who must own it, and what is read from it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from schedgen_backups.config import env_file
from schedgen_backups.config.env_file import EnvironmentFile, find_checkout, find_environment_file


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout with the package and a home; neither has an environment file."""
    folder, home = tmp_path / "checkout", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    monkeypatch.setattr(env_file, "find_checkout", lambda: folder)
    monkeypatch.setenv("HOME", str(home))
    return folder


def write(path: Path, text: str = "POSTGRES_HOST=db\n", mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def refusal_of(file: EnvironmentFile) -> str:
    assert file.error is not None
    assert file.values == {}
    return f"{file.error.message} {file.error.hint}"


def test_the_named_file_overrides_the_checkouts(checkout: Path, tmp_path: Path) -> None:
    write(checkout / ".env", "POSTGRES_HOST=of-the-checkout\n")
    named = write(tmp_path / "named", "POSTGRES_HOST=named\n")
    found = find_environment_file(named)
    assert (found.path, found.folder, dict(found.values)) == (named, tmp_path, {"POSTGRES_HOST": "named"})


def test_the_checkouts_file_overrides_the_users(checkout: Path, tmp_path: Path) -> None:
    of_the_user = write(tmp_path / "home" / ".config" / "schedgen-backups" / "env")
    found = find_environment_file(None)
    assert (found.path, found.folder) == (of_the_user, None)
    own = write(checkout / ".env")
    found = find_environment_file(None)
    assert (found.path, found.folder) == (own, checkout)


def test_the_current_folder_and_its_parents_are_not_searched(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's folder may name programs that root would run."""
    below = tmp_path / "foreign" / "below"
    below.mkdir(parents=True)
    for folder in (below, below.parent):
        write(folder / ".env", "PG_BIN_DIR=/tmp/evil\n")
        (folder / "workspace.yaml").touch()
        (folder / "dagster.yaml").touch()
    monkeypatch.chdir(below)
    found = find_environment_file(None)
    assert (found.path, dict(found.values)) == (None, {})
    assert found.folder == checkout


def test_without_a_file_the_hint_names_the_places(checkout: Path, tmp_path: Path) -> None:
    found = find_environment_file(None)
    places = (
        checkout / ".env",
        Path("/etc/schedgen-backups/env"),
        tmp_path / "home" / ".config" / "schedgen-backups" / "env",
    )
    assert found.places == places
    assert all(str(place) in found.advice for place in places)


def test_a_missing_named_file_is_an_error(checkout: Path, tmp_path: Path) -> None:
    write(checkout / ".env")
    assert f"the environment file {tmp_path / 'none'} does not exist" in refusal_of(
        find_environment_file(tmp_path / "none")
    )


def test_a_world_writable_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "env", mode=0o606)
    assert "is writable by every user" in refusal_of(find_environment_file(path))


def test_a_group_writable_file_is_accepted_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "env", mode=0o660)
    found = find_environment_file(path)
    assert (found.error, dict(found.values)) == (None, {"POSTGRES_HOST": "db"})
    assert "is writable by its group" in found.warning


def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = write(tmp_path / "env")
    os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
    said = refusal_of(find_environment_file(path))
    assert "belongs to nobody" in said
    assert "chown root" in said


def test_a_binary_file_is_refused_without_its_content(tmp_path: Path) -> None:
    path = write(tmp_path / "env")
    path.write_bytes(b"POSTGRES_PASSWORD=canary-\xff\n")
    said = refusal_of(find_environment_file(path))
    assert "not UTF-8" in said
    assert "canary" not in said


def test_only_known_names_are_read(tmp_path: Path) -> None:
    """The same file may hold the application's own secrets.

    Variables of other programs are not ours to set.
    """
    others = "JWT_SECRET=canary\nLD_PRELOAD=/evil.so\nPGHOST=elsewhere\nDAGSTER_HOME=/x\n"
    ours = "PGSSLROOTCERT=/ca.pem\nPOSTGRES_PASSWORD_FILE=/secret\nMINIO_BUCKET=b\n"
    found = find_environment_file(write(tmp_path / "env", others + ours))
    assert dict(found.values) == {
        "PGSSLROOTCERT": "/ca.pem",
        "POSTGRES_PASSWORD_FILE": "/secret",
        "MINIO_BUCKET": "b",
    }


def test_this_checkout_is_found_from_the_package() -> None:
    assert find_checkout() == Path(__file__).resolve().parents[3]
