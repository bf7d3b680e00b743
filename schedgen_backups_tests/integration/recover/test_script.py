"""The stand-alone script restores the package's backups with only a bare interpreter, its own file and psql.

Servers, files and the final comparison are real. Damage at many places is in `test_damage`.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from minio.commonconfig import Tags

from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings
from schedgen_backups_tests.support.artifacts import (
    ARCHIVE_NAME,
    DUMP_NAME,
    POINT,
    TableText,
    make_entry,
    make_noise,
    write_archive,
    write_dump,
    write_dump_text,
)
from schedgen_backups_tests.support.points import BROKEN_FOREIGN_KEY, ID, Backup, make_backed_up
from schedgen_backups_tests.support.recover import SCRIPT, Recovery, run_script
from schedgen_backups_tests.support.restores import compare_bucket, compare_database
from schedgen_backups_tests.support.servers import client_of, run

pytestmark = pytest.mark.integration

AWKWARD_TABLES = """
CREATE SCHEMA "two words"; CREATE ROLE "recover owner";
CREATE TABLE "two words"."課程 ""x"".y" (a int, "new
line" text); INSERT INTO "two words"."課程 ""x"".y" VALUES (1, E'tab\\t\\\\.'), (2, NULL);
CREATE TABLE "Users; DROP TABLE x
" (a text); INSERT INTO "Users; DROP TABLE x
" VALUES ('é'), ('\\.'), ('');
ALTER TABLE jobs OWNER TO "recover owner";
CREATE TABLE parts (a int) PARTITION BY RANGE (a);
CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (10); INSERT INTO parts VALUES (1);
CREATE TABLE parent (a int); CREATE TABLE child () INHERITS (parent); INSERT INTO child VALUES (1);
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
"""
AWKWARD_KEYS = (
    "a/b",
    "課程/Übersicht é +&=?#%20.pdf",
    "e\u0301",
    "*<>:|;$(x)",
    " spaces ",
    "tab\there",
    ".schedgen",
    "back\\slash",
)
LARGE_BYTES = (16 << 20) + 12345
OTHER_INTERPRETERS = ["/usr/bin/python3", *filter(None, [os.environ.get("RECOVER_PYTHON")])]
"""The system's Python, and the oldest supported one (3.9) if RECOVER_PYTHON names it."""


@pytest.fixture
def backup(
    database: DatabaseSettings,
    second_database: DatabaseSettings,
    bucket: BucketSettings,
    second_bucket: BucketSettings,
    tmp_path: Path,
) -> Backup:
    """Return a committed point of tables and objects with awkward names, and empty targets."""
    for name in AWKWARD_KEYS:
        put(bucket, name, f"body of {name}".encode())
    put(bucket, "large", make_noise(LARGE_BYTES))
    put(bucket, "empty", b"")
    made = make_backed_up((database, bucket), (second_database, second_bucket), tmp_path / "backups")
    run(database, AWKWARD_TABLES)
    (made.dump.unlink(), made.archive.unlink())
    made.capture()
    made.commit()
    yield made
    run(database, "DROP TABLE jobs")
    run(second_database, "DROP TABLE IF EXISTS jobs")
    run(second_database, 'DROP ROLE "recover owner"')


@pytest.fixture
def recovery(backup: Backup, postgres_bin_dir: Path, tmp_path: Path) -> Recovery:
    return Recovery(backup.catalog.directory, backup.database, backup.bucket, postgres_bin_dir, tmp_path)


def put(bucket: BucketSettings, key: str, data: bytes) -> None:
    tags = Tags.new_object_tags()
    tags["课 a+b"] = "x y=z"
    metadata = {
        "owner": "some  body",
        "Cache-Control": "max-age=60",
        "Content-Disposition": 'inline; filename="x.pdf"',
        "Content-Language": "af",
    }
    client_of(bucket).put_object(
        bucket.bucket,
        key,
        io.BytesIO(data),
        len(data),
        content_type="text/x; charset=utf-8",
        metadata=metadata,
        tags=tags,
    )


def test_a_whole_point_is_restored_and_equal(backup: Backup, recovery: Recovery) -> None:
    done = recovery.run("restore", *recovery.to_bucket)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("restored\n")
    assert [result.summary for result in backup.compare() if not result.is_passed] == []
    assert f"{len(AWKWARD_KEYS) + 8} objects" in done.stdout


@pytest.mark.parametrize("python", OTHER_INTERPRETERS)
def test_another_interpreter_restores_the_same(python: str, backup: Backup, recovery: Recovery) -> None:
    if not Path(python).exists():
        pytest.skip(f"{python} is not installed")
    done = recovery.run("restore", *recovery.to_bucket, python=python)
    assert done.returncode == 0, done.stderr
    assert [result.summary for result in backup.compare() if not result.is_passed] == []


def test_a_missing_bucket_is_created(backup: Backup, recovery: Recovery) -> None:
    target = backup.bucket.with_bucket(f"{backup.bucket.bucket}-new")
    done = recovery.run("objects", "--s3", f"http://{target.endpoint}", "--bucket", target.bucket)
    assert done.returncode == 0, done.stderr
    assert [
        result.summary
        for result in compare_bucket(backup.archive, target, backup.settings)
        if not result.is_passed
    ] == []
    for listed in client_of(target).list_objects(target.bucket, recursive=True):
        client_of(target).remove_object(target.bucket, listed.object_name or "")
    client_of(target).remove_bucket(target.bucket)


def test_the_database_alone_is_restored_and_its_role_is_created(backup: Backup, recovery: Recovery) -> None:
    run(
        backup.source_database,
        'DROP OWNED BY "recover owner"; CREATE TABLE jobs (a int); DROP ROLE "recover owner"',
    )
    done = recovery.run("database", POINT)
    assert done.returncode == 0, done.stderr
    assert 'role      "recover owner" is created' in done.stdout
    assert [
        result.summary
        for result in compare_database(backup.dump, backup.database, backup.settings)
        if not result.is_passed
    ] == []
    assert list(client_of(backup.bucket).list_objects(backup.bucket.bucket, recursive=True)) == []


def test_objects_in_a_folder_have_their_bytes_and_stay_inside(recovery: Recovery, tmp_path: Path) -> None:
    """A crafted archive holds keys that no server accepts; `a` lies beside `a/b`."""
    contents = {
        "../x": b"up",
        "a//b": b"twice",
        "a": b"file",
        "a/b": b"below",
        "/etc/x": b"root",
        "é/課程": b"unicode",
        ".schedgen-backups/x": b"ours",
    }
    directory = tmp_path / "made"
    directory.mkdir()
    write_archive(
        directory / f"minio_schedgen-pdfs_{POINT}.tar.gz",
        [(make_entry(key, data), data) for key, data in contents.items()],
    )
    done = recovery.run("objects", POINT, "--folder", str(tmp_path / "deep" / "out"), directory=directory)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "deep" / "out"
    index = [
        json.loads(line)
        for line in (out / ".schedgen-backups/index.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {entry["key"]: (out / entry["file"]).read_bytes() for entry in index} == contents
    assert index[0]["content_type"] == "application/pdf"
    renamed = {
        json.loads(line)["key"]
        for line in (out / ".schedgen-backups/renamed.jsonl").read_text(encoding="utf-8").splitlines()
    }
    assert renamed == contents.keys() - {"a", "é/課程"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}
    assert out.stat().st_mode & 0o777 == 0o700


def test_objects_with_unread_tags_are_restored_and_reported_as_unknown(
    backup: Backup, recovery: Recovery, tmp_path: Path
) -> None:
    directory = tmp_path / "made"
    directory.mkdir()
    entries = [(make_entry("a", b"1"), b"1"), (make_entry("b", b"2", tags_note="refused"), b"2")]
    write_archive(directory / f"minio_schedgen-pdfs_{POINT}.tar.gz", entries)
    done = recovery.run("objects", POINT, *recovery.to_bucket, directory=directory)
    assert done.returncode == 0, done.stderr
    assert "unknown   the tags of 1 of these objects" in done.stdout
    assert {listed.object_name for listed in client_of(backup.bucket).list_objects(backup.bucket.bucket)} == {
        "a",
        "b",
    }


def test_an_archive_that_names_a_path_outside_is_refused(
    recovery: Recovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "made"
    directory.mkdir()
    monkeypatch.setattr("schedgen_backups.core.formats.tar_member.MemberNames.choose", lambda _self, key: key)
    write_archive(directory / f"minio_schedgen-pdfs_{POINT}.tar.gz", [(make_entry("../../x", b"up"), b"up")])
    done = recovery.run("objects", POINT, "--folder", str(tmp_path / "a" / "b"), directory=directory)
    assert done.returncode == 3
    assert "not a safe path" in done.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", ["link", "full"])
def test_a_folder_that_is_a_link_or_not_empty_is_refused(
    recovery: Recovery, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real"
    if kind == "link":
        target = tmp_path / "link"
        target.symlink_to(tmp_path / "real")
    else:
        (target / "mine").touch()
    done = recovery.run("objects", "--folder", str(target))
    assert (done.returncode, "is not an empty directory" in done.stderr) == (2, True)
    assert [path.name for path in (tmp_path / "real").iterdir()] == ([] if kind == "link" else ["mine"])


@pytest.mark.parametrize(
    "statement",
    ["CREATE FOREIGN DATA WRAPPER w", "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC"],
)
def test_a_target_with_content_outside_schemas_is_refused(
    backup: Backup, recovery: Recovery, statement: str
) -> None:
    run(backup.database, statement)
    done = recovery.run("database")
    assert (done.returncode, "is not empty" in done.stderr) == (1, True)
    backup.assert_nothing_was_written()


def test_settings_of_the_target_change_no_value(backup: Backup, recovery: Recovery) -> None:
    for setting in (
        "intervalstyle = 'sql_standard'",
        "datestyle = 'German'",
        "array_nulls = off",
        "default_transaction_read_only = on",
    ):
        run(
            backup.database.with_database("postgres"),
            f'ALTER DATABASE "{backup.database.database}" SET {setting}',
        )
    done = recovery.run("database")
    run(backup.database.with_database("postgres"), f'ALTER DATABASE "{backup.database.database}" RESET ALL')
    assert done.returncode == 0, done.stderr
    query = "SELECT took::text FROM jobs ORDER BY id"
    same = "SET intervalstyle = 'postgres'; "
    assert run(backup.database, same + query) == run(backup.source_database, same + query)


def test_targets_that_are_not_empty_are_refused(backup: Backup, recovery: Recovery) -> None:
    put(backup.bucket, "mine", b"mine")
    done = recovery.run("restore", *recovery.to_bucket)
    assert (done.returncode, "is not empty" in done.stderr) == (2, True)
    assert run(backup.database, "SELECT count(*) FROM pg_class WHERE relname = 'jobs'") == [(0,)]
    client_of(backup.bucket).remove_object(backup.bucket.bucket, "mine")
    run(backup.database, "CREATE TYPE mood AS ENUM ()")
    done = recovery.run("restore", *recovery.to_bucket)
    assert (done.returncode, "is not empty" in done.stderr) == (1, True)
    backup.assert_nothing_was_written()


def test_a_newer_dump_is_refused_by_an_older_server(
    recovery: Recovery, database_17: DatabaseSettings
) -> None:
    done = recovery.run(
        "database",
        PGHOST=database_17.host,
        PGPORT=str(database_17.port),
        PGDATABASE=database_17.database,
        PGPASSWORD=database_17.password,
    )
    assert done.returncode == 1
    assert "does not load into an older version" in done.stderr
    assert run(database_17, "SELECT count(*) FROM pg_class WHERE relname = 'jobs'") == [(0,)]


def test_swapped_files_of_two_points_are_refused(backup: Backup, recovery: Recovery) -> None:
    other = RecoveryPointId("20261123_020000")
    first = {"dump": backup.dump, "archive": backup.archive}
    backup.capture(other)
    backup.commit(other)
    (backup.dump.replace(first["dump"]), backup.archive.replace(first["archive"]))
    done = recovery.run("restore", ID.text, *recovery.to_bucket)
    assert done.returncode == 3
    assert "swapped" in done.stderr
    backup.assert_nothing_was_written()
    recovery_point = recovery.directory / f"manifest_{ID}.json"
    recovery_point.unlink()
    done = recovery.run("restore", ID.text, *recovery.to_bucket)
    assert (done.returncode, "swapped or renamed" in done.stderr) == (3, True)
    backup.assert_nothing_was_written()


def test_a_refused_load_leaves_the_database_as_it_was(
    backup: Backup, recovery: Recovery, tmp_path: Path
) -> None:
    directory = tmp_path / "made"
    directory.mkdir()
    write_dump(directory / DUMP_NAME, [TableText("missing_table", (b"1",))])
    done = recovery.run("database", POINT, directory=directory)
    assert done.returncode == 1
    assert "missing_table" in done.stderr
    assert "Traceback" not in done.stderr
    assert "is unchanged" in done.stderr
    assert run(
        backup.database, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    ) == [(0,)]


HINTS = ("Install the extension's package", "Create the role", "Restore as a superuser", "fix that")


@pytest.mark.parametrize(
    ("statement", "hint"),
    [
        ("CREATE EXTENSION no_such_one;", "Install the extension's package"),
        ("CREATE TABLE t (i integer);\nALTER TABLE t OWNER TO nobody_of_that_name;", "Create the role"),
        ("SELECT no_such_function();", "fix that"),
        ("SELECT extension FROM no_such_table;", "fix that"),
        ("SET ROLE pg_monitor;\nCOMMENT ON EXTENSION plpgsql IS 'x';", "Restore as a superuser"),
    ],
)
def test_the_hint_of_a_refused_load_fits_the_servers_error(
    recovery: Recovery, tmp_path: Path, statement: str, hint: str
) -> None:
    directory = tmp_path / "made"
    directory.mkdir()
    end = "\n\n--\n-- PostgreSQL database dump complete\n--\n\n"
    write_dump_text(directory / DUMP_NAME, f"{statement}\n{end}".encode(), {}, roles="")
    done = recovery.run("database", POINT, directory=directory)
    assert done.returncode == 1
    assert [each for each in HINTS if each in done.stderr] == [hint]


def test_an_error_after_large_objects_leaves_the_database_as_it_was(
    backup: Backup, recovery: Recovery
) -> None:
    run(backup.source_database, BROKEN_FOREIGN_KEY)
    later = RecoveryPointId("20261123_020000")
    backup.capture(later)
    done = recovery.run("database", later.text)
    assert done.returncode == 1
    assert "violates foreign key constraint" in done.stderr
    assert run(
        backup.database, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    ) == [(0,)]
    assert run(backup.database, "SELECT count(*) FROM pg_largeobject_metadata") == [(0,)]


def test_ctrl_c_exits_with_130_and_commits_nothing(backup: Backup, recovery: Recovery) -> None:
    run(
        backup.source_database,
        "CREATE TABLE zz (t text); INSERT INTO zz SELECT repeat(md5(n::text), 20) FROM generate_series(1, "
        "60000) n",
    )
    other = RecoveryPointId("20261123_020000")
    backup.capture(other)
    with recovery.start("database", other.text) as process:
        deadline = time.monotonic() + 60
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND "
            "application_name = 'recover' AND query LIKE 'COPY%'"
        )
        while run(backup.database, query) == [(0,)]:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        _stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "cancelled\n")
    assert run(
        backup.database, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    ) == [(0,)]


def test_no_secret_is_printed_whatever_goes_wrong(backup: Backup, recovery: Recovery) -> None:
    said = ""
    for words, environment in (
        (("restore", *recovery.to_bucket), {"MINIO_SECRET_KEY": "canary-secret"}),
        (("database",), {"PGPASSWORD": "canary-secret"}),
        (
            ("objects", "--s3", "http://192.0.2.1:9000", "--bucket", "x"),
            {"MINIO_SECRET_KEY": "canary-secret"},
        ),
        (("objects", "--s3", "http://127.0.0.1:1", "--bucket", "x"), {"MINIO_SECRET_KEY": "canary-secret"}),
    ):
        done = recovery.run(*words, **environment)
        assert done.returncode in {1, 2, 4}
        assert "Traceback" not in done.stderr
        said += done.stdout + done.stderr
    assert "canary-secret" not in said
    backup.assert_nothing_was_written()


def test_listing_and_verifying_show_what_there_is(backup: Backup, recovery: Recovery) -> None:
    listing = recovery.run("list")
    assert f"{POINT} " in listing.stdout
    assert " committed " in listing.stdout
    verified = recovery.run("verify")
    assert (verified.returncode, verified.stdout.splitlines()[-1]) == (0, "complete and undamaged")
    assert "6 of 6 references are in the archive" in verified.stdout
    for path in (backup.dump, backup.archive):
        lone = recovery.directory.parent / path.name
        shutil.copy(path, lone)
        assert recovery.run("verify", directory=lone).returncode == 0
    backup.dump.unlink()
    assert recovery.run("verify").returncode == 3
    assert "FILE MISSING" in recovery.run("list").stdout


def test_only_the_standard_library_is_imported() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 9))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module for module in modules if module.partition(".")[0] not in sys.stdlib_module_names} == set()


