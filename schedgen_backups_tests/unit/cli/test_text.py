"""Control characters in rows, keys and names are escaped by every command that prints them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schedgen_backups.cli.app import print_json
from schedgen_backups.cli.main import main
from schedgen_backups.cli.text import escape, escape_value
from schedgen_backups.recover import main as recover
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    DUMP_NAME,
    POINT,
    TableText,
    make_entry,
    write_archive,
    write_dump,
)

HOSTILE = "a\x1b]0;owned\x07\x9b31m\u202ez\r"
OBEYED = frozenset("\x1b\x07\x9b\u202e\r\x7f")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢", "plain é 漢"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\u202e", "\\u202e"),
        ("\x9b31m", "\\x9b31m"),
        ("\udc80", "\\udc80"),
        ("[red]x[/]", "\\[red]x\\[/]"),
    ],
)
def test_no_text_moves_the_cursor_or_changes_direction(text: str, shown: str) -> None:
    assert (escape(text), escape_value(text)) == (shown, shown)


def test_a_message_keeps_its_lines_and_a_value_is_one_line() -> None:
    assert (escape("a\nb\tc"), escape_value("a\nb\tc")) == ("a\nb\tc", "a\\nb\\tc")


def test_json_keeps_its_meaning_and_holds_no_control_character(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json({"key": HOSTILE + "\x7f"})
    printed = capsys.readouterr().out
    assert json.loads(printed)["key"] == HOSTILE + "\x7f"
    assert OBEYED.isdisjoint(printed.replace("\r\n", "\n"))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a backup directory with one point that has hostile table names and keys."""
    write_dump(tmp_path / DUMP_NAME, [TableText(HOSTILE.strip(), (b"1",))], references=[HOSTILE])
    write_archive(tmp_path / ARCHIVE_NAME, [(make_entry(HOSTILE, b"x"), b"x")])
    monkeypatch.setenv("BACKUP_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("show", POINT),
        ("show", POINT, "--tables"),
        ("show", POINT, "--objects", ""),
        ("show", POINT, "--objects", "", "--json"),
        ("restore-objects", POINT, "nowhere\x1b[0m", "--to", "x"),
        ("verify", DUMP_NAME),
        ("verify", POINT),
        ("pin", POINT, "--reason", HOSTILE),
    ],
    ids=" ".join,
)
def test_commands_print_names_and_keys_escaped(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(directory)
    monkeypatch.setattr("sys.argv", ["schedgen-backups", *words])
    with pytest.raises(SystemExit):
        main()
    printed = "".join(capsys.readouterr()).replace("\r\n", "\n")
    assert printed
    assert OBEYED.isdisjoint(printed)


@pytest.mark.parametrize(
    "words", [("verify",), ("list",), ("objects", "--folder", "out\x1b[0m")], ids=" ".join
)
def test_the_stand_alone_script_prints_them_escaped_too(
    directory: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    recover([words[0], str(directory), *words[1:]])
    printed = "".join(capsys.readouterr())
    assert printed
    assert OBEYED.isdisjoint(printed)
