"""Commands in hints and messages, completed with the site that they are about.

The texts name commands without a site. Whoever shows or sends a text for a known site passes it through here.
"""

from __future__ import annotations

import re

from schedgen_backups.config.config import Config
from schedgen_backups.core.errors import BackupError

SITE_COMMANDS = frozenset(
    {
        "accept-missing",
        "adopt",
        "alert-test",
        "audit",
        "backup",
        "doctor",
        "drill",
        "fetch",
        "heal",
        "last",
        "list",
        "log",
        "pin",
        "prune",
        "receipts",
        "report",
        "restore",
        "restore-objects",
        "restore-tables",
        "show",
        "status",
        "stores",
        "undelete",
        "unpin",
        "verify",
    }
)
"""The commands that work on a site."""
INSTALLATION_COMMANDS = frozenset(
    {"demo", "deploy", "manual", "metrics", "serve", "setup", "sites", "webserver"}
)
"""The commands that work on the installation; their texts stay as they are."""
_PART_COMMANDS = frozenset(
    {"accept-missing", "drill", "list", "restore", "restore-objects", "restore-tables", "undelete"}
)
"""The commands that work on one database or bucket of a site."""
_ONE_PART_COMMANDS = _PART_COMMANDS - {"drill", "list"}
"""Those that do not work on several at once."""
_COMMAND = re.compile(
    rf"(?<![\w./-])schedgen-backups (?=({'|'.join(sorted(SITE_COMMANDS, key=len, reverse=True))})(?![\w-]))"
)


def add_site(text: str, config: Config) -> str:
    """Return the text with `--site` in each command that lacks it; unchanged for a site without a name.

    The name of the part is left to the reader where a command needs one of several: `--site shop/NAME`.
    """
    if not config.site_name:
        return text
    return _COMMAND.sub(lambda found: f"schedgen-backups --site {_name_site(found[1], config)} ", text)


def add_site_to_error(error: BackupError, config: Config) -> BackupError:
    """Return the error with `--site` in the commands of its message and its hint."""
    return error.restate(add_site(error.message, config), hint=add_site(error.hint, config))


def _name_site(command: str, config: Config) -> str:
    if command in _PART_COMMANDS and config.part is not None:
        return config.command_words[-1]
    if command in _ONE_PART_COMMANDS and len(config.parts) > 1:
        return f"{config.site_name}/NAME"
    return config.site_name
