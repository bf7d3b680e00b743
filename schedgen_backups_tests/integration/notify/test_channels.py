"""Channels against real local services: requests, acceptance and recognized addresses.

Mail is in `test_mail_channel`, secrets and dead servers in `test_channel_secrets`. Which alert is sent and
when is tested in `test_notifier`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from schedgen_backups.core.notify import exchange
from schedgen_backups.core.notify.alert import Alert, Severity, shorten
from schedgen_backups.core.notify.channels import (
    AppriseChannel,
    Channel,
    Delivery,
    JsonChannel,
    MailSettings,
    SlackChannel,
    make_channel,
    make_channels,
)
from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups_tests.support.alerts import (
    SECRET,
    Answer,
    RecordingServer,
    make_alert,
    recording_server,
)

LONG = "HEAD " + "pg_dump: <error> & so on\n" * 1000 + " TAIL"
TEAMS = (
    "https://prod-1.westus.logic.azure.com:443/workflows/0123456789abcdef0123456789abcdef/triggers/manual/paths/invoke"
    "?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=abcSIG"
)
NASTY = "a <!channel> & <https://evil.example|click> *b* `c`"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the cost of hung servers to tenths of seconds."""
    monkeypatch.setattr(exchange, "READ_TIMEOUT_SECONDS", 0.3)


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with recording_server() as server:
        yield server


def check_blocks(blocks: Any) -> None:
    """Check the blocks against Slack's reference for those that we use; anything else is a mistake."""
    assert isinstance(blocks, list)
    assert 0 < len(blocks) <= 50
    for block in blocks:
        kind = block["type"]
        if kind == "header":
            assert set(block) == {"type", "text"}
            check_text(block["text"], {"plain_text"}, 150)
        elif kind == "section":
            assert set(block) in ({"type", "text"}, {"type", "fields"})
            if "text" in block:
                check_text(block["text"], {"plain_text", "mrkdwn"}, 3000)
            else:
                assert 1 <= len(block["fields"]) <= 10
                for field in block["fields"]:
                    check_text(field, {"plain_text", "mrkdwn"}, 2000)
        else:
            assert kind == "context"
            assert set(block) == {"type", "elements"}
            assert 1 <= len(block["elements"]) <= 10
            for element in block["elements"]:
                check_text(element, {"plain_text", "mrkdwn"}, 3000)


def check_text(text: dict[str, Any], kinds: set[str], limit: int) -> None:
    assert set(text) == {"type", "text"}
    assert text["type"] in kinds
    assert isinstance(text["text"], str)
    assert 1 <= len(text["text"]) <= limit


ALERTS = {
    "ordinary": make_alert(),
    "bare": make_alert(next_step="", facts={}, link=""),
    "long": make_alert(
        title="t" * 4000, cause=LONG, next_step=LONG, facts={f"fact {number}": LONG for number in range(30)}
    ),
    "nasty": make_alert(
        title=NASTY * 100, cause=NASTY * 200, next_step="&" * 9000, facts={NASTY * 50: "<" * 5000}
    ),
    "other scripts": make_alert(
        title="Sikhoselwe 😀" * 40, cause="日本語 😀\x00\u202e" * 900, severity=Severity.INFO
    ),
    "empty": make_alert(title="", cause="", facts={"": ""}),
}


@pytest.mark.parametrize("name", ALERTS)
def test_slack_gets_valid_blocks_whatever_the_alert(server: RecordingServer, name: str) -> None:
    assert make_channel(server.url()).send(ALERTS[name]) == Delivery(
        "Slack", is_accepted=True, answer="200 ok"
    )
    (received,) = server.received
    assert (received.path, received.content_type) == (f"/services/{SECRET}", "application/json")
    check_blocks(received.json["blocks"])
    assert 0 < len(received.json["text"]) <= 3000


