"""The filter that takes pg_dump's own transactions out: only those around large objects, wherever the text is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.formats.dump_sections import LargeObjectFilter
from schedgen_backups_tests.support.artifacts import cut

FUNCTION = b"CREATE FUNCTION f() AS $$\nBEGIN;\nCOMMIT;\n$$;\n"
LARGE = (
    b"-- Data for Name: BLOBS; Type: BLOBS; Schema: -; Owner: -\n--\n\nBEGIN;\n\n"
    b"SELECT pg_catalog.lo_open('70001', 131072);\nSELECT pg_catalog.lo_close(0);\n\nCOMMIT;\n\n--\n"
)
CONSTRAINT = b"-- Name: jobs jobs_pkey; Type: CONSTRAINT; Schema: public; Owner: x\n--\n"
TEXT = FUNCTION + LARGE + CONSTRAINT + FUNCTION + b"-- no newline"


@given(st.lists(st.integers(0, len(TEXT)), max_size=12).map(sorted))
def test_only_the_transactions_around_large_objects_are_left_out(borders: list[int]) -> None:
    passed = LargeObjectFilter()
    result = b"".join(passed.filter_text(piece) for piece in cut(TEXT, borders)) + passed.flush()
    assert result == FUNCTION + LARGE.replace(b"BEGIN;\n", b"").replace(b"COMMIT;\n", b"") + CONSTRAINT + FUNCTION + b"-- no newline"
