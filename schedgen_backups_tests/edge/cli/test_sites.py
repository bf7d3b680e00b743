"""Commands of an installation with several sites."""

from __future__ import annotations

import json
import re
import urllib.request
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from schedgen_backups.alerts.service import AlertService, Failure
from schedgen_backups.config.sites import load_site
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.catalog.points import PointState
from schedgen_backups.core.servers.loopback import free_ports
from schedgen_backups.demo.seed import SeedSummary
from schedgen_backups_tests.support.alerts import recording_server
from schedgen_backups_tests.support.copies import FIRST_NIGHT, list_objects, make_point, make_point_id
from schedgen_backups_tests.support.site_stores import UNREACHABLE
from schedgen_backups_tests.support.sites import Application, Site, environment_of, wait_until

pytestmark = [pytest.mark.edge]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site of the environment, beside a file with two others that have a point each."""
    site = Site(tmp_path, UNREACHABLE, monkeypatch)
    tables: list[str] = []
    for night, name in enumerate(("shop", "blog")):
        make_point(Catalog(tmp_path / name), night, list_objects(2))
        tables.append(
            f'[sites.{name}]\nbackup_dir = "{name}"\npostgres_db = "{name}"\nminio_bucket = "{name}-pdfs"\n'
        )
    (tmp_path / "sites.toml").write_text("\n".join(tables))
    site.set(BACKUP_SITES_FILE=str(tmp_path / "sites.toml"))
    return site


def test_a_command_works_on_the_site_that_is_named(site: Site) -> None:
    for name, point_id in (("shop", "20261001_020000"), ("blog", "20261002_020000")):
        answer = site.cli("--site", name, "list", "--json")
        assert answer.code == 0, answer
        assert [point["id"] for point in json.loads(answer.stdout)["points"]] == [point_id]
    assert site.cli("--site", "shop", "verify", "--all").code == 0


def test_a_site_must_be_named_if_there_are_several(site: Site) -> None:
    answer = site.cli("list")
    assert answer.code == 4
    assert "Add --site NAME before the command: shop, blog." in answer.stderr


def test_an_unknown_site_is_refused_with_the_names_of_the_others(site: Site) -> None:
    answer = site.cli("--site", "shpo", "list")
    assert (answer.code, "The sites are shop, blog." in answer.stderr) == (4, True)


def test_the_only_site_need_not_be_named(site: Site) -> None:
    path = site.folder / "sites.toml"
    path.write_text(path.read_text().split("[sites.blog]")[0])
    answer = site.cli("list", "--json")
    assert [point["id"] for point in json.loads(answer.stdout)["points"]] == ["20261001_020000"]


def test_a_backup_of_a_site_is_taken_listed_and_drilled_by_its_name(
    tmp_path: Path,
    seeded_application: tuple[Application, SeedSummary],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(tmp_path, seeded_application[0], monkeypatch)
    texts = ["[sites.shop]"]
    for variable, value in environment_of(site.application, site.directory).items():
        monkeypatch.setenv(f"SHOP_{variable}", value)
        texts.append(f'{variable.lower()}_env = "SHOP_{variable}"')
    texts += ["[sites.blog]", 'backup_dir = "blog"', 'postgres_db = "blog"', 'minio_bucket = "blog"']
    (tmp_path / "sites.toml").write_text("\n".join(texts))
    site.set(BACKUP_SITES_FILE=str(tmp_path / "sites.toml"))
    site.unset("BACKUP_DIR")
    answer = site.cli("--site", "shop", "backup", "--json")
    assert answer.code == 0, answer
    [point] = site.points()
    assert (point.state, point.point_id.text) == (PointState.VERIFIED, json.loads(answer.stdout)["id"])
    answer = site.cli("--site", "shop", "drill")
    assert answer.code == 0, answer
    assert site.cli("--site", "shop", "status").code == 0
    answer = site.cli("--site", "blog", "backup")
    assert answer.code != 0
    assert "has no database blog" in answer.stderr


@pytest.fixture
def three(site: Site) -> Site:
    """Return the site with a third one in the file, whose settings are wrong."""
    path = site.folder / "sites.toml"
    wrong = (
        path.read_text()
        .split("[sites.blog]")[0]
        .replace("shop", "wrong")
        .replace("postgres_db", "postgres_bd")
    )
    path.write_text(path.read_text() + wrong + '\n[sites.lost]\npostgres_db = "x"\nminio_bucket = "x"\n')
    make_point(Catalog(site.folder / "wrong"), 2, list_objects(2))
    return site


def test_the_points_of_all_sites_are_listed_by_site_and_a_wrong_one_hides_none(three: Site) -> None:
    answer = three.cli("list", "--all-sites", "--json")
    assert answer.code == 4
    sites = json.loads(answer.stdout)["sites"]
    assert list(sites) == ["shop", "blog", "wrong", "lost"]
    points = {name: [point["id"] for point in sites[name]["points"]] for name in ("shop", "blog", "wrong")}
    assert points == {"shop": ["20261001_020000"], "blog": ["20261002_020000"], "wrong": ["20261003_020000"]}
    assert "did you mean postgres_db?" in sites["wrong"]["settings_error"]
    assert "does not set backup_dir" in sites["lost"]["error"]
    assert sites["lost"]["exit_code"] == 4
    text = three.cli("list", "--all-sites")
    assert text.code == 4
    parts = text.stdout.split("\nblog\n")
    assert parts[0].startswith("shop\n")
    assert "20261001_020000" in parts[0]
    assert "20261002_020000" in parts[1].split("\nwrong\n")[0]
    assert "did you mean postgres_db?" in parts[1]


def test_the_options_of_a_list_are_those_of_each_site(three: Site) -> None:
    answer = three.cli("list", "--all-sites", "--json", "--state", "damaged")
    assert json.loads(answer.stdout)["sites"]["shop"]["points"] == []


def test_the_status_of_all_sites_has_the_code_of_the_worst(site: Site) -> None:
    secrets = {"POSTGRES_PASSWORD": "x", "MINIO_ACCESS_KEY": "x", "MINIO_SECRET_KEY": "x"}
    path = site.folder / "sites.toml"
    an_hour_ago = (datetime.now(timezone.utc) - FIRST_NIGHT) / timedelta(days=1) - 1 / 24
    make_point(Catalog(site.folder / "shop"), an_hour_ago, list_objects(2))
    secrets["BACKUP_MAX_AGE_HOURS"] = "26"
    answer = site.cli("status", "--all-sites", "--json", **secrets)
    assert answer.code == 2
    sites = json.loads(answer.stdout)["sites"]
    assert {name: each["state"] for name, each in sites.items()} == {"shop": "OK", "blog": "CRITICAL"}
    lines = site.cli("status", "--all-sites", **secrets).stdout.splitlines()
    assert [lines[0], lines[2]] == ["shop", "blog"]
    assert lines[1].startswith("OK: ")
    path.write_text(path.read_text().split("[sites.blog]")[0])
    assert site.cli("status", "--all-sites", **secrets).code == 0


def test_the_reports_of_all_sites_are_files_with_their_names(three: Site) -> None:
    answer = three.cli("report", "--all-sites", "--to", "report.json", "--month", "2026-10")
    assert answer.code == 4
    for name in ("shop", "blog", "wrong"):
        report = json.loads((three.folder / f"report-{name}.json").read_text())
        assert report["site"] == name
        assert len(report["points"]) == 1
    assert "does not set backup_dir" in answer.stdout


def test_all_sites_and_one_site_exclude_each_other(site: Site) -> None:
    for answer in (
        site.cli("--site", "shop", "list", "--all-sites"),
        site.cli("list", "--all-sites", "--from", "disk"),
    ):
        assert (answer.code, "exclude each other" in answer.stderr) == (4, True)


def test_without_a_file_the_only_site_is_all_sites(site: Site) -> None:
    site.set(BACKUP_SITES_FILE="", BACKUP_DIR=str(site.folder / "shop"))
    answer = site.cli("list", "--all-sites", "--json")
    assert answer.code == 0
    assert list(json.loads(answer.stdout)["sites"]) == ["default"]


def read_metrics(text: str) -> dict[str, dict[str, float]]:
    """Return site → metric → value, of metrics without another label."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.keys() == {"site"}:
                values = found.setdefault(sample.labels["site"], {})
                assert sample.name not in values
                values[sample.name.removeprefix("schedgen_backup_")] = sample.value
    return found


