"""Which requests reach Dagster's webserver.

A real one behind the gate, with every header combination a page can cause.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups_tests.support.ui import JSON, LAUNCH_QUERY, Server, ask, running, write_query

pytestmark = [pytest.mark.edge]

LINK = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")]
GET_LAUNCH = f"/graphql?query={quote(LAUNCH_QUERY)}"
LAUNCH = write_query(LAUNCH_QUERY)
READ = write_query("{ version }")
Headers = list[tuple[str, str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    [port] = free_ports(1)
    named = {
        "DAGSTER_WEBSERVER_URL": "https://backups.example.org",
        "BACKUP_UI_HOSTS": "other.example.org:8443, any.example.org",
    }
    with running(tmp_path_factory.mktemp("ui"), port, "webserver", **named) as started:
        yield started


def fill(headers: Headers, server: Server) -> Headers:
    return [(name, value.replace("PORT", str(server.port))) for name, value in headers]


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:PORT", "127.0.0.1:PORT", "127.0.0.1:1", "[::1]", "[::1]:PORT"),
        *(
            "backups.example.org",
            "backups.example.org:3000",
            "Backups.Example.ORG",
            "other.example.org",
            "any.example.org:1",
        ),
    ],
)
def test_the_ui_answers_to_its_own_names(server: Server, host: str) -> None:
    assert ask(server.port, "GET", "/", fill([("Host", host)], server)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:PORT",
            "localhost.evil.example",
            "localhost@evil.example",
            "evil.example/localhost",
            "127.0.0.1.nip.io",
        ),
        *(
            "localhost.",
            "127.0.0.1.",
            "127.1",
            "0.0.0.0",
            "[::]",
            "[::ffff:127.0.0.1]",
            "2130706433",
            "localhost:x",
            "localhost:",
            "",
            "local host",
        ),
        *("backups.example.org.", "xbackups.example.org", "x.backups.example.org"),
    ],
)
def test_another_host_is_refused(server: Server, host: str) -> None:
    assert ask(server.port, "GET", "/", fill([("Host", host)], server)).status == 400


@pytest.mark.parametrize("header", ["X-Forwarded-Host", "X-Original-Host", "Forwarded", "X-Forwarded-Server"])
def test_a_forwarded_header_does_not_replace_host(server: Server, header: str) -> None:
    assert ask(server.port, "GET", "/", [("Host", "evil.example"), (header, "localhost")]).status == 400
    assert ask(server.port, "GET", "/", [(header, "evil.example")]).status == 200


def test_two_host_headers_are_refused(server: Server) -> None:
    assert ask(server.port, "GET", "/", [("Host", "localhost"), ("Host", "evil.example")]).status == 400


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_only_the_health_path_is_open_under_any_host(server: Server, method: str) -> None:
    cross = [("Host", "10.1.2.3:3000"), ("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")]
    assert ask(server.port, method, "/server_info", cross).status == 200
    for path in ("/server_info/", "/server_info/x", "//server_info", "/dagit_info", "/Server_Info"):
        assert ask(server.port, method, path, cross).status == 400
    assert ask(server.port, "POST", "/server_info", cross).status == 400


@pytest.mark.parametrize(
    "origin",
    [
        *(
            "http://127.0.0.1:PORT",
            "https://backups.example.org",
            "https://backups.example.org:443",
            "HTTPS://BACKUPS.example.org",
        ),
        *("https://other.example.org:8443", "http://any.example.org:1", "https://any.example.org"),
    ],
)
def test_requests_from_the_ui_pass(server: Server, origin: str) -> None:
    headers = fill([("Origin", origin), ("Sec-Fetch-Site", "same-origin"), JSON], server)
    assert ask(server.port, "POST", "/graphql", headers, READ).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("Origin", "http://evil.example")],
        [("Origin", "null")],
        [("Origin", "")],
        [("Origin", "file://")],
        [("Origin", "chrome-extension://localhost")],
        [("Origin", "http://127.0.0.1:1")],
        [("Origin", "http://localhost:PORT")],
        [("Origin", "http://[::1]:PORT")],
        [("Origin", "http://127.0.0.1.:PORT")],
        [("Origin", "http://127.0.0.1:PORT@evil.example")],
        [("Origin", "http://127.0.0.1:PORT"), ("Origin", "http://evil.example")],
        [("Origin", "http://backups.example.org")],
        [("Origin", "https://backups.example.org:8443")],
        [("Origin", "https://other.example.org")],
        # A page of another site's name that resolves to 127.0.0.1: its headers match each other, not the UI.
        [("Host", "evil.example"), ("Origin", "http://evil.example")],
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
        [("Sec-Fetch-Site", "Same-Origin")],
        [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")],
    ],
    ids=lambda headers: " ".join(value or "empty" for _, value in headers),
)
def test_a_page_of_another_origin_launches_nothing(server: Server, headers: Headers) -> None:
    before = server.count_runs()
    assert ask(server.port, "POST", "/graphql", [*fill(headers, server), JSON], LAUNCH).status in {400, 403}
    assert server.count_runs() == before


@pytest.mark.parametrize(
    "path",
    [GET_LAUNCH, "/graphql", GET_LAUNCH.replace("/graphql", "/graphql/"), GET_LAUNCH.replace("/g", "//g")],
)
@pytest.mark.parametrize("headers", [[], [("Accept", "text/html")], [("Accept", "image/*")], [JSON]], ids=str)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_graphql_accepts_post_only(server: Server, method: str, path: str, headers: Headers) -> None:
    before = server.count_runs()
    assert ask(server.port, method, path, headers).status == 405
    assert server.count_runs() == before


@pytest.mark.parametrize(
    "end", ["%0A", "%0a/", "%0D", "%0D%0A", "%00", "%20", "%09", "%C2%85", "%E2%80%A8", ";x", "%2F", "%3F"]
)
@pytest.mark.parametrize("headers", [[], LINK], ids=["bare", "link"])
def test_no_path_suffix_gets_a_query_past_the_gate(server: Server, end: str, headers: Headers) -> None:
    """Starlette's routes ignore a trailing line break, and a link that a user follows may show a page."""
    before = server.count_runs()
    reply = ask(server.port, "GET", GET_LAUNCH.replace("?", f"{end}?", 1), headers)
    assert reply.status in {400, 404, 405} or "<html" in reply.body
    assert "LaunchRun" not in reply.body
    assert server.count_runs() == before


