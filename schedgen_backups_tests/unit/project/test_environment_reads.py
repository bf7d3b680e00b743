"""Only `config` reads the environment, once, and passes it on."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[3] / "schedgen_backups"
ALLOWED = {
    "recover.py": "stands alone",
    "core/system/process.py": "a child process needs PATH and the like",
    "core/servers/loopback.py": "a child process needs PATH and the like",
    "setup/install.py": "a child process needs PATH and the like",
    "ui/processes.py": "a child process needs PATH and the like",
    "demo/servers.py": "sets the environment of the demo, and takes it back",
    "runs/home.py": "DAGSTER_HOME is Dagster's own",
}


def reads_environment(path: Path) -> bool:
    names = {"environ", "environb", "getenv"}
    text = path.read_text(encoding="utf-8")
    if not any(name in text for name in names):
        return False
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
            and node.attr in names
        ):
            return True
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in names for alias in node.names)
        ):
            return True
    return False


def test_only_config_reads_the_environment_and_each_exception_still_applies() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if reads_environment(path)}
    assert {place for place in found if not place.startswith("config/")} == ALLOWED.keys()
