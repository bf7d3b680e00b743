"""A TCP proxy that ends idle connections, as load balancers and firewalls do."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from dataclasses import replace

from schedgen_backups.core.servers.loopback import LOOPBACK
from schedgen_backups.core.settings import DatabaseSettings


class IdleCutter:
    """A TCP proxy on loopback that ends connections that were idle for a while."""

    def __init__(self, target: DatabaseSettings, idle_seconds: float) -> None:
        self._target, self._idle_seconds = target, idle_seconds
        self._listener = socket.create_server((LOOPBACK, 0))
        self._stop = threading.Event()
        self.cut_count = 0
        self._threads: list[threading.Thread] = []
        self.settings = replace(target, port=int(self._listener.getsockname()[1]))

    def __enter__(self) -> IdleCutter:
        self._listener.settimeout(0.1)
        self._start(self._accept)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, act: object, *arguments: object) -> None:
        thread = threading.Thread(target=act, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _address = self._listener.accept()
            except TimeoutError:
                continue
            self._start(
                self._pass_on, client, socket.create_connection((self._target.host, self._target.port))
            )

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, selectors.DefaultSelector() as selector:
            client.setblocking(True)
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            last = time.monotonic()
            while not self._stop.is_set():
                ready = selector.select(0.05)
                for key, _events in ready:
                    try:
                        data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                        if not data:
                            return
                        key.data.sendall(data)
                    except OSError:
                        return
                    last = time.monotonic()
                if time.monotonic() - last > self._idle_seconds:
                    self.cut_count += 1
                    return
