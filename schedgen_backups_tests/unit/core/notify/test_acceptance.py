"""What the body of a 2xx answer says about acceptance of an alert."""

from __future__ import annotations

import json

import pytest

from schedgen_backups.core.notify.acceptance import is_refusal
from schedgen_backups.core.notify.exchange import Answer

REFUSALS: tuple[object, ...] = (
    {"isSuccess": False},
    {"sent": 0},
    {"failed": True},
    {"message": "Failed to deliver"},
    {"message": "Unknown Webhook", "code": 10015},
    {"code": 19024, "msg": "Key Words Not Found"},
    {"result": "channel_not_found"},
    {"status": "blocked"},
    {"message": "Unauthorized"},
    {"detail": "Not authenticated"},
    {"isError": True},
    {"hasErrors": True},
    {"status": "KO"},
    {"status": "nok"},
    {"httpStatus": 500},
    {"responseCode": 500},
    {"status": {"code": 500}},
    {"errno": 5},
    {"error": {"code": 7, "message": "no hook"}},
    {"ok": False},
    {"ok": 0},
    {"ok": "false"},
    {"ok": None},
    {"OK": "No"},
    {"success": ""},
    {"Success": "0"},
    {"error": "x"},
    {"Error": "x"},
    {"errors": ["x"]},
    {"error_message": "x"},
    {"errorCode": 7},
    {"errcode": 40014, "errmsg": "invalid token"},
    {"error": {"message": "x"}},
    {"status": "error", "message": "no such hook"},
    {"Status": "FAILED"},
    {"result": "failed"},
    {"result": "failure"},
    {"status": "fail"},
    {"status": "denied"},
    {"status": "unauthorized"},
    {"status": False},
    {"status": 404},
    {"code": 404},
    {"code": "404"},
    {"code": 404.0},
    {"code": "invalid_auth"},
    {"statusCode": 500},
    {"status_code": "401"},
    {"StatusCode": 1, "msg": "invalid"},
    {"ok": True, "error": "x"},
    {"data": {"ok": False}},
    {"result": {"status": "error"}},
    [{"error": "x"}],
    [[{"ok": False}]],
    False,
    "error",
)
ACCEPTANCES: tuple[object, ...] = (
    {"status": "no_error"},
    {"status": "not_required"},
    {"status": "Failover ok"},
    {"error": "0 errors"},
    {"failed": 0},
    {"ok": True},
    {"ok": 1, "error": None},
    {"ok": "true", "errors": []},
    {"success": "yes", "error": "", "errorCode": 0},
    {"errcode": 0, "errmsg": "ok"},
    {"code": 0, "error": "none"},
    {"code": 20000},
    {"code": 1000, "message": "success"},
    {"errorCode": "0000"},
    {"error": "No error"},
    {"error": {"code": 0, "message": "OK"}},
    {"errors": {"count": 0}},
    {"error_url": "https://example.org/errors"},
    {"success": 1, "error": "N/A"},
    {"status": "not_applicable"},
    {"message": "Invalid items are kept"},
    {"StatusCode": 0, "StatusMessage": "success"},
    {"status": "ok"},
    {"status": "success", "failed": 0},
    {"status": 200, "code": "200", "statusCode": 204},
    {"status": "accepted", "errorCount": 0},
    {"result": {"id": 7, "status": "queued"}},
    {"message": "the error is stored"},
    {"text": "status: error"},
    {},
    [],
    [{"ok": True}, {"ok": False}],
    True,
    None,
    7,
    "ok",
)


def make_answer(body: str, content_type: str = "application/json") -> Answer:
    return Answer(200, "OK", body, content_type)


@pytest.mark.parametrize("said", REFUSALS, ids=json.dumps)
def test_a_refusal_is_recognized_in_any_spelling(said: object) -> None:
    assert is_refusal(make_answer(json.dumps(said)))
    assert is_refusal(make_answer(f"\n {json.dumps(said)}\n", "text/html"))


@pytest.mark.parametrize("said", ACCEPTANCES, ids=json.dumps)
def test_json_that_does_not_report_a_failure_is_an_acceptance(said: object) -> None:
    assert not is_refusal(make_answer(json.dumps(said)))
    assert not is_refusal(make_answer(json.dumps(said), "text/html; charset=utf-8"))


@pytest.mark.parametrize(
    "body",
    [
        "<html>",
        " \n<!DOCTYPE html><p>x",
        "<?xml version='1.0'?><error/>",
        "invalid_token",
        "Error: no hook",
        "Not Found",
    ],
)
def test_a_page_or_a_refusal_in_words_is_not_an_acceptance(body: str) -> None:
    assert is_refusal(make_answer(body, "text/plain"))


@pytest.mark.parametrize(
    ("body", "is_refused"),
    [
        ("<p>Please log in", True),
        ("Welcome! <form action=/login>", True),
        ("x\n<!-- login -->", True),
        ("Bad Gateway", True),
        ("channel_not_found", True),
        ("Session expired", True),
        ("received", False),
        ("sent", False),
        ("Alert created", False),
        ("Congratulations! You've fired the alert event", False),
        ("3 < 4", False),
        ("ok", False),
        ("OK\n", False),
        ("", False),
        (" ", False),
    ],
)
def test_a_text_sent_as_html_is_a_page_only_if_it_has_a_tag(body: str, *, is_refused: bool) -> None:
    """Many frameworks label whatever a handler returns as text/html.

    A receiver that says "received" got it.
    """
    assert is_refusal(make_answer(body, "Text/HTML; charset=utf-8")) is is_refused


@pytest.mark.parametrize(
    "body", ["", "ok", "thanks", "{", "accepted", "notified", "1", "Invalidation queued"]
)
def test_other_text_is_an_acceptance(body: str) -> None:
    assert not is_refusal(make_answer(body, "text/plain"))


def test_deeply_nested_json_is_read_to_a_limit() -> None:
    assert not is_refusal(make_answer('{"data":' * 500 + '{"ok": false}' + "}" * 500))
    assert not is_refusal(make_answer("[" * 300 + "]" * 300))
    assert is_refusal(make_answer("[" * 60_000))
