"""Retired names stay away: one concept has one name, the usual term."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

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


def list_names() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        place = str(path.relative_to(PACKAGE))
        if place == "recover.py":  # users copy it alone; it uses the words of a terminal user
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


def test_a_retired_name_stays_away() -> None:
    better = RETIRED | {f"{retired}s": word for retired, word in RETIRED.items()}
    found = {
        f"{place}: {name}: write {better[word]}"
        for place, name in list_names()
        for word in map(str.lower, _WORD.findall(name))
        if word in better
    }
    assert found == set()
