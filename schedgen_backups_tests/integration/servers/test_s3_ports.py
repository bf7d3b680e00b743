"""Another user of this machine gets nothing from a drill's S3 server, on any port, socket or file.

The other user is a real one if the tests run as root; otherwise the tests query the ports themselves, without
a key.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psutil
import pytest

from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups_tests.support.servers import client_of

pytestmark = pytest.mark.integration

BUCKET = "patients-of-canary"
KEY = "letters/canary-name.pdf"
BODY = b"canary-body " * 20_000
NOBODY = 65534
# In one text, for another Python: ours may lie where the other user cannot read.
STRANGER = r"""
import http.client, json, os, socket, ssl, sys
asked = json.loads(sys.argv[1])
found = {"answers": [], "served": [], "sockets": [], "files": []}
for port in asked["ports"]:
    for method, path, body in asked["requests"]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request(method, path, body=body)
            response = connection.getresponse()
            data = response.read(1 << 20)
            found["answers"].append([port, method, path, response.status,
                (str(response.getheaders()).encode() + data).decode("latin-1")])
        except (OSError, http.client.HTTPException):
            pass
        connection.close()
    # gRPC: a server that lets a client without a certificate in sends its settings; so does one without TLS.
    for wrap in (False, True):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=3) as plain:
                opened = plain
                if wrap:
                    context = ssl.create_default_context()
                    context.check_hostname = False
                    context.verify_mode = ssl.CERT_NONE
                    context.set_alpn_protocols(["h2"])
                    opened = context.wrap_socket(plain)
                opened.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                data = opened.recv(9)
                # A settings frame that is followed by nothing but the end is a refusal, too.
                more = opened.recv(100) if data[3:4] == b"\4" else b""
                if data[3:4] == b"\4" and more:
                    found["served"].append([port, wrap])
        except (OSError, ValueError):
            pass
for path in asked["sockets"]:
    with socket.socket(socket.AF_UNIX) as opened:
        if opened.connect_ex(path) == 0:
            found["sockets"].append(path)
for top, names, files in os.walk(asked["directory"]):
    for name in files:
        try:
            open(os.path.join(top, name), "rb").close()
            found["files"].append(name)
        except OSError:
            pass
print(json.dumps(found))
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return a folder whose parents every user may enter."""
    path = Path(mkdtemp(prefix="s3-ports-"))
    path.chmod(0o755)
    yield path / "s3"
    shutil.rmtree(path)


@pytest.fixture
def server(directory: Path) -> Iterator[EmbeddedS3]:
    # As an older version, or another user, may have created it.
    directory.mkdir(mode=0o755)
    with EmbeddedS3(directory) as server:
        client = client_of(server.settings(BUCKET))
        client.make_bucket(BUCKET)
        client.put_object(BUCKET, KEY, io.BytesIO(BODY), len(BODY))
        yield server


def find_process(server: EmbeddedS3) -> psutil.Process:
    """Return the server among this process's children.

    Others on the machine may listen on the same port of another address.
    """
    port = server._ports["s3.port"]
    (process,) = [
        child
        for child in psutil.Process().children(recursive=True)
        if any(
            entry.status == psutil.CONN_LISTEN and entry.laddr.port == port
            for entry in child.net_connections("inet")
        )
    ]
    return process


def ask(server: EmbeddedS3) -> dict[str, Any]:
    """Return what an unauthenticated user gets."""
    process = find_process(server)
    ports = sorted(
        {entry.laddr.port for entry in process.net_connections("inet") if entry.status == psutil.CONN_LISTEN}
    )
    sockets = [
        str(server.directory / entry.laddr) for entry in process.net_connections("unix") if entry.laddr
    ]
    file_ids = [
        f"{volume},{number:02x}{cookie:08x}" for volume in (1, 2, 3) for number in (1, 2) for cookie in (0, 1)
    ]
    paths = [
        *(
            "/",
            f"/buckets/{BUCKET}/{KEY}",
            f"/buckets/{BUCKET}/",
            f"/{BUCKET}/{KEY}",
            f"/{BUCKET}/?list-type=2",
            "/?pretty=y",
            "/buckets/",
        ),
        *(
            "/dir/status",
            "/dir/assign",
            "/dir/assign?collection=x",
            "/vol/status",
            "/status",
            "/stats/disk",
            "/stats/memory",
            "/ui/index.html",
            "/metrics",
        ),
        *(
            "/debug/pprof/goroutine?debug=2",
            "/debug/pprof/heap",
            "/cluster/status",
            "/vol/list",
            "/col/delete?collection=none",
            "/api/config",
        ),
        *(f"/dir/lookup?fileId={file_id}&read=yes" for file_id in file_ids),
        *(f"/{file_id}" for file_id in file_ids),
    ]
    writes = [
        ("PUT", f"/buckets/{BUCKET}/planted", "x"),
        ("POST", "/submit", "x"),
        ("DELETE", f"/buckets/{BUCKET}/{KEY}", None),
    ]
    requests = [*(("GET", path, None) for path in paths), *writes]
    asked = json.dumps(
        {"ports": ports, "sockets": sockets, "directory": str(server.directory), "requests": requests}
    )
    python = (
        "/usr/bin/python3" if os.geteuid() == 0 and os.access("/usr/bin/python3", os.X_OK) else sys.executable
    )
    stranger: dict[str, Any] = (
        {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    )
    finished = subprocess.run(
        [python, "-c", STRANGER, asked], check=True, capture_output=True, text=True, cwd="/", **stranger
    )
    assert len(ports) >= 8
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


def test_no_port_serves_or_accepts_an_object_without_a_key(server: EmbeddedS3) -> None:
    found = ask(server)
    assert len(found["answers"]) > 50
    for port, method, path, status, text in found["answers"]:
        context = f"{method} {path} on {port}: {status}"
        assert "canary-body" not in text, context
        # In its refusal, the S3 interface names the requested path.
        assert "canary-name" not in text or status == 403, context
        assert "BEARER" not in text.upper().replace("WWW-AUTHENTICATE", ""), context
        assert method == "GET" or status >= 400, context
    client = client_of(server.settings(BUCKET))
    assert [entry.object_name for entry in client.list_objects(BUCKET, recursive=True)] == [KEY]


def test_no_grpc_port_admits_a_client_without_a_certificate(server: EmbeddedS3) -> None:
    assert ask(server)["served"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_no_socket_and_no_file_is_open_to_another_user(server: EmbeddedS3) -> None:
    found = ask(server)
    assert (found["sockets"], found["files"]) == ([], [])


def test_an_idle_server_uses_hardly_any_cpu_time(server: EmbeddedS3) -> None:
    process = find_process(server)
    process.cpu_percent()
    assert process.cpu_percent(interval=3) < 6
