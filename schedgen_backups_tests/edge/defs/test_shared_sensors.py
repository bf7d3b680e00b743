"""The sensors that serve every site of a file: one that fails is reported, and the others are served.

The sites are real ones of a file of sites; what they do in a tick is written here, or that of the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from schedgen_backups.config import sites as config_sites
from schedgen_backups.config.sites import load_installation
from schedgen_backups.core.errors import ConfigurationError, VerificationError
from schedgen_backups.defs import site_sensor
from schedgen_backups.defs.site import build_installation_definitions
from schedgen_backups.defs.site_sensor import (
    SensorKind,
    SiteAnswer,
    SiteSensor,
    SiteTick,
    make_shared_sensors,
)
from schedgen_backups.site_names import name_shared
from schedgen_backups_tests.support.inbox import Inbox, open_inbox

pytestmark = [pytest.mark.edge]

NAMES = ("acme", "globex", "initech")
KIND = SensorKind("test_sensor", 60, "Does what the test says.")
NO_CHANNEL = "not an address"


@dg.op
def do_nothing() -> None:
    """Do nothing."""


@dg.job(name="acme__test_job")
def acme_job() -> None:
    """Run for one site."""
    do_nothing()


@dg.job(name="globex__test_job")
def globex_job() -> None:
    """Run for the other."""
    do_nothing()


JOBS = {job.name: job for job in (acme_job, globex_job)}


@dataclass
class Sites:
    """Three sites of a file, with one inbox each, and what each of them does."""

    folder: Path
    inboxes: dict[str, Inbox]
    instance: dg.DagsterInstance
    parts: dict[str, Callable[[SiteTick], SiteAnswer]] = field(default_factory=dict)
    cursor: str | None = None
    served: list[str] = field(default_factory=list)

    def write(self, **channels: str) -> None:
        """Write the file, with these channels instead of the inboxes."""
        urls = {name: inbox.url for name, inbox in self.inboxes.items()} | channels
        for name, url in urls.items():
            (self.folder / f"{name}.url").write_text(url)
            (self.folder / f"{name}.url").chmod(0o600)
        (self.folder / "sites.toml").write_text(
            "\n".join(
                f'[sites.{name}]\nbackup_dir = "{name}"\npostgres_db = "x"\nminio_bucket = "x"\n'
                f'backup_alert_webhook_url_file = "{name}.url"'
                for name in urls
            )
        )

    def tick(self) -> dg.SensorResult | dg.SkipReason:
        """Evaluate the sensor of the three."""

        def serve(name: str, tick: SiteTick) -> SiteAnswer:
            self.served.append(name)
            return self.parts.get(name, lambda _tick: "nothing to do")(tick)

        sensors = [
            SiteSensor(
                KIND,
                config,
                lambda tick, name=config.site_name: serve(name, tick),
                tuple(name for name in JOBS if name.startswith(config.site_name)),
            )
            for config in load_installation()
        ]
        [sensor] = make_shared_sensors(sensors, JOBS)
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursor) as context:
            answer = sensor(context)
            self.cursor = context.cursor
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        return answer

    def list_texts(self) -> dict[str, list[str]]:
        """Return the first line of each message that a site's channels got."""
        return {
            name: [text.splitlines()[0] for text in inbox.texts]
            for name, inbox in self.inboxes.items()
            if inbox.texts
        }


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    monkeypatch.setenv("BACKUP_SITES_FILE", str(tmp_path / "sites.toml"))
    (tmp_path / "home").mkdir()
    with (
        open_inbox() as first,
        open_inbox() as second,
        open_inbox() as third,
        dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance,
    ):
        made = Sites(tmp_path, dict(zip(NAMES, (first, second, third), strict=True)), instance)
        made.write()
        yield made


def fail(_tick: SiteTick) -> SiteAnswer:
    raise VerificationError("the disk is on fire")


def request(job: dg.JobDefinition) -> Callable[[SiteTick], SiteAnswer]:
    return lambda _tick: dg.RunRequest(run_key="same", job_name=job.name)


def test_a_site_that_fails_is_reported_by_itself_and_the_others_are_served(sites: Sites) -> None:
    sites.parts = {"acme": fail, "globex": request(globex_job)}
    answer = sites.tick()
    assert isinstance(answer, dg.SensorResult)
    assert [each.job_name for each in answer.run_requests or ()] == ["globex__test_job"]
    assert sites.served == list(NAMES)
    sites.tick()
    assert sites.list_texts() == {"acme": ["[CRITICAL] acme: No run was started: test_sensor of acme"]}
    assert "the disk is on fire" in sites.inboxes["acme"].texts[0]
    sites.parts = {}
    sites.tick()
    sites.tick()
    [_alert, good] = sites.inboxes["acme"].texts
    assert good.startswith("[INFO] acme: ")
    assert set(sites.list_texts()) == {"acme"}


