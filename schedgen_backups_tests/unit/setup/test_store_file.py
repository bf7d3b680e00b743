"""The file of stores after setup added one: read as given, and the rest byte for byte as before."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.setup.store_file import NewStore, add_store, list_names, list_urls

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = [pytest.mark.edge]

FILE = (
    '# ours\r\n[stores.nas]\nurl = "file:///mnt/nas"   # the NAS\nrecipients = [\n  "age1a",\n]\n\n'
    '[stores.nas.retention]\ndays = 7\n\n# the other one\n[stores."b2"]\nurl = "s3://bucket"'
)
NEW = NewStore("cold", {"url": "s3://cold", "recipients": ["age1b"], "lock_days": 30}, {})


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_text_is_read_back_as_given(text: str) -> None:
    store = NewStore("any", {"url": "s3://x", "access_key": text, "recipients": [text]}, {})
    table = tomllib.loads(add_store("", store))["stores"]["any"]
    assert table == {"url": "s3://x", "access_key": text, "recipients": [text]}


def test_an_added_store_leaves_the_rest_byte_for_byte() -> None:
    assert add_store(FILE, NEW) == f"{FILE}\n\n{NEW.text}"
    assert list_names(add_store(FILE, NEW)) == ["nas", "b2", "cold"]
    assert list_urls(add_store(FILE, NEW))[-1] == "s3://cold"


def test_a_replaced_store_leaves_the_others_and_their_comments() -> None:
    replaced = add_store(FILE, NewStore("nas", {"url": "file:///mnt/new"}, {}))
    assert replaced == (
        '# ours\r\n\n# the other one\n[stores."b2"]\nurl = "s3://bucket"\n\n[stores.nas]\nurl = '
        '"file:///mnt/new"\n'
    )


@pytest.mark.parametrize(
    "text",
    ['[stores]\nnas = {url = "file:///x"}\n', 'stores.nas.url = "file:///x"\n', "[stores.nas", "stores = 1"],
    ids=["inline", "dotted", "broken", "number"],
)
def test_an_unusual_file_is_refused_instead_of_damaged(text: str) -> None:
    with pytest.raises(ConfigurationError):
        add_store(text, NewStore("nas", {"url": "file:///y"}, {}))


def test_a_secret_is_not_in_the_representation_of_a_store() -> None:
    assert "canary" not in repr(NewStore("x", {"url": "s3://x"}, {"x.secret": b"canary"}))
