"""A proxy in front of a server that goes silent on connections while keeping them open, or ends them."""

from __future__ import annotations

import socket
import threading
import time


class SilentProxy:
    """Passes on this many bytes from the server per connection, then keeps it open silently.

    With `cuts`, it ends the connection instead.
    """

    def __init__(self, port: int, limit_bytes: int | None, *, cuts: bool = False) -> None:
        self._server_port = port
        self._cuts = cuts
        self.limit_bytes = limit_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lost_before = 0.0
        self._ended = threading.Event()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self._open += [client, server]
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_limited: bool) -> None:
        began_at = time.monotonic()
        passed = 0
        try:
            while data := source.recv(65536):
                passed += len(data)
                is_over = self.limit_bytes is not None and passed > self.limit_bytes
                if is_limited and is_over and self._cuts:
                    for each in (source, target):
                        each.shutdown(socket.SHUT_RDWR)
                    return
                if is_limited and (is_over or began_at < self._lost_before):
                    self._ended.wait()
                    return
                target.sendall(data)
        except OSError:
            return

    def lose_connections(self) -> None:
        """Go silent on the connections that are open now, and on no later one."""
        self._lost_before = time.monotonic()

    def refuse_for(self, seconds: float) -> None:
        self._listener.close()

        def listen_again() -> None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._serve, daemon=True).start()

        threading.Timer(seconds, listen_again).start()

    def close(self) -> None:
        self._ended.set()
        for each in (self._listener, *self._open):
            each.close()
