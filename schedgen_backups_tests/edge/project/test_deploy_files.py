"""Deployment files are accepted by their programs and match the code: containers, systemd, cron, Kubernetes.

No test here needs a Docker engine; `docker/` tests what the containers do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes
import pytest
import yaml
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.models import k8s_snake_case_dict

from schedgen_backups.config.variables import VARIABLES

pytestmark = [pytest.mark.edge]

PROJECT = Path(__file__).resolve().parents[3]
UNITS = sorted((PROJECT / "deploy" / "systemd").iterdir())
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
NAMES = {variable.name for variable in VARIABLES} | {
    f"{variable.name}_FILE" for variable in VARIABLES if variable.is_secret
}
WORST_EXPOSURE = 3.0
"""systemd rates values below 5 as "OK" (systemd-analyze, security); ours are at 1.5."""
RUN_VOLUMES = (
    "BACKUP_RUN_POINTS",
    "BACKUP_RUN_COPIES",
    "BACKUP_RUN_SECRETS",
    "BACKUP_RUN_LOGIN",
    "BACKUP_RUN_STATE",
)
PROFILES = ("--profile", "cli", "--profile", "metrics")
COMPOSE_FILES = ["docker/compose.yaml", "docker/compose.demo.yaml"]


def find_program(name: str) -> str:
    """Return the program's path. CI installs it; elsewhere the test is skipped without it."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not here")
    return found


