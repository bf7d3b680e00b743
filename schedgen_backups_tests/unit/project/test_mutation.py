"""How the mutation tool prepares a module, and which mutants it skips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mutation.decisions import find_decisions
from mutation.scope import (
    CORE,
    SAMPLED,
    SERVED,
    TESTS,
    WHOLE,
    Change,
    belongs,
    choose,
    expose_properties,
    find_changes,
    find_import_only,
    find_sources,
    find_wordings,
)

ROOT = Path(__file__).parents[3]
PROPERTY = '''
class A:
    @property
    def b(self) -> int:
        """A line.

        Another.
        """
        return self.c + 1

    c = 1
'''


def make_mutants(before: str, *after: str) -> str:
    functions = [("orig", before), *((str(number), body) for number, body in enumerate(after, 1))]
    return "\n".join(f"def x_f__mutmut_{name}(a):\n    {body}" for name, body in functions)


def test_a_property_keeps_its_value_and_gets_a_mutable_body() -> None:
    names: dict[str, type] = {}
    exec(expose_properties(PROPERTY), names)  # noqa: S102 - a text of this file
    made = names["A"]()
    assert (made.b, made._b_body()) == (2, 2)


@pytest.mark.parametrize(
    ("before", "after", "is_wording"),
    [
        ("raise E('a')", "raise E(None)", True),
        ("return 'two words'", "return 'XXtwo wordsXX'", True),
        ("return f'{a}x'", "return f'{a}XXxXX'", True),
        ("return 'key'", "return 'XXkeyXX'", False),
        ("return a > 1", "return a >= 1", False),
        ("return a and f'{a}'", "return a or f'{a}'", False),
    ],
)
def test_only_changes_of_message_wording_are_skipped(before: str, after: str, is_wording: bool) -> None:
    assert find_wordings(make_mutants(before, after)) == ({"x_f__mutmut_1"} if is_wording else set())


def test_a_change_is_identified_by_its_innermost_statement() -> None:
    code = make_mutants(
        "if a:\n        b = 1\n        return b",
        "if a:\n        b = 2\n        return b",
        "if not a:\n        b = 1\n        return b",
    )
    assert find_changes(code) == {
        "x_f__mutmut_1": Change("b = 1", "b = 2"),
        "x_f__mutmut_2": Change("if a:", "if not a:"),
    }


def test_a_sample_is_reproducible_and_larger_ones_include_it() -> None:
    names = [f"m{number}" for number in range(100)]
    few, more = choose(names, 5, "1"), choose(names[::-1], 20, "1")
    assert len(few) == 5
    assert set(few) < set(more)


def test_every_group_has_modules_and_tests_and_no_module_is_in_two() -> None:
    assert set(TESTS) == set(WHOLE) | set(SAMPLED)
    found = [source for patterns in (WHOLE | SAMPLED).values() for source in find_sources(ROOT, patterns)]
    assert [source.name for source in found if found.count(source) > 1] == ["catalog.py", "catalog.py"]
    assert [
        belongs("schedgen_backups.core.catalog.catalog.xǁCatalogǁ_inspect__mutmut_1", name)
        for name in ("point state", "catalog")
    ] == [
        True,
        False,
    ]


def test_every_sentence_names_a_change() -> None:
    sentences = json.loads((ROOT / "mutation/equivalent.json").read_text())
    assert all(
        ": " in key and " -> " in key and sentence.endswith(".") for key, sentence in sentences.items()
    )


IMPORTED = """
class Template:
    def __init__(self, a): self.a = a
    def fill(self, b): return self.a + b
class Value:
    def __init__(self, a): self.a = a
def make_pattern(a): return Template(a), Value(a)
def make_both(a): return a
def rule(a): return a
def wrap(a): return a
def use(a): return make_both(Value(a))
PATTERN, BOTH = make_pattern(1), make_both(1)
RULES = {"rule": rule, "wrap": wrap(rule), "again": wrap}
"""


def test_functions_that_run_only_at_import_are_skipped() -> None:
    assert find_import_only(IMPORTED) == {"x_make_pattern", "xǁTemplateǁ__init__"}


PACKAGE = {
    "decide.py": "def decide(a): return a > 1\ndef ask(connection): return "
    "decide(connection.execute('x'))\ndef wrap(a): return ask(a)\n",
    "held.py": "class Held:\n    def __init__(self, a): self._client = a\n    def read(self): return "
    "self.fetch()\n"
    "    def fetch(self): return self._client.get()\n    @property\n    def size(self) -> int:\n        "
    "return len(self.parts)\n",
}


def test_a_decision_uses_no_server_directly_or_indirectly(tmp_path: Path) -> None:
    folder = tmp_path / CORE / "restore"
    folder.mkdir(parents=True)
    for name, code in PACKAGE.items():
        (folder / name).write_text(code)
    stem = "schedgen_backups.core.restore."
    assert find_decisions(tmp_path, "restore") == {
        f"{stem}decide.x_decide",
        f"{stem}held.xǁHeldǁsize",
        f"{stem}held.xǁHeldǁ_size_body",
    }


def test_the_decisions_of_a_restore_are_mutated() -> None:
    [package] = SERVED
    decisions = {name.rpartition(".")[2] for name in find_decisions(ROOT, package)}
    assert decisions >= {
        "x_judge_database",
        "x_compare_rows",
        "x_merge_rows",
        "x_make_insert",
        "x_parse_roles",
        "x_select_tables",
        "x_choose_way",
    }
    assert not decisions & {
        "x_compare_database",
        "x_write_rows",
        "x_make_roles",
        "x_finish_swap",
        "x_take_safety_backup",
        "x_find_difference",
    }
