"""The tags that this project puts on Dagster runs: the one place where their names stand.

The UI shows those that begin with `backup/`, and none that begin with `.dagster/`: what only this project
reads is named so.
"""

from __future__ import annotations

PREFIX = "backup/"
_HIDDEN_PREFIX = ".dagster/backup_"
POINT = f"{PREFIX}point"
"""The recovery point that the run takes, drills or restores, so that the list of runs names it."""
REASON = f"{PREFIX}reason"
LABEL_PREFIX = f"{PREFIX}label."
GIT_COMMIT = f"{PREFIX}git_commit"
GIT_BRANCH = f"{PREFIX}git_branch"
USER = f"{PREFIX}user"
PIN_FOR = f"{PREFIX}pin_for"
"""A duration such as 30d: the run pins its own point while it holds the lock, so that no prune comes between."""
PROCESS = f"{_HIDDEN_PREFIX}process"
"""Which process of which machine executes the run, so that a dead one is noticed."""
RUN_LOCK = f"{_HIDDEN_PREFIX}run_lock"
"""The name of a locked file that the executing process holds, so that a dead one is noticed from another
container, too."""
ALERTED_PREFIX = f"{_HIDDEN_PREFIX}alerted."
"""Followed by a step's name: its failure was alerted, or is known not to need an alert."""
REHEARSAL = "rehearsal"
"""What such a tag says of a restore that was launched without its confirmation: nothing can have been
written, and who launched it sees it fail."""
HEARTBEAT = f"{_HIDDEN_PREFIX}heartbeat"
"""The last signal sent to the heartbeat service for this run."""
RETENTION_PLAN = f"{_HIDDEN_PREFIX}retention_plan"
"""The plan that made the retention sensor request the run."""
VERIFICATION_PLAN = f"{_HIDDEN_PREFIX}verification_plan"
"""The files that made the verification sensor request the run."""
