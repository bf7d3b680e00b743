"""Every exchange with an S3 server ends within its limits, despite silent, slow or endless answers."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import pytest
import urllib3

from schedgen_backups.core.capture.bucket import FileTarget, capture_bucket
from schedgen_backups.core.capture.object_reader import FailedObject, ObjectReader
from schedgen_backups.core.errors import BackupError, BucketError, BucketUnreachableError, ObjectError
from schedgen_backups.core.formats.archive_writer import ArchiveFileWriter, CapturedArchive
from schedgen_backups.core.formats.tar_member import PackedObject
from schedgen_backups.core.model import ArtifactKind, ArtifactName, RecoveryPointId
from schedgen_backups.core.s3 import exchange
from schedgen_backups.core.s3.client import IN_MEMORY_BYTES, BucketClient
from schedgen_backups.core.s3.listing_page import ListedObject
from schedgen_backups.core.s3.refusals import BucketStalledError
from schedgen_backups_tests.support.artifacts import make_capture, make_entry
from schedgen_backups_tests.support.certificates import make_certificate
from schedgen_backups_tests.support.slow_s3 import Answer, Handler, SlowS3, make_page

pytestmark = pytest.mark.integration

STALL_SECONDS = 0.15
BODY = b"x" * 3000


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedgen_backups.core.capture.object_reader._FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(urllib3.Retry, "get_backoff_time", lambda _retry: 0.0)


@pytest.fixture
def server() -> Iterator[SlowS3]:
    with SlowS3() as server:
        yield server


def capture(server: SlowS3, folder: Path) -> CapturedArchive:
    with (folder / "archive").open("w+b") as file:
        return capture_bucket(
            server.settings,
            make_capture(),
            ArtifactName(ArtifactKind.BUCKET, server.settings.bucket, RecoveryPointId("20261122_020000")),
            FileTarget(cast("BinaryIO", file), folder, threads=2),
            folder=folder,
        )


@pytest.fixture
def client(server: SlowS3) -> Iterator[BucketClient]:
    with BucketClient(server.settings, threads=4, stall_timeout_seconds=STALL_SECONDS) as client:
        yield client


def trickle_body(handler: Handler) -> None:
    handler.begin(len(BODY), BODY)
    handler.trickle(BODY, seconds=STALL_SECONDS / 4)


def trickle_head(handler: Handler) -> None:
    handler.trickle(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000, seconds=STALL_SECONDS / 4)


def trickle_refusal(handler: Handler) -> None:
    handler.begin(len(BODY), status=404)
    handler.trickle(BODY, seconds=STALL_SECONDS / 4)


def fall_silent(handler: Handler) -> None:
    handler.begin(len(BODY), BODY)
    handler.wfile.write(BODY[:100])
    handler.be_silent()


STALLS = [Handler.be_silent, trickle_head, trickle_body, trickle_refusal, fall_silent]


def read_packed(client: BucketClient, size_bytes: int = len(BODY)) -> object:
    listed = ListedObject("a.pdf", size_bytes, "", None, None)
    return ObjectReader(client, threading.Event()).read_packed(listed, "a.pdf")


@pytest.mark.parametrize("answer", STALLS, ids=lambda answer: answer.__name__)
def test_a_stalled_small_object_costs_the_limit_a_few_times(
    server: SlowS3, client: BucketClient, answer: Answer
) -> None:
    server.objects["a.pdf"] = answer
    started = time.monotonic()
    outcome = read_packed(client)
    assert isinstance(outcome, FailedObject)
    assert isinstance(outcome.error, BucketStalledError)
    assert "BACKUP_STALL_TIMEOUT_SECONDS" in outcome.error.hint
    assert server.count("a.pdf") <= 3
    assert time.monotonic() - started < 4 * STALL_SECONDS + 2


@pytest.mark.parametrize("answer", STALLS, ids=lambda answer: answer.__name__)
def test_a_stalled_large_object_costs_the_limit_a_few_times(
    server: SlowS3, client: BucketClient, tmp_path: Path, answer: Answer
) -> None:
    server.objects["a.pdf"] = answer
    started = time.monotonic()
    listed = ListedObject("a.pdf", len(BODY), "", None, None)
    with (
        (tmp_path / "archive").open("w+b") as file,
        ArchiveFileWriter(file, threads=1, folder=tmp_path) as writer,
    ):
        outcome = ObjectReader(client, threading.Event()).stream_to(writer, listed, "a.pdf")
    assert isinstance(outcome, FailedObject)
    assert isinstance(outcome.error, BucketStalledError)
    assert server.count("a.pdf") <= 4
    assert time.monotonic() - started < 5 * STALL_SECONDS + 2


def test_a_slow_body_above_the_minimum_rate_is_read(
    server: SlowS3, client: BucketClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "LOWEST_BYTES_PER_SECOND", 1000)

    def answer(handler: Handler) -> None:
        handler.begin(len(BODY), BODY)
        for start in range(0, len(BODY), 100):
            time.sleep(STALL_SECONDS / 8)
            handler.wfile.write(BODY[start : start + 100])

    server.objects["a.pdf"] = answer
    assert isinstance(read_packed(client), PackedObject)
    assert server.count("a.pdf") == 1


def test_the_readers_own_pauses_are_not_counted(server: SlowS3, client: BucketClient) -> None:
    body = b"y" * (IN_MEMORY_BYTES + 1)
    server.objects["a.pdf"] = lambda handler: handler.send_whole(body)
    size_bytes = 0
    with client.open_object("a.pdf") as opened:
        for block in opened.read_blocks():
            size_bytes += len(block)
            time.sleep(STALL_SECONDS / 8)
    assert size_bytes == len(body)


@pytest.mark.parametrize(
    "answer", [Handler.be_silent, trickle_head, trickle_body], ids=lambda answer: answer.__name__
)
def test_a_stalled_listing_page_ends(server: SlowS3, client: BucketClient, answer: Answer) -> None:
    server.listing = answer
    started = time.monotonic()
    with pytest.raises(BucketStalledError):
        list(client.list_objects())
    assert server.count("list-type") == 2
    assert time.monotonic() - started < 3 * STALL_SECONDS + 2


def test_an_upload_that_the_server_does_not_read_ends(server: SlowS3, client: BucketClient) -> None:
    server.put = Handler.be_silent
    body = b"z" * IN_MEMORY_BYTES
    started = time.monotonic()
    with pytest.raises(BucketStalledError):
        client.put_object(make_entry("a.pdf", body), io.BytesIO(body))
    assert server.count("a.pdf") == 2
    assert time.monotonic() - started < 3 * STALL_SECONDS + 2


def test_an_upload_may_take_longer_than_connecting(server: SlowS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedgen_backups.core.s3.client.CONNECT_TIMEOUT_SECONDS", 0.3)
    body = b"z" * IN_MEMORY_BYTES

    def take_slowly(handler: Handler) -> None:
        left = int(handler.headers["Content-Length"])
        while left:
            left -= len(handler.rfile.read(min(left, 2 << 20)))
            time.sleep(0.1)
        handler.send_whole()

    server.put = take_slowly
    with BucketClient(server.settings, threads=1, stall_timeout_seconds=10) as client:
        client.put_object(make_entry("a.pdf", body), io.BytesIO(body))
    assert server.count("a.pdf") == 1


def send_without_end(handler: Handler, *, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/xml")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while not handler.server.stopping.is_set():
        handler.wfile.write(b"100000\r\n" + b"a" * 0x100000 + b"\r\n")


def send_endless_refusal(handler: Handler) -> None:
    send_without_end(handler, status=404)


@pytest.mark.parametrize(
    "answer", [send_without_end, send_endless_refusal], ids=lambda answer: answer.__name__
)
def test_an_endless_answer_is_not_kept_in_memory(
    server: SlowS3, client: BucketClient, answer: Answer
) -> None:
    server.listing = server.objects["a.pdf"] = answer
    for ask, kinds in (
        (lambda: list(client.list_objects()), BucketUnreachableError),
        (lambda: client.read_object("a.pdf"), BackupError),
    ):
        before = len(server.requests)
        with pytest.raises(kinds):
            ask()
        assert len(server.requests) - before <= 3


def test_an_object_longer_than_announced_is_refused(server: SlowS3, client: BucketClient) -> None:
    server.objects["a.pdf"] = send_without_end
    with (
        pytest.raises(ObjectError, match="more than the announced 0 bytes"),
        client.open_object("a.pdf") as opened,
    ):
        for _block in opened.read_blocks():
            pass


def test_a_busy_server_does_not_choose_the_pause(
    server: SlowS3, client: BucketClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_MAX_RETRY_AFTER_SECONDS", 0.01)

    def be_busy(handler: Handler) -> None:
        handler.send_response(503)
        handler.send_header("Retry-After", "86400")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.listing = be_busy
    started = time.monotonic()
    with pytest.raises(BucketUnreachableError):
        list(client.list_objects())
    assert time.monotonic() - started < 5


def test_a_listing_with_endless_new_keys_is_refused(server: SlowS3, tmp_path: Path) -> None:
    def list_more(handler: Handler) -> None:
        page = handler.token
        handler.send_whole(
            make_page([(f"{page:06}/{number:03}.pdf", 5) for number in range(1000)], str(page + 1))
        )

    server.listing = list_more
    with pytest.raises(BucketError, match="1000 consecutive objects that do not exist"):
        capture(server, tmp_path)
    assert server.count("list-type") < 20


def test_the_next_page_is_requested_by_its_token_alone(server: SlowS3, client: BucketClient) -> None:
    """s3proxy refuses a token together with a start key."""
    server.listing = lambda handler: handler.send_whole(
        make_page([(f"{handler.token}.pdf", 5)], "1" if not handler.token else "")
    )
    assert [listed.key for listed in client.list_objects()] == ["0.pdf", "1.pdf"]
    assert server.count("continuation-token=1") == 1
    assert server.count("start-after") == 0


@pytest.mark.parametrize("markers", ["", "<NextKeyMarker>same</NextKeyMarker>"], ids=["none", "same"])
def test_a_listing_of_versions_that_does_not_advance_is_refused(
    server: SlowS3, client: BucketClient, markers: str
) -> None:
    contents = f"<Name>b</Name><IsTruncated>true</IsTruncated>{markers}"
    page = f"<ListVersionsResult>{contents}</ListVersionsResult>".encode()
    server.about_bucket = lambda handler: handler.send_whole(page)
    with pytest.raises(BucketError, match="does not end"):
        list(client.list_versions())
    assert server.count("versions") <= 2


def test_many_deleted_objects_do_not_abort_the_capture(server: SlowS3, tmp_path: Path) -> None:
    keys = [(f"{number:05}.pdf", 5) for number in range(2500)]
    pages = {
        0: make_page(keys[:1000], "1"),
        1: make_page(keys[1000:2000], "2"),
        2: make_page(keys[2000:], ""),
    }

    def list_once(handler: Handler) -> None:
        handler.send_whole(make_page([], "") if "prefix=0" in handler.path else pages[handler.token])

    server.listing = list_once
    captured = capture(server, tmp_path)
    assert captured.record.deleted_count == 2500


def test_over_tls_the_same_limits_apply(tmp_path: Path) -> None:
    def take(handler: Handler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.send_whole()

    large = b"y" * (IN_MEMORY_BYTES + 1)
    with SlowS3(make_certificate(tmp_path / "ours")) as server:
        server.put = take
        server.objects = {
            "a.pdf": trickle_body,
            "b.pdf": lambda handler: handler.send_whole(BODY),
            "large": lambda handler: handler.send_whole(large),
        }
        with BucketClient(server.settings, threads=4, stall_timeout_seconds=1) as client:
            assert client.read_object("b.pdf").data == BODY
            with client.open_object("large") as opened:
                assert b"".join(opened.read_blocks()) == large
            client.put_object(make_entry("c.pdf", large[:-1]), io.BytesIO(large[:-1]))
            started = time.monotonic()
            with pytest.raises(BucketStalledError), client.open_object("a.pdf") as opened:
                list(opened.read_blocks())
            assert time.monotonic() - started < 5


def test_over_tls_a_foreign_certificate_is_refused(tmp_path: Path) -> None:
    with SlowS3(make_certificate(tmp_path / "ours")) as server:
        settings = replace(server.settings, certificates_path=make_certificate(tmp_path / "other"))
        with (
            BucketClient(settings, threads=1, stall_timeout_seconds=5) as client,
            pytest.raises(BucketUnreachableError, match="certificate"),
        ):
            list(client.list_objects())
    assert server.requests == []
