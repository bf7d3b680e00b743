"""Two pg_dump texts have the same item digest exactly if they have the same items equally often."""

from __future__ import annotations

from itertools import permutations

import pytest

from schedgen_backups.core.formats.dump_items import ItemDigest

HEAD = b"--\n-- PostgreSQL database dump\n--\n\nSET x = on;\n\n"
ITEMS = tuple(
    f"--\n-- Name: DEFAULT PRIVILEGES FOR TABLES; Type: DEFAULT ACL; Schema: -; Owner: {role}\n--\n\n"
    f"ALTER DEFAULT PRIVILEGES FOR ROLE {role} GRANT SELECT ON TABLES TO PUBLIC;\n\n\n".encode()
    for role in ("a", "b", "c")
)
TAIL = b"--\n-- PostgreSQL database dump complete\n--\n\n"


def digest(text: bytes, size: int = 1 << 20) -> tuple[int, int]:
    """Return the digest for chunks of this many whole lines."""
    items = ItemDigest()
    lines = text.splitlines(keepends=True)
    for start in range(0, len(lines), size):
        items.add(b"".join(lines[start : start + size]))
    return items.result()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_any_order_and_any_chunks_have_the_same_digest(size: int) -> None:
    expected = digest(HEAD + b"".join(ITEMS) + TAIL)
    for order in permutations(ITEMS):
        assert digest(HEAD + b"".join(order) + TAIL, size) == expected


@pytest.mark.parametrize(
    "items",
    [
        ITEMS[:2],
        (*ITEMS, ITEMS[0]),
        (ITEMS[0], ITEMS[0], ITEMS[1]),
        (ITEMS[0].replace(b"SELECT", b"INSERT"), *ITEMS[1:]),
    ],
    ids=["one missing", "one twice", "one for another", "one changed"],
)
def test_other_items_have_another_digest(items: tuple[bytes, ...]) -> None:
    assert digest(HEAD + b"".join(items) + TAIL) != digest(HEAD + b"".join(ITEMS) + TAIL)


def test_lines_reordered_within_an_item_have_another_digest() -> None:
    lines = [b"REVOKE ALL ON TABLE t FROM a;\n", b"GRANT SELECT ON TABLE t TO a;\n"]
    assert digest(HEAD + b"".join(lines) + TAIL) != digest(HEAD + b"".join(reversed(lines)) + TAIL)


@pytest.mark.parametrize("end", [b"--\n", b"--\n\n", b"x--\n", b""])
def test_a_text_may_end_within_an_item_border(end: bytes) -> None:
    assert digest(HEAD + end, 1) == digest(HEAD + end)
    assert end == b"" or digest(HEAD + end) != digest(HEAD)
