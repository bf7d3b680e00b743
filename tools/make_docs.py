"""Write the generated documents: `make docs`. A test fails while one is stale.

Whole files are written under docs/reference/. In compose.yaml and dagster.yaml of docker/, only the marked
lines are replaced.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import typer
import yaml

from schedgen_backups.alerts.guides import GUIDES
from schedgen_backups.cli import main
from schedgen_backups.cli.app import COMMAND_MODULES
from schedgen_backups.cli.manual import list_options, make_manual, name_arguments
from schedgen_backups.config.stores import CredentialsTable, RetentionTable, StoreTable
from schedgen_backups.config.variables import (
    CERTIFICATES_VARIABLE,
    ENV_FILE_VARIABLE,
    FILE_SUFFIX,
    LIBPQ_VARIABLES,
    VARIABLE_GROUPS,
    VARIABLES,
    Variable,
)
from schedgen_backups.core.metrics.families import FAMILIES, SITE_LABEL
from schedgen_backups.core.model import TOOL_VERSION
from schedgen_backups.exit_codes import MEANINGS, STATUS_MEANINGS
from tools.json_shapes import COMMON_FIELDS, POINT_FIELDS, SHAPES

PROJECT = Path(__file__).resolve().parents[1]
WIDTH = 110
NOTICE = "<!-- Written by `make docs`; edit its source instead. -->"
START, END = "# make docs: start", "# make docs: end"
_MARKDOWN_MARKS = ("<!-- make docs: start -->", "<!-- make docs: end -->")
_NAMES_IMAGES = (
    "docker/Dockerfile",
    "docker/compose.yaml",
    "docker/compose.demo.yaml",
    "deploy/kubernetes/values.yaml",
    "docs/deploy.md",
)
_IMAGE_VERSION = re.compile(r"(schedgen-backups(?:-socket-proxy)?:|\btag: )\d+\.\d+\.\d+")
_FIXED_IN_COMPOSE = {"BACKUP_DIR": "/backups", "PGSSLMODE": "${PGSSLMODE:-prefer}"}
"""Variable → value of compose.yaml: the volume's mount, and a default that libpq would otherwise take from an
empty value."""


def make_files() -> dict[Path, str]:
    """Return path → text of every file that is written, whole or in part."""
    reference = PROJECT / "docs" / "reference"
    files = {
        reference / "settings.md": _make_page(_list_settings()),
        reference / "commands.md": _make_page(_list_commands()),
        reference / "exit-codes.md": _make_page(_list_exit_codes()),
        reference / "alerts.md": _make_page(_list_alerts()),
        reference / "json.md": _make_page(_list_shapes()),
        reference / "stores.md": _make_page(_list_store_settings()),
        reference / "metrics.md": _make_page(_list_metrics()),
        PROJECT / "docs" / "monitoring.md": _replace_marked(
            PROJECT / "docs" / "monitoring.md", [*_list_alarms()], _MARKDOWN_MARKS
        ),
        PROJECT / "docs" / "schedgen-backups.1": make_manual(),
        PROJECT / ".env.example": "\n".join(_list_example()) + "\n",
        PROJECT / "docker" / "compose.yaml": _replace_marked(
            PROJECT / "docker" / "compose.yaml",
            [f"  {name}: {_FIXED_IN_COMPOSE.get(name, f'${{{name}:-}}')}" for name in list_passed_on()],
        ),
        PROJECT / "docker" / "dagster.yaml": _replace_marked(
            PROJECT / "docker" / "dagster.yaml", [f"      - {name}" for name in list_passed_on()]
        ),
    }
    if sys.version_info >= (3, 11):
        # Grafana's builders need it.
        make_dashboard = import_module("tools.make_dashboard").make_dashboard
        files[PROJECT / "deploy" / "monitoring" / "dashboard.json"] = make_dashboard()
    for name in _NAMES_IMAGES:
        path = PROJECT / name
        files[path] = _IMAGE_VERSION.sub(
            rf"\g<1>{TOOL_VERSION}", files.get(path) or path.read_text(encoding="utf-8")
        )
    return files


def list_passed_on() -> Iterator[str]:
    """Yield the names that a container gets: each variable, and NAME_FILE of each secret."""
    for variable in VARIABLES:
        yield variable.name
        if variable.is_secret:
            yield variable.name + FILE_SUFFIX


def _make_page(lines: Iterator[str]) -> str:
    return "\n".join([NOTICE, "", *lines]) + "\n"


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _replace_marked(path: Path, lines: list[str], marks: tuple[str, str] = (START, END)) -> str:
    start, end = marks
    before, rest = path.read_text(encoding="utf-8").split(start, 1)
    margin = before.rpartition("\n")[2]
    first_line, rest = rest.split("\n", 1)
    return "\n".join([f"{before}{start}{first_line}", *lines, f"{margin}{end}{rest.split(end, 1)[1]}"])


def _list_settings() -> Iterator[str]:
    yield "# Settings\n"
    yield _wrap(
        "Settings are environment variables. They come from the environment and from one environment file; "
        "the environment takes precedence, "
        "also under `schedgen-backups serve`. The file is the one that `--env-file` or "
        f"`{ENV_FILE_VARIABLE}` names, otherwise the first of these that exists: `.env` in the checkout, "
        "`/etc/schedgen-backups/env`, `~/.config/schedgen-backups/env`. The current directory does not "
        "matter. A file that every user can write, or that is not owned by root, you or the owner of the "
        "installation, is refused. Commands and runs "
        "read an edited file the next time they start; schedules change when Dagster reloads the definitions."
    )
    yield ""
    yield _wrap(
        "Every variable can be given as a file: "
        f"`POSTGRES_PASSWORD{FILE_SUFFIX}=/run/secrets/postgres_password` instead of "
        "`POSTGRES_PASSWORD`. Use this for secrets of containers and for systemd credentials."
    )
    for group in VARIABLE_GROUPS:
        yield f"\n## {group.title}\n"
        if group.introduction:
            yield f"{_wrap(group.introduction)}\n"
        yield from (_wrap(_describe_variable(variable), "  ") for variable in group.variables)
    yield "\n## Variables of other programs\n"
    yield _wrap(
        f"- `{CERTIFICATES_VARIABLE}`: certificate authorities to trust, from the process's environment "
        "only.",
        "  ",
    )
    yield _wrap(
        "- `DAGSTER_HOME`: directory of the Dagster instance, from the process's environment only.", "  "
    )
    yield _wrap(f"- Passed on to libpq: {', '.join(f'`{name}`' for name in LIBPQ_VARIABLES)}.", "  ")


def _describe_variable(variable: Variable) -> str:
    traits = [f"default `{variable.default}`"] if variable.default else []
    traits += ["secret"] if variable.is_secret else []
    traits += [f"`setup --{variable.flag}`"] if variable.flag else []
    described = f" ({', '.join(traits)})" if traits else ""
    return f"- `{variable.name}`{described}: {variable.meaning}."


def _list_store_settings() -> Iterator[str]:
    yield "# Settings of a store\n"
    yield _wrap(
        "The file that BACKUP_STORES_FILE names is TOML with a table `[stores.NAME]` for each store "
        "([examples](../stores.md#examples)). NAME has at most 31 small letters, digits and underscores. "
        "Relative paths start at the folder of the file. A store that is described wrongly does not affect "
        "the others.\n"
    )
    for title, table in (
        ("[stores.NAME]", StoreTable),
        ("[stores.NAME.retention]", RetentionTable),
        ("[stores.NAME.prune]", CredentialsTable),
    ):
        yield f"\n## {title}\n"
        yield "| setting | default | meaning |\n| --- | --- | --- |"
        for name, field in table.model_fields.items():
            default = field.default
            is_shown = isinstance(default, bool | int) or (isinstance(default, str) and default)
            shown = f"`{json.dumps(default)}`" if is_shown else ""
            yield f"| `{name}` | {shown} | {field.description} |"


def _list_commands() -> Iterator[str]:
    group = cast("Any", typer.main.get_command(main.app))
    yield "# Commands\n"
    yield _wrap(
        "`latest` stands for the newest committed point. Every command that reads or writes recovery "
        "points has `--json` "
        "([shapes](json.md)). [Exit codes](exit-codes.md) mean the same in every command but `status`. "
        "`schedgen-backups --install-completion` completes commands and options in your shell; `man "
        "schedgen-backups` shows this page."
    )
    yield from ("\n## Options before the command\n", *_write_options(group))
    for name in COMMAND_MODULES:
        command = group.commands[name]
        arguments = name_arguments(command)
        yield f"\n## {name}\n"
        yield f"```text\n{' '.join(filter(None, ('schedgen-backups', name, arguments)))}\n```\n"
        yield _wrap(" ".join(str(command.help).split()))
        options = list(_write_options(command))
        yield from (["", *options] if options else [])


def _write_options(command: Any) -> Iterator[str]:
    return (_wrap(f"- `{names}`: {text}", "  ") for names, text in list_options(command))


def _list_exit_codes() -> Iterator[str]:
    yield "# Exit codes\n"
    yield "| code | meaning |\n| --- | --- |"
    yield from (f"| {code} | {meaning} |" for code, meaning in MEANINGS.items())
    yield "\n`status` follows the convention of monitoring plugins:\n"
    yield "| code | meaning |\n| --- | --- |"
    yield from (f"| {code} | {meaning} |" for code, meaning in STATUS_MEANINGS.items())


def _list_metrics() -> Iterator[str]:
    yield "# Metrics\n"
    yield _wrap(
        "Every metric of `schedgen-backups metrics` and of the file of `BACKUP_METRICS_FILE`. All are "
        f"gauges, and each has the label `{SITE_LABEL}` (BACKUP_NAME, or `default`). "
        "[monitoring.md](../monitoring.md) describes how they are collected."
    )
    yield ""
    yield "| metric | other labels | meaning |"
    yield "| --- | --- | --- |"
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        yield f"| `{family.full_name}` | {labels} | {family.meaning} |"


def _list_alarms() -> Iterator[str]:
    rules = yaml.safe_load((PROJECT / "deploy" / "monitoring" / "rules.yml").read_text(encoding="utf-8"))
    yield "| alarm | severity | fires after | what is wrong |"
    yield "| --- | --- | --- | --- |"
    for rule in rules["groups"][0]["rules"]:
        # The names of the other labels, in italics.
        summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"*\1*", rule["annotations"]["summary"])
        name, severity = rule["alert"], rule["labels"]["severity"]
        yield f"| [{name}](#{name.lower()}) | {severity} | {rule['for']} | {summary.partition(': ')[2]} |"


def _list_alerts() -> Iterator[str]:
    yield "# Alerts\n"
    yield _wrap(
        "One section per kind of alert. Every alert links to its page. [How alerts work](../alerts.md)."
    )
    for guide in GUIDES:
        yield f"\n## [{guide.page}](../alerts/{guide.page}.md)\n"
        yield _wrap(f"{guide.meaning}.") + "\n"
        yield _wrap(f"- Severity: {guide.severity}.", "  ")
        yield _wrap(f"- Sent by: {guide.sender}.", "  ")
        yield _wrap(f"- Resolved by: {guide.end}.", "  ")


def _list_shapes() -> Iterator[str]:
    yield "# JSON output\n"
    yield _wrap(
        "With `--json` a command prints one JSON object on stdout when it ends. Ignore fields that you do "
        "not know: new fields can "
        "appear without a new version. Times are ISO 8601 with an offset, sizes are bytes, durations are "
        "seconds."
    )
    yield ""
    yield from (_wrap(f"- `{name}`: {meaning}.", "  ") for name, meaning in COMMON_FIELDS.items())
    for command, fields in SHAPES.items():
        yield f"\n## {command}\n"
        yield from (_wrap(f"- `{name}`: {meaning}.", "  ") for name, meaning in fields.items())
    yield "\n## A recovery point\n"
    yield _wrap("The fields of `show`, and of each element of `points` in `list`:") + "\n"
    yield from (_wrap(f"- `{name}`: {meaning}.", "  ") for name, meaning in POINT_FIELDS.items())


def _list_example() -> Iterator[str]:
    yield (
        "# Written by `make docs`. Copy it to .env in the same directory and fill it in; only you should be "
        "able to read it (chmod 600)."
    )
    yield (
        "# Docker Compose reads the same file. docs/reference/settings.md describes every variable; "
        "`schedgen-backups doctor` checks them."
    )
    for group in VARIABLE_GROUPS:
        yield f"\n# {group.title}. {group.introduction}".rstrip()
        for variable in group.variables:
            value = variable.example or variable.default
            quoted = f'"{value}"' if " " in value else value
            yield f"{'' if variable.is_set_in_example else '# '}{variable.name}={quoted}"


def write_files() -> None:
    """Write each file whose text differs."""
    for path, text in make_files().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"written: {path.relative_to(PROJECT)}\n")


def check_files() -> None:
    """Exit with an error that names each stale file."""
    stale = [
        str(path.relative_to(PROJECT))
        for path, text in make_files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if stale:
        sys.exit(f"run `make docs`; stale: {', '.join(stale)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check_files()
    else:
        write_files()
