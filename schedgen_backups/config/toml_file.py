"""Read a TOML file of settings that only its owner may have written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from schedgen_backups.config.env_file import find_refusal
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.system.files import read_small_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path, *, what: str, variable: str, hint: str) -> dict[str, Any]:
    """Return the tables of the file, which `variable` names; ConfigurationError if it cannot be used.

    Who can write to it decides where data goes, who can read it and which programs run. `what` names its
    kind, such as "file of stores".
    """
    try:
        if refusal := find_refusal(what, path, path.stat()):
            raise refusal
        return tomllib.loads(read_small_file(path).decode("utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{variable} {path} cannot be read: {error.strerror}", hint="Check path and permissions."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}", hint=hint) from error
