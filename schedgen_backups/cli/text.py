"""Text of others for the terminal: names, rows, keys and messages are anybody's, and a terminal obeys what it
is sent.

Everything that is printed and was not written here goes through one of the two.
"""

from __future__ import annotations

from rich.markup import escape as escape_markup

_LAYOUT = frozenset("\n\t")


def escape(text: str) -> str:
    """Return a message as it is to be printed: no markup, and every control character but line breaks and
    tabs written out.
    """
    return escape_markup(
        "".join(sign if sign.isprintable() or sign in _LAYOUT else _write_out(sign) for sign in text)
    )


def escape_value(text: str) -> str:
    """Return a value, such as a key or a table's name, in one line: line breaks are written out, too."""
    return escape_markup("".join(sign if sign.isprintable() else _write_out(sign) for sign in text))


def _write_out(sign: str) -> str:
    return sign.encode("unicode_escape").decode()
