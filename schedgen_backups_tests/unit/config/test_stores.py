"""The file of stores: what is read, what is refused, and that no secret is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from schedgen_backups.config.stores import StoreEntry, read_stores
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.packs.encryption import make_key_pair
from schedgen_backups_tests.support.certificates import make_certificate

PAIR = make_key_pair()
UTC = ZoneInfo("UTC")
GOOD = f'[stores.nas]\nurl = "file:///mnt/nas"\nrecipients = ["{PAIR.public}"]\n'


def read(folder: Path, text: str, **values: str) -> tuple[StoreEntry, ...]:
    path = folder / "stores.toml"
    path.write_text(text, encoding="utf-8")
    return read_stores(path, UTC, values)


def test_a_folder_needs_only_url_and_recipients(tmp_path: Path) -> None:
    [entry] = read(tmp_path, GOOD)
    settings = entry.require()
    assert (settings.name, settings.location.url) == ("nas", "file:///mnt/nas")
    assert settings.is_encrypted
    assert (settings.retention.keep_days, settings.retention.keep_months) == (30, 12)
    assert settings.retention.keep_hours == 0


def test_every_setting_arrives(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    text = f"""
[stores.b2]
url = "s3://bucket/prefix"
endpoint = "https://s3.example"
region = "eu"
access_key = "AK"
secret_key_file = "secret"
recipients = ["{PAIR.public}"]
reread_days = 7
max_age_hours = 50
lock_days = 30
append_only = true
[stores.b2.retention]
hours = 48
days = 3
weeks = 4
months = 5
years = 6
keep_last = 2
[stores.b2.prune]
access_key = "PRUNER"
secret_key_env = "PRUNE_SECRET"
"""
    [entry] = read(tmp_path, text, PRUNE_SECRET="other")
    settings = entry.require()
    assert settings.location.secret_key == "hunter2"
    assert settings.prune_location is not None
    assert (settings.prune_location.access_key, settings.prune_location.secret_key) == ("PRUNER", "other")
    assert settings.prune_location.url == settings.location.url
    retention = settings.retention
    assert (retention.keep_days, retention.keep_weeks, retention.keep_months) == (3, 4, 5)
    assert (retention.keep_years, retention.keep_last) == (6, 2)
    assert retention.keep_hours == 48
    assert (settings.reread_days, settings.max_age_hours, settings.lock_days) == (7, 50, 30)
    assert settings.is_append_only
    assert "hunter2" not in repr(settings)


BAD = {
    "no url": ('recipients = ["{public}"]', "url"),
    "no recipients": ('url = "file:///mnt/nas"', "no recipients"),
    "a private key": ('url = "file:///mnt/nas"\nrecipients = ["{private}"]', "a private key stands among"),
    "a word as key": ('url = "file:///mnt/nas"\nrecipients = ["hello"]', "not a public key"),
    "recipients and none": (
        'url = "file:///mnt/nas"\nencryption = "none"\nrecipients = ["{public}"]',
        "nothing is encrypted",
    ),
    "another encryption": ('url = "file:///mnt/nas"\nencryption = "aes"', "encryption"),
    "an unknown scheme": ('url = "ftp://host/x"\nrecipients = ["{public}"]', "unknown scheme"),
    "an unknown setting": (
        'url = "file:///mnt/nas"\nrecipients = ["{public}"]\nbuckett = "x"',
        "buckett: unknown setting",
    ),
    "no URL": ('recipients = ["{public}"]', "url: it is required"),
    "a secret in the file": (
        'url = "s3://b/p"\nrecipients = ["{public}"]\naccess_key = "a"\nsecret_key = "hunter2"',
        "name its file in secret_key_file",
    ),
    "a wrong type": (
        'url = "file:///mnt/nas"\nrecipients = ["{public}"]\nreread_days = "hunter2"',
        "reread_days",
    ),
    "more hours than a year has": (
        'url = "file:///mnt/nas"\nrecipients = ["{public}"]\nretention = { hours = 9000 }',
        "retention.hours",
    ),
    "a missing secret file": (
        'url = "s3://b/p"\nrecipients = ["{public}"]\naccess_key = "a"\nsecret_key_file = "missing"',
        "secret_key_file names cannot be read",
    ),
    "a missing variable": (
        'url = "s3://b/p"\nrecipients = ["{public}"]\naccess_key = "a"\nsecret_key_env = "NOWHERE"',
        "NOWHERE",
    ),
    "two secrets": (
        'url = "s3://b/p"\nrecipients = ["{public}"]\nsecret_key_env = "A"\nsecret_key_file = "b"',
        "both secret_key_file and secret_key_env",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_store_is_explained_and_leaves_the_others_alone(tmp_path: Path, case: str) -> None:
    body, said = BAD[case]
    body = body.replace("{public}", PAIR.public).replace("{private}", PAIR.private)
    wrong, good = read(tmp_path, f"[stores.wrong]\n{body}\n{GOOD}")
    assert good.require().name == "nas"
    assert wrong.error is not None
    message = f"{wrong.error.message} {wrong.error.hint}"
    assert "wrong" in message
    assert said in message
    assert "hunter2" not in message
    assert PAIR.private not in message
    with pytest.raises(ConfigurationError):
        wrong.require()


@pytest.mark.parametrize("name", ["NAS", "na-s", "1nas", "n" * 32, "'../x'"])
def test_a_name_that_cannot_be_an_asset_is_refused(tmp_path: Path, name: str) -> None:
    [entry] = read(tmp_path, GOOD.replace("stores.nas", f"stores.{name}"))
    assert entry.error is not None
    assert "cannot be the name of a store" in entry.error.message


@pytest.mark.parametrize("text", ["[stores", "\x00", "x = 1", "[other.nas]\nurl = 'file:///x'"])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError):
        read(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_stores(tmp_path / "missing.toml", UTC, {})


def test_an_empty_file_has_no_stores(tmp_path: Path) -> None:
    assert read(tmp_path, "") == ()


def test_a_file_that_every_user_can_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stores.toml"
    path.write_text(GOOD)
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="is writable by every user"):
        read_stores(path, UTC, {})


def test_the_examples_of_the_guide_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path(__file__).resolve().parents[3] / "docs" / "stores.md"
    blocks = re.findall(r"```toml\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setenv("AZURE_ACCOUNT_KEY", "a2V5")
    for name in ("b2.secret", "office.secret"):
        (tmp_path / name).write_text("secret")
    make_certificate(tmp_path / "authority")
    (tmp_path / "id_ed25519").write_bytes(
        Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    )
    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    account = {"type": "service_account", "client_email": "x@y", "token_uri": "https://x", "private_key": pem}
    (tmp_path / "service-account.json").write_text(json.dumps(account, default=bytes.decode))
    found: list[StoreEntry] = []
    for block in blocks:
        text = "\n".join(line.strip() for line in block.splitlines())
        text = text.replace("age1…", PAIR.public).replace("AAAA…", "AAAAC3NzaC1lZDI1NTE5").replace("…", "x")
        found += read(tmp_path, text)
    assert [entry.name for entry in found] == ["nas", "b2", "azure", "gcs", "storagebox", "office"]
    assert [entry.error for entry in found] == [None] * len(found)
