"""What a dump's lines about roles mean, and when a membership counts as restored.

The integration tests create roles on real servers.
"""

from __future__ import annotations

import pytest

from schedgen_backups.core.restore.roles import Membership, parse_roles

ROLES = """CREATE ROLE app;
ALTER ROLE app WITH NOSUPERUSER INHERIT LOGIN CONNECTION LIMIT 5 VALID UNTIL '2027-01-01 00:00:00+00';
CREATE ROLE "Pay Roll";
ALTER ROLE app SET search_path TO 'app', 'public';
ALTER ROLE app SET "Custom".word TO E'it\\'s';
COMMENT ON ROLE "Pay Roll" IS 'who pays';
GRANT "Pay Roll" TO app WITH ADMIN OPTION, INHERIT FALSE GRANTED BY postgres;
GRANT app TO reader;
"""


def test_each_line_about_a_role_is_filed_under_its_role() -> None:
    found = parse_roles(ROLES)
    lines = ROLES.splitlines()
    assert found.attributes == {"app": lines[1], '"Pay Roll"': ""}
    assert found.details == {"app": [lines[3], lines[4]], '"Pay Roll"': [lines[5]]}
    assert found.settings == {"app": {"search_path": ["app", "public"], "custom.word": ["it's"]}}
    assert (
        found.has_attribute("app", "INHERIT"),
        found.has_attribute("app", "SUPERUSER"),
        found.has_attribute("x", "LOGIN"),
    ) == (True, False, False)
    assert found.memberships == [
        Membership('"Pay Roll"', "app", " WITH ADMIN OPTION, INHERIT FALSE"),
        Membership("app", "reader", ""),
    ]
    assert found.unknown_count == 0


def test_a_membership_is_granted_as_captured_by_the_restoring_role() -> None:
    first, second = parse_roles(ROLES).memberships
    assert first.make_statement() == 'GRANT "Pay Roll" TO app WITH ADMIN OPTION, INHERIT FALSE;'
    assert (second.make_statement(), second.label) == ("GRANT app TO reader;", "reader in app")


def test_a_role_named_twice_keeps_what_the_first_line_gave_it() -> None:
    text = "CREATE ROLE a;\nALTER ROLE a WITH LOGIN;\nCREATE ROLE a;\n"
    assert parse_roles(text).attributes == {"a": "ALTER ROLE a WITH LOGIN;"}


def test_lines_after_one_that_is_not_a_statement_do_not_count() -> None:
    """Points taken before statements were kept whole hold such lines."""
    text = (
        "CREATE ROLE a;\nALTER ROLE a WITH LOGIN;\nALTER ROLE a SET x TO 'y\nALTER ROLE a WITH "
        "SUPERUSER;\nGRANT b TO a;\nCREATE ROLE c;\n"
    )
    parsed = parse_roles(text)
    assert (parsed.attributes, parsed.memberships, parsed.unknown_count) == (
        {"a": "ALTER ROLE a WITH LOGIN;"},
        [],
        4,
    )
    assert parse_roles(
        "CREATE ROLE a;\nALTER ROLE a WITH LOGIN;\nALTER ROLE a WITH SUPERUSER;\n"
    ).attributes == {"a": "ALTER ROLE a WITH LOGIN;"}
    assert parse_roles("ALTER ROLE a WITH SUPERUSER;\n").attributes == {}


@pytest.mark.parametrize(
    ("options", "held", "is_held"),
    [
        ("", (False, None, None), True),
        ("", (False, False, True), True),
        ("", (True, None, None), False),
        ("", (False, True, False), False),
        (" WITH ADMIN OPTION", (True, None, None), True),
        (" WITH ADMIN OPTION", (False, None, None), False),
        (" WITH ADMIN TRUE", (True, True, True), True),
        (" WITH ADMIN FALSE", (True, True, True), False),
        (" WITH INHERIT TRUE", (False, True, True), True),
        (" WITH INHERIT TRUE", (False, False, True), False),
        (" WITH INHERIT FALSE", (False, True, True), False),
        (" WITH INHERIT FALSE", (False, False, True), True),
        (" WITH INHERIT FALSE", (False, None, None), True),
        (" WITH ADMIN TRUE, INHERIT TRUE", (False, True, True), False),
        (" WITH SET FALSE", (False, True, False), True),
        (" WITH SET FALSE", (False, True, True), False),
        (" WITH SET FALSE", (False, True, None), True),
    ],
)
def test_a_membership_is_restored_when_every_option_reported_is_as_captured(
    options: str,
    held: tuple[bool, bool | None, bool | None],
    is_held: bool,
) -> None:
    assert Membership("role", "member", options).is_held(held) is is_held