SECRETS = {"POSTGRES_PASSWORD": "x", "MINIO_ACCESS_KEY": "x", "MINIO_SECRET_KEY": "x"}


def test_the_metrics_of_all_sites_are_one_exposition_and_a_wrong_site_is_known_by_it(three: Site) -> None:
    answer = three.cli("metrics", **SECRETS)
    assert answer.code == 0, answer
    found = read_metrics(answer.stdout)
    times = {name: found[name]["last_verified_timestamp_seconds"] for name in ("shop", "blog", "wrong")}
    assert times == {name: make_point_id(night).taken_at.timestamp() for night, name in enumerate(times)}
    wrong = {name: values["settings_wrong"] for name, values in found.items()}
    assert wrong == {"shop": 0, "blog": 0, "wrong": 1, "lost": 1}
    assert found["lost"] == {"settings_wrong": 1}
    assert found["wrong"].keys() == found["shop"].keys()


def test_two_sites_with_one_name_do_not_collide_in_the_metrics(site: Site) -> None:
    path = site.folder / "sites.toml"
    path.write_text('[defaults]\nbackup_name = "production"\n' + path.read_text())
    found = read_metrics(site.cli("metrics", **SECRETS).stdout)
    assert found.keys() == {"production", "production (blog)"}


def test_the_metrics_of_a_site_that_is_named_are_its_own(site: Site) -> None:
    assert read_metrics(site.cli("--site", "blog", "metrics").stdout).keys() == {"blog"}


