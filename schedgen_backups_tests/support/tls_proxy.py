"""A proxy that speaks TLS in front of a server that does not, as a reverse proxy of an operator does."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path


class TlsProxy:
    """Listens on 127.0.0.1 with this certificate, whose key is beside it, and passes everything on."""

    def __init__(self, port: int, certificate: Path) -> None:
        self._server_port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, opened: socket.socket) -> None:
        with suppress(OSError), opened:
            client = self._context.wrap_socket(opened, server_side=True)
            with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
                threading.Thread(target=_pump, args=(client, server), daemon=True).start()
                _pump(server, client)

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