def test_slack_gets_what_the_alert_says(server: RecordingServer) -> None:
    make_channel(server.url()).send(make_alert())
    header, cause, step, facts, context = server.received[0].json["blocks"]
    assert header["text"]["text"] == "🔴 Backup failed: database_dump"
    assert cause["text"]["text"] == "*CRITICAL*  pg_dump ended with 1: connection refused"
    assert step["text"]["text"] == "*What to do:* Is the server up?"
    assert [field["text"] for field in facts["fields"]] == [
        "*newest verified*\n20260228_020000, 24.2 h old",
        "*run*\nabc",
    ]
    assert context["elements"][0]["text"] == "<https://dagster.example.com/runs/abc|Open the run>"


def test_markup_in_a_cause_makes_no_mention_and_no_link(server: RecordingServer) -> None:
    """Slack makes mentions and links of text in angle brackets, also in the text beside the blocks."""
    make_channel(server.url()).send(make_alert(cause=NASTY, facts={NASTY: NASTY}))
    payload = server.received[0].json
    escaped = "a &lt;!channel&gt; &amp; &lt;https://evil.example|click&gt; *b* `c`"
    assert payload["blocks"][1]["text"]["text"] == f"*CRITICAL*  {escaped}"
    assert payload["blocks"][3]["fields"][0]["text"] == f"*{escaped}*\n{escaped}"
    assert "<" not in payload["text"]
    assert escaped in payload["text"]


def test_a_long_cause_keeps_its_beginning_and_end(server: RecordingServer) -> None:
    for url in (server.url(), server.url("/hook")):
        make_channel(url).send(make_alert(cause=LONG))
    blocks = server.received[0].json["blocks"][1]["text"]["text"]
    for text in (blocks, server.received[0].json["text"], server.received[1].json["text"]):
        assert "HEAD pg_dump" in text
        assert "on\n TAIL" in text
        assert " … " in text


def test_blocks_that_slack_refuses_are_sent_again_as_text(server: RecordingServer) -> None:
    server.answers = [Answer(400, "invalid_blocks")]
    assert make_channel(server.url()).send(make_alert()).is_accepted
    assert ["blocks" in received.json for received in server.received] == [True, False]
    assert "connection refused" in server.received[1].json["text"]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, "invalid_payload"),
        Answer(403, "invalid_token"),
        Answer(404, "no_service"),
        Answer(410, "gone"),
    ],
)
def test_a_refusal_of_slack_is_reported(server: RecordingServer, answer: Answer) -> None:
    server.default = answer
    assert make_channel(server.url()).send(make_alert()) == Delivery(
        "Slack", is_accepted=False, answer=f"{answer.status} {answer.body}"
    )


def test_a_compressed_answer_is_read(server: RecordingServer) -> None:
    server.answers = [Answer(200, "ok", is_compressed=True), Answer(200, '{"ok": false}', is_compressed=True)]
    assert make_channel(server.url()).send(make_alert()) == Delivery(
        "Slack", is_accepted=True, answer="200 ok"
    )
    assert not make_channel(server.url("/hook")).send(make_alert()).is_accepted


def test_each_address_is_a_channel_and_mail_is_last() -> None:
    addresses = ("https://hooks.slack.com/services/T0/B0/abc", "https://example.com/hook")
    mail = MailSettings("mail.example.com", 587, "", "", "backups@example.com", "starttls")
    assert [channel.name for channel in make_channels(addresses, ("a@example.com",), mail)] == [
        "Slack",
        "webhook at example.com",
        "E-Mail",
    ]
    assert [channel.fingerprint for channel in make_channels(addresses, (), None)] == [
        make_channel(address).fingerprint for address in addresses
    ]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("path", ["/services/a", "/hook"])
def test_a_server_that_fails_once_is_retried(server: RecordingServer, path: str, status: int) -> None:
    server.answers = [Answer(status)]
    assert make_channel(server.url(path)).send(make_alert()).is_accepted
    assert len(server.received) == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("path", ["/services/a", "/hook"])
def test_a_long_retry_after_does_not_delay_a_backup(server: RecordingServer, path: str, status: int) -> None:
    """An hour of sleep within a hook would be a hung run; the spool can wait."""
    server.default = Answer(status, "later", {"Retry-After": "3600"})
    assert not make_channel(server.url(path)).send(make_alert()).is_accepted


