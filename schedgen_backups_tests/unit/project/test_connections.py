"""Database sessions and the environments of PostgreSQL's programs are each created in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[3] / "schedgen_backups"
CONNECTS = {
    "core/postgres/connection.py": "the place",
    "core/servers/postgres.py": "makes and drops databases of its own new server; lies below the place",
}
NAMES_PASSWORD_VARIABLE = {
    "core/postgres/connection.py": "the place",
    "recover.py": "stands alone",
}


def list_modules(word: str) -> Iterator[tuple[str, ast.AST]]:
    """Return each module that contains the word, parsed."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if word in text:
            yield str(path.relative_to(PACKAGE)), ast.parse(text)


def connects(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in {"connect", "connect_start"}:
            owner = ast.unparse(node.value).split(".")
            if owner[0] == "psycopg" or owner[-1] in {
                "Connection",
                "AsyncConnection",
                "PGconn",
                "WatchedConnection",
            }:
                return True
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "psycopg"
            and any(alias.name == "connect" for alias in node.names)
        ):
            return True
    return False


def test_only_one_module_connects_and_each_exception_still_applies() -> None:
    assert {place for place, tree in list_modules("connect") if connects(tree)} == CONNECTS.keys()


def test_only_one_module_gives_programs_a_password() -> None:
    found = {
        place
        for place, tree in list_modules("PGPASSWORD")
        if any(isinstance(node, ast.Constant) and node.value == "PGPASSWORD" for node in ast.walk(tree))
    }
    assert found | {"recover.py"} == NAMES_PASSWORD_VARIABLE.keys()
