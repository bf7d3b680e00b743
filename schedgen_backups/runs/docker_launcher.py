"""The run launcher of the container deployment (docker/dagster.yaml): Dagster's own, with restrictions.

A run's container can write to Dagster's database, and so to the record of the next run. Therefore image,
volumes, environment, networks and limits of a container come only from the launcher's configuration;
Dagster's launcher would let the record override it.

Dagster's run monitoring asks the launcher whether a run's container is alive. A backup of the command line
has no container and would be marked as failed while it works; `orphaned_runs` monitors such runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.dagster_run import DagsterRun
from dagster._serdes import ConfigurableClassData
from dagster_docker import DockerRunLauncher
from dagster_docker.container_context import DockerContainerContext
from docker.models.containers import Container

from schedgen_backups import run_tags
from schedgen_backups.core.errors import ConfigurationError

_RUN_LABEL = "dagster/run_id"
"""Label that Dagster's launcher sets on the container of each run."""


class ContainerRunLauncher(DockerRunLauncher):
    """Launches each run in its own container, configured only by this launcher, never by the run's record."""

    def __init__(
        self,
        inst_data: ConfigurableClassData | None = None,
        image: str | None = None,
        registry: Mapping[str, str] | None = None,
        env_vars: Sequence[str] = (),
        networks: Sequence[str] = (),
        volumes: Sequence[str] = (),
        container_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        kwargs = {**(container_kwargs or {}), "volumes": list(volumes)}
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            inst_data,
            image=image,
            registry=registry,
            env_vars=list(env_vars),
            networks=list(networks),
            container_kwargs=kwargs,
        )
        self._run_image = image
        self._run_context = DockerContainerContext(
            registry=registry, env_vars=env_vars, networks=networks, container_kwargs=kwargs
        )

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Return Dagster's schema with `volumes`: each is `source:path` or `{env: NAME}`.

        The names of the volumes are known only from the environment.
        """
        fields = {name: kind for name, kind in super().config_type().items() if name != "network"}
        return {**fields, "volumes": dg.Field(dg.Array(dg.StringSource), is_required=False, default_value=[])}

    def get_container_context(self, dagster_run: DagsterRun) -> DockerContainerContext:
        """Return this launcher's configuration and ignore the run's record."""
        del dagster_run
        return self._run_context

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return the state of the run's container.

        A run of the command line counts as running until `orphaned_runs` or its time limit ends it.
        """
        if run_tags.PROCESS in run.tags:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return super().check_run_worker_health(run)

    def _get_docker_image(self, job_code_origin: object) -> str:
        del job_code_origin  # part of the run's record
        if not self._run_image:
            raise ConfigurationError(
                "the run launcher has no image", hint="Set run_launcher.config.image in dagster.yaml."
            )
        return self._run_image

    def _get_container(self, run: DagsterRun | None) -> Container | None:
        # The container's id is a tag in the run's record: without this check of the label, any container of
        # the host could be stopped.
        container: Container | None = super()._get_container(run)  # pyright: ignore[reportUnknownMemberType]
        if run is None or container is None:
            return None
        labels = cast("dict[str, str]", container.labels)  # pyright: ignore[reportUnknownMemberType]
        return container if labels.get(_RUN_LABEL) == run.run_id else None
