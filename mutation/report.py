"""Write docs/mutation.md from the results, with the sentence for each equivalent survivor."""

from __future__ import annotations

import json
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mutation.scope import WHOLE, Change

_EQUIVALENT = Path(__file__).with_name("equivalent.json")
_SAMPLE_LIMIT = 0.1
"""Maximum share of a sample that is neither killed nor explained."""
_KILLED, _SURVIVED, _TIMED_OUT, _UNREACHED = "killed", "survived", "timeout", "no tests"
_HEAD = """# Mutation testing

`make mutation` changes one expression of the pure parts of `core` at a time and runs the nearest tests that
call the changed function. A mutant that no test notices survived. Written by that command;
[decision 19](decisions/0019-mutation-testing.md) says how it works.

"""


@dataclass(frozen=True)
class Mutant:
    """One change and its result."""

    name: str
    change: Change
    status: str

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Mutant:
        """Return the mutant that `asdict` wrote."""
        return cls(value["name"], Change(**value["change"]), value["status"])

    @property
    def key(self) -> str:
        """Identifies the change while its line is unchanged; the numbers of mutants change with each edit."""
        module = self.name.rpartition(".")[0].removeprefix("schedgen_backups.core.")
        return f"{module}: {self.change.before} -> {self.change.after}"


@dataclass(frozen=True)
class Run:
    """One run of the tool that the results come from."""

    arguments: str
    commit: str
    """Commit of the tests."""
    minutes: float


def read_commit(root: Path) -> str:
    """Return the short hash of the checked-out commit, with a `+` if the tree has changes."""
    return subprocess.run(
        ["git", "describe", "--always", "--exclude=*", "--dirty=+"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def write_report(root: Path, results: Mapping[str, Sequence[Mutant]], runs: Sequence[Run]) -> int:
    """Write the report; return the exit code.

    It is 1 if a survivor of a whole group, or a tenth of a sample, has no sentence.
    """
    sentences: dict[str, str] = json.loads(_EQUIVALENT.read_text())
    tools = ", ".join(f"{name} {version(name)}" for name in ("mutmut", "pytest", "hypothesis"))
    made_at = f"{datetime.now(timezone.utc):%Y-%m-%d}, Python {platform.python_version()}, {tools}."
    lines = [
        made_at,
        "",
        *(
            f"- `python -m mutation {run.arguments}".rstrip()
            + f"` at commit {run.commit}: {run.minutes} minutes"
            for run in runs
        ),
        "",
    ]
    lines.append(
        "| package | run | mutants | killed | survived | timed out | reached by none of these tests | of "
        "these three: equivalent | left |"
    )
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    survivors: list[str] = []
    is_met = True
    for name, mutants in results.items():
        counts = Counter(mutant.status for mutant in mutants)
        others = len(mutants) - sum(counts[status] for status in (_KILLED, _SURVIVED, _TIMED_OUT, _UNREACHED))
        alive = [mutant for mutant in mutants if mutant.status != _KILLED]
        explained = sum(mutant.key in sentences for mutant in alive)
        left = (len(alive) - explained) / max(1, len(mutants))
        is_met = is_met and (left == 0 if name in WHOLE else left < _SAMPLE_LIMIT)
        lines.append(
            f"| {name} | {'whole' if name in WHOLE else 'sample'} | {len(mutants)} | {counts[_KILLED]} | "
            f"{counts[_SURVIVED] + others} "
            f"| {counts[_TIMED_OUT]} | {counts[_UNREACHED]} | {explained} | {left:.0%} |"
        )
        survivors += _describe(name, alive, sentences)
    lines += [
        "",
        (
            "On a busy machine slow tests seem to hang: a mutant that timed out counts as noticed only "
            "if its sentence explains why it hangs."
        ),
        (
            "A run with `--survivors` reuses the kills of earlier runs. A `+` after a commit means that the "
            "tests were committed later."
        ),
        *survivors,
    ]
    (root / "docs/mutation.md").write_text(_HEAD + "\n".join(lines) + "\n")
    return 0 if is_met else 1


def _describe(name: str, alive: Sequence[Mutant], sentences: Mapping[str, str]) -> list[str]:
    if not alive:
        return []
    lines = ["", f"## {name}", ""]
    for mutant in alive:
        reason = sentences.get(mutant.key) or {
            _UNREACHED: "none of these tests calls it",
            _TIMED_OUT: "timed out",
        }.get(mutant.status, "survived")
        lines.append(f"- `{mutant.name.rpartition('.')[0].removeprefix('schedgen_backups.core.')}`: {reason}")
        lines += ["", "      " + mutant.change.before, "      " + mutant.change.after, ""]
    return lines
