"""Documented commands exist: `bash` blocks are run; in other text every command and option is checked.

`restore.md` has its own test, which runs its blocks in order. Variables, assets and checks are in
`test_documentation`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import typer

from schedgen_backups.cli.main import app
from schedgen_backups.core.servers.postgres import EmbeddedPostgres
from schedgen_backups.core.servers.seaweedfs import EmbeddedS3
from schedgen_backups.demo.seed import seed_application
from schedgen_backups_tests.support.servers import run
from schedgen_backups_tests.support.sites import Application, Site

pytestmark = [pytest.mark.edge]

PROJECT = Path(__file__).resolve().parents[3]
TESTS = PROJECT / "schedgen_backups_tests"
DOCUMENTS = {path.name: path for path in (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")))}
MARKDOWN = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    PROJECT / "SECURITY.md",
    *sorted((PROJECT / "docs").rglob("*.md")),
]
RUN = {
    "BACKUP_QUICK_REFERENCE.md": "here",
    "restore.md": "integration/restore/test_restore_document.py",
    "file-format.md": "by the tests of the formats, with the stock tools",
}
"""Documents with `bash` blocks → who runs them."""
NOT_RUN = {
    "README.md": "installs the project, or restores to hosts of the reader's; the commands are run in "
    "test_cli and test_restore",
    "BACKUP_AUTOMATION.md": "the same commands as in the quick reference, which are run; setup is run in "
    "test_setup",
    "monitoring.md": "needs Prometheus, root or Docker; deploy monitoring and promtool are run in "
    "test_monitoring_rules",
    "packs.md": "run in edge/cli/test_packs",
    "receipts.md": "run in edge/cli/test_evidence",
    "report.md": "run in edge/cli/test_evidence",
    "BACKUP_QUICK_REFERENCE.md": "asks questions, starts servers or sends alerts: run in test_setup, "
    "test_drill and test_cli",
    "alerts.md": "waits for a daemon or sends alerts",
    "deploy.md": "installs as root, or needs Docker or a cluster",
    "drill.md": "takes minutes; run in test_drill",
    "file-format.md": "needs files of the reader's",
    "growing.md": "needs several hosts",
    "proof.md": "the same commands as in the quick reference, which are run; drill is run in test_drill",
    "performance.md": "takes minutes to hours",
    "release.md": "publishes a release; the wheel is built in test_wheel, the images in test_compose_stack",
    "restore.md": "needs Docker; listed one by one in integration/restore/test_restore_document.py",
    "sites.md": "needs sites of the reader's: run in edge/cli/test_sites",
    "stores.md": "needs a store and the private key of the reader; the same commands are run in "
    "edge/cli/test_copies",
    "retention.md": "needs a history of weeks; run in test_retention",
}
"""Documents with `console` blocks → the reason why these are not run."""
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
_WORDS_BEFORE = re.compile(r"^(?:[A-Z_]+=\S*\s+|sudo\s+(?:-u\s+\S+\s+)?|env\s+)*")


def read_blocks(document: str, language: str) -> list[str]:
    text = DOCUMENTS[document].read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def find_calls(line: str) -> Iterator[list[str]]:
    """Return the words behind each `schedgen-backups` or `backup-cli` of a line that calls it."""
    for part in re.split(r"&&|\|\||[;|]|\$\(", re.sub(r"\s#\s.*$", "", line)):
        called = _WORDS_BEFORE.sub("", part.strip())
        found = re.match(r"(?:\S*/)?schedgen-backups\s+(.+)", called) or re.search(
            r"--rm backup-cli\s+(.+)", called
        )
        if found:
            try:
                yield shlex.split(found[1])
            except ValueError:  # a quotation that continues on the next line
                yield found[1].split()


def list_calls(document: str) -> list[list[str]]:
    lines = [line for block in read_blocks(document, "bash") for line in block.splitlines()]
    lines += [
        line[2:]
        for block in read_blocks(document, "console")
        for line in block.splitlines()
        if line.startswith(("$ ", "# "))
    ]
    return [call for line in lines for call in find_calls(line)]


def find_wrong_words(call: list[str]) -> list[str]:
    """Return the command or the options of a call that do not exist."""
    while call[0] in {"--site", "--env-file"}:
        call = call[2:]
    command = COMMANDS.get(call[0])
    if command is None:
        return [call[0]]
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}
    return [word for word in call[1:] if word.startswith("--") and word.partition("=")[0] not in known]


def test_a_nonexistent_command_or_option_is_found() -> None:
    [first, second] = find_calls(
        "X=1 .venv/bin/schedgen-backups back-it-up && docker compose run --rm backup-cli backup --labels "
        "a=b # and so on"
    )
    assert (find_wrong_words(first), find_wrong_words(second)) == (["back-it-up"], ["--labels"])


@pytest.mark.parametrize("document", list(DOCUMENTS))
def test_every_command_and_option_of_a_document_exists(document: str) -> None:
    assert [call for call in list_calls(document) if find_wrong_words(call)] == []


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_command_in_a_sentence_exists(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = [span for span in re.findall(r"`([^`]+)`", text) if span.startswith("schedgen-backups ")]
    calls = [
        call
        for span in spans
        for call in find_calls(span.replace("…", ""))
        if not call[0].startswith(("-", "["))
    ]
    assert [call for call in calls if find_wrong_words(call)] == []


def test_every_block_is_run_or_has_a_reason() -> None:
    assert {name for name in DOCUMENTS if read_blocks(name, "bash")} <= RUN.keys()
    assert {name for name in DOCUMENTS if read_blocks(name, "console")} <= NOT_RUN.keys()


@pytest.fixture
def seeded_site(
    tmp_path: Path, postgres_server: EmbeddedPostgres, weed: EmbeddedS3, monkeypatch: pytest.MonkeyPatch
) -> Site:
    """Return a site with its own application and one recovery point."""
    name = f"document_{uuid4().hex}"
    application = Application(postgres_server.create_database(name), weed.settings(name.replace("_", "-")))
    seed_application(application.database, application.bucket, user_count=10, job_count=20)
    site = Site(tmp_path, application, monkeypatch)
    assert site.cli("backup").code == 0
    return site


def test_the_quick_reference_works(seeded_site: Site) -> None:
    script = "set -eo pipefail\n" + "".join(read_blocks("BACKUP_QUICK_REFERENCE.md", "bash"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=seeded_site.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(seeded_site.points()) == 3
    assert (seeded_site.folder / "recovered").is_dir()
    database = seeded_site.application.database
    for (name,) in run(
        database.with_database("postgres"),
        f"SELECT datname FROM pg_database WHERE datname LIKE '{database.database}_old_%'",
    ):
        run(database.with_database("postgres"), f'DROP DATABASE "{name}"')


def read_architecture() -> str:
    return DOCUMENTS["architecture.md"].read_text(encoding="utf-8")


def test_the_architecture_names_exactly_the_packages() -> None:
    section = read_architecture().split("## The packages\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z_/0-9]+)`", row)}
    package = PROJECT / "schedgen_backups"
    packages = {
        path.name for path in package.iterdir() if (path / "__init__.py").exists() and path.name != "core"
    }
    modules = {path.stem for path in (package / "core").glob("*.py")} - {"__init__"}
    packages |= {
        f"core/{path.name}" for path in (package / "core").iterdir() if (path / "__init__.py").exists()
    }
    assert named == packages | {f"core/{name}" for name in modules} | {"definitions"}


def test_every_invariant_names_an_existing_test() -> None:
    named = re.findall(r"`((?:unit|edge|integration)/[\w/]+\.py)`: `(test_\w+)`", read_architecture())
    assert len(named) > 12
    assert [
        pair for pair in named if f"def {pair[1]}(" not in (TESTS / pair[0]).read_text(encoding="utf-8")
    ] == []
