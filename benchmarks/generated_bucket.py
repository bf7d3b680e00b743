"""An S3 server that computes its objects, so that a million objects and 50 GiB need neither hours nor a disk.

Only for benchmarks of our own memory and processor time: `python -m benchmarks.generated_bucket PORT COUNT
HUGE_BYTES SMALL_BYTES CHANGED_ONE_OF`. It supports what a capture needs: buckets `many` and `huge`, listings
in pages, GETs with ranges. It does not check signatures or accept objects. A request for `/hour/N` lets N
hours pass: in each, one of CHANGED_ONE_OF objects of `many` changes, another one each time, spread evenly.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, MutableMapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs

import urllib3
import uvicorn

from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups.core.settings import BucketSettings

SMALL_BYTES = 1024
CHANGED_ONE_OF = 1000
_PAGE = 1000
_BEGINNING = datetime(2026, 1, 1, tzinfo=timezone.utc)
_HUGE_KEY = "huge.bin"
_MEGABYTE = 1 << 20
_NOISE = hashlib.shake_256(b"noise").digest(_MEGABYTE)
"""Content of every sixteenth megabyte of the huge object, the others are zeros; and of the small objects but
for their last bytes."""
_OWN_BYTES = 32
"""At the end of each small object, so that the MD5 of what precedes them is computed once."""
_START_SECONDS = 30

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class GeneratedBuckets:
    """The ASGI application."""

    def __init__(self, count: int, huge_bytes: int, small_bytes: int, changed_one_of: int) -> None:
        self._count, self._huge_bytes = count, huge_bytes
        self._changed_one_of, self._hour = changed_one_of, 0
        self._noise = _NOISE[: small_bytes - _OWN_BYTES]
        self._noise_md5 = hashlib.md5(self._noise, usedforsecurity=False)

    async def __call__(self, scope: MutableMapping[str, Any], _receive: object, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        bucket, _slash, key = str(scope["path"]).lstrip("/").partition("/")
        if bucket == "many" and key:
            number = int(key[-12:-4])
            end = self._make_end(number)
            await _answer(send, 200, self._noise + end, _describe(self._digest(end), self._find_hour(number)))
            return
        query = parse_qs(scope["query_string"].decode(), keep_blank_values=True)
        if bucket == "hour":
            self._hour = int(key)
            await _answer(send, 200, b"", {})
        elif not key:
            text = self._list(bucket, query) if "list-type" in query else "<VersioningConfiguration/>"
            await _answer(send, 200, text.encode(), {"content-type": "application/xml"})
        else:
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            await self._deliver_huge(send, headers.get("range", ""))

    def _find_hour(self, number: int) -> int:
        """Return the hour in which the object last changed."""
        hour = number % self._changed_one_of + 1
        return hour if hour <= self._hour else 0

    def _make_end(self, number: int) -> bytes:
        text = f"{number} {self._find_hour(number)}"
        return hashlib.shake_128(text.encode()).digest(_OWN_BYTES)

    def _digest(self, end: bytes) -> str:
        digest = self._noise_md5.copy()
        digest.update(end)
        return digest.hexdigest()

    def _list(self, bucket: str, query: dict[str, list[str]]) -> str:
        first = int(query.get("continuation-token", ["0"])[0])
        entries = [(_HUGE_KEY, self._huge_bytes, "0" * 32 + "-2", 0)] if bucket == "huge" else []
        last = first
        if bucket == "many":
            last = min(first + _PAGE, self._count)
            size_bytes = len(self._noise) + _OWN_BYTES
            entries = [
                (
                    _name_small(number),
                    size_bytes,
                    self._digest(self._make_end(number)),
                    self._find_hour(number),
                )
                for number in range(first, last)
            ]
        is_truncated = bucket == "many" and last < self._count
        times = {
            hour: f"{_find_time(hour):%Y-%m-%dT%H:%M:%S.000Z}" for hour in {entry[3] for entry in entries}
        }
        lines = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{times[hour]}</LastModified><ETag>&quot;{etag}&quot;</ETag>"
            f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, size, etag, hour in entries
        )
        more = (
            f"<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
            if is_truncated
            else ""
        )
        return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}</Name>{more}{lines}</ListBucketResult>'

    async def _deliver_huge(self, send: Send, wanted: str) -> None:
        described = _describe("0" * 32 + "-2", 0)
        start, end, status = 0, self._huge_bytes, 200
        if wanted:
            first, _dash, last = wanted.removeprefix("bytes=").partition("-")
            start, end, status = (
                int(first),
                min(int(last) + 1, self._huge_bytes) if last else self._huge_bytes,
                206,
            )
            described["content-range"] = f"bytes {start}-{end - 1}/{self._huge_bytes}"
        await _begin(send, status, end - start, described)
        async for piece in _generate(start, end):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@contextmanager
def serve_generated_buckets(
    count: int, huge_bytes: int, *, small_bytes: int = SMALL_BYTES, changed_one_of: int = CHANGED_ONE_OF
) -> Generator[tuple[BucketSettings, BucketSettings], None, None]:
    """Run a server on loopback during the block; yield its two buckets.

    One has `count` objects of `small_bytes`, the other a single object of `huge_bytes`.
    """
    (port,) = free_ports(1)
    numbers = (port, count, huge_bytes, small_bytes, changed_one_of)
    words = [sys.executable, "-m", "benchmarks.generated_bucket", *map(str, numbers)]
    with subprocess.Popen(words) as process:
        try:
            deadline = time.monotonic() + _START_SECONDS
            while (
                urllib3.request(
                    "GET", f"http://{LOOPBACK}:{port}/many", retries=urllib3.Retry(20, backoff_factor=0.05)
                ).status
                != 200
            ):
                if time.monotonic() > deadline:
                    raise RuntimeError("the server of generated buckets does not answer")
            many = BucketSettings(f"{LOOPBACK}:{port}", "generated", "generated", "many")
            yield many, many.with_bucket("huge")
        finally:
            process.terminate()


def let_hours_pass(settings: BucketSettings, hour: int) -> None:
    """Let the objects be those of this hour; the first is 0."""
    assert urllib3.request("PUT", f"http://{settings.endpoint}/hour/{hour}").status == 200


async def _answer(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    await _begin(send, status, len(body), headers)
    await send({"type": "http.response.body", "body": body})


async def _begin(send: Send, status: int, length: int, headers: dict[str, str]) -> None:
    pairs = {**headers, "content-length": str(length)}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in pairs.items()],
        }
    )


def _describe(etag: str, hour: int) -> dict[str, str]:
    modified = f"{_find_time(hour):%a, %d %b %Y %H:%M:%S GMT}"
    return {"etag": f'"{etag}"', "last-modified": modified, "content-type": "application/pdf"}


def _find_time(hour: int) -> datetime:
    return _BEGINNING + timedelta(hours=hour)


def _name_small(number: int) -> str:
    return f"uploads/{number:08}.pdf"


async def _generate(start: int, end: int) -> AsyncIterator[bytes]:
    position = start
    while position < end:
        offset = position % _MEGABYTE
        size = min(_MEGABYTE - offset, end - position)
        yield _NOISE[offset : offset + size] if (position // _MEGABYTE) % 16 == 0 else bytes(size)
        position += size


if __name__ == "__main__":
    uvicorn.run(
        GeneratedBuckets(*map(int, sys.argv[2:6])),
        host=LOOPBACK,
        port=int(sys.argv[1]),
        log_level="error",
        access_log=False,
    )
