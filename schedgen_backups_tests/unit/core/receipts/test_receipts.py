"""Receipts: signed once, verified by this program and by openssl, worthless after any change."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.history.events import PointCommitted
from schedgen_backups.core.receipts.keys import (
    find_keys_folder,
    list_public_keys,
    read_public_key,
    replace_signer,
    settle_signer,
)
from schedgen_backups.core.receipts.receipts import (
    issue_receipt,
    list_receipts,
    make_subject,
    verify_receipt,
)

AT = datetime(2026, 11, 30, 2, 0, tzinfo=timezone.utc)
EVENT = PointCommitted(
    at=AT,
    point_id="20261130_020000",
    snapshot_at=AT,
    manifest_sha256="ab" * 32,
    size_bytes=7,
    versions={"PostgreSQL": "16.4"},
)
SUBJECT = make_subject("20261130_020000", "ab" * 32)
DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "receipts.md"


def issue(directory: Path, event: PointCommitted = EVENT) -> Path:
    path = issue_receipt(directory, event, [SUBJECT], site_id="5" * 32)
    assert path is not None
    return path


def test_a_receipt_names_the_point_by_the_digest_of_its_manifest(tmp_path: Path) -> None:
    path = issue(tmp_path)
    receipt = verify_receipt(path, list_public_keys(find_keys_folder(tmp_path)))
    assert receipt.statement.subject == (SUBJECT,)
    assert receipt.statement.predicate.versions == {"PostgreSQL": "16.4"}
    assert PointCommitted.model_validate(receipt.event) == EVENT
    assert list_receipts(tmp_path) == [path]
    assert path.stat().st_mode & 0o777 == 0o600
    payload = json.loads(base64.b64decode(json.loads(path.read_bytes())["payload"]))
    assert payload["_type"] == "https://in-toto.io/Statement/v1"
    assert payload["subject"][0]["digest"]["sha256"] == "ab" * 32


def test_every_changed_byte_of_the_statement_breaks_the_signature(tmp_path: Path) -> None:
    path = issue(tmp_path)
    keys = list_public_keys(find_keys_folder(tmp_path))
    envelope = json.loads(path.read_bytes())
    payload = base64.b64decode(envelope["payload"])
    for position in range(0, len(payload), 7):
        changed = bytearray(payload)
        changed[position] ^= 1
        path.write_text(json.dumps({**envelope, "payload": base64.b64encode(changed).decode()}))
        with pytest.raises(VerificationError, match="is not valid"):
            verify_receipt(path, keys)


@pytest.mark.parametrize(
    "change",
    [
        {"payloadType": "text/plain"},
        {"signatures": []},
        {"signatures": [{"keyid": "0" * 64, "sig": ""}]},
        {"payload": "%"},
        {"signatures": 7},
    ],
)
def test_a_malformed_receipt_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = issue(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
    with pytest.raises(VerificationError):
        verify_receipt(path, list_public_keys(find_keys_folder(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"\xff"])
def test_any_other_file_is_refused_as_a_receipt(tmp_path: Path, content: bytes) -> None:
    path = issue(tmp_path)
    path.write_bytes(content)
    with pytest.raises(VerificationError):
        verify_receipt(path, list_public_keys(find_keys_folder(tmp_path)))


def test_another_sites_key_verifies_nothing(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    path = issue(here)
    settle_signer(there)
    with pytest.raises(VerificationError, match="not valid"):
        verify_receipt(path, list_public_keys(find_keys_folder(there)))


def test_after_a_new_key_older_receipts_are_still_valid(tmp_path: Path) -> None:
    old = issue(tmp_path)
    key_id = replace_signer(tmp_path).public_key.keyid
    new = issue(tmp_path, EVENT.model_copy(update={"size_bytes": 8}))
    keys = list_public_keys(find_keys_folder(tmp_path))
    assert len(keys) == 2
    assert verify_receipt(new, keys).key_id == key_id != verify_receipt(old, keys).key_id
    private = (find_keys_folder(tmp_path) / "signing-key.pem").read_text()
    assert settle_signer(tmp_path).public_key.keyid == key_id
    assert private.count("PRIVATE KEY") == 2


def test_a_key_that_cannot_be_read_costs_the_receipt_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issue(tmp_path)
    (find_keys_folder(tmp_path) / "signing-key.pem").write_text("nonsense")
    assert issue_receipt(tmp_path, EVENT, [SUBJECT]) is None
    assert "is not a private key" in caplog.text
    assert issue_receipt(tmp_path / "none", EVENT, [SUBJECT]) is None


def test_any_other_file_is_refused_as_a_public_key(tmp_path: Path) -> None:
    (tmp_path / "x.pub.pem").write_text("nonsense")
    with pytest.raises(VerificationError, match="not a public key"):
        read_public_key(tmp_path / "x.pub.pem")


def test_what_root_writes_belongs_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("it takes root to give a directory away")
    os.chown(tmp_path, 1234, 1234)
    path = issue(tmp_path)
    made = [path, path.parent, *find_keys_folder(tmp_path).rglob("*.pem"), find_keys_folder(tmp_path)]
    assert {(each.stat().st_uid, each.stat().st_gid) for each in made} == {(1234, 1234)}


def test_openssl_verifies_a_receipt_as_the_document_says(tmp_path: Path) -> None:
    path = issue(tmp_path)
    [key] = find_keys_folder(tmp_path).glob("*.pub.pem")
    [script] = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    environment = {**os.environ, "RECEIPT": str(path), "KEY": str(key)}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    done = run()
    assert done.returncode == 0, done.stderr
    assert "Signature Verified Successfully" in done.stdout
    assert f'"sha256":"{"ab" * 32}"' in done.stdout
    envelope = json.loads(path.read_bytes())
    payload = base64.b64decode(envelope["payload"]).replace(b'"size_bytes":7', b'"size_bytes":8')
    path.write_text(json.dumps({**envelope, "payload": base64.b64encode(payload).decode()}))
    assert run().returncode != 0
