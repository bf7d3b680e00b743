"""Which keys every store accepts, how a store's prefix and keys are joined, and names of unfinished files."""

from __future__ import annotations

import re
import secrets

from schedgen_backups.core.errors import StoreError
from schedgen_backups.core.system.files import TEMPORARY_SUFFIX

_MAX_KEY_BYTES = 1024
"""S3's limit (S3 user guide, object key naming); Google Cloud Storage and Azure have the same."""
_FIRST_PRINTABLE = " "
_REFUSED = "\x7f\\"
"""SeaweedFS 4.48 takes a backslash for a slash, as network shares do."""
_UNFINISHED_PATTERN = re.compile(rf"\..+\.[0-9a-f]{{16}}{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)


def check_key(key: str) -> None:
    """Raise StoreError if some kind of store would refuse the key, or take another for it."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise StoreError(f"{key!r} is not a key: it is not valid Unicode") from None
    if any(part in {"", ".", ".."} for part in key.split("/")):
        raise StoreError(f"{key!r} is not a key: it is empty, absolute or has an empty, `.` or `..` part")
    if size > _MAX_KEY_BYTES:
        raise StoreError(f"{key[:50]!r}… is not a key: it has {size} bytes, and {_MAX_KEY_BYTES} are allowed")
    if any(character < _FIRST_PRINTABLE or character in _REFUSED for character in key):
        raise StoreError(f"{key!r} is not a key: it contains a control character or a backslash")


def make_unfinished_name(name: str) -> str:
    """Return a new name for a file that gets its real name when it is complete."""
    return f".{name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"


def is_unfinished(name: str) -> bool:
    """Return whether this is a name that `make_unfinished_name` makes."""
    return _UNFINISHED_PATTERN.fullmatch(name) is not None


class KeyPrefix:
    """The part of a bucket that belongs to a store."""

    def __init__(self, prefix: str) -> None:
        self._start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def add(self, key: str) -> str:
        """Return the name in the bucket of this checked key."""
        check_key(key)
        return self._start + key

    def add_to_prefix(self, prefix: str) -> str:
        """Return the name in the bucket of this start of a key, which may be empty."""
        return self._start + prefix

    def remove(self, name: str) -> str:
        """Return the key of this name in the bucket."""
        return name[len(self._start) :]
