"""A statement that the server refuses during a load is named with the server's reason and a hint."""

from __future__ import annotations

from itertools import pairwise

import psycopg
import pytest

from schedgen_backups.core.restore.unprivileged_load import explain


def test_each_refusal_of_the_server_has_a_hint_of_its_own() -> None:
    errors = psycopg.errors
    refusals = [
        errors.InsufficientPrivilege,
        errors.UndefinedObject,
        errors.UndefinedFile,
        errors.SyntaxError,
    ]
    hints = [explain(b"CREATE x", refusal("no")).hint for refusal in refusals]
    assert all(one != other for one, other in pairwise(hints))
    assert "superuser privileges" in hints[0]
    assert hints[2] == explain(b"CREATE x", errors.FeatureNotSupported("no")).hint
    assert explain(b"CREATE x", psycopg.Error("no")).hint == hints[3]


@pytest.mark.parametrize(("length", "said"), [(80, "x" * 80), (81, "x" * 80 + "…")])
def test_a_long_statement_is_truncated_in_messages(length: int, said: str) -> None:
    assert explain(b"x" * length, psycopg.Error("no  \n good")).message == f"{said}: no good"
