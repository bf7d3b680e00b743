"""Find the functions that can be tested without a server, in a package that mostly uses servers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from mutation.scope import CORE, expose_properties

_HANDLES = frozenset(
    {
        "bucketclient",
        "client",
        "connection",
        "cursor",
        "databasesession",
        "loader",
        "pool",
        "prepared",
        "psql",
        "session",
        "superuser",
        "writer",
    }
)
"""Names in functions that use a connection to a server, compared without case and surrounding underscores."""
_CONDUCTORS = ("PreparedRestore.execute", "PreparedUndelete.", "_Writing.", "take_safety_backup")
"""Functions that name no such handle but call parts that use one."""
Function = tuple[str, str, str]
"""Module, class or empty, and name."""


def find_decisions(root: Path, package: str) -> frozenset[str]:
    """Return mutmut's names of the functions of a package of core that use no server, even indirectly."""
    functions: dict[Function, ast.FunctionDef] = {}
    for path in sorted((root / CORE / package).glob("*.py")):
        for owner, node in _list_functions(ast.parse(expose_properties(path.read_text()))):
            functions[path.stem, owner, node.name] = node
    served = {
        function
        for function, node in functions.items()
        if _names_handle(node) or _label(function).startswith(_CONDUCTORS)
    }
    while more := {
        function
        for function, node in functions.items()
        if function not in served and _calls(node, function, served)
    }:
        served |= more
    return frozenset(_mangle(package, function) for function in functions if function not in served)


def _list_functions(module: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            yield from ((node.name, each) for each in node.body if isinstance(each, ast.FunctionDef))


def _names_handle(function: ast.FunctionDef) -> bool:
    names = (getattr(node, field, None) for node in ast.walk(function) for field in ("id", "attr", "arg"))
    return any(isinstance(name, str) and name.strip("_").lower() in _HANDLES for name in names)


def _calls(node: ast.FunctionDef, function: Function, served: set[Function]) -> bool:
    """Return whether the node calls one of these functions by name, or as a method of the same object."""
    module, owner, _name = function
    plain = {name for _module, of, name in served if not of}
    own = {name for where, of, name in served if (where, of) == (module, owner)}
    return any(
        (isinstance(each, ast.Name) and each.id in plain)
        or (
            isinstance(each, ast.Attribute)
            and isinstance(each.value, ast.Name)
            and each.value.id == "self"
            and each.attr in own
        )
        for each in ast.walk(node)
    )


def _label(function: Function) -> str:
    _module, owner, name = function
    return f"{owner}.{name}" if owner else name


def _mangle(package: str, function: Function) -> str:
    module, owner, name = function
    return f"schedgen_backups.core.{package}.{module}.{f'xǁ{owner}ǁ{name}' if owner else f'x_{name}'}"
