"""Uploads and downloads of whole and partial objects by obstore, for S3 and Azure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, S3Store

from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.s3_refusals import is_past_end, translate_s3_errors

Bucket = S3Store | AzureStore
CONNECT_TIMEOUT_SECONDS = 10
NO_RETRIES: dict[str, Any] = {"max_retries": 0}
"""The retries are ours: only we know whether an upload was repeated."""
_LOWEST_UPLOAD_BYTES_PER_SECOND = 50_000
"""A slower upload has failed: a pack of 16 MiB may take 11 minutes. The time without an answer does not do:
obstore counts it from the beginning of the upload on (seen with 0.12.1, 2026-11-30)."""
_SMALLEST_UPLOAD_BYTES = 1 << 20
_DOWNLOAD_LIMIT = timedelta(hours=1)
"""Of a whole answer; obstore's default of 30 seconds ends large ones."""


class Transfers:
    """Data of one bucket or container.

    `open_bucket` gets obstore's client options, and whether uploads carry a SHA-256. obstore reads every
    setting that it is not given from environment variables: it must give all that matter.
    """

    def __init__(
        self,
        label: str,
        location: StoreLocation,
        *,
        is_secure: bool,
        open_bucket: Callable[[dict[str, Any], bool], Bucket],
    ) -> None:
        self._label = label
        self._location = location
        self._is_secure = is_secure
        self._open_bucket = open_bucket
        self._opened: dict[tuple[int, bool], Bucket] = {}

    def put(
        self, name: str, key: str, data: bytes, *, is_conditional: bool, is_checked: bool = False
    ) -> None:
        """Upload the bytes in one request; KeyExistsError if `is_conditional` and the name is taken."""
        bucket = self._find_bucket(max(len(data), _SMALLEST_UPLOAD_BYTES), is_checked=is_checked)
        with translate_s3_errors(self._label, key):
            obstore.put(
                bucket, name, data, mode="create" if is_conditional else "overwrite", use_multipart=False
            )

    def get(self, name: str, key: str, offset: int, length: int, version_id: str) -> bytes | None:
        """Return at most `length` bytes, at least one; None if the object ends before `offset`."""
        options: dict[str, Any] = {"range": (offset, offset + length)}
        if version_id:
            options["version"] = version_id
        with translate_s3_errors(self._label, key):
            try:
                answer = obstore.get(self.get_reader(), name, options=options)  # pyright: ignore[reportArgumentType]
                return answer.bytes().to_bytes()
            except BaseError as error:
                if not is_past_end(error):
                    raise
        return None

    def get_reader(self) -> Bucket:
        """Return obstore's client for everything but uploads."""
        return self._find_bucket(0, is_checked=False)

    def _find_bucket(self, upload_bytes: int, *, is_checked: bool) -> Bucket:
        size_class = upload_bytes.bit_length()
        opened = self._opened.get((size_class, is_checked))
        if opened is None:
            opened = self._open_bucket(self._make_options(size_class), is_checked)
            self._opened[size_class, is_checked] = opened
        return opened

    def _make_options(self, size_class: int) -> dict[str, Any]:
        location = self._location
        options: dict[str, Any] = {
            "allow_http": not self._is_secure,
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_SECONDS),
        }
        if size_class:
            seconds = location.timeout_seconds + (1 << size_class) / _LOWEST_UPLOAD_BYTES_PER_SECOND
            options["timeout"] = timedelta(seconds=seconds)
        else:
            options["timeout"] = _DOWNLOAD_LIMIT
            options["read_timeout"] = timedelta(seconds=location.timeout_seconds)
        if location.certificates_path is not None:
            options["root_certificate"] = location.certificates_path.read_text(
                encoding="utf-8", errors="replace"
            )
        return options