def test_a_port_serves_the_metrics_of_all_sites_as_the_file_describes_them_now(site: Site) -> None:
    [port] = free_ports(1)
    process = site.start_cli("metrics", "--listen", f"127.0.0.1:{port}", **SECRETS)

    def scrape() -> dict[str, dict[str, float]]:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer,
        ):
            return read_metrics(answer.read().decode())
        return {}

    try:
        wait_until(lambda: scrape().keys() == {"shop", "blog"}, "the port answers")
        path = site.folder / "sites.toml"
        path.write_text(path.read_text().replace("[sites.blog]", "[sites.news]"))
        assert scrape().keys() == {"shop", "news"}
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_a_file_of_metrics_that_sites_share_becomes_one_for_each(site: Site) -> None:
    folder = site.folder / "metrics"
    folder.mkdir()
    path = site.folder / "sites.toml"
    path.write_text(f'[defaults]\nbackup_metrics_file = "{folder}/backups.prom"\n' + path.read_text())
    site.cli("status", "--all-sites", **SECRETS)
    files = {file.name: read_metrics(file.read_text()).keys() for file in folder.iterdir()}
    assert files == {"backups-shop.prom": {"shop"}, "backups-blog.prom": {"blog"}}
    own = f'[sites.shop]\nbackup_metrics_file = "{folder}/own.prom"'
    path.write_text(path.read_text().replace("[sites.shop]", own))
    site.cli("--site", "shop", "status", **SECRETS)
    assert (folder / "own.prom").exists()


def test_an_error_names_commands_of_its_site(site: Site) -> None:
    answer = site.cli("--site", "shop", "show", "20200101_000000")
    assert "`schedgen-backups --site shop list` shows the existing ones." in answer.stderr
    answer = site.cli("--site", "shop", "show", "20200101_000000", "--json")
    assert json.loads(answer.stdout)["hint"].startswith("`schedgen-backups --site shop list`")


def test_the_doctor_names_commands_of_its_site(site: Site) -> None:
    answer = site.cli("--site", "shop", "doctor", "--json")
    fixes = [result["fix"] for result in json.loads(answer.stdout)["results"]]
    assert any("schedgen-backups --site shop " in fix for fix in fixes), fixes
    assert not [fix for fix in fixes if re.search("schedgen-backups (backup|drill)", fix)]


def test_an_alert_names_commands_of_its_site(site: Site) -> None:
    with recording_server() as server:
        site.set(BACKUP_ALERT_WEBHOOK_URL=server.url("/hook"))
        failure = Failure("shop__backup_job", "no point", "", "", "shop__backup_job")
        AlertService(load_site("shop")).raise_failure(failure)
    [received] = server.received
    assert "Run it again: schedgen-backups --site shop backup" in received.json["text"]
