"""Copies in stores on the command line: copy, prove, and restore where nothing but the store is left.

All tests share one site with one copied point; each has its own targets.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from schedgen_backups.config.config import load_config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointListing
from schedgen_backups.core.formats.packed_file import RECIPE_SUFFIX
from schedgen_backups.core.formats.records import ArtifactFile
from schedgen_backups.core.model import ArtifactKind
from schedgen_backups.core.packs.encryption import KeyPair, make_key_pair
from schedgen_backups.core.settings import BucketSettings, DatabaseSettings, Layout
from schedgen_backups.demo.seed import SeedSummary
from schedgen_backups_tests.support.artifacts import damage, list_files
from schedgen_backups_tests.support.recover import SCRIPT
from schedgen_backups_tests.support.servers import client_of, run
from schedgen_backups_tests.support.sites import Application, Site

pytestmark = [pytest.mark.edge]

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"


class CopiedSite:
    """A site whose point was copied into a folder, and a second machine that has only store and key."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.key_pair: KeyPair = make_key_pair()
        self.safe: KeyPair = make_key_pair()
        self.store = folder / "nas"
        self.identity = folder / "key.txt"
        self.identity.write_text(f"{self.key_pair.private}\n")
        self.stores_file = folder / "stores.toml"
        self.stores_file.write_text(
            f'[stores.nas]\nurl = "file://{self.store}"\n'
            f"recipients = {json.dumps([self.key_pair.public, self.safe.public])}\n"
        )
        site.set(BACKUP_STORES_FILE=str(self.stores_file))

    @property
    def points(self) -> tuple[PointListing, ...]:
        """The points in the backup directory of the first machine."""
        return Catalog(self.site.directory).list_points()

    @property
    def source(self) -> tuple[str, ...]:
        return ("--from", "nas", "--identity", str(self.identity))


@pytest.fixture(scope="module", params=Layout, ids=lambda layout: layout.value)
def copied(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    seeded_application: tuple[Application, SeedSummary],
) -> Iterator[CopiedSite]:
    with pytest.MonkeyPatch.context() as monkeypatch, dg.DagsterInstance.ephemeral() as instance:
        site = Site(tmp_path_factory.mktemp("copies"), seeded_application[0], monkeypatch)
        site.set(BACKUP_LAYOUT=request.param.value)
        copied = CopiedSite(site, tmp_path_factory.mktemp("elsewhere"))
        assert site.run(instance).success
        assert site.cli("stores", "prepare", "nas").code == 0
        answer = site.cli("stores", "copy", "nas", "--json")
        assert (answer.code, answer.stderr) == (0, "")
        assert json.loads(answer.stdout)["copied"] == [site.points()[0].point_id.text]
        yield copied


