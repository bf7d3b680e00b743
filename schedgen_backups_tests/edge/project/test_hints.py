"""Every command named in a message exists, with its options; the shortest ones are run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from schedgen_backups.cli.main import app
from schedgen_backups_tests.support.sites import Site

pytestmark = [pytest.mark.edge]

PACKAGE = Path(__file__).resolve().parents[3] / "schedgen_backups"
COMMANDS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# A name in running text stands in backticks or behind a colon; the words behind it end where the sentence or
# the quotation does.
_CALL = re.compile(r"(?:`|: |^|· |run: |; )schedgen-backups (?P<words>[a-z][a-z-]*(?: [^`\n;·()]*)?)")
_OPTION = re.compile(r"--[a-z][a-z-]*")
RUN = ("list", "verify latest", "prune --dry-run", "status", "audit", "doctor")
"""Commands that need only a site, as written in hints."""


def list_texts(path: Path) -> Iterator[str]:
    """Return every text of the file, with … in place of inserted values."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


def list_calls() -> list[tuple[str, str]]:
    """Return place and words of each command that is named."""
    found: set[tuple[str, str]] = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for text in list_texts(path):
            found |= {
                (str(path.relative_to(PACKAGE)), match["words"].strip()) for match in _CALL.finditer(text)
            }
    return sorted(found)


def test_commands_are_named_in_many_places() -> None:
    assert len(list_calls()) > 25
    assert {"cli/points.py", "alerts/run_kinds.py", "core/catalog/catalog.py"} <= {
        place for place, _words in list_calls()
    }


@pytest.mark.parametrize(
    ("place", "words"), list_calls(), ids=[f"{place}: {words}" for place, words in list_calls()]
)
def test_the_command_exists_with_these_options(place: str, words: str) -> None:
    name = words.split(maxsplit=1)[0].rstrip(".,:")
    assert name in COMMANDS, place
    known = {
        option
        for parameter in COMMANDS[name].params
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help", "--json"}
    assert set(_OPTION.findall(words)) <= known, place


@pytest.mark.parametrize("words", RUN)
def test_the_printed_command_runs(words: str, site: Site) -> None:
    assert any(
        found.rstrip(".") == words or found.startswith(f"{words} ") for _place, found in list_calls()
    ), words
    result = site.cli(*words.split())
    assert "Traceback" not in result.stderr
    assert result.code != 1 or words == "status"
    assert "Usage:" not in result.stderr
