"""Stand-ins for superusers in drills: no superuser is granted anything, and dumps stay comparable.

The second dump is compared under the names of the first.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.formats.dump_text import Rows, Segment, TableEnd, TableStart, Text
from schedgen_backups.core.restore.load_roles import LoadRoles, StandIn
from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.artifacts import cut

LOADER = DatabaseSettings("host", 5432, "loader", "canary", "scratch")
ROLES = LoadRoles(
    LOADER,
    None,
    stand_ins=(
        StandIn("postgres", "postgres", "standin_1"),
        StandIn('"Big\\Boss"', "Big\\Boss", "standin_2"),
    ),
)


@pytest.mark.parametrize(
    ("statement", "changed"),
    [
        ("ALTER TABLE public.jobs OWNER TO postgres;", "ALTER TABLE public.jobs OWNER TO standin_1;"),
        (
            'ALTER FUNCTION public."TO postgres"(integer) OWNER TO "Big\\Boss";',
            'ALTER FUNCTION public."TO postgres"(integer) OWNER TO standin_2;',
        ),
        ("ALTER TABLE public.jobs OWNER TO app;", "ALTER TABLE public.jobs OWNER TO app;"),
        ("GRANT SELECT ON TABLE public.jobs TO postgres;", "GRANT SELECT ON TABLE public.jobs TO standin_1;"),
        (
            "GRANT ALL ON SCHEMA s TO postgres WITH GRANT OPTION;",
            "GRANT ALL ON SCHEMA s TO standin_1 WITH GRANT OPTION;",
        ),
        (
            'REVOKE ALL ON TABLE public.jobs FROM "Big\\Boss";',
            "REVOKE ALL ON TABLE public.jobs FROM standin_2;",
        ),
        (
            "ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public GRANT SELECT ON TABLES TO postgres;",
            (
                "ALTER DEFAULT PRIVILEGES FOR ROLE standin_1 IN SCHEMA public GRANT SELECT ON TABLES TO "
                "standin_1;"
            ),
        ),
        ("GRANT SELECT ON TABLE public.postgres TO app;", "GRANT SELECT ON TABLE public.postgres TO app;"),
        (
            "GRANT SELECT ON TABLE public.jobs TO postgres_exporter;",
            "GRANT SELECT ON TABLE public.jobs TO postgres_exporter;",
        ),
        (
            "COMMENT ON TABLE public.jobs IS 'GRANT x TO postgres;';",
            "COMMENT ON TABLE public.jobs IS 'GRANT x TO postgres;';",
        ),
    ],
)
def test_only_grants_to_and_revokes_from_a_superuser_use_the_stand_in(statement: str, changed: str) -> None:
    assert ROLES.name_stand_ins(statement.encode()) == changed.encode()


def test_without_stand_ins_a_statement_is_unchanged() -> None:
    statement = b"GRANT SELECT ON TABLE public.jobs TO postgres;"
    assert LoadRoles(LOADER, None).name_stand_ins(statement) == statement


TEXT = (
    b"-- Name: jobs; Type: TABLE; Schema: public; Owner: standin_2\nALTER TABLE public.jobs OWNER TO "
    b"standin_1;\nGRANT ALL ON x TO standin_2;"
)
NAMED = (
    b"-- Name: jobs; Type: TABLE; Schema: public; Owner: Big\\Boss\nALTER TABLE public.jobs OWNER TO "
    b'postgres;\nGRANT ALL ON x TO "Big\\Boss";'
)


@given(st.lists(st.integers(0, len(TEXT)), max_size=6))
def test_the_second_dumps_text_names_superusers_again_in_any_chunks(borders: list[int]) -> None:
    segments = [Text(piece) for piece in cut(TEXT, borders)]
    assert b"".join(segment.data for segment in ROLES.name_superusers(segments)) == NAMED


def test_rows_keep_their_bytes_and_their_place() -> None:
    """A row that holds the name of a stand-in is data."""
    start, rows, end = (
        TableStart(b"COPY x FROM stdin;\n", "public", "x", ""),
        Rows(b"standin_1\n"),
        TableEnd(b"\\.\n"),
    )
    segments: list[Segment] = [Text(b"TO standin_1"), start, rows, end, Text(b"\nTO standin_1;\n")]
    named = [segment for segment in ROLES.name_superusers(segments) if segment.data]
    assert named == [Text(b"TO postgres"), start, rows, end, Text(b"\nTO postgres;\n")]
    assert list(LoadRoles(LOADER, None).name_superusers(segments)) == segments


_LONG_LINE = """
from schedgen_backups.core.formats.dump_text import Text
from schedgen_backups.core.restore.load_roles import LoadRoles, StandIn
from schedgen_backups.core.settings import DatabaseSettings
roles = LoadRoles(DatabaseSettings("host", 5432, "loader", "canary", "scratch"), None,
    stand_ins=(StandIn("app", "app", "standin_0"),))
text = b"COMMENT ON TABLE t IS '" + b"a" * (16 << 20) + b" standin_0';"
named = roles.name_superusers(Text(text[start : start + 64]) for start in range(0, len(text), 64))
assert b"".join(segment.data for segment in named) == text.replace(b"standin_0", b"app")
"""


@pytest.mark.takes_seconds
def test_a_long_line_is_not_copied_for_each_of_its_chunks() -> None:
    """Quadratic copying would move terabytes here, which takes minutes.

    In chunks of a megabyte, a comment of a gigabyte has as many.
    """
    done = subprocess.run(
        [sys.executable, "-c", _LONG_LINE], timeout=60, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
