"""The application as a service of a booted machine: PostgreSQL, an S3 server, an alert inbox.

Run as a program by a unit with Type=notify. Ports are fixed, since the machine has a network of its own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.demo.seed import seed_application

POSTGRES_PORT, S3_PORT, INBOX_PORT = 5432, 9000, 8099
INBOX_URL = f"http://{LOOPBACK}:{INBOX_PORT}/alerts"
SETTINGS = "settings.json"
"""In the application's folder: how to log in to the database and the bucket."""
INBOX = "inbox.jsonl"
"""In the same folder: one JSON text per alert."""


class _Inbox(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Path(INBOX).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(body)}\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def serve(folder: Path) -> None:
    """Run until SIGTERM; notify systemd when everything answers."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    with (
        EmbeddedPostgres(folder / "postgres", port=POSTGRES_PORT) as postgres,
        EmbeddedS3(folder / "s3", port=S3_PORT) as s3,
    ):
        database, bucket = postgres.settings("schedgen"), s3.settings("schedgen-pdfs")
        if not Path(SETTINGS).exists():
            seed_application(postgres.create_database("schedgen"), bucket, user_count=20, job_count=40)
            Path(SETTINGS).write_text(
                json.dumps({"database": asdict(database), "bucket": asdict(bucket)}), encoding="utf-8"
            )
        with (
            HTTPServer((LOOPBACK, INBOX_PORT), _Inbox) as inbox,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        ):
            # sd_notify(3), "Notes": a name with @ is in the abstract namespace.
            systemd.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
            inbox.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
