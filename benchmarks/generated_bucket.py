"""An S3 server that computes its objects, so that a million objects and 50 GiB need neither hours nor a disk.

Only for the benchmark of scale, which measures our own memory: `python -m benchmarks.generated_bucket PORT
COUNT HUGE_BYTES`. It supports what a capture needs: buckets `many` and `huge`, listings in pages, GETs with
ranges. It does not check signatures or accept objects.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, MutableMapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import urllib3
import uvicorn

from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups.core.settings import BucketSettings

SMALL_BYTES = 1024
_PAGE = 1000
_MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"
_MODIFIED_IN_LISTING = "2026-01-01T00:00:00.000Z"
_HUGE_KEY = "huge.bin"
_MEGABYTE = 1 << 20
_NOISE = hashlib.shake_256(b"noise").digest(_MEGABYTE)
"""Content of every sixteenth megabyte of the huge object; the others are zeros."""
_START_SECONDS = 30

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class GeneratedBuckets:
    """The ASGI application."""

    def __init__(self, count: int, huge_bytes: int) -> None:
        self._count, self._huge_bytes = count, huge_bytes

    async def __call__(self, scope: MutableMapping[str, Any], _receive: object, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        bucket, _slash, key = str(scope["path"]).lstrip("/").partition("/")
        query = parse_qs(scope["query_string"].decode(), keep_blank_values=True)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if not key:
            text = self._list(bucket, query) if "list-type" in query else "<VersioningConfiguration/>"
            await _answer(send, 200, text.encode(), {"content-type": "application/xml"})
        elif bucket == "many":
            body = _make_small(int(key[-12:-4]))
            await _answer(send, 200, body, _describe(hashlib.md5(body, usedforsecurity=False).hexdigest()))
        else:
            await self._deliver_huge(send, headers.get("range", ""))

    def _list(self, bucket: str, query: dict[str, list[str]]) -> str:
        first = int(query.get("continuation-token", ["0"])[0])
        entries = [(_HUGE_KEY, self._huge_bytes, "0" * 32 + "-2")] if bucket == "huge" else []
        last = first
        if bucket == "many":
            last = min(first + _PAGE, self._count)
            bodies = ((number, _make_small(number)) for number in range(first, last))
            entries = [
                (_name_small(number), len(body), hashlib.md5(body, usedforsecurity=False).hexdigest())
                for number, body in bodies
            ]
        is_truncated = bucket == "many" and last < self._count
        lines = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{_MODIFIED_IN_LISTING}</LastModified><ETag>&quot;{etag}&quot;</ETag>"
            f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, size, etag in entries
        )
        more = (
            f"<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
            if is_truncated
            else ""
        )
        return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}</Name>{more}{lines}</ListBucketResult>'

    async def _deliver_huge(self, send: Send, wanted: str) -> None:
        described = _describe("0" * 32 + "-2")
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
    count: int, huge_bytes: int
) -> Generator[tuple[BucketSettings, BucketSettings], None, None]:
    """Run a server on loopback during the block; yield its two buckets.

    One has `count` objects of a kilobyte, the other a single object of `huge_bytes`.
    """
    (port,) = free_ports(1)
    words = [sys.executable, "-m", "benchmarks.generated_bucket", str(port), str(count), str(huge_bytes)]
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


def _describe(etag: str) -> dict[str, str]:
    return {"etag": f'"{etag}"', "last-modified": _MODIFIED, "content-type": "application/pdf"}


def _name_small(number: int) -> str:
    return f"uploads/{number:08}.pdf"


def _make_small(number: int) -> bytes:
    return hashlib.shake_128(str(number).encode()).digest(SMALL_BYTES)


async def _generate(start: int, end: int) -> AsyncIterator[bytes]:
    position = start
    while position < end:
        offset = position % _MEGABYTE
        size = min(_MEGABYTE - offset, end - position)
        yield _NOISE[offset : offset + size] if (position // _MEGABYTE) % 16 == 0 else bytes(size)
        position += size


if __name__ == "__main__":
    uvicorn.run(
        GeneratedBuckets(int(sys.argv[2]), int(sys.argv[3])),
        host=LOOPBACK,
        port=int(sys.argv[1]),
        log_level="error",
        access_log=False,
    )
