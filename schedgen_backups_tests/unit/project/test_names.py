"""Names that were retired stay away: one concept has one name, the field's own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[3] / "schedgen_backups"
RETIRED = {
    "rung": "level",
    "claim": "check",
    "seal": "commit",
    "sealed": "committed",
    "sealing": "commit",
    "duty": "run kind",
    "desk": "service",
    "terms": "options",
    "earlier": "previous",
    "finding": "precondition result",
    "throttle": "rate limit",
    "chained": "task graph",
    "beside": "separate, parallel",
    "observe": "on_progress",
    "notice": "on_start",
    "tell": "report",
    "longest": "max_duration",
    "dead": "orphaned",
    "workshop": "ui",
    "story": "walkthrough",
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@cache
def read_names() -> tuple[tuple[str, str], ...]:
    return tuple(list_names())


def list_names() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        place = str(path.relative_to(PACKAGE))
        if place == "recover.py":  # people copy it alone; its words are those of a person at a terminal
            continue
        yield place, path.stem
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield place, node.name
            elif isinstance(node, ast.arg):
                yield place, node.arg
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield place, node.id
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield place, node.attr


@pytest.mark.parametrize("retired", RETIRED)
def test_a_retired_name_stays_away(retired: str) -> None:
    found = {f"{place}: {name}" for place, name in read_names() for word in _WORD.findall(name) if word.lower() in {retired, f"{retired}s"}}
    assert found == set(), f"write {RETIRED[retired]}"