def run(*words: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=PROJECT,
        env=environment or dict(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_accepts(*words: str | Path) -> None:
    """Assert that the program succeeds and prints nothing."""
    done = run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def read_yaml(name: str) -> Any:
    return yaml.safe_load((PROJECT / name).read_text(encoding="utf-8"))


def test_hadolint_accepts_the_dockerfiles() -> None:
    assert_accepts(find_program("hadolint"), "docker/Dockerfile", "docker/socket-proxy.Dockerfile")


def test_yamllint_accepts_every_yaml_file() -> None:
    assert_accepts(find_program("yamllint"), "--strict", "docker", "deploy", "dagster.yaml", "workspace.yaml")


def test_shellcheck_accepts_the_scripts() -> None:
    assert_accepts(
        find_program("shellcheck"),
        ".ci/run",
        ".ci/docker",
        ".ci/prometheus",
        "docker/gate/dagster-webserver",
        *(PROJECT / "docker/image").iterdir(),
    )


def read_compose(*files: str, **values: str) -> dict[str, Any]:
    """Return what compose makes of the files: names filled in, unset values empty."""
    docker = find_program("docker")
    if run(docker, "compose", "version").returncode != 0:
        pytest.skip("docker has no compose here")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in NAMES and not name.startswith("BACKUP_")
    }
    options = [word for file in files for word in ("--file", file)]
    # Ignore a developer's .env.
    words = (docker, "compose", "--env-file", "/dev/null", *options, *PROFILES, "config")
    done = run(*words, environment={**environment, "DOCKER_GID": "999", **values})
    assert (done.returncode, done.stderr) == (0, "")
    return yaml.safe_load(done.stdout)


def test_compose_accepts_the_deployment_and_the_demo() -> None:
    services = read_compose(*COMPOSE_FILES)["services"]
    assert {
        "backup-webserver",
        "backup-daemon",
        "backup-code",
        "backup-db",
        "backup-docker",
        "backup-cli",
        "postgres",
        "minio",
    } <= services.keys()


def test_an_application_overlay_joins_its_default_network(tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text("services:\n  postgres: {image: postgres}\n")
    found = read_compose(
        str(tmp_path / "docker-compose.yml"), "docker/compose.yaml", COMPOSE_PROJECT_NAME="schedgen"
    )
    assert found["networks"]["app"] == {"name": "schedgen_default", "external": True}
    assert found["services"]["backup-daemon"]["environment"]["BACKUP_APP_NETWORK"] == "schedgen_default"
    assert (
        found["networks"]["backups"]["name"]
        == found["services"]["backup-daemon"]["environment"]["BACKUP_INTERNAL_NETWORK"]
    )


def test_only_the_proxy_has_the_socket_and_only_daemon_and_webserver_reach_it() -> None:
    found = read_compose("docker/compose.yaml")
    with_socket = {
        name
        for name, service in found["services"].items()
        if any("docker.sock" in str(volume) for volume in service.get("volumes", []))
    }
    on_its_network = {
        name for name, service in found["services"].items() if "backups-docker" in service["networks"]
    }
    assert with_socket == {"backup-docker"}
    assert on_its_network == {"backup-docker", "backup-daemon", "backup-webserver"}
    assert found["networks"]["backups-docker"]["internal"] is True


def test_metrics_are_served_by_choice_on_loopback_and_only_read() -> None:
    service = read_compose("docker/compose.yaml")["services"]["backup-metrics"]
    assert service["profiles"] == ["metrics"]
    [port] = service["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "9854", 9854)
    mounted = {volume["target"]: volume.get("read_only", False) for volume in service["volumes"]}
    assert mounted == {"/backups": True, "/run/secrets": True}


def test_every_own_service_is_hardened_and_rotates_its_log() -> None:
    for name, service in read_compose("docker/compose.yaml")["services"].items():
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        # Its image starts as root and changes the owner of its folder.
        assert service.get("cap_add", []) == (
            ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"] if name == "backup-db" else []
        ), name


def test_every_variable_reaches_the_code_and_the_run_containers() -> None:
    launched = set(read_yaml("docker/dagster.yaml")["run_launcher"]["config"]["env_vars"])
    own = {"PGPASSFILE", "BACKUP_INTERNAL_NETWORK", "BACKUP_APP_NETWORK", "BACKUP_RUN_IMAGE", *RUN_VOLUMES}
    assert launched == NAMES | own
    services = read_compose("docker/compose.yaml")["services"]
    for service in ("backup-code", "backup-daemon", "backup-cli"):
        assert launched <= services[service]["environment"].keys(), service


@pytest.mark.parametrize(
    ("folder", "kind"), [("", "volume"), ("/mnt/nas", "bind")], ids=["no folder", "a folder"]
)
def test_a_folder_for_copies_reaches_runs_and_command_line(folder: str, kind: str) -> None:
    values = {"COMPOSE_PROJECT_NAME": "schedgen", "BACKUP_COPIES": folder}
    services = read_compose("docker/compose.yaml", **values)["services"]
    found = {
        name: [volume for volume in service.get("volumes", []) if volume["target"] == "/copies"]
        for name, service in services.items()
    }
    with_copies = {name: volumes[0] for name, volumes in found.items() if volumes}
    assert with_copies.keys() == {"backup-code", "backup-cli"}
    assert {volume["type"] for volume in with_copies.values()} == {kind}
    assert services["backup-daemon"]["environment"]["BACKUP_RUN_COPIES"] == (
        f"{folder or 'schedgen_backups-copies'}:/copies"
    )
    assert {"env": "BACKUP_RUN_COPIES"} in read_yaml("docker/dagster.yaml")["run_launcher"]["config"][
        "volumes"
    ]


def test_a_file_of_sites_reaches_every_container_that_reads_it_and_cannot_be_changed_there() -> None:
    text = (PROJECT / "docker/compose.yaml").read_text(encoding="utf-8")
    [file] = re.findall(r"BACKUP_SITES_FILE=(\S+?)\.? ", text)
    found = read_compose("docker/compose.yaml", BACKUP_SITES_FILE=file)["services"]
    for name in ("backup-code", "backup-cli", "backup-metrics"):
        mounts = {volume["target"]: volume.get("read_only", False) for volume in found[name]["volumes"]}
        assert mounts[str(Path(file).parent)] is True, name
        assert found[name]["environment"]["BACKUP_SITES_FILE"] == file
    secrets = found["backup-daemon"]["environment"]["BACKUP_RUN_SECRETS"]
    assert secrets.endswith(f":{Path(file).parent}:ro")
    assert {"env": "BACKUP_RUN_SECRETS"} in read_yaml("docker/dagster.yaml")["run_launcher"]["config"][
        "volumes"
    ]


def test_without_a_file_of_sites_the_stack_is_as_it_was() -> None:
    found = read_compose("docker/compose.yaml")
    assert set(found["volumes"]) == {
        "backups-points",
        "backups-copies",
        "backups-state",
        "backups-login",
        "backups-db",
    }
    for service in found["services"].values():
        assert service.get("environment", {}).get("BACKUP_SITES_FILE", "") == ""


@pytest.fixture
def installed_units(tmp_path: Path) -> list[Path]:
    """Return the units, with this checkout and this Python in place of the paths they name."""
    python = Path(sys.prefix)
    for unit in UNITS:
        text = (
            unit.read_text(encoding="utf-8")
            .replace("/opt/schedgen-backups/.venv", str(python))
            .replace("/opt/schedgen-backups", str(PROJECT))
        )
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    return sorted(tmp_path.iterdir())


def test_systemd_accepts_the_units(installed_units: list[Path]) -> None:
    """Warnings about unknown keys also exit with 0, so the output must be empty."""
    assert len(installed_units) == 5
    assert_accepts(find_program("systemd-analyze"), "verify", "--man=no", *installed_units)


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_systemd_rates_the_hardening_as_ok(unit: Path) -> None:
    done = run(
        find_program("systemd-analyze"),
        "security",
        "--offline=true",
        "--no-pager",
        f"--threshold={int(WORST_EXPOSURE * 10)}",
        unit,
    )
    exposure = re.search(rf"Overall exposure level for {re.escape(unit.name)}: ([0-9.]+) ", done.stdout)
    assert exposure is not None, done.stdout + done.stderr
    assert float(exposure[1]) <= WORST_EXPOSURE
    assert done.returncode == 0


def test_the_timer_catches_up_and_avoids_the_full_hour() -> None:
    timer = (PROJECT / "deploy/systemd/schedgen-backup.timer").read_text(encoding="utf-8")
    assert "\nPersistent=true\n" in timer
    assert "\nRandomizedDelaySec=15min\n" in timer


class CronFile:
    """The file for /etc/cron.d, with its paths in a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = (PROJECT / "deploy/cron/schedgen-backups").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        settings = dict(line.split("=", 1) for line in lines[:-1])
        self.line = lines[-1]
        self.when, self.user, self.command = re.fullmatch(r"((?:\S+ ){5})(\S+) (.+)", self.line).groups()  # type: ignore[union-attr]
        program = folder / ".venv/bin/schedgen-backups"
        program.parent.mkdir(parents=True)
        program.write_text('#!/bin/sh\necho "asked to $*"\nexit "${EXIT_CODE:-0}"\n')
        logger = folder / "bin/logger"
        logger.parent.mkdir()
        logger.write_text(f'#!/bin/sh\necho "$*" >>{folder}/system.log\n')
        for path in (program, logger):
            path.chmod(0o755)
        self.log = folder / "backup.log"
        self.lock = folder / "cron.lock"
        self.environment = {
            **settings,
            "LOG": str(self.log),
            "LOCK": str(self.lock),
            "PATH": f"{folder}/bin:{settings['PATH']}",
        }

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the line as cron does: cron removes a backslash before a percent sign."""
        command = self.command.replace("/opt/schedgen-backups", str(self.folder)).replace("\\%", "%")
        return run("/bin/sh", "-c", command, environment={**self.environment, **environment})


@pytest.fixture
def cron_file(tmp_path: Path) -> CronFile:
    return CronFile(tmp_path)


def test_the_cron_line_backs_up_nightly_and_prints_nothing_on_success(cron_file: CronFile) -> None:
    assert cron_file.when == "0 2 * * * "
    assert cron_file.user == "schedgen-backups"
    assert re.search(r"(?<!\\)%", cron_file.command) is None
    done = cron_file.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "asked to backup --reason cron" in cron_file.log.read_text()
    assert "ended with exit code 0" in cron_file.log.read_text()


def test_the_cron_line_reports_the_exit_code_by_mail_and_system_log(cron_file: CronFile) -> None:
    done = cron_file.run(EXIT_CODE="2")
    assert done.returncode == 2
    assert "ended with exit code 2" in done.stdout
    assert "ended with exit code 2" in (cron_file.folder / "system.log").read_text()


def test_the_cron_line_starts_no_second_backup(cron_file: CronFile) -> None:
    with subprocess.Popen([find_program("flock"), cron_file.lock, "cat"], stdin=subprocess.PIPE) as holder:
        while run(find_program("flock"), "--nonblock", cron_file.lock, "true").returncode == 0:
            assert holder.poll() is None
        done = cron_file.run()
        holder.communicate()
    assert done.returncode == 75
    assert "asked to" not in cron_file.log.read_text()


def test_logrotate_accepts_its_file(tmp_path: Path) -> None:
    text = (PROJECT / "deploy/cron/schedgen-backups.logrotate").read_text(encoding="utf-8")
    config = tmp_path / "schedgen-backups"
    # This machine lacks the user of an installation.
    text = text.replace("/var/log/schedgen-backups", str(tmp_path)).replace(
        "schedgen-backups schedgen-backups", "root root"
    )
    config.write_text(text)
    (tmp_path / "backup.log").write_text("a line\n")
    done = run(find_program("logrotate"), "--debug", "--state", tmp_path / "state", config)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr.lower()
    assert "considering log" in done.stderr


def test_the_chart_values_give_runs_what_kubernetes_and_dagster_accept() -> None:
    """The chart passes these to the runs by `includeConfigInLaunchedRuns`.

    This test does not render the chart.
    """
    values = read_yaml("deploy/kubernetes/values.yaml")
    deployment = values["dagster-user-deployments"]["deployments"][0]
    names = {entry["name"] for entry in deployment["env"]}
    assert names <= NAMES
    context = K8sContainerContext.create_from_config(
        {
            "k8s": {
                "env": deployment["env"],
                "volumes": deployment["volumes"],
                "volume_mounts": deployment["volumeMounts"],
                "resources": deployment["resources"],
                "security_context": deployment["securityContext"],
                "run_k8s_config": {
                    "pod_spec_config": values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"][
                        "podSpecConfig"
                    ],
                    "job_spec_config": values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"][
                        "jobSpecConfig"
                    ],
                },
            }
        }
    )
    assert context.run_k8s_config.job_spec_config == {"ttl_seconds_after_finished": 604800}
    assert values["runLauncher"]["type"] == K8sRunLauncher.__name__


def test_the_chart_has_the_pools_of_a_single_host() -> None:
    """The chart refuses these limits in two places, and its daemon would not start."""
    values = read_yaml("deploy/kubernetes/values.yaml")
    chart, own = values["concurrency"], read_yaml("dagster.yaml")["concurrency"]
    assert chart == {
        "enabled": True,
        "runs": {
            "maxConcurrentRuns": own["runs"]["max_concurrent_runs"],
            "tagConcurrencyLimits": own["runs"]["tag_concurrency_limits"],
        },
        "pools": {
            "defaultLimit": own["pools"]["default_limit"],
            "granularity": own["pools"]["granularity"],
        },
    }
    assert "config" not in values["dagsterDaemon"]["runCoordinator"]


@pytest.mark.parametrize("kind", ["stores", "sites"])
def test_the_chart_mounts_a_file_of_stores_and_one_of_sites_that_may_be_missing(kind: str) -> None:
    text = (PROJECT / "deploy/kubernetes/values.yaml").read_text(encoding="utf-8")
    [file] = re.findall(rf"# - \{{name: BACKUP_{kind.upper()}_FILE, value: (\S+)\}}", text)
    deployment = yaml.safe_load(text)["dagster-user-deployments"]["deployments"][0]
    mounts = {mount["name"]: mount for mount in deployment["volumeMounts"]}
    [secret] = [volume["secret"] for volume in deployment["volumes"] if volume["name"] == kind]
    assert Path(file).parent == Path(mounts[kind]["mountPath"])
    assert (secret["optional"], mounts[kind]["readOnly"]) == (True, True)


def test_kubernetes_knows_every_key_of_the_secret_and_the_claim() -> None:
    secret, check = (
        read_yaml("deploy/kubernetes/secret.example.yaml"),
        read_yaml("deploy/kubernetes/volume-claim.yaml"),
    )
    assert k8s_snake_case_dict(kubernetes.client.V1Secret, secret)["string_data"] == secret["stringData"]
    assert k8s_snake_case_dict(kubernetes.client.V1PersistentVolumeClaim, check)["spec"]["access_modes"] == [
        "ReadWriteOnce"
    ]
    deployment = read_yaml("deploy/kubernetes/values.yaml")["dagster-user-deployments"]["deployments"][0]
    volumes = {volume["name"]: volume for volume in deployment["volumes"]}
    assert volumes["points"]["persistentVolumeClaim"]["claimName"] == check["metadata"]["name"]
    assert volumes["secrets"]["secret"]["secretName"] == secret["metadata"]["name"]
    files = {Path(entry["value"]).name for entry in deployment["env"] if entry["name"].endswith("_FILE")}
    assert files == secret["stringData"].keys()
    assert set(secret["stringData"].values()) == {""}
