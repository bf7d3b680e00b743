"""Which modules are mutated completely, which by sample, and which mutants change only messages."""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CORE = Path("schedgen_backups/core")
WHOLE = {
    "retention": ("retention/plan.py", "retention/prune.py"),
    "point state": (
        "catalog/catalog.py",
        "catalog/points.py",
        "catalog/small_files.py",
        "catalog/selection.py",
        "catalog/check_results.py",
    ),
    "commit": ("verify/commit.py",),
    "references": ("verify/references.py",),
    "incidents": ("notify/incidents.py",),
}
SAMPLED = {
    "catalog": ("catalog/catalog.py", "catalog/pins.py", "catalog/resume.py"),
    "verify": ("verify/files.py", "verify/reread.py", "verify/size_change.py"),
    "formats": ("formats/*.py",),
    "notify": (
        "notify/alert.py",
        "notify/channels.py",
        "notify/exchange.py",
        "notify/notifier.py",
        "notify/redaction.py",
    ),
    "restore": ("restore/*.py",),
}
SERVED = frozenset({"restore"})
"""Packages that mostly use servers: only their decisions are mutated."""
_STATE = re.compile(r"catalog\.catalog\.x.*(get_point|list_points|list_unmanaged|_inspect|_find_|_read_m)")
"""The functions that only decide, in modules that also write."""
TESTS = {
    "retention": ("unit/core/retention",),
    "point state": ("unit/core/catalog", "unit/core/verify"),
    "commit": ("unit/core/verify",),
    "references": ("unit/core/verify",),
    "incidents": ("unit/core/notify",),
    "catalog": ("unit/core/catalog", "unit/core/retention"),
    "verify": ("unit/core/verify", "unit/core/formats"),
    "formats": ("unit/core/formats", "unit/core/verify", "unit/core/capture", "unit/core/restore"),
    "notify": ("unit/core/notify", "integration/notify"),
    "restore": ("unit/core/restore",),
}
"""Directories of the nearest tests. Those of channels are integration tests: they use servers on loopback."""
MARK = "__mutmut_"
_PROPERTY = re.compile(
    r"^( +)@property\n +def (\w+)\(self\) -> ([^\n]+):\n( +\"\"\"(?:.|\n)*?\"\"\"\n)?", re.MULTILINE
)


@dataclass(frozen=True)
class Change:
    """The innermost statement of a mutant that differs, before and after."""

    before: str
    after: str


def find_sources(root: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the modules below `root`, relative to it, in a fixed order."""
    found = {path.relative_to(root) for pattern in patterns for path in (root / CORE).glob(pattern)}
    return sorted(path for path in found if path.name != "__init__.py")


def expose_properties(code: str) -> str:
    """Return the module with each property's body in its own method: mutmut skips decorated functions."""
    return _PROPERTY.sub(
        lambda found: (
            f"{found[1]}@property\n{found[1]}def {found[2]}(self) -> "
            f"{found[3]}:\n{found[4] or ''}{found[1]}    return self._{found[2]}_body()\n\n"
            f"{found[1]}def _{found[2]}_body(self) -> {found[3]}:\n"
        ),
        code,
    )


def belongs(mutant: str, group: str) -> bool:
    """Return whether the mutant belongs to this group: one module is divided between two groups."""
    is_divided = ".catalog.catalog.x" in mutant
    return not is_divided or bool(_STATE.search(mutant)) == (group == "point state")


def choose(names: list[str], count: int, seed: str) -> list[str]:
    """Return `count` of the names: those with the lowest digests for this seed."""
    return sorted(sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())[:count])


def find_wordings(code: str) -> set[str]:
    """Return the mutants of a mutated module that change only the wording of a message."""
    return {name for name, original, mutant in _pair_functions(code) if _is_wording(original, mutant)}


def find_import_only(code: str) -> set[str]:
    """Return mutmut's names of the functions that run only during import, before any mutant is active."""
    module = ast.parse(code)
    definitions = {
        node.name: node for node in module.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    statements = [node for node in module.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    calls = Counter(
        each.func.id
        for node in statements
        for each in ast.walk(node)
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)
    )
    # Functions in a table are called later.
    kept = set(Counter(name for node in statements for name in _list_names(node)) - calls)
    later = {name for node in definitions.values() for name in _list_names(node)} | kept
    only = {
        name for name in calls if name not in later and isinstance(definitions.get(name), ast.FunctionDef)
    }
    made = {
        name
        for function in only
        for name in _list_names(definitions[function])
        if isinstance(definitions.get(name), ast.ClassDef)
    }
    made -= {
        name for other, node in definitions.items() if other not in only | made for name in _list_names(node)
    } | kept
    return {f"x_{name}" for name in only} | {f"xǁ{name}ǁ__init__" for name in made}


def find_changes(code: str) -> dict[str, Change]:
    """Return what each mutant of a mutated module changes: the innermost statement, or the signature."""
    changes: dict[str, Change] = {}
    for name, original, mutant in _pair_functions(code):
        before, after = _find_statements(original, mutant)
        changes[name] = Change(_write(before), _write(after))
    return changes


def _list_names(node: ast.AST) -> list[str]:
    return [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]


def _pair_functions(code: str) -> Iterator[tuple[str, ast.FunctionDef, ast.FunctionDef]]:
    functions = {node.name: node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)}
    for name, node in functions.items():
        stem, mark, number = name.partition(MARK)
        if mark and number != "orig":
            yield name, functions[f"{stem}{MARK}orig"], node


def _find_statements(before: ast.AST, after: ast.AST) -> tuple[ast.AST, ast.AST]:
    """Return the innermost differing statement of both: heads or numbers of statements differ."""
    for name in ("body", "orelse", "finalbody", "handlers"):
        ones, others = getattr(before, name, None), getattr(after, name, None)
        if not isinstance(ones, list) or not isinstance(others, list) or len(ones) != len(others):
            continue
        for one, other in zip(ones, others, strict=True):
            if ast.dump(one) != ast.dump(other):
                return _find_statements(one, other) if type(one) is type(other) else (one, other)
    return before, after


def _write(node: ast.AST) -> str:
    return (
        ast.unparse(node).splitlines()[0]
        if isinstance(node, ast.stmt) and hasattr(node, "body")
        else " ".join(ast.unparse(node).split())
    )


def _is_wording(original: ast.FunctionDef, mutant: ast.FunctionDef) -> bool:
    path = _find_difference(original.body, mutant.body, ())
    if not path:
        # The signature differs.
        return False
    is_raised = any(isinstance(node, ast.Raise) for node in path)
    last = path[-1]
    is_sentence = isinstance(last, ast.Constant) and isinstance(last.value, str) and " " in last.value.strip()
    return is_raised or is_sentence or any(isinstance(node, ast.JoinedStr) for node in path)


def _find_difference(before: object, after: object, path: tuple[ast.AST, ...]) -> tuple[ast.AST, ...]:
    """Return the nodes from the outermost to the innermost one that differs; empty if none differs."""
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return next(
            (
                found
                for one, other in zip(before, after, strict=True)
                if (found := _find_difference(one, other, path))
            ),
            (),
        )
    if not isinstance(before, ast.AST):
        return () if before == after else path
    if type(before) is not type(after) or not isinstance(after, ast.AST):
        return (*path, before)
    pairs: Iterator[tuple[object, object]] = (
        (getattr(before, field, None), getattr(after, field, None)) for field in before._fields
    )
    return next(
        (found for one, other in pairs if (found := _find_difference(one, other, (*path, before)))), ()
    )