def test_a_json_endpoint_gets_a_text(server: RecordingServer) -> None:
    server.default = Answer(204, "")
    assert make_channel(server.url("/hook?token=1")).send(make_alert()).is_accepted
    (received,) = server.received
    assert (received.path, received.content_type) == ("/hook?token=1", "application/json")
    assert set(received.json) == {"text"}
    assert received.json["text"].splitlines() == [
        "[CRITICAL] Backup failed: database_dump",
        "pg_dump ended with 1: connection refused",
        "What to do: Is the server up?",
        "newest verified: 20260228_020000, 24.2 h old",
        "run: abc",
        "https://dagster.example.com/runs/abc",
    ]


def test_a_redirect_is_a_refusal(server: RecordingServer) -> None:
    """The page behind it may be a login page that answers 200 to everything."""
    server.answers = [Answer(302, "", {"Location": server.url("/login")})]
    assert make_channel(server.url("/hook")).send(make_alert()) == Delivery(
        f"webhook at {LOOPBACK}", is_accepted=False, answer="302 Found"
    )
    assert [received.path for received in server.received] == ["/hook"]


@pytest.mark.parametrize("scheme", ["json", "xml", "form"])
def test_apprise_follows_no_redirect_whatever_the_address_says(server: RecordingServer, scheme: str) -> None:
    server.answers = [Answer(302, "", {"Location": server.url("/login")})]
    assert (
        not make_channel(f"{scheme}://{server.endpoint}/{SECRET}?redirect=yes").send(make_alert()).is_accepted
    )
    assert len(server.received) == 1


def test_slack_follows_no_redirect(server: RecordingServer) -> None:
    server.answers = [Answer(302, "", {"Location": server.url("/login")})]
    assert make_channel(server.url()).send(make_alert()) == Delivery("Slack", is_accepted=False, answer="302")
    assert len(server.received) == 1


@pytest.mark.parametrize("body", ["<html>Log in</html>", '{"ok": false, "error": "invalid_auth"}', ""])
def test_slack_accepts_only_with_its_own_answer(server: RecordingServer, body: str) -> None:
    server.default = Answer(200, body)
    assert make_channel(server.url()).send(make_alert()) == Delivery(
        "Slack", is_accepted=False, answer=f"200 {body}".strip()
    )


@pytest.mark.parametrize(
    "body",
    ['{"ok": false}', '{"success": false}', '{"error": "invalid_auth"}', '{"errors": ["no such channel"]}'],
)
def test_a_json_endpoint_that_reports_an_error_refuses(server: RecordingServer, body: str) -> None:
    server.default = Answer(200, body)
    delivery = make_channel(server.url("/hook")).send(make_alert())
    assert delivery == Delivery(f"webhook at {LOOPBACK}", is_accepted=False, answer=f"200 OK, {body}")


@pytest.mark.parametrize("kind", ["text/html", "Text/HTML; charset=utf-8", "application/json"])
def test_a_login_page_is_not_an_acceptance(server: RecordingServer, kind: str) -> None:
    server.default = Answer(200, "<!doctype html><form>Log in</form>", {"Content-Type": kind})
    assert not make_channel(server.url("/hook")).send(make_alert()).is_accepted


def test_a_refusal_behind_a_byte_order_mark_is_read(server: RecordingServer) -> None:
    server.default = Answer(200, '\ufeff{"ok": false}', {"Content-Type": "application/json"})
    assert not make_channel(server.url("/hook")).send(make_alert()).is_accepted


@pytest.mark.parametrize("body", ["", "thanks", "[]", '{"ok": true, "error": null}', '{"errors": []}', "{"])
def test_a_json_endpoint_may_answer_anything_else(server: RecordingServer, body: str) -> None:
    server.default = Answer(200, body)
    assert make_channel(server.url("/hook")).send(make_alert()).is_accepted


