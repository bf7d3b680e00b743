"""The documents name what there is: variables, commands, assets and checks, no more and no less than the code has.

What the documents say of them is for people to judge.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from dotenv import dotenv_values

from schedgen_backups.cli.main import app
from schedgen_backups.config.config import load_config
from schedgen_backups.config.variables import VARIABLES
from schedgen_backups.defs.site import build_site_definitions

pytestmark = [pytest.mark.edge]

PROJECT = Path(__file__).resolve().parents[3]
NAMES = {variable.name for variable in VARIABLES}


@pytest.fixture
def readme() -> str:
    return (PROJECT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_table_has_every_variable_and_no_other(readme: str) -> None:
    assert set(re.findall(r"^\| *`([A-Z][A-Z0-9_]+)`", readme, flags=re.MULTILINE)) == NAMES


def test_the_example_of_an_env_file_has_every_variable_and_no_other() -> None:
    text = (PROJECT / ".env.example").read_text(encoding="utf-8")
    found = re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", text, flags=re.MULTILINE)
    assert set(found) == NAMES
    assert len(found) == len(NAMES)


def test_the_example_of_an_env_file_sets_no_secret() -> None:
    """It is copied as it is by people in a hurry; the two passwords that a backup cannot do without are there to be filled in."""
    values = dotenv_values(PROJECT / ".env.example")
    secrets = {variable.name for variable in VARIABLES if variable.is_secret}
    assert {name: values[name] for name in secrets & values.keys()} == dict.fromkeys(secrets & values.keys(), "")
    assert {"POSTGRES_PASSWORD", "MINIO_SECRET_KEY"} <= values.keys()


def test_every_variables_default_in_the_readme_is_the_codes(readme: str) -> None:
    rows = dict(re.findall(r"^\| *`([A-Z][A-Z0-9_]+)` *\| *`?(.*?)`? *\|", readme, flags=re.MULTILINE))
    assert rows == {variable.name: variable.default for variable in VARIABLES}


def test_the_readme_names_every_command(readme: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) > 5
    assert {name for name in commands if not re.search(rf"^\| `{re.escape(name)}[ `]", readme, flags=re.MULTILINE)} == set()


def test_the_readme_names_every_asset_and_every_check(readme: str) -> None:
    graph = build_site_definitions(load_config().with_values({"DRILL_SQL_CHECKS": "checks.sql"})).resolve_asset_graph()
    names = {key.to_user_string() for key in graph.get_all_asset_keys()} | {key.name for key in graph.asset_check_keys}
    assert len(names) == 20
    assert {name for name in names if name not in readme} == set()


def test_the_constraints_come_from_no_private_place() -> None:
    assert "://" not in (PROJECT / "constraints.txt").read_text(encoding="utf-8")
