"""Documents are complete: generated pages are current, and every alert, asset and check is described."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from schedgen_backups.alerts import guides
from schedgen_backups.alerts.guides import GUIDES
from schedgen_backups.alerts.run_kinds import BACKUP, OTHER_RUN_KINDS
from schedgen_backups.config.config import load_config
from schedgen_backups.config.variables import VARIABLES
from schedgen_backups.defs.site import build_site_definitions
from tools.make_docs import make_files

pytestmark = [pytest.mark.edge]

PROJECT = Path(__file__).resolve().parents[3]
MARKDOWN = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").rglob("*.md"))]


def test_generated_documents_are_current() -> None:
    """After changing a variable, a command, an exit code, an alert or an answer: make docs."""
    stale = [
        str(path.relative_to(PROJECT))
        for path, text in make_files().items()
        if path.read_text(encoding="utf-8") != text
    ]
    assert stale == []


def test_the_example_sets_no_secret() -> None:
    """Users copy it unchanged. The two required passwords are placeholders."""
    values = dotenv_values(PROJECT / ".env.example")
    secrets = {variable.name for variable in VARIABLES if variable.is_secret}
    assert {name: values[name] for name in secrets & values.keys()} == dict.fromkeys(
        secrets & values.keys(), ""
    )
    assert {"POSTGRES_PASSWORD", "MINIO_SECRET_KEY"} <= values.keys()


def test_every_alert_has_a_page() -> None:
    pages = {path.stem for path in (PROJECT / "docs" / "alerts").glob("*.md")}
    assert pages == {guide.page for guide in GUIDES}


def test_every_area_of_incidents_has_a_guide() -> None:
    areas = {kind.area for kind in (BACKUP, *OTHER_RUN_KINDS)}
    areas |= {value for name, value in vars(guides).items() if name.endswith("_AREA")}
    assert areas == {guide.area for guide in GUIDES}


def test_the_documents_name_every_asset_and_every_check() -> None:
    text = (PROJECT / "docs" / "proof.md").read_text(encoding="utf-8")
    graph = build_site_definitions(
        load_config().with_values({"DRILL_SQL_CHECKS": "checks.sql"})
    ).resolve_asset_graph()
    names = {key.to_user_string() for key in graph.get_all_asset_keys()} | {
        key.name for key in graph.asset_check_keys
    }
    assert len(names) == 20
    assert {name for name in names if name not in text} == set()


def read_lock(name: str) -> dict[str, set[str]]:
    """Return the packages of a lock → their versions; pip wants some extras named behind a package."""
    text = (PROJECT / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    versions: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)(?:\[.*?\])?==([^ ]+)", text, re.MULTILINE):
        versions.setdefault(package, set()).add(version)
    return versions


def test_locks_name_no_index_and_digests_of_every_package() -> None:
    for path in (PROJECT / "locks").glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, path.name
        pins = re.findall(r"^\S.*\n(?:[ ].*\n)*", text, re.MULTILINE)
        assert "".join(pins) == text
        assert [pin for pin in pins if "--hash=sha256:" not in pin] == [], path.name


def test_the_locks_agree_and_have_every_direct_dependency() -> None:
    """After changing a dependency: make lock."""
    toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    wanted = {
        "build": project["build-system"]["requires"],
        "host": project["project"]["dependencies"],
        **{name: requirements for name, requirements in extras.items() if name != "demo"},
        **groups,
    }
    locks = {path.stem: read_lock(path.stem) for path in (PROJECT / "locks").glob("*.txt")}
    assert locks.keys() == wanted.keys()
    together: dict[str, set[str]] = {}
    for versions in locks.values():
        for package, found in versions.items():
            assert together.setdefault(package, found) == found, package
    for name, requirements in wanted.items():
        direct = {re.split(r"[<>=!\[]", each)[0].lower() for each in requirements if isinstance(each, str)}
        known = together.keys() if name in groups else locks["host"].keys() | locks[name].keys()
        assert direct - known == {"schedgen-backups"} & direct, name


def list_anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and GitLab form them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_link_leads_to_an_existing_page_and_heading(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        page = (path.parent / target).resolve() if target else path
        if not page.exists() or (anchor and anchor not in list_anchors(page)):
            broken.append(link)
    assert broken == []


def test_the_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
