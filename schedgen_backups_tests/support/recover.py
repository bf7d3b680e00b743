"""Runs the stand-alone script from a copy of one file, in an isolated interpreter without variables.

Add what two of its test files need.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from schedgen_backups.core.settings import BucketSettings, DatabaseSettings

SCRIPT = Path(__file__).resolve().parents[2] / "schedgen_backups" / "recover.py"


def run_script(
    folder: Path, words: list[str], environment: dict[str, str], python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run the script in the folder; return how it ended and what it printed."""
    command = [python, "-I", "-S", str(folder / SCRIPT.name), *words]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


class Recovery:
    """The script with a backup directory and empty targets in its environment."""

    def __init__(
        self, directory: Path, database: DatabaseSettings, bucket: BucketSettings, bin_dir: Path, folder: Path
    ) -> None:
        self.directory = directory
        self.folder = folder / "bare host"
        self.folder.mkdir()
        shutil.copy(SCRIPT, self.folder)
        self.to_bucket = ("--s3", f"http://{bucket.endpoint}", "--bucket", bucket.bucket)
        self.environment = {
            "PATH": str(bin_dir),
            "LC_ALL": "C.UTF-8",
            "PGHOST": database.host,
            "PGPORT": str(database.port),
            "PGUSER": database.user,
            "PGPASSWORD": database.password,
            "PGDATABASE": database.database,
            "MINIO_ACCESS_KEY": bucket.access_key,
            "MINIO_SECRET_KEY": bucket.secret_key,
        }

    def run(
        self,
        command: str,
        *words: str,
        directory: Path | None = None,
        python: str = sys.executable,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run the command to its end on this directory."""
        return run_script(
            self.folder,
            [command, str(directory or self.directory), *words],
            {**self.environment, **environment},
            python,
        )

    def start(self, command: str, *words: str) -> subprocess.Popen[str]:
        """Start the command."""
        line = [
            sys.executable,
            "-I",
            "-S",
            str(self.folder / SCRIPT.name),
            command,
            str(self.directory),
            *words,
        ]
        return subprocess.Popen(
            line,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
