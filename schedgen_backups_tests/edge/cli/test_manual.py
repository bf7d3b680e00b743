"""The manual page says what the commands say, and is one that `man` can show."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from schedgen_backups.cli.app import COMMAND_MODULES
from schedgen_backups.cli.manual import make_manual
from schedgen_backups.config.variables import NAMES
from schedgen_backups.exit_codes import MEANINGS

pytestmark = [pytest.mark.edge]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "schedgen-backups.1"


def test_the_page_of_the_package_is_that_of_the_commands() -> None:
    """After a change of a command: schedgen-backups manual > docs/schedgen-backups.1."""
    assert PAGE.read_text(encoding="utf-8") == make_manual()


def test_it_names_every_command_variable_and_exit_code() -> None:
    text = make_manual().replace("\\-", "-")
    assert [name for name in COMMAND_MODULES if f'.SS "{name}' not in text] == []
    variables = [name for name in NAMES if not name.endswith("_FILE")]
    assert [name for name in variables if f".B {name}\n" not in text] == []
    assert [code for code in MEANINGS if f".B {code}\n" not in text] == []


def test_a_formatter_finds_nothing_wrong_with_it() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    done = subprocess.run([groff, "-man", "-Tutf8", "-ww", "-z", str(PAGE)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
