"""Folders of PostgreSQL's real client programs in which pg_dump fails in one chosen way.

Each fault is a shell script around the real pg_dump, named here; `{real}` stands for its path. The scripts
expect the dump on standard output.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

WRITES_NOTHING = "exit 0"

WRITES_HALF = """
whole=$(mktemp) && trap 'rm -f "$whole"' EXIT
{real} "$@" > "$whole" || exit 1
head -c "$(( $(wc -c < "$whole") / 2 ))" "$whole"
exit 0
"""

FAILS_AFTER_EVERYTHING = """
{real} "$@"
echo "pg_dump: error: query failed: server closed the connection unexpectedly" >&2
exit 1
"""

HANGS_AFTER_THE_FIRST_BYTES = """
echo "--"
echo "-- PostgreSQL database dump"
exec sleep 3600
"""

IS_KILLED_HALFWAY = """
whole=$(mktemp)
{real} "$@" > "$whole" || exit 1
head -c "$(( $(wc -c < "$whole") / 2 ))" "$whole"
rm -f "$whole"
kill -KILL $$
"""

# Far more than a pipe holds: without a reader, pg_dump blocks forever.
FLOODS_STANDARD_ERROR = """
yes "pg_dump: warning: there are circular foreign-key constraints on this table" | head -c 20000000 >&2
exec {real} "$@"
"""


# A commit between the snapshot and the dump; psql finds the server as pg_dump does.
WRITES_FIRST = """
"$(dirname {real})/psql" -X -q -v ON_ERROR_STOP=1 -c "INSERT INTO jobs VALUES ('too late');
DELETE FROM jobs WHERE s3_key = 'key 1'" >&2 || exit 1
exec {real} "$@"
"""


def make_pg_bin_dir(directory: Path, real_bin_dir: Path, *, pg_dump_script: str) -> Path:
    """Create a folder `pg-bin` with links to the real programs, and the script as pg_dump.

    `pg_dump --version` still prints the real version.
    """
    bin_dir = directory / "pg-bin"
    bin_dir.mkdir()
    for program in real_bin_dir.iterdir():
        if program.name != "pg_dump":
            (bin_dir / program.name).symlink_to(program)
    real = shlex.quote(str(real_bin_dir / "pg_dump"))
    script = bin_dir / "pg_dump"
    script.write_text(
        f'#!/bin/sh\nfor word; do [ "$word" = --version ] && exec {real} --version; done\n'
        + pg_dump_script.replace("{real}", real),
        encoding="utf-8",
    )
    script.chmod(0o755)
    return bin_dir
