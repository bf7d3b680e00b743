"""Benchmarks of the bucket: capture, next night, restore, verification and a single PDF.

Capture competes with GETs whose bodies are discarded, the old script's tar, restic and rclone. The script,
restic and tar read the files from the disk; ours, curl and rclone read from the S3 server. Peers that are not
installed are skipped.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from threading import Event

from benchmarks import data
from benchmarks.database import OURS, forget, make_point_ids
from benchmarks.paired import Contestant, Timing, run_in_turn
from benchmarks.shell import has_program, make_rclone_environment, run_shell, size_of
from schedgen_backups.core.capture.capture import take_bucket_archive
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.formats.archive_file import open_archive
from schedgen_backups.core.model import ArtifactKind, RecoveryPointId
from schedgen_backups.core.restore.bucket import prepare_bucket, write_bucket
from schedgen_backups.core.restore.objects import select_keys
from schedgen_backups.core.settings import BucketSettings, CaptureSettings
from schedgen_backups.core.verify.files import verify_archive

CURL = "curl, bodies thrown away (limit)"
SCRIPT, STOCK_VERIFY = "tar czf of the files (the script)", "gzip -t, tar -tzf (the script)"
RESTIC, RCLONE_TAR, RCLONE_RESTIC = "restic of the files", "rclone copy + tar", "rclone sync + restic"
COPY, RCLONE_UP = "cp of the archive", "rclone copy of the files to the bucket"
ONE_AS_COMMAND = "one object as a command"


class BucketBench:
    """The benchmarks of one bucket, whose objects are also files on the disk."""

    def __init__(
        self, shape: str, settings: BucketSettings, files: Path, folder: Path, *, rounds: int
    ) -> None:
        self.shape, self.settings, self.files, self.folder, self.rounds = (
            shape,
            settings,
            files,
            folder,
            rounds,
        )
        self.catalog = Catalog(folder / "points")
        self.catalog.prepare()
        self.options = CaptureSettings()
        self._ids = make_point_ids()
        self._newest: list[RecoveryPointId] = []
        self._restic = {
            "RESTIC_REPOSITORY": str(folder / "restic"),
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(folder / "cache"),
        }
        self._rclone = make_rclone_environment(settings)

    def measure(self) -> tuple[Timing, ...]:
        """Measure first night, next night, restore, verification and one object."""
        first = run_in_turn(f"{self.shape}: first night", self._first_night(), rounds=self.rounds)
        data.change_files(self.files, self.settings, share=0.01)
        return (
            *first,
            *self._measure_next_night(),
            *self._measure_restore(),
            *self._measure_verification(),
            *self._measure_one(),
            *self._measure_one_as_command(),
        )

    def _first_night(self) -> dict[str, Contestant]:
        script = self.folder / "script.tar.gz"
        contestants = {
            CURL: Contestant(self._fetch, self._write_addresses),
            OURS: Contestant(self._capture, self._forget_all),
            SCRIPT: Contestant(
                lambda: (run_shell(f"tar czf '{script}' -C '{self.files}' ."), size_of(script))[1]
            ),
        }
        if has_program("restic"):
            contestants[RESTIC] = Contestant(self._back_up_with_restic, self._make_repository)
        if has_program("rclone"):
            contestants[RCLONE_TAR] = Contestant(
                self._copy_and_tar, lambda: run_shell(f"rm -rf '{self.folder}/copy'")
            )
        return contestants

    def _measure_next_night(self) -> tuple[Timing, ...]:
        previous = self._newest[-1]
        contestants = {
            OURS: Contestant(self._capture, lambda: forget(self.catalog, [previous])),
            COPY: Contestant(
                lambda: (
                    run_shell(
                        f"cp '{self._path_of(previous)}' '{self.folder}/copied'; sync '{self.folder}/copied'"
                    ),
                    0,
                )[1]
            ),
        }
        if has_program("restic"):
            contestants[RESTIC] = Contestant(self._back_up_with_restic)
        if has_program("rclone") and has_program("restic"):
            contestants[RCLONE_RESTIC] = Contestant(self._sync_and_back_up)
        # Only one round: in a second one nothing would have changed for restic.
        return run_in_turn(f"{self.shape}: next night, 1 % changed", contestants, rounds=1)

    def _measure_restore(self) -> tuple[Timing, ...]:
        target = self.settings.with_bucket(f"{self.settings.bucket}-restored")

        def restore() -> int:
            with prepare_bucket(self._path_of(self._newest[-1]), target, self.options.transfer) as prepared:
                write_bucket(prepared, overwrite=False, stop=Event())
            return 0

        def upload() -> int:
            run_shell(f"rclone copy --transfers 16 '{self.files}' 's3:{target.bucket}'", self._rclone)
            return 0

        contestants = {OURS: Contestant(restore, lambda: data.renew_bucket(target))}
        if has_program("rclone"):
            contestants[RCLONE_UP] = Contestant(upload, lambda: data.renew_bucket(target))
        return run_in_turn(f"{self.shape}: restore", contestants, rounds=self.rounds)

    def _measure_verification(self) -> tuple[Timing, ...]:
        path = self._path_of(self._newest[-1])

        def verify() -> int:
            assert all(result.is_passed for result in verify_archive(path))
            return 0

        stock = Contestant(lambda: (run_shell(f"gzip -t '{path}' && tar -tzf '{path}' > /dev/null"), 0)[1])
        return run_in_turn(
            f"{self.shape}: verify", {STOCK_VERIFY: stock, OURS: Contestant(verify)}, rounds=self.rounds
        )

    def _measure_one(self) -> tuple[Timing, ...]:
        path = self._path_of(self._newest[-1])
        key = self._choose_key(path)

        def read() -> int:
            with open_archive(path) as archive:
                (entry,), _lost = select_keys(archive, (key,))
                return sum(len(block) for block in archive.read_object(entry))

        return run_in_turn(f"{self.shape}: one object", {OURS: Contestant(read)}, rounds=5)

    def _measure_one_as_command(self) -> tuple[Timing, ...]:
        newest, to = self._newest[-1], self.folder / "one object"
        key = self._choose_key(self._path_of(newest))
        words = [
            Path(sys.executable).with_name("schedgen-backups"),
            "restore-objects",
            newest.text,
            key,
            "--to",
            to,
        ]
        command = shlex.join(str(word) for word in words)

        def fetch() -> int:
            run_shell(command, {"BACKUP_DIR": str(self.catalog.directory)})
            return size_of(to)

        # The directory is new in each round: an existing file would only be compared.
        contestant = Contestant(fetch, lambda: run_shell(f"rm -rf '{to}'"))
        return run_in_turn(f"{self.shape}: {ONE_AS_COMMAND}", {OURS: contestant}, rounds=5)

    def _choose_key(self, path: Path) -> str:
        with open_archive(path) as archive:
            keys = [entry.key for entry in archive.read_entries()]
        return keys[len(keys) // 2]

    def _capture(self) -> int:
        self._newest.append(next(self._ids))
        return take_bucket_archive(self.catalog, self.settings, self.options, self._newest[-1]).size_bytes

    def _path_of(self, point_id: RecoveryPointId) -> Path:
        return self.catalog.get_point(point_id).get_path(ArtifactKind.BUCKET)

    def _forget_all(self) -> None:
        forget(self.catalog, [])

    def _write_addresses(self) -> None:
        lines = [f'url = "{address}"\noutput = "/dev/null"\n' for address in data.presign(self.settings)]
        (self.folder / "curl.config").write_text("".join(lines), encoding="utf-8")

    def _fetch(self) -> int:
        run_shell(
            "curl --silent --show-error --fail --parallel --parallel-max 16 --config "
            f"'{self.folder}/curl.config'"
        )
        return 0

    def _make_repository(self) -> None:
        run_shell(f"rm -rf '{self.folder}/restic' '{self.folder}/cache'; restic init --quiet", self._restic)

    def _back_up_with_restic(self) -> int:
        run_shell(f"restic backup --quiet '{self.files}'", self._restic)
        return size_of(self.folder / "restic")

    def _copy_and_tar(self) -> int:
        copy, packed = self.folder / "copy", self.folder / "copy.tar.gz"
        run_shell(
            f"rclone copy --transfers 16 's3:{self.settings.bucket}' '{copy}' && tar czf '{packed}' -C "
            f"'{copy}' .",
            self._rclone,
        )
        return size_of(packed)

    def _sync_and_back_up(self) -> int:
        copy = self.folder / "copy"
        run_shell(
            f"rclone sync --transfers 16 's3:{self.settings.bucket}' '{copy}' && restic backup --quiet "
            f"'{self.files}'",
            {**self._rclone, **self._restic},
        )
        return 0
