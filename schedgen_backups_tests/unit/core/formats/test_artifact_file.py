"""One open file with several readers: independent positions, opened once, and errors that name the file."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schedgen_backups.core.errors import VerificationError
from schedgen_backups.core.formats.records import ArtifactFile

DATA = bytes(range(256)) * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "db_x.sql.gz"
    path.write_bytes(DATA)
    return path


def test_readers_do_not_move_each_others_position(path: Path) -> None:
    with ArtifactFile(path) as file:
        first, second = file.open_reader(), file.open_reader()
        assert first.fileno() == second.fileno()
        assert first.read(1000) == DATA[:1000]
        assert (second.tell(), second.read(5)) == (0, DATA[:5])
        assert second.seek(-3, os.SEEK_END) == len(DATA) - 3
        assert (second.read(), first.read(7), first.tell()) == (DATA[-3:], DATA[1000:1007], 1007)


def test_many_threads_read_the_same_bytes(path: Path) -> None:
    with ArtifactFile(path) as file, ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _number: file.open_reader().read(), range(64))) == {DATA}


def test_an_open_file_stays_although_another_takes_its_name(path: Path) -> None:
    """The verified file is the one that is restored."""
    with ArtifactFile(path) as file:
        assert file.open_reader().read(1) == DATA[:1]
        other = path.with_name("other")
        other.write_bytes(b"another")
        other.replace(path)
        assert file.open_reader().read() == DATA


def test_a_missing_file_is_reported_at_its_first_use(tmp_path: Path) -> None:
    with (
        ArtifactFile(tmp_path / "gone") as file,
        pytest.raises(VerificationError, match=r"gone cannot be read: No such file"),
    ):
        file.open_reader()


def test_errors_name_the_file_once(path: Path) -> None:
    def fail() -> None:
        raise VerificationError("it is damaged", hint="use another one")

    with ArtifactFile(path) as file:
        with pytest.raises(VerificationError) as caught, file.name_errors(), file.name_errors():
            fail()
        assert (caught.value.message, caught.value.hint) == ("db_x.sql.gz: it is damaged", "use another one")