@pytest.fixture
def elsewhere(copied: CopiedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CopiedSite:
    """The same store seen from a machine without the backup directory."""
    monkeypatch.setenv("BACKUP_DIR", str(tmp_path / "new"))
    return copied


def test_copying_again_does_nothing(copied: CopiedSite) -> None:
    before = list_files(copied.store)
    assert json.loads(copied.site.cli("stores", "copy", "nas", "--json").stdout)["copied"] == []
    assert list_files(copied.store) == before


def test_a_proof_is_printed_and_remembered(copied: CopiedSite) -> None:
    answer = copied.site.cli("stores", "prove", "nas", "--json")
    assert answer.code == 0
    assert json.loads(answer.stdout)["problems"] == []
    [store] = json.loads(copied.site.cli("stores", "--json").stdout)["stores"]
    assert store["state"]["listed_at"] is not None
    assert [point["point_id"] for point in store["state"]["points"]] == [
        copied.site.points()[0].point_id.text
    ]
    assert "nas" in copied.site.cli("stores").stdout


def test_a_missing_pack_exits_with_3(copied: CopiedSite) -> None:
    pack = next(iter(copied.store.glob("*/packs/*")))
    hidden = pack.with_name("hidden")
    pack.rename(copied.store.parent / "hidden")
    try:
        answer = copied.site.cli("stores", "prove", "nas")
        assert answer.code == 3
        assert pack.name in answer.stdout
    finally:
        (copied.store.parent / "hidden").rename(pack)
    assert not hidden.exists()
    assert copied.site.cli("stores", "prove", "nas").code == 0


def test_with_only_store_and_key_everything_is_restored_and_equal(
    elsewhere: CopiedSite, database: DatabaseSettings, weed_bucket: BucketSettings, tmp_path: Path
) -> None:
    result = elsewhere.site.cli(
        "restore",
        "latest",
        *elsewhere.source,
        "--database",
        database.database,
        "--bucket",
        weed_bucket.bucket,
        "--json",
    )
    assert (result.code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["equal"] is True
    assert {found["status"] for found in report["results"]} == {"passed"}
    source = elsewhere.site.application
    for (table,) in run(source.database, TABLES):
        rows = f"SELECT t::text FROM {table} AS t ORDER BY 1"
        assert run(database, rows) == run(source.database, rows)
    log = json.loads(elsewhere.site.cli("log", "--json").stdout)["entries"]
    assert [entry["result"] for entry in log] == ["done: equal"]
    assert not list((tmp_path / "new").glob(".fetched-*"))
    assert not list((tmp_path / "new").glob("verification_*"))


def test_single_objects_are_restored_without_reading_the_rest(
    elsewhere: CopiedSite, seeded: SeedSummary, tmp_path: Path
) -> None:
    assert seeded
    source = elsewhere.site.application.bucket
    key = min(
        str(entry.object_name)
        for entry in client_of(source).list_objects(source.bucket, recursive=True)
        if str(entry.object_name).endswith(".pdf")
    )
    out = tmp_path / "out"
    answer = elsewhere.site.cli("restore-objects", "latest", key, *elsewhere.source, "--to", str(out))
    assert answer.code == 0, answer.stderr
    assert (out / key).read_bytes() == client_of(source).get_object(source.bucket, key).read()


def test_single_tables_are_compared(elsewhere: CopiedSite) -> None:
    answer = elsewhere.site.cli(
        "restore-tables", "latest", "users", *elsewhere.source, "--diff-only", "--json"
    )
    assert answer.code == 0, answer.stderr
    [table] = json.loads(answer.stdout)["tables"]
    assert table["table"].endswith("users")


def test_list_needs_no_key_and_show_does(elsewhere: CopiedSite) -> None:
    listed = json.loads(elsewhere.site.cli("list", "--from", "nas", "--json").stdout)["copies"]
    assert [copy["id"] for copy in listed] == [copy.point_id.text for copy in elsewhere.points]
    refused = elsewhere.site.cli("show", "latest", "--from", "nas")
    assert refused.code == 4
    assert "--identity" in refused.stderr
    shown = elsewhere.site.cli("show", "latest", *elsewhere.source)
    assert (shown.code, listed[0]["id"] in shown.stdout) == (0, True)
    tables = elsewhere.site.cli("show", "latest", *elsewhere.source, "--tables")
    assert "users" in tables.stdout


def test_show_names_the_store_and_no_file_that_is_gone(elsewhere: CopiedSite) -> None:
    shown = elsewhere.site.cli("show", "latest", *elsewhere.source).stdout
    assert re.search(r"\.sql\.gz(\.recipe\.gz)?, in nas", shown) is not None
    assert ".fetched" not in shown
    assert "unread" not in shown


def test_verify_reads_the_whole_copy(elsewhere: CopiedSite) -> None:
    answer = elsewhere.site.cli("verify", "latest", *elsewhere.source, "--json")
    assert answer.code == 0, answer.stdout
    [results] = json.loads(answer.stdout)["results"].values()
    assert {result["status"] for result in results} <= {"passed", "not configured"}


def test_a_drill_of_the_copy_is_remembered(copied: CopiedSite) -> None:
    answer = copied.site.cli("drill", "latest", *copied.source, "--json")
    assert answer.code == 0, answer.stdout
    [store] = json.loads(copied.site.cli("stores", "--json").stdout)["stores"]
    assert store["state"]["opened_point_id"] == copied.site.points()[0].point_id.text


def test_a_drill_of_a_sample_of_the_copy_is_not_remembered(copied: CopiedSite) -> None:
    [before] = json.loads(copied.site.cli("stores", "--json").stdout)["stores"]
    assert copied.site.cli("drill", "latest", *copied.source, DRILL_OBJECTS="sample:5").code == 0
    [after] = json.loads(copied.site.cli("stores", "--json").stdout)["stores"]
    assert after["state"]["opened_at"] == before["state"]["opened_at"]


def test_a_drill_of_another_site_is_not_remembered_as_one_of_this_host(
    elsewhere: CopiedSite,
) -> None:
    directory = load_config().backup_directory
    catalog = Catalog(directory)
    catalog.prepare()
    catalog.settle_site()
    refused = elsewhere.site.cli("drill", "latest", *elsewhere.source)
    assert refused.code == 4
    assert "add --site" in refused.stderr
    [site_id] = [path.parent.name for path in elsewhere.store.glob("*/points")]
    assert elsewhere.site.cli("drill", "latest", *elsewhere.source, "--site", site_id).code == 0
    [store] = json.loads(elsewhere.site.cli("stores", "--json").stdout)["stores"]
    assert store["state"]["opened_at"] is None


def test_a_drill_of_the_copy_reads_the_copy_and_not_the_local_point(copied: CopiedSite) -> None:
    [point] = copied.points
    path = point.get_path(ArtifactKind.DATABASE)
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    try:
        assert copied.site.cli("drill", "latest", *copied.source).code == 0
    finally:
        path.write_bytes(content)
    pack = max(copied.store.glob("*/packs/*"), key=lambda path: path.stat().st_size)
    content = pack.read_bytes()
    pack.write_bytes(damage(content, 8 * 1000))
    try:
        assert copied.site.cli("drill", "latest", *copied.source).code == 3
    finally:
        pack.write_bytes(content)


def test_a_drill_of_the_copy_needs_no_local_point_and_leaves_nothing(elsewhere: CopiedSite) -> None:
    answer = elsewhere.site.cli("drill", "latest", *elsewhere.source)
    assert answer.code == 0, answer.stderr
    directory = load_config().backup_directory
    assert Catalog(directory).list_points() == ()
    assert list(directory.glob(".fetched-*")) == []


def test_another_key_opens_nothing(elsewhere: CopiedSite, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.txt"
    wrong.write_text(make_key_pair().private)
    answer = elsewhere.site.cli("verify", "latest", "--from", "nas", "--identity", str(wrong))
    assert answer.code == 3
    assert "cannot be decrypted" in answer.stderr


def test_an_identity_of_windows_is_read(elsewhere: CopiedSite, tmp_path: Path) -> None:
    identity = tmp_path / "key.txt"
    identity.write_bytes(f"\ufeff# a comment\r\n\r\n{elsewhere.key_pair.private}\r\n".encode())
    assert elsewhere.site.cli("show", "latest", "--from", "nas", "--identity", str(identity)).code == 0


@pytest.mark.parametrize("which", ["key_pair", "safe"])
def test_fetched_files_are_those_of_the_backup_directory(
    elsewhere: CopiedSite, tmp_path: Path, which: str
) -> None:
    identity = tmp_path / "identity"
    identity.write_text(getattr(elsewhere, which).private)
    out = tmp_path / "out"
    answer = elsewhere.site.cli(
        "fetch", "latest", "--from", "nas", "--identity", str(identity), "--to", str(out)
    )
    assert answer.code == 0, answer.stderr
    [point] = elsewhere.points
    for kind in ArtifactKind:
        path = point.get_path(kind)
        assert (out / path.name).read_bytes() == path.read_bytes()


@pytest.mark.skipif(shutil.which("age") is None, reason="needs Debian's age")
def test_the_script_in_the_store_restores_with_stock_tools_only(
    elsewhere: CopiedSite, tmp_path: Path
) -> None:
    [folder] = [path for path in elsewhere.store.iterdir() if path.is_dir()]
    [point] = elsewhere.points
    done = subprocess.run(
        ["sh", "restore.sh", point.point_id.text, str(elsewhere.identity), str(tmp_path / "out")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == 2
    expected = [f"manifest_{point.point_id}.json", f"verification_{point.point_id}.json"]
    if point.artifacts[0].path.name.endswith(RECIPE_SUFFIX):
        # They describe the recipes, which the files take the place of.
        expected = []
    for found in point.artifacts:
        name = found.name.to_file_name()
        expected.append(name)
        with ArtifactFile(found.path) as file:
            assert (tmp_path / "out" / name).read_bytes() == file.open_reader().read()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)


@pytest.mark.skipif(shutil.which("age") is None, reason="needs Debian's age")
def test_recover_py_verifies_and_fetches_the_downloaded_store(elsewhere: CopiedSite, tmp_path: Path) -> None:
    [folder] = [path for path in elsewhere.store.iterdir() if path.is_dir()]
    [point] = elsewhere.points
    for words in (("verify",), ("fetch", "--to", str(tmp_path / "out"))):
        done = subprocess.run(
            [
                sys.executable,
                "-I",
                "-S",
                SCRIPT,
                words[0],
                folder,
                *words[1:],
                "--identity",
                elsewhere.identity,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    fetched = Catalog(tmp_path / "out").get_point(point.point_id)
    assert fetched.problems == ()
    for found in point.artifacts:
        with ArtifactFile(fetched.get_path(found.name.kind)) as ours, ArtifactFile(found.path) as theirs:
            assert ours.open_reader().read() == theirs.open_reader().read()


@pytest.mark.skipif(shutil.which("age") is None, reason="needs Debian's age")
def test_a_pack_of_the_bucket_is_a_tar_of_its_own(elsewhere: CopiedSite, tmp_path: Path) -> None:
    unpacked = 0
    for pack in sorted(elsewhere.store.glob("*/packs/*.age")):
        script = f"age -d -i {elsewhere.identity} {pack} | tar -xzi -C {tmp_path} 2>/dev/null; true"
        subprocess.run(["bash", "-c", script], check=True)
        unpacked = sum(1 for path in tmp_path.rglob("*.pdf") if path.is_file())
    source = elsewhere.site.application.bucket
    keys = [str(entry.object_name) for entry in client_of(source).list_objects(source.bucket, recursive=True)]
    assert unpacked == sum(key.endswith(".pdf") for key in keys)


def test_doctor_says_that_this_host_can_delete_the_copy(copied: CopiedSite) -> None:
    results = json.loads(copied.site.cli("doctor", "--json").stdout)["results"]
    found = {(result["state"], result["detail"]) for result in results if result["what"] == "store nas"}
    assert ("note", "this copy can be deleted from this host") in found
    assert {state for state, _detail in found} == {"ok", "note"}
    text = copied.stores_file.read_text()
    copied.stores_file.write_text(f"{text}append_only = true\n")
    try:
        results = json.loads(copied.site.cli("doctor", "--json").stdout)["results"]
    finally:
        copied.stores_file.write_text(text)
    problems = [result["detail"] for result in results if result["state"] == "problem"]
    assert any("append_only = true" in problem for problem in problems)


def test_doctor_counts_one_key_with_two_comments_once(copied: CopiedSite, tmp_path: Path) -> None:
    public = Ed25519PrivateKey.generate().public_key()
    key = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    file = tmp_path / "stores.toml"
    recipients = json.dumps([f"{key} operator@laptop", f"{key} safe"])
    file.write_text(f'[stores.nas]\nurl = "file://{copied.store}"\nrecipients = {recipients}\n')
    results = json.loads(copied.site.cli("doctor", "--json", BACKUP_STORES_FILE=str(file)).stdout)["results"]
    assert any(result["detail"].startswith("only 1 recipient") for result in results)


def test_the_host_never_holds_a_private_key(copied: CopiedSite) -> None:
    secret = copied.key_pair.private.encode()
    folders = (copied.site.folder, copied.store)
    found = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and secret in path.read_bytes()
    ]
    assert found == []


def test_make_key_prints_a_pair_that_works(copied: CopiedSite) -> None:
    pair = json.loads(copied.site.cli("stores", "make-key", "--json").stdout)
    assert pair["public"].startswith("age1")
    assert pair["private"].startswith("AGE-SECRET-KEY-")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stores", "copy"), "needs the name of a store"),
        (("stores", "copy", "other"), "unknown store"),
        (("stores", "forget-writer", "nas"), "id of a writer"),
        (("show", "latest", "--identity", "x"), "need --from"),
        (("verify", "--all", "--from", "nas"), "--from needs a recovery point"),
        (("stores", "prove", "nas", "again"), "nothing but the name of a store"),
        (("list", "--from", "nas", "--as-of-version-time", "2026-11-30"), "keeps no versions"),
    ],
)
def test_what_cannot_be_meant_is_refused(copied: CopiedSite, words: tuple[str, ...], said: str) -> None:
    answer = copied.site.cli(*words)
    assert answer.code == 4
    assert said in answer.stderr
