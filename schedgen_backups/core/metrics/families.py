"""Every metric: name, labels and meaning. docs/reference/metrics.md and the exposition are made from this.

Names follow OpenMetrics: base units, the unit at the end. Labels are the site, the store, a verification
level and other fixed words: the number of series never grows with the number of recovery points.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "schedgen_backup_"
SITE_LABEL, STORE_LABEL = "site", "store"


@dataclass(frozen=True)
class MetricFamily:
    """One metric; a gauge."""

    name: str
    """Without the common prefix."""
    meaning: str
    labels: tuple[str, ...] = ()
    """Beside the site."""

    @property
    def full_name(self) -> str:
        """The name in the exposition."""
        return PREFIX + self.name


BUILD_INFO = MetricFamily("build_info", "1, with the version of the program", ("version",))
WRITTEN = MetricFamily(
    "metrics_written_timestamp_seconds", "When these values were computed, in seconds since 1970"
)
SETTINGS_WRONG = MetricFamily(
    "settings_wrong",
    "1 if settings that a backup needs are wrong, else 0; other metrics of the site may be absent then",
)
LAST_VERIFIED = MetricFamily(
    "last_verified_timestamp_seconds",
    "When the newest verified recovery point was taken; absent if there is none",
)
OLDEST_VERIFIED = MetricFamily(
    "oldest_verified_timestamp_seconds", "When the oldest verified recovery point was taken"
)
LAST_ATTEMPT = MetricFamily(
    "last_attempt_timestamp_seconds", "When the last backup began; absent if none is known"
)
LAST_FAILURE = MetricFamily(
    "last_failure_timestamp_seconds", "When a backup last failed; absent if none is known to have"
)
MAX_AGE = MetricFamily("max_age_seconds", "Allowed age of the newest verified recovery point")
SCHEDULE_GAP = MetricFamily("schedule_gap_seconds", "Longest time between two scheduled backups")
POINTS = MetricFamily("points", "Recovery points in the backup directory, by state", ("state",))
POINTS_BROKEN = MetricFamily(
    "broken_points",
    "Committed recovery points that are damaged, failed or ahead of the clock; 0 is what `status` calls OK",
)
POINTS_UNREAD = MetricFamily(
    "points_to_read_again", "Recovery points whose files changed since they were read"
)
PINNED = MetricFamily("pinned_points", "Recovery points that a pin keeps")
STORED_BYTES = MetricFamily(
    "stored_bytes", "Size of all recovery points in the backup directory; what points share counts once"
)
FREE_BYTES = MetricFamily("directory_free_bytes", "Free space on the disk of the backup directory")
NEXT_POINT = MetricFamily(
    "next_point_bytes",
    "Space that the next recovery point is expected to take: the largest of what the newest ones added; "
    "absent if there are none",
)
NEXT_POINT_TEMPORARY = MetricFamily(
    "next_point_temporary_bytes", "Space that its backup is expected to need in addition until it ends"
)
LAST_SIZE = MetricFamily("last_size_bytes", "Size of the newest verified recovery point's files", ("half",))
PREVIOUS_SIZE = MetricFamily("previous_size_bytes", "The same of the verified point before it", ("half",))
LAST_DURATION = MetricFamily(
    "last_duration_seconds", "From the snapshot of the newest verified point to its commit"
)
LAST_ROWS = MetricFamily("last_rows", "Rows in the newest verified point")
LAST_OBJECTS = MetricFamily("last_objects", "Objects in the newest verified point")
LAST_REUSED = MetricFamily(
    "last_reused_objects", "Objects of the newest verified point that were taken from an older archive"
)
MISSING_REFERENCES = MetricFamily(
    "missing_references",
    "References of the newest verified point without an object in it, by verdict",
    ("verdict",),
)
PLACES = MetricFamily(
    "newest_point_places",
    "Places of the newest verified point: `copies` with the local one, `kinds` of place, `elsewhere`",
    ("what",),
)
NEWLY_MISSING = MetricFamily(
    "newly_missing_objects", "Objects that the live system has lost since the site's first point"
)
LEVEL = MetricFamily(
    "level",
    "The newest result of the level over all points: 1 passed, 0 failed, -1 unknown or not configured",
    ("level",),
)
LEVEL_PASSED = MetricFamily(
    "level_passed_timestamp_seconds", "When a point last reached the level; absent if none did", ("level",)
)
INCIDENTS = MetricFamily("incidents_open", "Open incidents")
OLDEST_INCIDENT = MetricFamily(
    "incident_oldest_timestamp_seconds", "When the oldest open incident began; absent if none is open"
)
CHANNELS = MetricFamily("alert_channels", "Configured alert channels")
CHANNELS_FAILING = MetricFamily("alert_channels_failing", "Channels that did not accept the last message")
SPOOLED = MetricFamily("alerts_spooled", "Alerts that a channel has not accepted yet")
DAEMON_TICK = MetricFamily(
    "daemon_tick_timestamp_seconds",
    "When a sensor of the daemon last ran, to five minutes; absent where no daemon has run",
)
DRILL_ENDED = MetricFamily("drill_timestamp_seconds", "When the last drill of a local point ended")
DRILL_PASSED = MetricFamily(
    "drill_passed", "1 if the last drill passed, 0 if it failed or ended without a result"
)
DRILL_RTO = MetricFamily("drill_rto_seconds", "Recovery time that the last drill measured")
DRILL_RPO = MetricFamily("drill_rpo_seconds", "Age of the data when the last drill began")
DRILL_MAX_AGE = MetricFamily("drill_max_age_seconds", "Longest time between two scheduled drills")
DRILL_MAX_DURATION = MetricFamily("drill_max_duration_seconds", "Allowed recovery time (DRILL_MAX_MINUTES)")

_STORE = (STORE_LABEL,)
COPY_POINT = MetricFamily(
    "copy_last_point_timestamp_seconds",
    "When the newest point that the store holds was taken; absent if it holds none",
    _STORE,
)
COPY_MAX_AGE = MetricFamily("copy_max_age_seconds", "Allowed age of the newest copied point", _STORE)
COPY_POINTS = MetricFamily("copy_points", "Copies in the store", _STORE)
COPY_LACKING = MetricFamily(
    "copy_lacking_points", "Verified points newer than the newest copy in the store", _STORE
)
COPY_PROVED = MetricFamily(
    "copy_proof_timestamp_seconds",
    "When the copies were last proved: `listed`, `reread` (the pack that was read longest ago), `opened` (by "
    "a drill)",
    (STORE_LABEL, "proof"),
)
COPY_PROBLEMS = MetricFamily(
    "copy_problems",
    "What the last proof found wrong: `stranger` (a deletion marker, another version, a foreign file), "
    "`listing`, `reread`",
    (STORE_LABEL, "kind"),
)
COPY_REREAD_LIMIT = MetricFamily(
    "copy_reread_limit_seconds", "Time in which every pack must be read back once", _STORE
)
COPY_OLDEST_UNREAD = MetricFamily(
    "copy_oldest_unread_timestamp_seconds",
    "When the pack was sent that has waited longest for its first reading; absent if there is none",
    _STORE,
)
COPY_LOCKED_UNTIL = MetricFamily(
    "copy_locked_until_timestamp_seconds",
    "Until when everything that copies need is locked; absent if something is not, or unknown",
    _STORE,
)
COPY_LOCK = MetricFamily(
    "copy_lock_seconds", "How long everything must stay locked; 0: not asked for", _STORE
)
COPY_FAILING = MetricFamily("copy_failing", "1 if the last attempt to reach the store failed, else 0", _STORE)

FAMILIES = tuple(value for value in list(globals().values()) if isinstance(value, MetricFamily))
"""All of them, in the order above."""
