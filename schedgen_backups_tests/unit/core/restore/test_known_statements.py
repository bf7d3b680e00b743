"""The patterns of statements that a superuser runs for a dump, given hostile text."""

from __future__ import annotations

import subprocess
import sys

import pytest

_RUNS = """
from schedgen_backups.core.restore.known_statements import (
    OWNER, EXTENSION, GIVEN_FUNCTION, OPERATOR_CLASS, is_known, makes_event_trigger, may_be_left_out,
)
from schedgen_backups.core.restore.load_roles import LoadRoles, StandIn
from schedgen_backups.core.settings import DatabaseSettings

login = DatabaseSettings(host="h", port=1, user="u", password="p", database="d")
roles = LoadRoles(login, None, stand_ins=(StandIn('"x"', "x", "y"),))
heads = (
    "ALTER FUNCTION public.f(", "ALTER TABLE public.", "GRANT ALL ON FUNCTION public.f(", "GRANT SELECT(",
    "REVOKE ALL ON TABLE pg_catalog.",
    "COMMENT ON FUNCTION public.f(", "COMMENT ON TABLE public.t IS ",
    "CREATE OPERATOR CLASS public.k FOR TYPE ", "CREATE OPERATOR FAMILY ",
    "ALTER OPERATOR FAMILY public.f USING btree ADD ", "CREATE SERVER s TYPE ",
    "CREATE SERVER s FOREIGN DATA WRAPPER f OPTIONS (",
    "CREATE SUBSCRIPTION s CONNECTION ", "CREATE PUBLICATION p FOR ",
    "CREATE EVENT TRIGGER e ON ddl_command_start WHEN TAG IN (",
    "CREATE EXTENSION IF NOT EXISTS ", "SET SESSION AUTHORIZATION ", "ALTER EVENT TRIGGER ",
    "CREATE COLLATION a.b (", "COMMENT ON SCHEMA ",
)
runs = ('"', '""', "'", "''", "E'", "\\\\", "a", "a ", "A ", "A,", "a, ", "(", "(1)", "(1,1)", '"a"', '"a",',
    "'a', ",
    "a 'a', ", " ON ", " TO ", "()", "[]", " ")
for head in heads:
    for run in runs:
        for tail in ("", ";", ")", ' DEPENDS ON EXTENSION plpgsql;', " OWNER TO x;"):
            text = (head + run * (3000 // len(run)) + tail).encode()
            roles.name_stand_ins(text)
            for form in (OWNER, EXTENSION, GIVEN_FUNCTION, OPERATOR_CLASS):
                form.fullmatch(text)
            is_known(text, is_server_shared=False)
            makes_event_trigger(text)
            may_be_left_out(text)
"""


@pytest.mark.takes_seconds
def test_no_statement_of_a_dump_takes_a_pattern_forever() -> None:
    """An ambiguous pattern takes longer than anyone waits, and blocks every other thread of the process."""
    done = subprocess.run(
        [sys.executable, "-c", _RUNS], timeout=120, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
