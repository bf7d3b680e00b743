"""Record of each channel's last answer, so that checks find a refusing channel before an alert is lost."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from schedgen_backups.core.errors import StorageError
from schedgen_backups.core.model import FrozenModel
from schedgen_backups.core.notify.channels import Channel, Delivery
from schedgen_backups.core.notify.incidents import FOLDER_NAME
from schedgen_backups.core.system.files import read_small_file, write_atomically
from schedgen_backups.core.system.lock import FileLock

_NAME = "deliveries.json"
_LOCK_NAME = "deliveries.lock"
_LOG = logging.getLogger(__name__)


class LastDelivery(FrozenModel):
    """The last answers of one channel."""

    fingerprint: str
    accepted_at: AwareDatetime | None = None
    refused_at: AwareDatetime | None = None
    answer: str = ""
    """The answer to the last message."""

    @property
    def is_accepted(self) -> bool:
        """Whether the last message was accepted."""
        return self.accepted_at is not None and (
            self.refused_at is None or self.accepted_at >= self.refused_at
        )


class _Deliveries(FrozenModel):
    channels: tuple[LastDelivery, ...] = ()


def read_last_delivery(backup_directory: Path, channel: Channel) -> LastDelivery | None:
    """Return the last recorded answer of the channel, or None."""
    return next(
        (
            each
            for each in _read(backup_directory / FOLDER_NAME).channels
            if each.fingerprint == channel.fingerprint
        ),
        None,
    )


def record_delivery(backup_directory: Path, channel: Channel, delivery: Delivery, now: datetime) -> None:
    """Record the answer. Best effort: if the directory is not writable, a warning is logged."""
    folder = backup_directory / FOLDER_NAME
    try:
        # Not only `parents=True`, which would create the backup directory with the umask's permissions.
        backup_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        with FileLock(folder / _LOCK_NAME).waited_for():
            kept = {each.fingerprint: each for each in _read(folder).channels}
            last = kept.get(channel.fingerprint) or LastDelivery(fingerprint=channel.fingerprint)
            moment = {"accepted_at" if delivery.is_accepted else "refused_at": now, "answer": delivery.answer}
            kept[channel.fingerprint] = last.model_copy(update=moment)
            write_atomically(
                folder / _NAME, _Deliveries(channels=tuple(kept.values())).model_dump_json(indent=1).encode()
            )
    except (OSError, StorageError) as error:
        _LOG.warning("the answer of %s cannot be recorded in %s: %s", channel.name, folder, error)


def _read(folder: Path) -> _Deliveries:
    try:
        return _Deliveries.model_validate_json(read_small_file(folder / _NAME))
    except (OSError, ValidationError):
        return _Deliveries()
