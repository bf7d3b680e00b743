"""The launcher of the container deployment: a container's settings do not depend on the record of its run.

The test plants records in a run storage, as a run's container could with the login of Dagster's database.
`docker/` tests what an engine makes of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher.base import WorkerStatus
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_docker.container_context import DockerContainerContext

from schedgen_backups import run_tags
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.runs.docker_launcher import ContainerRunLauncher

pytestmark = [pytest.mark.edge]

PROJECT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {
    "BACKUP_INTERNAL_NETWORK": "internal",
    "BACKUP_APP_NETWORK": "application",
    "BACKUP_RUN_IMAGE": "schedgen-backups:ours",
    "BACKUP_RUN_POINTS": "points:/backups",
    "BACKUP_RUN_COPIES": "copies:/copies",
    "BACKUP_RUN_SECRETS": "/etc/secrets:/run/secrets:ro",
    "BACKUP_RUN_LOGIN": "login:/opt/dagster/login:ro",
    "BACKUP_RUN_STATE": "state:/opt/dagster/state",
}
LOOSE = {
    "env_vars": ["LD_PRELOAD=/backups/planted.so"],
    "docker": {
        "registry": {"url": "evil.example", "username": "u", "password": "p"},
        "env_vars": ["PLANTED=1"],
        "networks": ["host"],
        "container_kwargs": {
            "privileged": True,
            "cap_drop": [],
            "cap_add": ["SYS_ADMIN"],
            "user": "0:0",
            "read_only": False,
            "security_opt": [],
            "volumes": ["/:/host"],
            "pid_mode": "host",
            "mem_limit": "64g",
            "entrypoint": ["/bin/sh"],
        },
    },
}
TAGS = {
    "dagster-docker/container_context": yaml.safe_dump(LOOSE),
    "dagster/image": "evil.example/planted:1",
    "docker/image": "evil.example/planted:1",
    "dagster-k8s/config": "{}",
}


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ContainerRunLauncher:
    """Return the launcher of docker/dagster.yaml."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    shutil.copy(PROJECT / "docker" / "dagster.yaml", tmp_path)
    made = InstanceRef.from_dir(str(tmp_path)).run_launcher
    assert isinstance(made, ContainerRunLauncher)
    return made


def plant(instance: dg.DagsterInstance, context: dict[str, Any], image: str | None) -> dg.DagsterRun:
    pointer = ModuleCodePointer("schedgen_backups.definitions", "defs", None)
    repository = RepositoryPythonOrigin(
        "/opt/venv/bin/python3", pointer, container_image=image, container_context=context
    )
    run = dg.DagsterRun("backup_job", job_code_origin=JobPythonOrigin("backup_job", repository), tags=TAGS)
    instance.run_storage.add_run(run)
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found


def test_a_container_is_built_from_the_configuration_only(
    launcher: ContainerRunLauncher, instance: dg.DagsterInstance
) -> None:
    planted = plant(instance, LOOSE, "evil.example/planted:1")
    assert planted.job_code_origin is not None
    assert planted.job_code_origin.repository_origin.container_context == LOOSE
    made = launcher.get_container_context(planted)
    config = yaml.safe_load((PROJECT / "docker" / "dagster.yaml").read_text())["run_launcher"]["config"]
    volumes = [value for name, value in ENVIRONMENT.items() if ":/" in value]
    assert made == DockerContainerContext(
        env_vars=config["env_vars"],
        networks=["internal", "application"],
        container_kwargs={**config["container_kwargs"], "volumes": volumes},
    )
    assert launcher._get_docker_image(planted.job_code_origin) == "schedgen-backups:ours"


def test_the_configuration_confines(launcher: ContainerRunLauncher, instance: dg.DagsterInstance) -> None:
    kwargs = launcher.get_container_context(plant(instance, {}, None)).container_kwargs
    assert (kwargs["privileged"], kwargs["read_only"], kwargs["cap_drop"], kwargs["user"]) == (
        False,
        True,
        ["ALL"],
        "10001:10001",
    )
    assert kwargs["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit"} <= kwargs.keys()


def test_without_a_configured_image_the_launcher_uses_none_from_the_record(
    instance: dg.DagsterInstance,
) -> None:
    planted = plant(instance, {}, "evil.example/planted:1")
    with pytest.raises(ConfigurationError, match="no image"):
        ContainerRunLauncher()._get_docker_image(planted.job_code_origin)


def test_a_command_line_run_is_not_taken_for_a_dead_container() -> None:
    launcher = ContainerRunLauncher()
    assert (
        launcher.check_run_worker_health(
            dg.DagsterRun("backup_job", tags={run_tags.PROCESS: "host:1:2"})
        ).status
        is WorkerStatus.RUNNING
    )
    assert launcher.check_run_worker_health(dg.DagsterRun("backup_job")).status is WorkerStatus.NOT_FOUND
