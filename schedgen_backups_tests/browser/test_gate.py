"""A real browser in front of the gate: another origin launches nothing, and the UI works.

The page is on `localhost` and the UI on `127.0.0.1`: two sites for a browser, without a name server.
"""

from __future__ import annotations

import re
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page, WebSocket, expect

from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups_tests.browser.conftest import PATIENCE_MILLISECONDS
from schedgen_backups_tests.support.sites import wait_until
from schedgen_backups_tests.support.ui import LAUNCH_QUERY, Server, running

pytestmark = pytest.mark.timeout(900)

ATTACK = """async ([address, query]) => {
  const url = address + '/graphql?query=' + encodeURIComponent(query)
  const body = JSON.stringify({query})
  const settled = promise => promise.then(() => 'sent', () => 'refused')
  const loaded = element => new Promise(done => {
    element.onload = element.onerror = () => done('loaded'); setTimeout(() => done('waited'), 5000)
    document.body.append(element) })
  const image = Object.assign(document.createElement('img'), {src: url})
  const form = (method, enctype) => {
    const frame = Object.assign(document.createElement('iframe'), {name: method + enctype})
    const made = Object.assign(document.createElement('form'),
      {method, enctype, action: url, target: frame.name})
    made.append(Object.assign(document.createElement('input'), {name: 'query', value: query}))
    document.body.append(made)
    const end = loaded(frame)
    made.submit()
    return end }
  const socket = new Promise(done => {
    const opened = new WebSocket(address.replace('http', 'ws') + '/graphql', 'graphql-ws')
    opened.onopen = () => done('open'); opened.onerror = () => done('refused') })
  await Promise.all([
    settled(fetch(url, {mode: 'no-cors'})),
    settled(fetch(url, {mode: 'no-cors', credentials: 'include'})),
    settled(fetch(url, {mode: 'no-cors', method: 'POST', body, headers: {'Content-Type': 'text/plain'}})),
    settled(fetch(address + '/graphql',
      {method: 'POST', body, headers: {'Content-Type': 'application/json'}})),
    settled(fetch(address + '/report_asset_materialization/x',
      {mode: 'no-cors', method: 'POST', body: '{}'})),
    loaded(image), form('GET', 'text/plain'), form('POST', 'text/plain'), form('POST', 'multipart/form-data'),
  ])
  return await socket
}"""


class BlankPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>another site</title><body>")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        del format, args


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_proxy(port: int, target: int) -> socketserver.BaseServer:
    """Make a reverse proxy that replaces `Host` with the target's address, as proxies do by default."""

    class Proxy(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((LOOPBACK, target)) as upstream:
                back = threading.Thread(target=pump, args=(upstream, self.request, lambda data: data))
                back.start()
                pump(
                    self.request,
                    upstream,
                    lambda data: re.sub(
                        rb"(?i)\r\nhost: [^\r]*", f"\r\nHost: {LOOPBACK}:{target}".encode(), data
                    ),
                )
                back.join()

    class Threads(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    return Threads((LOOPBACK, port), Proxy)


def pump(source: socket.socket, sink: socket.socket, change: object) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 20):
            sink.sendall(change(data))  # type: ignore[operator]
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def another_site() -> Iterator[str]:
    server = ThreadingHTTPServer((LOOPBACK, 0), BlankPage)
    with serving(server):
        yield f"http://localhost:{server.server_port}/"


def attack(page: Page, site: str, server: Server) -> tuple[str, int]:
    """Return the fate of the websocket and the number of runs launched."""
    page.goto(site)
    return page.evaluate(ATTACK, [f"http://{LOOPBACK}:{server.port}", LAUNCH_QUERY]), server.count_runs()


def test_another_sites_page_launches_nothing(tmp_path: Path, another_site: str, page: Page) -> None:
    [port] = free_ports(1)
    with running(tmp_path, port, "webserver") as server:
        assert attack(page, another_site, server) == ("refused", 0)
        # A page of another program under the UI's host name, on another port.
        assert attack(page, another_site.replace("localhost", LOOPBACK), server) == ("refused", 0)


def test_without_the_gate_the_same_page_launches_runs(tmp_path: Path, another_site: str, page: Page) -> None:
    """Show that the previous test can fail."""
    [port] = free_ports(1)
    with running(tmp_path, port, str(Path(sys.executable).parent / "dagster-webserver")) as server:
        opened, launched = attack(page, another_site, server)
        assert opened == "open"
        assert launched >= 4


def use(page: Page, address: str) -> None:
    """Launch a run with the button and see it succeed without a reload: a websocket updates the page."""
    received: list[str | bytes] = []

    def listen(opened: WebSocket) -> None:
        opened.on("framereceived", lambda frame: received.append(frame))  # noqa: PLW0108 - playwright marks the function

    page.on("websocket", listen)
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    page.goto(f"{address}/locations/tried.py/jobs/tried_job/playground")
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url("**/runs/*")
    expect(page.get_by_text("Success", exact=True).first).to_be_visible()
    wait_until(
        lambda: any('"type":"data"' in str(frame).replace(" ", "") for frame in received),
        "a subscription updated the page",
    )


def test_the_ui_works_through_the_gate_and_a_reverse_proxy(tmp_path: Path, page: Page) -> None:
    port, proxy_port = free_ports(2)
    address = f"http://localhost:{proxy_port}"
    with running(tmp_path, port, "serve", DAGSTER_WEBSERVER_URL=address) as server:
        use(page, f"http://{LOOPBACK}:{port}")
        with serving(make_proxy(proxy_port, port)):
            use(page, address)
        assert server.count_runs() == 2