def test_a_password_is_searched_for_whatever_follows_the_path(server: Server) -> None:
    body = write_query("{ version }").rstrip("}") + ', "variables": {"x": "postgresql://me:canary@db/app"}}'
    assert ask(server.port, "POST", "/graphql%0A", [JSON], body).status == 400


@pytest.mark.parametrize(
    "method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get", "post"]
)
@pytest.mark.parametrize("path", ["/graphql", "/", "/report_asset_materialization/x"])
def test_no_other_method_is_accepted(server: Server, method: str, path: str) -> None:
    preflight = [("Origin", f"http://{LOOPBACK}:{server.port}"), ("Access-Control-Request-Method", "POST")]
    reply = ask(server.port, method, path, [*preflight, JSON], LAUNCH if method != "CONNECT" else "")
    assert reply.status in {400, 405}
    assert reply.headers.get("Access-Control-Allow-Origin") is None


@pytest.mark.parametrize(
    "kinds",
    [
        [],
        ["text/plain"],
        [""],
        ["application/x-www-form-urlencoded"],
        ["multipart/form-data; boundary=x"],
        ["application/graphql"],
        ["text/plain; application/json"],
        ["text/plain, application/json"],
        ["application/json, text/plain"],
        ["application/jsonp"],
        ["application/json", "text/plain"],
        ["text/plain", "application/json"],
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "path",
    [
        GET_LAUNCH,
        "/report_asset_materialization/x",
        "/report_asset_check/x?check_name=y&passed=true",
        "/report_asset_observation/x",
        "/",
    ],
)
def test_a_post_that_a_form_could_send_is_refused(server: Server, path: str, kinds: list[str]) -> None:
    before = server.count_runs()
    assert ask(server.port, "POST", path, [("Content-Type", kind) for kind in kinds], LAUNCH).status == 415
    assert server.count_runs() == before


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/json ;charset=UTF-8",
    ],
)
def test_json_is_accepted_in_any_spelling(server: Server, kind: str) -> None:
    """Dagster itself compares the case."""
    status = ask(server.port, "POST", "/graphql", [("Content-Type", kind)], READ).status
    assert status == (400 if kind.startswith("A") else 200)


@pytest.mark.parametrize(
    "path", ["/report_asset_materialization/x", "/report_asset_check/x", "/report_asset_observation/x"]
)
def test_the_other_post_routes_are_guarded_alike(server: Server, path: str) -> None:
    assert ask(server.port, "POST", path, [JSON, ("Origin", "http://evil.example")], "{}").status == 403
    # Past the gate: Dagster answers, and knows no such asset or check.
    assert ask(server.port, "POST", path, [JSON], "{}").status not in {403, 405, 415}


