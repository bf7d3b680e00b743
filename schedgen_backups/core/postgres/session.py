"""A connection for several steps: opened at first use, and again if the server ended it between two steps."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg

from schedgen_backups.core.postgres.connection import (
    NO_VALUES,
    STALL_TIMEOUT_SECONDS,
    connect_database,
    translate_errors,
)
from schedgen_backups.core.settings import DatabaseSettings

Connection = psycopg.Connection[tuple[Any, ...]]


class DatabaseSession:
    """A connection in autocommit; a context manager. For one thread at a time.

    Between two uses it is idle and holds no lock, however long that takes.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        *,
        values: Mapping[str, str] = NO_VALUES,
        stall_timeout_seconds: float = STALL_TIMEOUT_SECONDS,
    ) -> None:
        self.settings = settings
        self._stall_timeout_seconds = stall_timeout_seconds
        self._values = values
        self._stack = ExitStack()
        self._connection: Connection | None = None

    @contextmanager
    def use(self) -> Generator[Connection, None, None]:
        """Keep the connection open within the block.

        The errors are those of `connect_database` and `translate_errors`.
        """
        connection = self._find_open() or self._connect()
        with translate_errors(self.settings):
            yield connection

    def close(self) -> None:
        """End the session; the next use starts another one."""
        self._connection = None
        self._stack.close()

    def __enter__(self) -> DatabaseSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _find_open(self) -> Connection | None:
        if self._connection is None:
            return None
        try:
            self._connection.execute("SELECT")
        except psycopg.OperationalError:
            self.close()
        return self._connection

    def _connect(self) -> Connection:
        opening = connect_database(
            self.settings, values=self._values, stall_timeout_seconds=self._stall_timeout_seconds
        )
        connection = self._stack.enter_context(opening)
        connection.autocommit = True
        self._connection = connection
        return connection
