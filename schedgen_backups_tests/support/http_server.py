"""A threaded HTTP server on loopback whose threads and connections have all ended when it has stopped.

Add here what every own server of the tests needs; handlers define the answers.
"""

from __future__ import annotations

import errno
import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from schedgen_backups.core.servers.loopback import LOOPBACK

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler


class JoiningHTTPServer(ThreadingHTTPServer):
    """An HTTP server on a free port of 127.0.0.1."""

    # Threads are joined at the end: none may outlive its test.
    daemon_threads = False
    request_queue_size = 64

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self.errors: list[BaseException] = []
        """What handlers raised, including for clients that broke off."""
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        super().__init__((LOOPBACK, 0), handler)

    @property
    def endpoint(self) -> str:
        """Return `host:port`."""
        return f"{LOOPBACK}:{self.server_address[1]}"

    def start(self) -> None:
        """Start accepting requests."""
        self._thread.start()

    def stop(self) -> None:
        """End all connections and threads. Raise what a handler raised, unless a client broke off."""
        self.shutdown()
        self._thread.join()
        with self._open_lock:
            for request in self._open:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError as error:
                    # The client was faster.
                    if error.errno != errno.ENOTCONN:
                        raise
        self.server_close()
        for error in self.errors:
            if not isinstance(error, ConnectionError):
                raise error

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (the base class's signature)
        error = sys.exc_info()[1]
        if error is not None:
            self.errors.append(error)
