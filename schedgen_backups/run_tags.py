"""The names of the tags that this project puts on Dagster runs.

The UI shows tags that begin with `backup/`. It hides tags that begin with `.dagster/`: only this project
reads those.
"""

from __future__ import annotations

PREFIX = "backup/"
_HIDDEN_PREFIX = ".dagster/backup_"
POINT = f"{PREFIX}point"
"""The recovery point that the run takes, drills or restores; shown in the list of runs."""
REASON = f"{PREFIX}reason"
LABEL_PREFIX = f"{PREFIX}label."
GIT_COMMIT = f"{PREFIX}git_commit"
GIT_BRANCH = f"{PREFIX}git_branch"
USER = f"{PREFIX}user"
PIN_FOR = f"{PREFIX}pin_for"
"""A duration such as 30d: the run pins its own point while it holds the lock, before any prune can run."""
DATABASE_SERVER = f"{PREFIX}database_server"
"""`host:port` of the database server that a backup reads; dagster.yaml limits the runs with one value."""
DRILL = f"{PREFIX}drill"
"""On every drill; dagster.yaml limits them."""
PROCESS = f"{_HIDDEN_PREFIX}process"
"""The machine and process that execute the run, so that a dead process is noticed."""
RUN_LOCK = f"{_HIDDEN_PREFIX}run_lock"
"""The name of a lock file that the executing process holds.

With it, a dead process is noticed from another container too."""
ALERTED_PREFIX = f"{_HIDDEN_PREFIX}alerted."
"""Followed by a step's name: an alert was sent for its failure, or none is needed."""
REHEARSAL = "rehearsal"
"""Value of that tag for a restore that was launched without confirmation.

Such a run writes nothing, and whoever launched it sees it fail."""
HEARTBEAT = f"{_HIDDEN_PREFIX}heartbeat"
"""The last signal sent to the heartbeat service for this run."""
RETENTION_PLAN = f"{_HIDDEN_PREFIX}retention_plan"
"""The plan for which the retention sensor requested the run."""
RETENTION_RULES = f"{_HIDDEN_PREFIX}retention_rules"
"""The rules under which the retention sensor requested the run."""
VERIFICATION_PLAN = f"{_HIDDEN_PREFIX}verification_plan"
"""The files for which the verification sensor requested the run."""
COPY_PLAN = f"{_HIDDEN_PREFIX}copy_plan"
"""What was due in the store when the copy sensor requested the run."""
