"""The command `sites`: the sites of an installation, and the move of its only one into a file of sites."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from schedgen_backups.cli.app import CommandEnd, JsonOption, app, out, print_json
from schedgen_backups.cli.text import escape, escape_value
from schedgen_backups.config.config import Config, load_config
from schedgen_backups.config.sites import SITE_NAME_HINT, is_site_name, load_sites, read_sites
from schedgen_backups.config.variables import SITES_VARIABLE, VARIABLES
from schedgen_backups.core.errors import BackupError, ConfigurationError, StorageError
from schedgen_backups.core.system.files import write_new
from schedgen_backups.exit_codes import CONFIGURATION_EXIT_CODE
from schedgen_backups.setup.site_file import PATHS, NewSite, add_site, make_site

_NAME_VARIABLE = "BACKUP_NAME"


class SitesAction(str, Enum):
    """What `sites` does."""

    LIST = "list"
    IMPORT_ENV = "import-env"


@app.command()
def sites(
    action: Annotated[
        SitesAction,
        typer.Argument(
            metavar="[ACTION]",
            help="list: print the sites, their directories, and what is wrong with their settings. "
            "import-env: write the site that the environment describes into a new file of sites.",
        ),
    ] = SitesAction.LIST,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="import-env: name of the site.")] = "",
    *,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="import-env: file to write, such as sites.toml; it must be new."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="import-env: print what would be written, without secrets.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the sites of this installation, or move its only site into a file of sites (docs/sites.md).

    Exit code 4 if the settings of a site are wrong.
    """
    if action is SitesAction.LIST:
        if name or to is not None or dry_run:
            raise ConfigurationError("`sites list` takes no NAME and no FILE", hint="Leave them out.")
        _list_sites(as_json=as_json)
    if not name or to is None:
        raise ConfigurationError(
            "`sites import-env` needs a name and a file", hint="Add NAME and --to FILE, such as sites.toml."
        )
    _import(name, to.absolute(), is_dry=dry_run, as_json=as_json)


def _list_sites(*, as_json: bool) -> None:
    found = [(site, *_examine(site)) for site in load_sites()]
    if as_json:
        print_json(
            {
                "sites": [
                    {"name": site.site_name, "directory": directory or None, "problem": problem or None}
                    for site, directory, problem in found
                ]
            }
        )
    else:
        table = Table("site", "directory", "problem", box=None, pad_edge=False, header_style="bold")
        for site, directory, problem in found:
            table.add_row(site.site_name or "(unnamed)", escape_value(directory), escape_value(problem))
        out.print(table)
    raise CommandEnd(CONFIGURATION_EXIT_CODE if any(problem for _site, _folder, problem in found) else 0)


def _examine(site: Config) -> tuple[str, str]:
    """Return the site's directory, if it is known, and what is wrong with its settings."""
    try:
        site.check(
            "database", "bucket", "backup_directory", "capture", "schedule", "retention", "alerts", "drill"
        )
    except ConfigurationError as error:
        problem = error.message
    else:
        problem = ""
    with suppress(ConfigurationError):
        return str(site.site_directory), problem
    return "", problem


def _import(name: str, path: Path, *, is_dry: bool, as_json: bool) -> None:
    config = _load_importable(name)
    site = make_site(name, config)
    text = add_site("", site)
    secrets = {path.with_name(file): content for file, content in site.files.items()}
    _refuse_existing([path, *secrets])
    if not is_dry:
        _write({**secrets, path: text.encode()})
        try:
            _compare(config, path)
        except BackupError:
            for written in (path, *secrets):
                written.unlink()
            raise
    if as_json:
        print_json(
            {
                "name": name,
                "file": str(path),
                "secrets": [str(secret) for secret in secrets],
                "table": dict(site.table),
                "is_written": not is_dry,
            }
        )
        return
    word = "would be written" if is_dry else "written"
    lines = [
        f"{word}: {path}",
        *([text.rstrip()] if is_dry else []),
        *(f"{word}: {secret} (a secret, for its owner only)" for secret in secrets),
        *_explain(site, path, config),
    ]
    for line in lines:
        out.print(escape(line))


def _load_importable(name: str) -> Config:
    """Return the only site of the installation; ConfigurationError if it cannot be moved to this name."""
    config = load_config()
    if config.file.error is not None:
        raise config.file.error
    if config.values.get(SITES_VARIABLE, "").strip():
        raise ConfigurationError(
            f"{SITES_VARIABLE} is set: this installation has a file of sites",
            hint="`schedgen-backups setup --site NAME` adds a site to it.",
        )
    if not is_site_name(name):
        raise ConfigurationError(f"{name!r} cannot be the name of a site", hint=f"For it, {SITE_NAME_HINT}.")
    return config


def _refuse_existing(paths: list[Path]) -> None:
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ConfigurationError(f"{path} exists", hint="Nothing is overwritten: use another file.")


def _write(files: dict[Path, bytes]) -> None:
    """Write new files; remove those that were written if one cannot be."""
    written: list[Path] = []
    for path, content in files.items():
        try:
            write_new(path, content, temporary=path.with_name(f".{path.name}.tmp"))
        except OSError as error:
            for each in written:
                each.unlink()
            raise StorageError(
                f"{path} cannot be written: {error.strerror}",
                hint="Use an existing directory that you can write to.",
            ) from error
        written.append(path)


def _compare(before: Config, path: Path) -> None:
    """Raise ConfigurationError if the site of the file has other settings than the environment."""
    (after,) = read_sites(before, path)
    if problem := _examine(after)[1]:
        old = _examine(before)[1]
        if not old:
            raise ConfigurationError(problem, hint="Nothing was written.")
    for variable in VARIABLES:
        values = [_read(config, variable.name) for config in (before, after)]
        if values[0] != values[1] and variable.name not in {_NAME_VARIABLE, SITES_VARIABLE}:
            raise ConfigurationError(
                f"{variable.name} would have another value in {path}",
                hint="Nothing was written. Set it to a value without special characters.",
            )


def _read(config: Config, name: str) -> str | Path | None:
    reader = config.open_reader()
    return reader.path(name) if name in PATHS else reader.text(name)


def _explain(site: NewSite, path: Path, config: Config) -> list[str]:
    """Return what to do next, and what changes in Dagster."""
    where = config.file.path or "the environment of the programs"
    history = (
        f"In Dagster, the assets are now {site.name}/database_dump and so on, the jobs "
        f"{site.name}__backup_job and so on. Runs from before keep the old names: the history of an asset or "
        "a schedule begins again, and one that was switched off in the UI is on again."
    )
    following = (
        f"Next: set {SITES_VARIABLE}={path} in {where}, and reload the code location in Dagster. Then remove "
        "from there what the new file contains: other sites would inherit it."
    )
    return [
        "",
        "The backup directory stays where it is, with its points, receipts and history.",
        history,
        f"Alerts and metrics carry the name {site.table.get('backup_name', site.name)}.",
        "",
        following,
    ]