@pytest.mark.parametrize("path", ["/", "/jobs/tried_job", "/logs/x/y.out"])
def test_a_link_from_another_site_may_only_open_a_page_in_the_whole_window(server: Server, path: str) -> None:
    link = LINK
    assert ask(server.port, "GET", path, link).status in {200, 404}
    for dest in ("iframe", "object", "embed", "empty", "script"):
        assert ask(server.port, "GET", path, [*link[:2], ("Sec-Fetch-Dest", dest)]).status == 403
    assert ask(server.port, "GET", path, [link[0], ("Sec-Fetch-Mode", "no-cors"), link[2]]).status == 403
    assert ask(server.port, "GET", GET_LAUNCH, link).status == 405


def test_no_page_may_frame_the_ui(server: Server) -> None:
    assert ask(server.port, "GET", "/").headers["X-Frame-Options"] == "DENY"


def test_the_ui_itself_launches_a_run(server: Server) -> None:
    """Show that the refusals mean something: the same request is executed when it comes from the UI."""
    before = server.count_runs()
    reply = ask(
        server.port, "POST", "/graphql", [("Origin", f"http://{LOOPBACK}:{server.port}"), JSON], LAUNCH
    )
    assert "LaunchRunSuccess" in reply.body
    assert server.count_runs() == before + 1


@pytest.mark.parametrize("origin", [None, "http://127.0.0.1:PORT", "https://backups.example.org"])
def test_a_websocket_of_the_ui_is_accepted(server: Server, origin: str | None) -> None:
    origin = origin.replace("PORT", str(server.port)) if origin else None
    with connect(
        f"ws://{LOOPBACK}:{server.port}/graphql", origin=origin, subprotocols=["graphql-ws"], proxy=None
    ) as opened:
        opened.send('{"type": "connection_init"}')
        assert "connection_ack" in opened.recv(timeout=30)


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
    ids=str,
)
def test_a_websocket_of_another_page_is_refused(server: Server, headers: dict[str, str]) -> None:
    address = f"ws://{LOOPBACK}:{server.port}/graphql"
    with (
        pytest.raises(InvalidStatus, match="403"),
        connect(address, additional_headers=headers, subprotocols=["graphql-ws"], proxy=None),
    ):
        pass


@pytest.mark.parametrize("path", ["/", "/graphql", "/server_info"])
def test_a_websocket_under_another_host_is_refused(server: Server, path: str) -> None:
    address = f"ws://evil.example:{server.port}{path}"
    with (
        socket.create_connection((LOOPBACK, server.port)) as raw,
        pytest.raises(InvalidStatus, match="403"),
        connect(address, sock=raw, proxy=None),
    ):
        pass


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:canary@db:5432/app",
        "https://key:canary@store:9000/pdfs",
        "postgresql:\\/\\/:canary@db",
        "postgresql:\\u002f\\u002fme:canary@db",
        r"{\"database\": \"postgresql:\\u002F\\/me:canary@db\"}",
        "postgresql://me@db/app?password=canary",
        "postgresql://me@db/app?sslmode=disable&sslpassword=canary",
        "host=db user=me Password = canary",
        "host=db\\npassword='canary'",
        "host=db\\tpassword=canary",
        "postgresql://me@db/app?p%61ssword=canary",
        "postgresql://me:ca/nary@db/app",
        "postgres://me:cana'ry and more@db/app",
        'postgresql://me:cana\\"ry@db/app',
        'database: \\"\\\\U00000070assword=canary\\"',
    ],
)
def test_a_password_in_a_url_never_reaches_dagsters_records(server: Server, url: str) -> None:
    """restore_job refuses it, too, but Dagster stores the configuration before the run begins."""
    body = write_query("{ version }").rstrip("}") + f', "variables": {{"database": "{url}"}}}}'
    answer = ask(server.port, "POST", "/graphql", [JSON], body)
    assert answer.status == 400
    assert "a URL or connection string in the query contains a password" in answer.body
    assert "canary" not in answer.body


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me@db:5432/app",
        "see https://example.org/a:b",
        "a:b@c",
        "mail me: x@example.org",
        "the password is known",
        "a" * 300_000,
        "http://" * 50_000,
        "password " * 30_000,
        "postgresql://a:" * 20_000,
    ],
)
def test_other_texts_pass(server: Server, text: str) -> None:
    body = write_query("{ version }").rstrip("}") + f', "variables": {{"x": "{text}"}}}}'
    answer = ask(server.port, "POST", "/graphql", [JSON], body)
    assert answer.status == 200, answer.body
