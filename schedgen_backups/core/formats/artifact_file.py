"""What opening a dump and opening an archive have in common: the file that is missing, and the error that names the file.

Add here only what is true of both formats; each format has a module of its own (`dump_file`, `archive_file`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from schedgen_backups.core.errors import VerificationError

_Opened = TypeVar("_Opened")


@contextmanager
def open_artifact(path: Path, read: Callable[[BinaryIO], _Opened]) -> Generator[_Opened, None, None]:
    """What `read` makes of the open file is there within the block; VerificationError (permanent) names the file, or says that it is missing."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise VerificationError(f"{path} cannot be read: {error.strerror}", hint="Is the file where the manifest says it is?") from error
    with file:
        try:
            yield read(file)
        except VerificationError as error:
            raise VerificationError(f"{path.name}: {error.message}", hint=error.hint) from error


def make_format_error(reason: str) -> VerificationError:
    """The error that says why a file is not what it should be."""
    return VerificationError(reason, hint="Use another copy or another recovery point.")
