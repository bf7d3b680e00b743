"""Check on the server whether the session of a silent program is at work.

Building an index takes hours, during which the client receives no data.
"""

from __future__ import annotations

import secrets

import psycopg

from schedgen_backups.core.errors import DatabaseError
from schedgen_backups.core.postgres.connection import (
    APPLICATION_NAME,
    CONNECT_TIMEOUT_SECONDS,
    connect_database,
)
from schedgen_backups.core.settings import DatabaseSettings

# A session that waits for its client or for a lock is idle (PostgreSQL manual, "Wait Event Types"). One that
# waits for a lock of another session of ours continues when that has finished: a restore in several sessions
# builds indexes in parallel.
_WORKING = """
WITH RECURSIVE asked(pid) AS (
    SELECT pid FROM pg_catalog.pg_stat_activity WHERE application_name = %(name)s AND state = 'active'
    UNION
    SELECT blocking.pid FROM asked, LATERAL unnest(pg_catalog.pg_blocking_pids(asked.pid)) AS blocking(pid)
)
SELECT count(*) > 0 FROM pg_catalog.pg_stat_activity JOIN asked USING (pid)
WHERE state = 'active' AND coalesce(wait_event_type, '') NOT IN ('Client', 'Lock')
    AND application_name LIKE %(prefix)s
"""


class ServerActivity:
    """The sessions of one program, which get a unique application name."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self.application_name = f"{APPLICATION_NAME} {secrets.token_hex(8)}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that the program needs besides its login."""
        return {"PGAPPNAME": self.application_name}

    def is_working(self) -> bool:
        """Return whether the server works for the program; False if it cannot be queried."""
        try:
            with connect_database(
                self._settings, stall_timeout_seconds=CONNECT_TIMEOUT_SECONDS
            ) as connection:
                row = connection.execute(
                    _WORKING, {"name": self.application_name, "prefix": f"{APPLICATION_NAME}%"}
                ).fetchone()
        except (DatabaseError, psycopg.Error):
            return False
        return row == (True,)
