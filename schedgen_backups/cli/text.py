"""Escape foreign text for the terminal: any user can choose names, keys and values.

A terminal interprets control characters, so every foreign text that is printed passes through one of these
functions.
"""

from __future__ import annotations

from rich.markup import escape as escape_markup

_LAYOUT = frozenset("\n\t")


def escape(text: str) -> str:
    """Return a message without markup and with control characters, but line breaks and tabs, escaped."""
    return escape_markup(
        "".join(sign if sign.isprintable() or sign in _LAYOUT else _write_out(sign) for sign in text)
    )


def escape_value(text: str) -> str:
    """Return a value, such as a key or a table's name, in one line: line breaks are escaped too."""
    return escape_markup("".join(sign if sign.isprintable() else _write_out(sign) for sign in text))


def _write_out(sign: str) -> str:
    return sign.encode("unicode_escape").decode()
