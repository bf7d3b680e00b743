"""What the mutation tool makes of a module before it is mutated, and which mutants it passes over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mutation.scope import SAMPLED, TESTS, WHOLE, Change, belongs, choose, expose_properties, find_changes, find_sources, find_wordings

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


def test_a_property_keeps_its_value_and_gets_a_body_that_can_be_mutated() -> None:
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
def test_only_the_wording_of_messages_is_passed_over(before: str, after: str, is_wording: bool) -> None:  # noqa: FBT001 - a table
    assert find_wordings(make_mutants(before, after)) == ({"x_f__mutmut_1"} if is_wording else set())


def test_a_change_is_told_by_its_innermost_statement() -> None:
    code = make_mutants(
        "if a:\n        b = 1\n        return b", "if a:\n        b = 2\n        return b", "if not a:\n        b = 1\n        return b"
    )
    assert find_changes(code) == {"x_f__mutmut_1": Change("b = 1", "b = 2"), "x_f__mutmut_2": Change("if a:", "if not a:")}


def test_a_sample_is_the_same_each_time_and_larger_ones_hold_it() -> None:
    names = [f"m{number}" for number in range(100)]
    few, more = choose(names, 5, "1"), choose(names[::-1], 20, "1")
    assert len(few) == 5
    assert set(few) < set(more)


def test_every_group_has_modules_and_tests_and_no_module_is_in_two() -> None:
    assert set(TESTS) == set(WHOLE) | set(SAMPLED)
    found = [source for patterns in (WHOLE | SAMPLED).values() for source in find_sources(ROOT, patterns)]
    assert [source.name for source in found if found.count(source) > 1] == ["catalog.py", "catalog.py"]
    assert [belongs("schedgen_backups.core.catalog.catalog.xǁCatalogǁ_look_at__mutmut_1", name) for name in ("point state", "catalog")] == [
        True,
        False,
    ]


def test_every_sentence_names_a_change() -> None:
    sentences = json.loads((ROOT / "mutation/equivalent.json").read_text())
    assert all(": " in key and " -> " in key and sentence.endswith(".") for key, sentence in sentences.items())
