"""Which properties of a database count as different, named without values that may be secret."""

from __future__ import annotations

import pytest

from schedgen_backups.core.formats.database_properties import (
    DatabaseGrant,
    DatabaseProperties,
    DatabaseSetting,
)

CONNECT, CREATE = (DatabaseGrant(grantee="app", privilege=privilege) for privilege in ("CONNECT", "CREATE"))
SECRET = DatabaseSetting(name="app.token", value="canary")
CAPTURED = DatabaseProperties(
    owner="app",
    collate="de_DE.UTF-8",
    ctype="C.UTF-8",
    grants=(CONNECT, CREATE),
    settings=(SECRET, DatabaseSetting(role="reader", name="work_mem", value="1MB")),
    security_labels=(("selinux", "a"), ("dummy", "b")),
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ()),
        ({"owner": "postgres"}, ("owner postgres instead of app",)),
        ({"grants": (CREATE, CONNECT)}, ()),
        ({"grants": (CONNECT,)}, ("privileges",)),
        ({"grants": (CONNECT, CREATE, CREATE)}, ("privileges",)),
        ({"grants": None}, ("privileges",)),
        ({"connection_limit": 3}, ("connection limit 3 instead of -1",)),
        ({"tablespace": "fast"}, ("tablespace fast instead of pg_default",)),
        ({"security_labels": (("dummy", "b"), ("selinux", "a"))}, ()),
        ({"security_labels": (("dummy", "b"),)}, ("security labels",)),
        ({"collate": "C"}, ("collation libc C/C.UTF-8 instead of libc de_DE.UTF-8/C.UTF-8",)),
        ({"settings": tuple(reversed(CAPTURED.settings))}, ()),
        ({"settings": ()}, ("setting app.token", "setting work_mem of the role reader")),
        (
            {"settings": (*CAPTURED.settings[1:], SECRET.model_copy(update={"value": "other"}))},
            ("setting app.token",),
        ),
        ({"comment": "of another", "is_template": True}, ()),
    ],
)
def test_each_difference_is_named_without_values(change: dict[str, object], said: tuple[str, ...]) -> None:
    present = CAPTURED.model_copy(update=change)
    assert present.list_differences(CAPTURED) == said
    assert bool(CAPTURED.list_differences(present)) is bool(said)


def test_no_grants_differ_from_default_grants() -> None:
    none, usual = (CAPTURED.model_copy(update={"grants": grants}) for grants in ((), None))
    assert none.list_differences(usual) == ("privileges",)
    assert usual.list_differences(usual) == ()


@pytest.mark.parametrize(
    ("change", "is_alike"),
    [
        ({}, True),
        ({"collate": "de_DE.utf8"}, True),
        ({"ctype": "C.utf8"}, True),
        ({"collate": "de_DE"}, False),
        ({"ctype": "C"}, False),
        ({"provider": "icu"}, False),
        ({"locale": "de"}, False),
        ({"icu_rules": "&V << w"}, False),
    ],
)
def test_text_is_sorted_alike_when_every_name_is_the_same_in_either_encoding(
    change: dict[str, object], is_alike: bool
) -> None:
    other = CAPTURED.model_copy(update=change)
    assert (CAPTURED.has_collation_of(other), other.has_collation_of(CAPTURED)) == (is_alike, is_alike)


def test_a_collation_is_named_by_its_provider_and_each_name_once() -> None:
    icu = DatabaseProperties(
        owner="app", provider="icu", collate="C", ctype="C", locale="de", icu_rules="&V << w"
    )
    assert icu.collation_label == "icu de/C with rules"
    assert DatabaseProperties(owner="app", collate="C", ctype="C").collation_label == "libc C"