def test_a_site_whose_channels_are_wrong_is_reported_by_another(sites: Sites) -> None:
    sites.write(acme=NO_CHANNEL)
    sites.parts = {"acme": fail}
    sites.tick()
    assert sites.list_texts() == {"globex": ["[CRITICAL] globex: No run was started: test_sensor of acme"]}
    sites.write()
    sites.tick()
    assert len(sites.list_texts()["acme"]) == 1, "its own channels are right by now"
    sites.parts = {}
    sites.tick()
    assert [len(sites.list_texts()[name]) for name in ("acme", "globex")] == [2, 2], (
        "its end is reported to both"
    )


def test_a_site_whose_failure_cannot_be_reported_stops_nobody(sites: Sites) -> None:
    sites.write(**dict.fromkeys(NAMES, NO_CHANNEL))
    sites.parts = {"acme": fail}
    answer = sites.tick()
    assert isinstance(answer, dg.SkipReason)
    assert "acme: failed: the disk is on fire" in str(answer.skip_message)
    assert sites.served == list(NAMES)


def test_two_sites_that_request_the_same_both_get_their_run(sites: Sites) -> None:
    """As points of the same second do."""
    sites.parts = {"acme": request(acme_job), "globex": request(globex_job)}
    answer = sites.tick()
    assert isinstance(answer, dg.SensorResult)
    requests = list(answer.run_requests or ())
    assert [each.job_name for each in requests] == ["acme__test_job", "globex__test_job"]
    assert len({each.run_key for each in requests}) == 2


def test_each_site_has_its_own_cursor(sites: Sites) -> None:
    def count_up(tick: SiteTick) -> SiteAnswer:
        tick.update_cursor(f"{tick.cursor or ''}x")
        return "nothing to do"

    def keep(name: str) -> Callable[[SiteTick], SiteAnswer]:
        def look(tick: SiteTick) -> SiteAnswer:
            seen[name] = tick.cursor
            return count_up(tick)

        return look

    seen: dict[str, str | None] = {}
    sites.parts = {"acme": keep("acme"), "globex": fail}
    sites.tick()
    sites.tick()
    sites.parts = {name: keep(name) for name in NAMES}
    sites.tick()
    assert seen == {"acme": "xx", "globex": None, "initech": None}


def test_sites_for_which_time_does_not_suffice_come_first_in_the_next_tick(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_sensor, "_BEGIN_SECONDS", 0)
    for _tick in range(4):
        sites.tick()
    assert sites.served == [*NAMES, "acme"]


def test_the_cursor_of_a_sensor_of_its_own_is_taken_over(sites: Sites) -> None:
    """A site had its own sensors in versions before; rules that were announced must stay announced."""
    location = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="schedgen_backups.definitions"))
    sites.instance.add_instigator_state(
        InstigatorState(
            RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), "acme__test_sensor"),
            InstigatorType.SENSOR,
            InstigatorStatus.DECLARED_IN_CODE,
            SensorInstigatorData(cursor="announced"),
        )
    )
    seen: list[str | None] = []

    def look(tick: SiteTick) -> SiteAnswer:
        seen.append(tick.cursor)
        tick.update_cursor("carried out")
        return "nothing to do"

    sites.parts = {"acme": look}
    sites.tick()
    sites.tick()
    assert seen == ["announced", "carried out"]


def test_the_product_s_sensors_start_the_jobs_of_every_site(sites: Sites) -> None:
    del sites
    definitions = build_installation_definitions(load_installation())
    dg.Definitions.validate_loadable(definitions)
    for sensor, job in (("retention_sensor", "prune_job"), ("verification_sensor", "verify_job")):
        targets = definitions.resolve_sensor_def(name_shared(sensor)).jobs
        assert [each.name for each in targets] == [f"{name}__{job}" for name in NAMES]


def test_each_tick_reads_the_file_again_and_once_for_all_sites(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[Path] = []
    read = config_sites.read_toml

    def count_readings(path: Path, **words: str) -> dict[str, object]:
        readings.append(path)
        return read(path, **words)

    sites.tick()
    monkeypatch.setattr(config_sites, "read_toml", count_readings)
    sites.tick()
    assert len(readings) == 2, "once here, where the test defines the sensor, and once by the tick"


def test_a_site_that_was_taken_out_of_the_file_fails_alone(sites: Sites) -> None:
    loaded = load_installation()
    text = (sites.folder / "sites.toml").read_text()
    seen: dict[str, str] = {}

    def look(tick: SiteTick) -> str:
        with pytest.raises(ConfigurationError) as caught:
            tick.config.check("database")
        seen[tick.config.site_name] = caught.value.message
        return "looked"

    [sensor] = make_shared_sensors([SiteSensor(KIND, config, look) for config in loaded], {})
    (sites.folder / "sites.toml").write_text(
        text.replace("[sites.globex]", "[sites.other]").replace(
            'backup_dir = "globex"', 'backup_dir = "other"'
        )
    )
    with dg.build_sensor_context(instance=sites.instance) as context:
        sensor(context)
    assert {name: "unknown site 'globex'" in said for name, said in seen.items()} == {
        "acme": False,
        "globex": True,
        "initech": False,
    }
