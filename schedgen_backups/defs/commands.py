"""The operator's commands before and after a backup, run once per run, with their output in the run's log.

A run that has reached BACKUP_BEFORE_COMMAND, set or not, ends with exactly one of BACKUP_AFTER_COMMAND and
BACKUP_FAILURE_COMMAND. A killed run runs neither.
"""

from __future__ import annotations

from contextlib import suppress

import dagster as dg

from schedgen_backups.alerts.run_kinds import BACKUP
from schedgen_backups.alerts.service import AlertService
from schedgen_backups.config.config import Config
from schedgen_backups.core.errors import CommandError, ConfigurationError
from schedgen_backups.core.notify.alert import Severity
from schedgen_backups.core.system.command import CommandOutcome, run_command

AFTER_SUBJECT = "backup_after_command"
"""Incident of a command that failed at the end of a run; the next successful backup resolves it."""


class BackupCommands:
    """The commands of one run."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._run_id = ""
        self._before: CommandOutcome | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the run has reached its backup."""
        return bool(self._run_id)

    def begin(self, run_id: str) -> None:
        """Run the command before a backup, in the first call of a run.

        Raise CommandError in each call if it failed.
        """
        settings = self._config.commands
        if not self._run_id:
            self._run_id = run_id
            self._before = self._run("BACKUP_BEFORE_COMMAND", settings.before)
        if self._before is not None and not self._before.is_success:
            raise CommandError(
                f"BACKUP_BEFORE_COMMAND {self._before.ending}",
                hint="No backup was taken. The run's log contains the command's output; to test it, run it "
                "with /bin/sh -c.",
            )

    def end(self, *, has_failed: bool) -> None:
        """Run the command after a backup, or the command on failure; send an alert if it fails.

        It does not fail the backup, which has ended.
        """
        settings = self._config.commands
        name, text = (
            ("BACKUP_FAILURE_COMMAND", settings.on_failure)
            if has_failed
            else ("BACKUP_AFTER_COMMAND", settings.after)
        )
        outcome = self._run(name, text)
        if outcome is None or outcome.is_success:
            return
        dg.get_dagster_logger().error(f"{name} {outcome.ending}")
        with suppress(ConfigurationError):  # wrong alert settings: the run reports them itself
            AlertService(self._config).raise_trouble(
                BACKUP.make_failure_key(AFTER_SUBJECT),
                Severity.MEDIUM,
                "A command at the end of a backup failed",
                f"{name} {outcome.ending}",
                next_step="The run's log contains its output. To test it, run it with /bin/sh -c.",
                run_id=self._run_id,
            )

    def _run(self, name: str, text: str) -> CommandOutcome | None:
        if not text:
            return None
        environment = {"BACKUP_RUN_ID": self._run_id, "BACKUP_DIR": str(self._config.backup_directory)}
        outcome = run_command(
            text, environment=environment, timeout_seconds=self._config.commands.timeout_seconds
        )
        printed = f"\n{outcome.output}" if outcome.output else ""
        dg.get_dagster_logger().info(f"{name} {outcome.ending.partition(':')[0]}{printed}")
        return outcome
