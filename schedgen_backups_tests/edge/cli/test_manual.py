"""The manual page matches the commands and is valid for `man`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from schedgen_backups.cli import main
from schedgen_backups.cli.app import COMMAND_MODULES
from schedgen_backups.cli.manual import make_manual
from schedgen_backups.config.variables import VARIABLES
from schedgen_backups.exit_codes import MEANINGS

pytestmark = [pytest.mark.edge]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "schedgen-backups.1"


@pytest.fixture(autouse=True)
def whole_app() -> None:
    """Options before a command belong to `main`."""
    assert main.app is not None


def test_it_names_every_command_variable_and_exit_code() -> None:
    text = make_manual().replace("\\-", "-")
    assert [name for name in COMMAND_MODULES if f'.SS "{name}' not in text] == []
    assert [variable.name for variable in VARIABLES if f".B {variable.name}\n" not in text] == []
    assert [code for code in MEANINGS if f".B {code}\n" not in text] == []


def test_the_formatter_reports_no_error() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-z", str(PAGE)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