def test_help_is_readable_and_wrong_usage_exits_with_4(tmp_path: Path) -> None:
    shutil.copy(SCRIPT, tmp_path)
    shown = run_script(tmp_path, ["--help"], {"PATH": os.defpath})
    assert shown.returncode == 0
    assert "Exit codes: 0 done" in shown.stdout
    for words in (["nonsense"], ["list", "/nonexistent"], ["objects", str(tmp_path)]):
        assert run_script(tmp_path, words, {"PATH": os.defpath}).returncode == 4
    assert (
        hashlib.sha256(SCRIPT.read_bytes()).digest()
        == hashlib.sha256((tmp_path / SCRIPT.name).read_bytes()).digest()
    )
    assert (
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(tmp_path)], check=False).returncode == 0
    )


@pytest.mark.parametrize(
    "endpoint",
    [
        *(
            ":9000",
            "h:0",
            "h:99999",
            "h:\u0663",
            "h:",
            "h\\x:9",
            "h#x:9",
            "h?x",
            "https://h/path",
            "https://u:canary@h:9",
            "ftp://h:9",
            "h\tx:9",
            "m\u00fc:9",
        ),
        "https://h?x",
    ],
    ids=ascii,
)
def test_an_invalid_server_address_is_refused_and_not_quoted(tmp_path: Path, endpoint: str) -> None:
    shutil.copy(SCRIPT, tmp_path)
    write_archive(tmp_path / ARCHIVE_NAME, [(make_entry("a", b"1"), b"1")])
    environment = {"PATH": os.defpath, "MINIO_ACCESS_KEY": "a", "MINIO_SECRET_KEY": "b", "LC_ALL": "C.UTF-8"}
    done = run_script(
        tmp_path, ["objects", str(tmp_path), POINT, "--s3", endpoint, "--bucket", "b"], environment
    )
    assert done.returncode == 4, done.stderr
    assert "--s3 is not a server address" in done.stderr
    assert endpoint not in done.stderr


def test_files_that_lack_an_object_are_refused_unless_allowed(recovery: Recovery, tmp_path: Path) -> None:
    directory = tmp_path / "made"
    directory.mkdir()
    write_dump(directory / DUMP_NAME, [TableText("t", (b"1",))], references=["there", "lost"])
    write_archive(directory / f"minio_schedgen-pdfs_{POINT}.tar.gz", [(make_entry("there", b"x"), b"x")])
    for command in ("verify", "restore"):
        done = recovery.run(
            command, POINT, *(recovery.to_bucket if command == "restore" else ()), directory=directory
        )
        assert (done.returncode, "such as 'lost'" in done.stderr) == (3, True)
    allowed = recovery.run("restore", POINT, *recovery.to_bucket, "--incomplete", directory=directory)
    # The crafted dump has no CREATE TABLE: the load was tried.
    assert (
        allowed.returncode,
        "MISSING" in allowed.stdout,
        '"public.t" does not exist' in allowed.stderr,
    ) == (1, True, True)
