"""The file that a deployment script reads to find its way back: which recovery point was taken before it, from which commit, and where it lies.

Lines of `NAME='value'` that a shell can source. Written whole, and only by whoever has seen the point verified; the point itself is in the catalog.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from tempfile import NamedTemporaryFile

from schedgen_backups.core.catalog import PointListing, translate_storage_errors
from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.model import ArtifactKind

_MODE = 0o644


def write_marker(path: Path, point: PointListing) -> None:
    """The file names the sealed point, in place of what was there.

    VerificationError when the point is not sealed, StorageError when the file cannot be written; then it is as it was.
    """
    manifest = point.manifest
    if manifest is None:
        raise VerificationError(f"recovery point {point.point_id} is not sealed: no marker is written")
    values = {
        "BACKUP_ID": point.point_id.text,
        "BACKUP_TAKEN_AT": manifest.snapshot_at.isoformat(),
        "BACKUP_DATABASE_FILE": str(point.get_path(ArtifactKind.DATABASE)),
        "BACKUP_BUCKET_FILE": str(point.get_path(ArtifactKind.BUCKET)),
        "BACKUP_LABELS": " ".join(f"{name}={value}" for name, value in manifest.origin.labels.items()),
        "BACKUP_GIT_COMMIT": manifest.origin.git_commit,
        "BACKUP_GIT_BRANCH": manifest.origin.git_branch,
    }
    with (
        translate_storage_errors(path.parent),
        NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8") as file,
    ):
        try:
            file.write("".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()))
            file.flush()
            os.fchmod(file.fileno(), _MODE)
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