@pytest.mark.timeout(60)
@pytest.mark.parametrize("address", ["http://{}/services/a", "http://{}/hook", "json://{}/hook"])
def test_an_answer_sent_byte_by_byte_is_given_up(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(exchange, "EXCHANGE_TIMEOUT_SECONDS", 0.5)
    server.default = Answer(200, "ok" * 100, seconds_per_byte=0.1)
    started_at = time.monotonic()
    channel = make_channel(address.format(server.endpoint))
    assert channel.send(make_alert()) == Delivery(
        channel.name, is_accepted=False, answer="TimeoutError: no valid answer"
    )
    assert time.monotonic() - started_at < 3
    server.is_stopping.set()


def test_apprise_gets_title_and_text(server: RecordingServer) -> None:
    assert make_channel(f"json://{server.endpoint}/{SECRET}").send(make_alert()) == Delivery(
        "JSON", is_accepted=True, answer="accepted"
    )
    payload = server.received[0].json
    assert payload["title"] == "[CRITICAL] Backup failed: database_dump"
    assert payload["message"].startswith(
        "pg_dump ended with 1: connection refused\nWhat to do: Is the server up?\n"
    )
    assert payload["type"] == "failure"
    make_channel(f"json://{server.endpoint}/").send(make_alert(severity=Severity.INFO))
    assert server.received[1].json["type"] == "success"


def test_a_refusal_of_apprise_is_reported(server: RecordingServer) -> None:
    server.default = Answer(403)
    delivery = make_channel(f"json://{server.endpoint}/{SECRET}").send(make_alert())
    assert not delivery.is_accepted
    assert "403" in delivery.answer


def test_a_service_with_short_texts_gets_beginning_and_end_in_one_message(server: RecordingServer) -> None:
    """Rocket.Chat and Teams take 1000 characters, Discord 2000.

    They refuse longer ones, and the alert would be lost.
    """
    server.default = Answer(200, '{"success": true}')
    assert (
        make_channel(f"rocket://{server.endpoint}/%23backups?webhook=Webhook1/Token2")
        .send(make_alert(cause=LONG, facts={"run": "TAIL"}, link=""))
        .is_accepted
    )
    (received,) = server.received
    text = received.json["text"]
    assert len(text) <= 1000
    assert "HEAD" in text
    assert text.endswith("run: TAIL")


def test_a_service_with_short_texts_gets_the_alert_although_escaping_makes_it_longer(
    server: RecordingServer,
) -> None:
    server.default = Answer(200, '{"success": true}')
    channel = make_channel(f"rocket://{server.endpoint}/%23backups?webhook=Webhook1/Token2")
    assert channel.send(make_alert(title="_" * 200, cause="*_>" * 1000)).is_accepted
    assert [len(received.json["text"]) <= 1000 for received in server.received] == [True]


@pytest.mark.parametrize(
    ("url", "kind", "name"),
    [
        ("https://hooks.slack.com/services/T0/B0/abc", SlackChannel, "Slack"),
        ("https://mattermost.example.com/services/abc", SlackChannel, "Slack"),
        ("https://discord.com/api/webhooks/123456789012345678/abc-DEF_ghi", AppriseChannel, "Discord"),
        ("discord://123456789012345678/abc-DEF_ghi", AppriseChannel, "Discord"),
        (TEAMS, AppriseChannel, "Power Automate / Workflows (for MSTeams)"),
        ("ntfys://ntfy.example.com/backups", AppriseChannel, "ntfy"),
        ("https://example.com/hook/abc", JsonChannel, "webhook at example.com"),
    ],
)
def test_addresses_of_public_services_are_recognized(url: str, kind: type[Channel], name: str) -> None:
    channel = make_channel(url)
    assert (type(channel), channel.name) == (kind, name)


def test_fingerprints_are_equal_for_equal_addresses_only() -> None:
    first, again, other = (make_channel(f"https://example.com/{name}") for name in ("a", "a", "b"))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_text_is_cut_in_the_middle_to_the_limit() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("abcdefghijklmnop", 9) == "abc … nop"
    assert len(shorten(LONG, 100)) == 100


def test_an_alert_survives_json_unchanged() -> None:
    assert Alert.model_validate_json(make_alert().model_dump_json()) == make_alert()
