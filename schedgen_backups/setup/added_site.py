"""Add a site to the file of sites, with the questions of `setup`.

The site inherits `[defaults]` and the environment: its table contains only what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from schedgen_backups.cli.app import out
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config, load_config
from schedgen_backups.config.sites import (
    SITE_NAME_HINT,
    find_sites_file,
    inherit_settings,
    is_site_name,
    read_sites,
)
from schedgen_backups.config.variables import SITES_VARIABLE
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.setup import install
from schedgen_backups.setup.interview import Interview
from schedgen_backups.setup.plan import Deployment
from schedgen_backups.setup.site_file import NewSite, add_site, make_added_site
from schedgen_backups.setup.store_file import read_tables_file


def add_site_by_questions(name: str, flags: Mapping[str, str], *, is_interactive: bool, is_dry: bool) -> None:
    """Ask for the settings of the site, try each answer, and add its table and secrets.

    `flags` maps variables to values. ConfigurationError without a file of sites, if it has the site, or,
    without a terminal, an answer is wrong.
    """
    base = load_config()
    path = _require_file(base)
    if not is_site_name(name):
        raise ConfigurationError(f"{name!r} cannot be the name of a site", hint=f"For it, {SITE_NAME_HINT}.")
    old = read_tables_file(path, variable=SITES_VARIABLE)
    add_site(old, NewSite(name, {}, {}))  # before the questions: the name may be taken
    inherited = inherit_settings(base, path, name)
    interview = Interview(
        inherited.with_values(flags),
        inherited.values,
        frozenset(flags),
        is_interactive,
        is_test_alert_allowed=not is_dry,
        others=read_sites(base, path),
    )
    site = make_added_site(name, inherited, interview.ask_all(Deployment.NONE))
    text = add_site(old, site)
    secrets = {path.with_name(file): content for file, content in site.files.items()}
    for secret in secrets:
        if secret.exists():
            raise ConfigurationError(f"{secret} exists", hint="Move it away: nothing is overwritten.")
    if is_dry:
        out.print(f"[bold]{escape(str(path))}[/] would get:")
        out.print(escape(site.text), soft_wrap=True)
        for secret in secrets:
            out.print(f"[bold]{escape(str(secret))}[/] would be written, mode 0600")
        out.print("Nothing was written.")
        return
    _write(path, old.encode(), text, secrets)
    for line in (
        f"Next: reload the code location in Dagster, which then shows the site {name}, and try it:",
        f"  schedgen-backups --site {name} doctor",
        f"  schedgen-backups --site {name} backup --reason setup",
    ):
        out.print(escape(line))


def _require_file(base: Config) -> Path:
    path = find_sites_file(base)
    if path is None:
        raise ConfigurationError(
            f"{SITES_VARIABLE} is not set: no file of sites exists",
            hint="`schedgen-backups sites import-env NAME --to FILE` moves this installation into one.",
        )
    if path.is_dir():
        raise ConfigurationError(
            f"{path} is a directory with a file for each site",
            hint="Write NAME.toml there yourself: docs/sites.md shows how sites are described.",
        )
    return path


def _write(path: Path, old: bytes, text: str, secrets: Mapping[Path, bytes]) -> None:
    """Write the file and the secrets for the owner of the file; nothing of them stays if that fails."""
    status = path.stat()
    owner = (status.st_uid, status.st_gid)
    kept = path.with_name(f"{path.name}.old-{datetime.now(timezone.utc):%Y%m%d_%H%M%S}")
    files = {**secrets, kept: old}
    try:
        for each, content in {**files, path: text.encode()}.items():
            install.write_private(each, content, owner)
    except BaseException:
        install.remove_files([each for each in files if each.exists()])
        raise
    for each in (*secrets, path):
        out.print(f"written: {escape(str(each))}")
    out.print(f"old file kept as {escape(kept.name)}")
