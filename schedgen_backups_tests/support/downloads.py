"""The downloaded folder of a site, and a forger who can write to the store it came from.

Add what the tests of `recover.py` on a downloaded store need.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import copy as shallow_copy
from pathlib import Path
from typing import Any

from typing_extensions import Self

from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.packs.encryption import Encryptor, PlainEncryptor
from schedgen_backups.core.settings import Layout
from schedgen_backups.core.store.folder import FolderStore
from schedgen_backups_tests.support.artifacts import TableText
from schedgen_backups_tests.support.copies import (
    SITE_ID,
    CopiedSite,
    list_objects,
    make_point,
    make_point_id,
)
from schedgen_backups_tests.support.recover import SCRIPT, run_script

ROWS = (TableText("jobs", tuple(b"%d\tsome text of a row" % number for number in range(2000))),)

OBJECTS = list_objects(41, changed={"pdf/0010.pdf": b"new"})
"""Of the newest point: its archive has bytes of a new pack between those of an old one."""


class Download:
    """Two copied points, of nights 0 and 1, in a folder that was downloaded; plain unless encrypted."""

    def __init__(
        self, folder: Path, encryptor: Encryptor | None = None, layout: Layout = Layout.FILES
    ) -> None:
        self.folder = folder
        store = FolderStore(folder / "nas")
        store.prepare()
        self.source = CopiedSite(folder / "backups", store, encryptor=encryptor or PlainEncryptor())
        for night, objects in enumerate((list_objects(40), OBJECTS)):
            make_point(self.source.catalog, night, objects, ROWS, layout=layout)
            self.source.copy(night)
        self.site = folder / "nas" / SITE_ID
        self.path = "/nowhere"
        self._make_host()

    def copy_to(self, folder: Path) -> Self:
        """Return the same in another folder, to be altered there."""
        copy = shallow_copy(self)
        copy.folder = folder
        copy.site = shutil.copytree(self.site, folder / "nas" / SITE_ID)
        copy._make_host()
        return copy

    def _make_host(self) -> None:
        self.work = self.folder / "work"
        self.work.mkdir()
        shutil.copy(SCRIPT, self.folder)

    @property
    def point(self) -> Path:
        """Return the folder of the newest copy."""
        return self.site / "points" / make_point_id(1).text

    @property
    def packs(self) -> list[str]:
        """Return the names of the packs that the newest copy needs."""
        return [pack["name"] for pack in self.read_json("packs.json")["packs"]]

    def run(
        self, command: str, *words: str, python: str = sys.executable
    ) -> subprocess.CompletedProcess[str]:
        """Run the script on the folder of the site; nothing may be left in its working directory."""
        environment = {"PATH": self.path, "TMPDIR": str(self.work), "LC_ALL": "C.UTF-8"}
        done = run_script(self.folder, [command, str(self.site), *words], environment, python)
        assert "Traceback" not in done.stderr
        assert list(self.work.iterdir()) == []
        return done

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a plain file of the newest copy."""
        value: dict[str, Any] = json.loads((self.point / name).read_bytes())
        return value

    def find_recipe(self, prefix: str) -> Path:
        """Return the recipe of the dump (`db_`) or of the archive (`minio_`)."""
        return next(self.point.glob(f"{prefix}*.recipe.gz*"))

    def find_local_recipe(self, prefix: str) -> Path:
        """Return the recipe of the backup directory, of an artifact in packs."""
        return next(self.point.glob(f"{prefix}*.local-recipe.gz*"))

    def forge(self, path: Path, data: bytes) -> None:
        """Replace a file of the newest copy, and everything that names its digest."""
        path.write_bytes(data)
        listed = self.read_json("packs.json")
        for entry in (*listed["packs"], *listed["files"]):
            if entry["name"] == path.name:
                entry["size_bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        self.forge_list(lambda value: value.update(listed))

    def forge_list(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the pack list, and commit it."""
        listed = self.read_json("packs.json")
        change(listed)
        text = json.dumps(listed).encode()
        (self.point / "packs.json").write_bytes(text)
        commit = self.read_json("committed.json") | {"packs_sha256": hashlib.sha256(text).hexdigest()}
        (self.point / "committed.json").write_bytes(json.dumps(commit).encode())

    def forge_recipe(self, prefix: str, change: Callable[[list[str]], list[str]]) -> None:
        """Change the lines of a recipe."""
        path = self.find_recipe(prefix)
        lines = change(gzip.decompress(path.read_bytes()).decode().splitlines())
        self.forge(path, gzip.compress("".join(f"{line}\n" for line in lines).encode()))

    def forge_manifest(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the manifest."""
        manifest = self.read_json("manifest.json")
        change(manifest)
        self.forge(self.point / "manifest.json", json.dumps(manifest).encode())

    def assert_equal(self, directory: Path, night: int = 1) -> None:
        """Compare the files of a directory with those that were copied, byte for byte."""
        local = self.source.catalog.get_point(make_point_id(night))
        for artifact in local.artifacts:
            assert (directory / artifact.path.name).read_bytes() == artifact.path.read_bytes()
            with ArtifactFile(directory / artifact.path.name) as ours, ArtifactFile(artifact.path) as theirs:
                assert ours.open_reader().read() == theirs.open_reader().read()
        catalog, point_id = self.source.catalog, make_point_id(night)
        for path in (catalog.manifest_path(point_id), catalog.verification_path(point_id)):
            assert (directory / path.name).read_bytes() == path.read_bytes()
