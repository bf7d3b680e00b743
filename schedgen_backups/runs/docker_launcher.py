"""The run launcher of the container deployment: Dagster's own, which leaves runs alone that it has not launched.

Dagster's run monitoring asks the launcher whether a run's container is alive. A backup of the command line has none, and would be marked as failed
while it works; `orphaned_runs` watches such runs. Named in docker/dagster.yaml.
"""

from __future__ import annotations

from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.dagster_run import DagsterRun
from dagster_docker import DockerRunLauncher

from schedgen_backups import run_tags


class ContainerRunLauncher(DockerRunLauncher):
    """Launches each run in a container of its own."""

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """How the run's container is; a run of the command line counts as running until `orphaned_runs` or its time limit ends it."""
        if run_tags.PROCESS in run.tags:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return super().check_run_worker_health(run)
