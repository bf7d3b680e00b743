"""Output of psql becomes a message without codes, and a hint that fits the SQLSTATE."""

from __future__ import annotations

import pytest

from schedgen_backups.core.postgres.psql import explain_output

ERROR = 'ERROR:  {}: something about "it"\nLOCATION:  some_function, some_file.c:531'


@pytest.mark.parametrize(
    ("sqlstate", "hinted"),
    [
        ("0A000", "Install the extension"),
        ("58P01", "Install the extension"),
        ("42704", "a role, a tablespace"),
        ("42501", "a role that has this privilege"),
        ("53100", "disk"),
        ("53200", "max_locks_per_transaction"),
        ("53300", "short of a resource"),
        ("23503", "break a constraint of their own database"),
        ("22P02", "does not fit its type"),
        ("57P01", "The session was ended"),
        ("42P07", "template0"),
        ("XX000", "from the server"),
    ],
)
def test_the_hint_fits_the_sqlstate(sqlstate: str, hinted: str) -> None:
    message, hint = explain_output(ERROR.format(sqlstate))
    assert hinted in hint
    assert message == 'ERROR:  something about "it"'


def test_the_last_error_decides_and_warnings_do_not() -> None:
    text = "\n".join(
        [ERROR.format("42501"), ERROR.format("23503"), "WARNING:  01000: no matter\nLOCATION:  f, g.c:1"]
    )
    message, hint = explain_output(text)
    assert "break a constraint" in hint
    assert "LOCATION" not in message
    assert message.endswith("WARNING:  no matter")


def test_details_stay_and_other_languages_are_understood() -> None:
    detail = "DETAIL:  Schlüssel (a)=(7) fehlt."
    text = (
        f"FEHLER:  23503: Einfügen verletzt\n{detail}\nLOCATION:  ri, ri.c:2599\nCONTEXT:  COPY lower, line 1"
    )
    message, hint = explain_output(text)
    assert "break a constraint" in hint
    assert message == f"FEHLER:  Einfügen verletzt\n{detail}\nCONTEXT:  COPY lower, line 1"


def test_a_text_without_a_code_gets_a_neutral_hint() -> None:
    assert explain_output("psql: error: connection to server failed") == (
        "psql: error: connection to server failed",
        "The message is from the server; its log may contain more.",
    )
