"""Takes values of variables from files: where NAME_FILE names a file, its content is the value of NAME.

For secrets of containers and credentials of systemd; works for every variable. Which variables there are belongs to `variables`, what their values
mean to `environment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from schedgen_backups.config.variables import VARIABLES

FILE_SUFFIX = "_FILE"


def read_value_files(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the files' contents as values. What cannot be used stays as it is, for `list_file_problems` to name."""
    values = dict(environment)
    for variable in VARIABLES:
        path = values.get(variable.name + FILE_SUFFIX, "").strip()
        if path and not values.get(variable.name, "").strip():
            try:
                values[variable.name] = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                continue  # whoever asks for the value is told, by `list_file_problems`
            del values[variable.name + FILE_SUFFIX]
    return values


def list_file_problems(values: Mapping[str, str], name: str) -> list[str]:
    """What is wrong with the file that is to hold this variable's value, after `read_value_files`; never the content."""
    path = values.get(name + FILE_SUFFIX, "").strip()
    if not path:
        return []
    if values.get(name, "").strip():
        return [f"{name} and {name}{FILE_SUFFIX} are both set"]
    try:
        Path(path).read_text(encoding="utf-8")
    except OSError as error:
        return [f"{name}{FILE_SUFFIX} names {path}, which cannot be read ({error.strerror or type(error).__name__})"]
    except UnicodeDecodeError:
        return [f"{name}{FILE_SUFFIX} names {path}, which is no text"]
    return []
