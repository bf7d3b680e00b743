"""Commands in messages name the site that they are about."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import schedgen_backups
from schedgen_backups.cli.app import COMMAND_MODULES
from schedgen_backups.config.config import Config, load_config
from schedgen_backups.config.site_commands import (
    INSTALLATION_COMMANDS,
    SITE_COMMANDS,
    add_site,
    add_site_to_error,
)
from schedgen_backups.config.sites import load_site
from schedgen_backups.core.errors import LockHeldError

SITES = """
[sites.blog]
backup_dir = "blog"
[sites.shop]
backup_dir = "shop"
[sites.shop.databases.main]
postgres_db = "shop"
[sites.shop.databases.reports]
postgres_db = "reports"
"""
PROSE = {
    "schedgen-backups digests of pieces",
    "schedgen-backups requires",
    "schedgen-backups to /etc/cron.d",
}
"""What follows the program's name in texts that are not commands."""
_MENTION = re.compile(r"(?<![\w./-])schedgen-backups ([a-z-]+)")


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sites.toml"
    path.write_text(SITES)
    monkeypatch.setenv("BACKUP_SITES_FILE", str(path))


def list_texts() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each string of the package that is not a docstring."""
    for path in sorted(Path(schedgen_backups.__path__[0]).rglob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield f"{path.name}:{node.lineno}", node.value


def test_each_command_works_on_a_site_or_on_the_installation() -> None:
    assert set(COMMAND_MODULES) == SITE_COMMANDS | INSTALLATION_COMMANDS
    assert not SITE_COMMANDS & INSTALLATION_COMMANDS


def test_each_text_that_names_a_command_of_a_site_gets_the_site() -> None:
    blog, found = load_site("blog"), 0
    for place, text in list_texts():
        for mention in _MENTION.finditer(text):
            word = mention[1]
            if word in SITE_COMMANDS:
                found += 1
                assert f"schedgen-backups --site blog {word}" in add_site(text, blog), place
            elif word not in INSTALLATION_COMMANDS and word != "--site":
                assert any(text[mention.start() :].startswith(prose) for prose in PROSE), (place, text)
        assert load_config().site_name == ""
    assert found > 60


@pytest.mark.parametrize(
    ("site", "text", "expected"),
    [
        ("blog", "Take one: schedgen-backups backup", "Take one: schedgen-backups --site blog backup"),
        ("blog", "`schedgen-backups restore ID` works", "`schedgen-backups --site blog restore ID` works"),
        ("shop", "schedgen-backups restore ID", "schedgen-backups --site shop/NAME restore ID"),
        ("shop", "schedgen-backups restore-tables x", "schedgen-backups --site shop/NAME restore-tables x"),
        ("shop", "schedgen-backups drill", "schedgen-backups --site shop drill"),
        ("shop/main", "schedgen-backups drill", "schedgen-backups --site shop/main drill"),
        ("shop/main", "schedgen-backups restore ID", "schedgen-backups --site shop/main restore ID"),
        ("shop/main", "schedgen-backups prune", "schedgen-backups --site shop prune"),
    ],
)
def test_a_command_gets_the_site_or_the_part_that_it_works_on(site: str, text: str, expected: str) -> None:
    assert add_site(text, load_site(site)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "schedgen-backups --site shop backup",
        "schedgen-backups --site SITE/NAME ...",
        "schedgen-backups setup",
        "schedgen-backups serve",
        "/etc/schedgen-backups list",
        "schedgen-backups restored it",
        "schedgen-backups list-of-things",
    ],
)
def test_another_text_stays_as_it_is(text: str) -> None:
    assert add_site(text, load_site("blog")) == text


def test_a_site_without_a_name_prints_what_it_printed() -> None:
    config: Config = load_config()
    for _place, text in list_texts():
        assert add_site(text, config) == text


def test_an_error_keeps_its_class() -> None:
    error = add_site_to_error(LockHeldError("busy", hint="Run `schedgen-backups list`."), load_site("blog"))
    assert isinstance(error, LockHeldError)
    assert (error.message, error.hint) == ("busy", "Run `schedgen-backups --site blog list`.")
