"""Run the mutants in a scratch copy and write the report: `make mutation`.

Results go to .mutation/results.json; a group that is run again is replaced. docs/mutation.md contains all
results.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutmut.configuration import reset_config
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

from mutation.decisions import find_decisions
from mutation.report import Mutant, Run, read_commit, write_report
from mutation.scope import (
    MARK,
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

ROOT = Path(__file__).parent.parent
SCRATCH = ROOT / ".mutation"
RESULTS = SCRATCH / "results.json"
RUNS = SCRATCH / "runs.json"
"""The runs that the results come from: those since the last complete run."""
COPY = SCRATCH / "copy"
_PYTEST = ("-p", "no:xdist", "-p", "no:cacheprovider", "-p", "mutation.no_shrinking")


@dataclass(frozen=True)
class Group:
    """Modules that are reported together."""

    name: str
    sources: tuple[Path, ...]
    is_whole: bool


def make_copy(group: Group) -> None:
    """Make the scratch copy in which mutmut mutates the modules of this group and runs its tests."""
    # mutmut reuses what is in `mutants/`, also modules that an earlier attempt left without a mutant.
    shutil.rmtree(COPY, ignore_errors=True)
    for name in ("schedgen_backups", "schedgen_backups_tests", "mutation"):
        shutil.copytree(ROOT / name, COPY / name, ignore=shutil.ignore_patterns("__pycache__"))
    for source in group.sources:
        path = COPY / source
        path.write_text(expose_properties(path.read_text()))
    settings = {
        "source_paths": ["schedgen_backups"],
        "only_mutate": [str(source) for source in group.sources],
        "also_copy": ["schedgen_backups_tests", "mutation"],
        "pytest_add_cli_args": list(_PYTEST),
        "pytest_add_cli_args_test_selection": [
            f"schedgen_backups_tests/{name}" for name in TESTS[group.name]
        ],
        "timeout_multiplier": 2.0,
        "timeout_constant": 10.0,
        "track_dependencies": False,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    text = (ROOT / "pyproject.toml").read_text()
    (COPY / "pyproject.toml").write_text(
        "\n".join([text, "[tool.mutmut]", *lines, "use_git_change_detection = false", ""])
    )


def find_mutants(group: Group, sample: int, seed: str) -> dict[str, Change]:
    """Return the mutants to run, by name: all of a whole group, otherwise a reproducible sample."""
    found: dict[str, Change] = {}
    decisions = find_decisions(ROOT, group.name) if group.name in SERVED else None
    for source in group.sources:
        code = (COPY / source).read_text()
        mutated = mutate_file_contents(str(source), code)
        passed_over, early = find_wordings(mutated.code), find_import_only(code)
        changes = find_changes(mutated.code)
        for name in mutated.mutant_names:
            mutant, function = get_mutant_name(source, name), name.partition(MARK)[0]
            is_decision = decisions is None or mutant.partition(MARK)[0] in decisions
            if (
                name not in passed_over
                and function not in early
                and is_decision
                and belongs(mutant, group.name)
            ):
                found[mutant] = changes[name]
    chosen = sorted(found) if group.is_whole else choose(sorted(found), sample, seed)
    return {mutant: found[mutant] for mutant in chosen}


def run_mutants(names: list[str]) -> dict[str, str]:
    """Return each mutant's status, as mutmut names it."""
    if not names:
        return {}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    program = Path(sys.executable).with_name("mutmut")
    subprocess.run(
        [program, "run", "--max-children", "1", *names],
        cwd=COPY,
        check=True,
        env={**environment, "PYTHONHASHSEED": "0"},
    )
    codes: dict[str, int | None] = {}
    for path in sorted((COPY / "mutants").rglob("*.py.meta")):
        codes |= json.loads(path.read_text())["exit_code_by_key"]
    return {name: status_by_exit_code[codes[name]] for name in names}


def main() -> int:
    """Run the groups and write the report; return the exit code of `report`."""
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=[*WHOLE, *SAMPLED], help="run these groups, keep the results of others"
    )
    parser.add_argument(
        "--sample", type=int, default=100, help="mutants per group that is not run whole (100)"
    )
    parser.add_argument(
        "--seed",
        default="1",
        help="seed of the sample; another word tests with mutants for which no test was written",
    )
    parser.add_argument(
        "--survivors",
        action="store_true",
        help="after adding tests: run only the mutants again that the last run did not kill",
    )
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="run nothing; write the report again, for example after adding a sentence",
    )
    chosen = parser.parse_args()
    if chosen.report_only:
        return report()
    groups = [
        Group(name, tuple(find_sources(ROOT, patterns)), is_whole)
        for table, is_whole in ((WHOLE, True), (SAMPLED, False))
        for name, patterns in table.items()
        if chosen.only is None or name in chosen.only
    ]
    results: dict[str, Any] = (
        json.loads(RESULTS.read_text()) if (chosen.only or chosen.survivors) and RESULTS.exists() else {}
    )
    runs: list[Any] = json.loads(RUNS.read_text()) if results and RUNS.exists() else []
    started, commit = time.monotonic(), read_commit(ROOT)
    for group in groups:
        os.chdir(ROOT)
        make_copy(group)
        # mutmut reads its settings once, from the working directory.
        os.chdir(COPY)
        reset_config()
        found = find_mutants(group, chosen.sample, chosen.seed)
        known = {
            value["name"]: value["status"]
            for value in results.get(group.name, ())
            if chosen.survivors and value["status"] == "killed"
        }
        statuses = known | run_mutants([name for name in found if name not in known])
        results[group.name] = [asdict(Mutant(name, change, statuses[name])) for name, change in found.items()]
        RESULTS.write_text(json.dumps(results, indent=1))
    minutes = round((time.monotonic() - started) / 60, 1)
    RUNS.write_text(
        json.dumps(
            [*runs, {"arguments": " ".join(sys.argv[1:]), "commit": commit, "minutes": minutes}], indent=1
        )
    )
    return report()


def report() -> int:
    """Write the report of all results; return the exit code of `write_report`."""
    results = {
        name: [Mutant.from_json(value) for value in values]
        for name, values in json.loads(RESULTS.read_text()).items()
    }
    return write_report(ROOT, results, [Run(**run) for run in json.loads(RUNS.read_text())])


sys.exit(main())
