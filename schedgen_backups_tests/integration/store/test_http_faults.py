"""What a store over HTTP does when server and network fail, behind a proxy that breaks requests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone

import pytest

from schedgen_backups.core.errors import KeyExistsError, StoreError, StoreUnreachableError
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups.core.settings import BucketSettings
from schedgen_backups.core.store.open import open_store
from schedgen_backups.core.store.protocol import ProbedStore, StoredObject
from schedgen_backups_tests.support.faulty_s3 import FaultyS3Proxy
from schedgen_backups_tests.support.store_sites import AzureSite, GcsSite, S3Site, for_sites

HttpSite = S3Site | AzureSite | GcsSite
DATA = os.urandom(300_000)
over_http = for_sites(
    lambda kind: issubclass(kind, (S3Site, AzureSite, GcsSite)) and not kind.capabilities.has_versions
)
over_s3 = for_sites(lambda kind: kind is S3Site)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedgen_backups.core.store.retry._FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def proxy(site: HttpSite) -> Iterator[FaultyS3Proxy]:
    server = site.location.endpoint.split("/")[2]
    with FaultyS3Proxy(BucketSettings(server, "", "", "")) as proxy:
        yield proxy


def reach(site: HttpSite, proxy: FaultyS3Proxy, *, timeout_seconds: int = 30) -> ProbedStore:
    """Return the store through the proxy."""
    server = site.location.endpoint.split("/")[2]
    endpoint = site.location.endpoint.replace(server, proxy.endpoint)
    return open_store(
        replace(site.location, endpoint=endpoint, timeout_seconds=timeout_seconds), site.capabilities
    )


def list_calls(store: ProbedStore) -> list[Callable[[], object]]:
    stored = StoredObject("packs/one", 1, datetime.now(timezone.utc))
    return [
        lambda: store.put_new("packs/new", DATA),
        lambda: store.get_range("packs/one", 0, len(DATA)),
        lambda: store.head("packs/one"),
        lambda: list(store.list("packs/")),
        lambda: store.delete(stored),
    ]


@over_http
def test_a_server_that_is_busy_for_a_while_is_asked_again(site: HttpSite, proxy: FaultyS3Proxy) -> None:
    site.open().put_new("packs/one", DATA)
    store = reach(site, proxy)
    for call in list_calls(store):
        proxy.fail_next(2, status=503)
        call()
    assert store.get_range("packs/new", 0, len(DATA)) == DATA


@over_http
def test_a_server_that_stays_busy_is_given_up(site: HttpSite, proxy: FaultyS3Proxy) -> None:
    site.open().put_new("packs/one", DATA)
    proxy.fail_next(None, status=503)
    for call in list_calls(reach(site, proxy)):
        before = len(proxy.requests())
        started_at = time.monotonic()
        with pytest.raises(StoreUnreachableError) as failed:
            call()
        assert failed.value.hint
        assert 2 <= len(proxy.requests()) - before <= 12
        assert time.monotonic() - started_at < 30


@over_http
def test_an_answer_that_breaks_off_is_read_again(site: HttpSite, proxy: FaultyS3Proxy) -> None:
    site.open().put_new("packs/one", DATA)
    store = reach(site, proxy)
    proxy.cut_body(70_000, 2)
    assert store.get_range("packs/one", 0, len(DATA)) == DATA
    proxy.cut_body(70_000, None)
    with pytest.raises(StoreUnreachableError) as failed:
        store.get_range("packs/one", 0, len(DATA))
    assert failed.value.hint


@over_http
def test_an_upload_whose_answer_was_lost_succeeds(site: HttpSite, proxy: FaultyS3Proxy) -> None:
    store = reach(site, proxy)
    for number, data in enumerate((b"", b"small", DATA, DATA * 20)):
        # The stand-in of Google Cloud Storage takes an upload by POST.
        proxy.lose_answer(1, method=None, matching=f"packs(/|%2F){number}|uploadType")
        store.put_new(f"packs/{number}", data)
        assert site.open().get_range(f"packs/{number}", 0, 20_000_000) == data


@over_http
def test_another_writer_between_two_attempts_wins(site: HttpSite, proxy: FaultyS3Proxy) -> None:
    store = reach(site, proxy)
    other = bytes(reversed(DATA))
    for method in ("PUT", "POST"):
        proxy.on_request(lambda _request: site.overwrite("packs/one", other), method=method, count=1)
        proxy.fail_next(1, status=503, method=method)
    with pytest.raises(KeyExistsError):
        store.put_new("packs/one", DATA)
    assert site.open().get_range("packs/one", 0, len(DATA)) == other


@over_http
def test_a_silent_server_is_given_up_in_time(site: HttpSite, proxy: FaultyS3Proxy) -> None:
    site.open().put_new("packs/one", DATA)
    proxy.hang(60, after_bytes=1000, count=None)
    started_at = time.monotonic()
    with pytest.raises(StoreUnreachableError, match="cannot be reached"):
        reach(site, proxy, timeout_seconds=1).get_range("packs/one", 0, len(DATA))
    assert time.monotonic() - started_at < 30


@over_http
def test_no_server_is_unreachable(site: HttpSite) -> None:
    (port,) = free_ports(1)
    server = site.location.endpoint.split("/")[2]
    endpoint = site.location.endpoint.replace(server, f"{LOOPBACK}:{port}")
    store = open_store(replace(site.location, endpoint=endpoint), site.capabilities)
    for call in list_calls(store):
        with pytest.raises(StoreUnreachableError) as failed:
            call()
        assert failed.value.hint


@over_s3
def test_a_page_of_a_proxy_is_not_an_answer(site: S3Site, proxy: FaultyS3Proxy) -> None:
    store = reach(site, proxy)
    proxy.answer(b"<html>please log in</html>", count=None, method=None)
    with pytest.raises(StoreUnreachableError, match="not answer with a listing"):
        list(store.list(""))
    with pytest.raises(StoreUnreachableError, match=r"not of such a store|size and time"):
        store.put_new("packs/one", DATA)


REFUSALS = [
    (507, "XMinioStorageFull", "Free space"),
    (507, "InsufficientStorage", "Free space"),
    (403, "QuotaExceeded", "Free space"),
    (403, "RequestTimeTooSkewed", "clock"),
    (403, "AccessDenied", "right"),
    (403, "InvalidAccessKeyId", "access key"),
    (400, "AuthorizationHeaderMalformed", "region"),
    (404, "NoSuchBucket", "bucket"),
    (501, "NotImplemented", "Probe"),
    (400, "BadDigest", "changed"),
]


@over_s3
@pytest.mark.parametrize(("status", "code", "hint"), REFUSALS, ids=[code for _, code, _ in REFUSALS])
def test_a_refusal_is_explained_once(
    site: S3Site, proxy: FaultyS3Proxy, status: int, code: str, hint: str
) -> None:
    proxy.fail_next(None, status=status, code=code)
    store = reach(site, proxy)
    for call in (
        lambda: store.put_new("packs/one", DATA),
        lambda: store.get_range("packs/one", 0, 5),
        lambda: list(store.list("")),
    ):
        before = len(proxy.requests())
        with pytest.raises(StoreError) as refused:
            call()
        assert not refused.value.is_retryable
        assert hint in refused.value.hint
        assert code in refused.value.message
        assert site.settings.secret_key not in repr(refused.value)
        assert len(proxy.requests()) - before == 1


@over_s3
def test_an_upload_in_conflict_with_another_is_tried_again(site: S3Site, proxy: FaultyS3Proxy) -> None:
    store = reach(site, proxy)
    proxy.fail_next(2, status=409, code="ConditionalRequestConflict", method="PUT")
    store.put_new("packs/one", DATA)
    assert store.get_range("packs/one", 0, len(DATA)) == DATA


@over_s3
def test_what_was_not_seen_to_work_is_not_used(site: S3Site, proxy: FaultyS3Proxy) -> None:
    location = replace(site.location, endpoint=f"http://{proxy.endpoint}")
    store = open_store(location)
    store.put_new("packs/one", b"first")
    with pytest.raises(KeyExistsError):
        store.put_new("packs/one", b"second")
    assert [request.method for request in proxy.requests()][-1] == "HEAD"
    assert store.get_range("packs/one", 0, 9) == b"first"


@over_http
def test_variables_of_other_programs_do_not_change_the_store(
    site: HttpSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "AWS_ENDPOINT_URL": "http://elsewhere.invalid",
        "AWS_ENDPOINT_URL_S3": "http://elsewhere.invalid",
        "AWS_ACCESS_KEY_ID": "other",
        "AWS_SECRET_ACCESS_KEY": "other",
        "AWS_SESSION_TOKEN": "other",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": "other",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AZURE_STORAGE_ENDPOINT": "http://elsewhere.invalid",
        "AZURE_STORAGE_ACCOUNT_NAME": "other",
        "AZURE_STORAGE_SAS_KEY": "sig=other",
        "AZURE_STORAGE_TOKEN": "other",
        "GOOGLE_APPLICATION_CREDENTIALS": "other",
        "GOOGLE_CLOUD_PROJECT": "other",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    store = site.open()
    store.put_new("packs/one", DATA)
    assert store.get_range("packs/one", 0, len(DATA)) == DATA
    assert [stored.key for stored in store.list("")] == ["packs/one"]
