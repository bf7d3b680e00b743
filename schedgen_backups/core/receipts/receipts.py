"""Issue a receipt for an event, read receipts, and verify them.

A receipt shows that the holder of this site's key stated the event; docs/receipts.md says what it does not
show. It stays after its recovery point was removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError as SignatureError
from securesystemslib.signer import Key

from schedgen_backups.core.errors import BackupError, StorageError, VerificationError
from schedgen_backups.core.history.events import HistoryEvent
from schedgen_backups.core.history.journal import History
from schedgen_backups.core.model import TOOL_VERSION, FrozenModel
from schedgen_backups.core.receipts.keys import RECEIPTS_NAME, settle_signer
from schedgen_backups.core.system.files import make_private_folder, read_small_file, write_atomically

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://schedgen-backups.example/receipt/v1"
_NAME_PATTERN = re.compile(r"[0-9]{8}T[0-9]{6}Z_[a-z-]+_[0-9a-f]{12}\.json")
_LOG = logging.getLogger(__name__)


class Subject(FrozenModel):
    """What a receipt is about: the manifest of a recovery point."""

    name: str
    digest: dict[str, str]


class ReceiptPredicate(FrozenModel):
    """What is stated of the subjects."""

    event: dict[str, Any]
    """The event as it is in the history."""
    site_id: str = ""
    tool_version: str
    versions: dict[str, str] = {}
    """Versions of the servers and programs that took part."""


class Statement(FrozenModel):
    """An in-toto Statement, version 1."""

    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: tuple[Subject, ...]
    predicate_type: Annotated[str, Field(alias="predicateType")]
    predicate: ReceiptPredicate


@dataclass(frozen=True)
class Receipt:
    """A receipt whose signature was verified."""

    path: Path
    statement: Statement
    key_id: str

    @property
    def event(self) -> Mapping[str, Any]:
        """The event that it states."""
        return self.statement.predicate.event


def make_subject(point_id: str, manifest_sha256: str) -> Subject:
    """Return the subject of a recovery point."""
    return Subject(name=f"manifest_{point_id}.json", digest={"sha256": manifest_sha256})


def list_subjects(directory: Path, point_ids: Iterable[str]) -> list[Subject]:
    """Return the subjects of those points whose manifests are in the directory."""
    found: list[Subject] = []
    for point_id in point_ids:
        # A point that retention has removed meanwhile has no manifest to name.
        with suppress(OSError):
            manifest = read_small_file(directory / f"manifest_{point_id}.json")
            found.append(make_subject(point_id, hashlib.sha256(manifest).hexdigest()))
    return found


def record_with_receipt(
    directory: Path,
    event: HistoryEvent,
    subjects: Iterable[Subject],
    *,
    site_id: str = "",
) -> None:
    """Record the event in the history of this backup directory, and issue a receipt. Best effort, both."""
    History(directory).record(event)
    issue_receipt(directory, event, subjects, site_id=site_id)


def issue_receipt(
    directory: Path,
    event: FrozenModel,
    subjects: Iterable[Subject],
    *,
    site_id: str = "",
) -> Path | None:
    """Sign a receipt of this event in the backup directory; return its file.

    Best effort, like the history: a backup without a receipt is still a backup. None, and a warning, if it
    cannot be signed or written.
    """
    if not directory.is_dir():
        return None
    try:
        return _issue(directory, event, tuple(subjects), site_id)
    except StorageError as error:
        _LOG.warning("no receipt was written: %s", error.message)
    except OSError as error:
        _LOG.warning("no receipt was written to %s: %s", directory, error.strerror)
    return None


def list_receipts(directory: Path) -> list[Path]:
    """Return the files of the receipts in a backup directory, oldest first."""
    folder = directory / RECEIPTS_NAME
    return sorted(path for path in folder.glob("*.json") if _NAME_PATTERN.fullmatch(path.name))


def is_receipt_name(name: str) -> bool:
    """Return whether a file of this name is a receipt."""
    return _NAME_PATTERN.fullmatch(name) is not None


def verify_receipt(path: Path, keys: Mapping[str, Key]) -> Receipt:
    """Return the receipt; VerificationError unless one of these keys signed exactly what it says."""
    hint = "It was altered or signed with another key. docs/receipts.md says what that means."
    try:
        envelope = Envelope.from_dict(json.loads(read_small_file(path)))
        if envelope.payload_type != PAYLOAD_TYPE:
            raise VerificationError(f"{path.name} is not a receipt", hint=hint)
        if not keys:
            raise VerificationError(f"{path.name} cannot be verified: no public key is known", hint=hint)
        accepted = envelope.verify(list(keys.values()), threshold=1)
        statement = Statement.model_validate_json(envelope.payload)
    except BackupError:
        raise
    except SignatureError as error:
        raise VerificationError(f"the signature of {path.name} is not valid", hint=hint) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise VerificationError(f"{path.name} cannot be read as a receipt", hint=hint) from error
    if statement.predicate_type != PREDICATE_TYPE:
        raise VerificationError(f"{path.name} states something of another kind", hint=hint)
    return Receipt(path, statement, next(iter(accepted)))


def _issue(directory: Path, event: FrozenModel, subjects: tuple[Subject, ...], site_id: str) -> Path:
    values = event.model_dump(mode="json")
    statement = Statement.model_validate(
        {
            "_type": STATEMENT_TYPE,
            "subject": subjects,
            "predicateType": PREDICATE_TYPE,
            "predicate": ReceiptPredicate(
                event=values,
                site_id=site_id,
                tool_version=TOOL_VERSION,
                versions=values.get("versions", {}),
            ),
        }
    )
    payload = statement.model_dump_json(by_alias=True).encode()
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(settle_signer(directory))
    at = _Times.model_validate(values).at
    kind = str(values["event"]).replace(" ", "-")
    name = f"{at:%Y%m%dT%H%M%SZ}_{kind}_{hashlib.sha256(payload).hexdigest()[:12]}.json"
    folder = directory / RECEIPTS_NAME
    owner = make_private_folder(folder)
    write_atomically(folder / name, json.dumps(envelope.to_dict()).encode() + b"\n", owner=owner)
    return folder / name


class _Times(FrozenModel):
    at: AwareDatetime
