"""Find phrases that this project no longer uses, in code, tests and documents: part of `make check`.

Each phrase has the words to write instead. An exception needs a reason here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
SUFFIXES = frozenset({".md", ".py", ".yaml", ".toml", ".sql", ".service", ".timer", ""})
RETIRED = {
    r"(?<!\.)\b(?:tell|tells|told|telling)\b(?!.{0,40}\b(?:apart|from)\b)": "report, alert, warn, print, say",
    r"\blook(?:s|ed|ing)? at\b": "check, read, inspect, see",
    r"\bbusiness\b": "say which module or program does it",
    r"\b(?:is|are|was|were) no\b(?! longer| more)": "is not a",
    r"\bso (?:many|long)\b": "this many, the limit, the duration",
    r"proves by reading and restoring it that it can be restored": "proves that the backup restores, by "
    "restoring it",
    r"that .{0,30}read without it\b": "you can restore them without this tool",
    r"come back without the rest": "you can restore a single table",
    r"\bnever goes\b": "is never deleted",
    r"without a word\b": "without reporting an error",
    r"\b[Ss]omebody or something\b": "say what happened",
    r"seen to hold\b": "passed",
    r"\bcounts as hanging\b": "is considered hung",
    r"\bas above\b|\bas below\b": "repeat it, or name the section",
    r"\bits kin\b": "similar programs",
    r"\banew\b": "again, new",
}
EXCEPTIONS = {
    "docs/mutation.md": "lines of code of an older state; written by make mutation",
    "schedgen_backups/core/notify/ticks.py": "looked_at is a field of a file that exists already",
    "schedgen_backups_tests/unit/project/test_names.py": "the list of retired names",
    "tools/check_phrases.py": "the list itself",
    "schedgen_backups_tests/unit/project/test_phrases.py": "examples for the check",
}


def find_phrases(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, phrase and what to write instead, of each retired phrase."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in RETIRED.items():
            for found in re.finditer(pattern, line.replace("_", " "), re.IGNORECASE):
                yield number, found[0], instead


def list_files() -> Iterator[Path]:
    """Yield the tracked text files that people read."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    for name in filter(None, tracked.stdout.split("\0")):
        path = PROJECT / name
        is_data = name.startswith(("locks/", "schedgen_backups_tests/support/format1/")) or name == "LICENSE"
        if path.suffix in SUFFIXES and not is_data and name not in EXCEPTIONS and path.is_file():
            yield path


def main() -> None:
    """Print each retired phrase and exit with an error if there is one."""
    count = 0
    for path in list_files():
        for number, phrase, instead in find_phrases(path.read_text(encoding="utf-8")):
            count += 1
            sys.stdout.write(f"{path.relative_to(PROJECT)}:{number}: {phrase!r}: write: {instead}\n")
    if count:
        sys.exit(f"{count} retired phrases (tools/check_phrases.py)")


if __name__ == "__main__":
    main()
