"""The environment variables: names, defaults, meanings, and other programs' variables to pass on.

The only source of their documentation: `make docs` writes .env.example, docs/reference/settings.md, the
manual page and the lists of docker/ from it. No values and no parsing here.
"""

from __future__ import annotations

from dataclasses import dataclass

from schedgen_backups.config.presets import PRESETS

SITES_VARIABLE = "BACKUP_SITES_FILE"
METRICS_VARIABLE = "BACKUP_METRICS_FILE"
PACK_RECIPIENTS_VARIABLE = "BACKUP_PACK_RECIPIENTS"
PACK_IDENTITY_VARIABLE = "BACKUP_PACK_IDENTITY_FILE"
STAGING_VARIABLE = "BACKUP_STAGING_DIR"
DEFAULT_SCHEDULE = "0 2 * * *"
DEFAULT_DRILL_SCHEDULE = "0 4 * * 0"
"""Sunday, two hours after the default backup."""
DEFAULT_AUDIT_SCHEDULE = "0 6 * * 1"
DEFAULT_REPORT_SCHEDULE = "0 7 1 * *"


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    A relative path in a value starts at the directory of the environment file in use; without one, at the
    checkout. The directories of the files in /etc and ~/.config are not for data: with one of these files, or
    without a checkout, a relative path is an error.
    """

    name: str
    default: str
    meaning: str
    is_secret: bool = False
    flag: str = ""
    """The flag of `setup` that answers it, without dashes; of a secret, the flag that names a file. Empty:
    setup neither has a flag nor asks."""
    example: str = ""
    """Shown in .env.example instead of the default."""
    is_set_in_example: bool = False
    """Whether .env.example sets it; other variables are shown there as comments."""


@dataclass(frozen=True)
class VariableGroup:
    """Variables that belong together, in the order of the documents."""

    title: str
    introduction: str
    variables: tuple[Variable, ...]


VARIABLE_GROUPS = (
    VariableGroup(
        "The database",
        "The role needs no more than: GRANT pg_read_all_data TO schedgen;",
        (
            Variable(
                "POSTGRES_HOST", "postgres", "Database server", flag="postgres-host", is_set_in_example=True
            ),
            Variable(
                "POSTGRES_PORT",
                "5432",
                "Port of the database server",
                flag="postgres-port",
                is_set_in_example=True,
            ),
            Variable(
                "POSTGRES_USER",
                "schedgen",
                "Role that reads the database; pg_read_all_data is enough",
                flag="postgres-user",
                is_set_in_example=True,
            ),
            Variable(
                "POSTGRES_PASSWORD",
                "",
                "Password of POSTGRES_USER; required",
                is_secret=True,
                flag="postgres-password-file",
                is_set_in_example=True,
            ),
            Variable(
                "POSTGRES_DB", "schedgen", "Database to back up", flag="postgres-db", is_set_in_example=True
            ),
            Variable(
                "PGSSLMODE",
                "prefer",
                "TLS mode of the database connection: disable, allow, prefer, require, verify-ca or "
                "verify-full (as in libpq)",
            ),
            Variable(
                "PG_BIN_DIR",
                "",
                "Directory of pg_dump, pg_dumpall and psql; by default the newest version on this machine "
                "that fits the server",
                example="/usr/lib/postgresql/16/bin",
            ),
        ),
    ),
    VariableGroup(
        "The bucket",
        "The key needs no more than s3:ListBucket, s3:GetObject, s3:GetObjectTagging and "
        "s3:GetBucketVersioning.",
        (
            Variable(
                "MINIO_ENDPOINT",
                "minio:9000",
                "S3 server as host:port",
                flag="minio-endpoint",
                is_set_in_example=True,
            ),
            Variable(
                "MINIO_ACCESS_KEY",
                "",
                "Access key that may list and read; required",
                flag="minio-access-key",
                is_set_in_example=True,
            ),
            Variable(
                "MINIO_SECRET_KEY",
                "",
                "Secret key of MINIO_ACCESS_KEY; required",
                is_secret=True,
                flag="minio-secret-key-file",
                is_set_in_example=True,
            ),
            Variable(
                "MINIO_BUCKET",
                "schedgen-pdfs",
                "Bucket to back up",
                flag="minio-bucket",
                is_set_in_example=True,
            ),
            Variable("MINIO_SECURE", "false", "true: use https for the S3 server", flag="minio-secure"),
            Variable("MINIO_REGION", "us-east-1", "Region that requests are signed for"),
        ),
    ),
    VariableGroup(
        "Restore",
        "A restore writes, so it needs another role and another key. Set them only where you restore.",
        (
            Variable(
                "RESTORE_POSTGRES_USER",
                "",
                "Role that restores write with; by default the URL's user, otherwise POSTGRES_USER",
            ),
            Variable(
                "RESTORE_POSTGRES_PASSWORD",
                "",
                "Password of the restoring role; by default POSTGRES_PASSWORD, for the server that is "
                "backed up only",
                is_secret=True,
            ),
            Variable(
                "RESTORE_POSTGRES_HOST",
                "",
                "The only server that gets RESTORE_POSTGRES_PASSWORD; by default POSTGRES_HOST",
            ),
            Variable(
                "RESTORE_POSTGRES_PORT",
                "",
                "Port of that server; by default POSTGRES_PORT, or 5432 if RESTORE_POSTGRES_HOST is set",
            ),
            Variable(
                "RESTORE_MINIO_ACCESS_KEY",
                "",
                "Access key that may write, for `restore --bucket`; by default MINIO_ACCESS_KEY",
            ),
            Variable(
                "RESTORE_MINIO_SECRET_KEY",
                "",
                "Secret key of the writing key; by default MINIO_SECRET_KEY",
                is_secret=True,
            ),
        ),
    ),
    VariableGroup(
        "The backup",
        "",
        (
            Variable(
                "BACKUP_DIR",
                "./backups",
                "Directory of the recovery points; a relative path starts at the directory of `.env`",
                flag="backup-dir",
                is_set_in_example=True,
            ),
            Variable(
                "BACKUP_NAME",
                "",
                "Name of this installation in every alert; by default alerts name the machine and the "
                "database",
                flag="name",
                example="production",
            ),
            Variable(
                "BACKUP_SCHEDULE",
                DEFAULT_SCHEDULE,
                "When to back up, as a cron expression",
                flag="schedule",
                is_set_in_example=True,
            ),
            Variable(
                "BACKUP_TIMEZONE",
                "UTC",
                "Time zone of all schedules, such as Africa/Johannesburg",
                flag="timezone",
                is_set_in_example=True,
            ),
            Variable(
                "BACKUP_PRESET",
                "schedgen",
                f"Application whose tables hold the object keys: {', '.join(PRESETS)}",
                flag="preset",
            ),
            Variable(
                "BACKUP_REFERENCE_QUERY",
                "",
                "SELECT with one column: the object keys that the database refers to; by default the "
                "preset's query",
                flag="reference-query",
            ),
            Variable(
                "BACKUP_EXCLUDE_TABLE_DATA",
                "",
                "Tables whose rows are not backed up, as name, schema.name or a glob; separated by commas",
            ),
            Variable(
                "BACKUP_EXCLUDE_OBJECTS",
                "",
                "Objects that are not backed up, as a key, a prefix that ends in / or a glob; separated by "
                "commas",
            ),
            Variable("BACKUP_ALLOW_EMPTY", "false", "true: accept a database without rows"),
            Variable(
                "BACKUP_ALLOW_NEW_SOURCE",
                "false",
                "true: accept that the database or bucket has another name than in the existing recovery "
                "points",
            ),
            Variable(
                "BACKUP_BEFORE_COMMAND",
                "",
                "Shell command to run before a backup; if it fails, no backup is taken",
            ),
            Variable("BACKUP_AFTER_COMMAND", "", "Shell command to run after a successful backup"),
            Variable(
                "BACKUP_FAILURE_COMMAND",
                "",
                "Shell command to run when a backup failed or was cancelled, including a failed "
                "BACKUP_BEFORE_COMMAND",
            ),
            Variable(
                "BACKUP_COMMAND_TIMEOUT_SECONDS", "600", "Abort any of these commands after this many seconds"
            ),
            Variable(
                "BACKUP_GIT_DIRECTORY",
                "",
                "Git checkout of the application; its commit and branch are recorded in each point",
                example="/srv/schedule-generator",
            ),
            Variable(
                "BACKUP_COMPRESSION_THREADS", "", "Compression threads; by default one per core, at most 8"
            ),
            Variable(
                "BACKUP_DUMP_JOBS",
                "",
                "Concurrent pg_dump processes when there are several large tables; by default 2 on four "
                "cores or more, otherwise 1",
            ),
            Variable(
                "BACKUP_DOWNLOAD_THREADS",
                "16",
                "Maximum concurrent object transfers; lowered automatically when more would not be faster",
            ),
            Variable(
                "BACKUP_REREAD_DAYS",
                "30",
                "Read an unchanged object from the bucket again after this many days; until then it is "
                "copied from the last "
                "archive. 0: read every object every time",
            ),
            Variable(
                "BACKUP_LAYOUT",
                "files",
                "How new recovery points lie in BACKUP_DIR. files: each artifact is a file for stock tools. "
                "packs: a night costs what changed, points share packs (docs/packs.md)",
                flag="layout",
            ),
            Variable(
                "BACKUP_PACK_REREAD_DAYS",
                "30",
                "With BACKUP_LAYOUT=packs: read each pack again within this many days",
                flag="pack-reread-days",
            ),
            Variable(
                PACK_RECIPIENTS_VARIABLE,
                "",
                "With BACKUP_LAYOUT=packs: public keys of age, with commas between them, for which new packs "
                "are encrypted. Empty: not encrypted (docs/packs.md#encryption)",
                example="age1…",
            ),
            Variable(
                PACK_IDENTITY_VARIABLE,
                "",
                "File with the private keys with which this host reads its own packs; outside of BACKUP_DIR, "
                "with mode 0600. It may hold older keys, too",
                example="/etc/schedgen-backups/packs.key",
            ),
            Variable(
                STAGING_VARIABLE,
                "",
                "With BACKUP_LAYOUT=packs: existing directory for what a running backup has not encrypted "
                "yet, such as the whole dump; by default .staging in BACKUP_DIR",
                example="/var/lib/schedgen-backups",
            ),
            Variable(
                "BACKUP_MAX_MB_PER_SECOND",
                "0",
                "Maximum read rate of the database and of the bucket, each, in million bytes per second. 0: "
                "unlimited",
            ),
            Variable("BACKUP_NICE", "10", "Niceness of a backup's processes, 0 to 19"),
            Variable("BACKUP_MAX_HOURS", "6", "Abort a backup that runs longer than this"),
            Variable(
                "BACKUP_STALL_TIMEOUT_SECONDS",
                "600",
                "Seconds without data after which pg_dump, psql, a session or the S3 server is considered "
                "hung; a whole S3 request "
                "may take this long plus its size at 5 kB/s",
            ),
        ),
    ),
    VariableGroup(
        "Restore drills and the consistency check",
        "By default a drill starts its own servers on this machine; see docs/drill.md.",
        (
            Variable(
                "AUDIT_SCHEDULE",
                DEFAULT_AUDIT_SCHEDULE,
                "When to check the live system for missing objects, as a cron expression",
            ),
            Variable(
                "REPORT_SCHEDULE",
                DEFAULT_REPORT_SCHEDULE,
                "When to write and send the report of the last month, as a cron expression",
            ),
            Variable(
                "DAGSTER_KEEP_DAYS",
                "90",
                "Days to keep runs in Dagster's history, except the last of each asset and check; 0: all",
            ),
            Variable(
                "DRILL_SCHEDULE", DEFAULT_DRILL_SCHEDULE, "When to run a restore drill, as a cron expression"
            ),
            Variable(
                "DRILL_AFTER_EACH_POINT",
                "false",
                "true: also drill each recovery point once it is committed, unless the last drill took more "
                "than a quarter of the time between two backups",
                flag="drill-after-each-point",
            ),
            Variable(
                "DRILL_OBJECTS",
                "all",
                "Objects that a drill restores: all, sample:N (N objects of all kinds) or referenced:N (N "
                "objects that the database refers to)",
                flag="drill-objects",
                example="sample:3000",
            ),
            Variable(
                "DRILL_MAX_MINUTES",
                "60",
                "A drill that takes longer fails its check; after twice this time it is aborted",
            ),
            Variable(
                "DRILL_DIR",
                "",
                "Data directory of the drill's own servers; by default .drill in BACKUP_DIR",
                example="/srv/drill",
            ),
            Variable(
                "DRILL_DATABASE_URL",
                "",
                "postgresql://user@host:port/dbname of a server for drills, which creates a scratch "
                "database there; by default one is "
                "started on this machine",
                is_secret=True,
                example="postgresql://drill@db-test:5432/postgres",
            ),
            Variable("DRILL_POSTGRES_PASSWORD", "", "Password for DRILL_DATABASE_URL", is_secret=True),
            Variable(
                "DRILL_ON_SOURCE_SERVER",
                "false",
                "true: allow DRILL_DATABASE_URL to be the server that is backed up",
            ),
            Variable(
                "DRILL_MINIO_ENDPOINT",
                "",
                "S3 server for drills, which create a scratch bucket there; by default one is started on "
                "this machine",
                example="minio-test:9000",
            ),
            Variable(
                "DRILL_MINIO_ACCESS_KEY", "", "Access key that may create and remove buckets on that server"
            ),
            Variable("DRILL_MINIO_SECRET_KEY", "", "Secret key of DRILL_MINIO_ACCESS_KEY", is_secret=True),
            Variable("DRILL_MINIO_SECURE", "false", "true: use https for that server"),
            Variable(
                "DRILL_SQL_CHECKS",
                "",
                "File of SQL statements that a drill runs; each must return a single true",
                example="./drill-checks.sql",
            ),
        ),
    ),
    VariableGroup(
        "Retention",
        "",
        (
            Variable(
                "BACKUP_RETENTION_HOURS",
                "",
                "Keep every recovery point of this many hours, and only the last verified one of each "
                "earlier day within BACKUP_RETENTION_DAYS; by default every point of those days is kept",
                flag="retention-hours",
                example="48",
            ),
            Variable(
                "BACKUP_RETENTION_DAYS",
                "7",
                "Keep the recovery points of this many days, today included",
                flag="retention-days",
                is_set_in_example=True,
            ),
            Variable(
                "BACKUP_RETENTION_KEEP_LAST",
                "3",
                "Minimum number of verified points to keep, whatever their age",
            ),
            Variable(
                "BACKUP_RETENTION_WEEKS",
                "0",
                "Keep the last verified point of each of this many weeks",
                example="4",
            ),
            Variable(
                "BACKUP_RETENTION_MONTHS",
                "0",
                "Keep the last verified point of each of this many months",
                example="12",
            ),
            Variable(
                "BACKUP_RETENTION_YEARS",
                "0",
                "Keep the last verified point of each of this many years",
                example="7",
            ),
        ),
    ),
    VariableGroup(
        "Several sites",
        "Without this file, the environment describes the only site.",
        (
            Variable(
                SITES_VARIABLE,
                "",
                "TOML file that describes several sites, each with a database, a bucket and a directory",
                example="/etc/schedgen-backups/sites.toml",
            ),
        ),
    ),
    VariableGroup(
        "Copies elsewhere",
        "Without a store, the backup directory holds the only copy.",
        (
            Variable(
                "BACKUP_STORES_FILE",
                "",
                "TOML file that describes the stores of copies (docs/stores.md)",
                flag="stores-file",
                example="/etc/schedgen-backups/stores.toml",
            ),
        ),
    ),
    VariableGroup(
        "Alerts",
        "`schedgen-backups alert-test` sends one through each channel.",
        (
            Variable(
                "BACKUP_ALERT_WEBHOOK_URL",
                "",
                "Where alerts go: Slack, Discord, Teams, an apprise address or a JSON endpoint; separated "
                "by spaces",
                is_secret=True,
                flag="alert-webhook-url-file",
                is_set_in_example=True,
            ),
            Variable(
                "BACKUP_ALERT_EMAIL",
                "",
                "Mail addresses that get alerts; separated by commas",
                flag="alert-email",
                is_set_in_example=True,
            ),
            Variable(
                "SMTP_HOST",
                "",
                "Mail server for BACKUP_ALERT_EMAIL",
                flag="smtp-host",
                example="smtp.example.com",
            ),
            Variable("SMTP_PORT", "587", "Port of the mail server", flag="smtp-port"),
            Variable("SMTP_USER", "", "User name at the mail server, if it needs one", flag="smtp-user"),
            Variable("SMTP_PASSWORD", "", "Password of SMTP_USER", is_secret=True, flag="smtp-password-file"),
            Variable("SMTP_FROM", "", "Sender of the mails; by default SMTP_USER"),
            Variable(
                "SMTP_SECURITY",
                "starttls",
                "starttls, ssl, or insecure for a server on this machine",
                flag="smtp-security",
            ),
            Variable("BACKUP_ALERT_ON_SUCCESS", "false", "true: send a message after each recovery point"),
            Variable(
                "BACKUP_MAX_AGE_HOURS",
                "",
                "Alert when no verified point is younger than this; by default the longest gap of the "
                "schedule plus two hours",
                example="26",
            ),
            Variable(
                "BACKUP_HEARTBEAT_URL",
                "",
                "Address to ping at start, after verification and on failure, as healthchecks.io expects",
                is_secret=True,
                example="https://hc-ping.com/your-uuid",
            ),
            Variable(
                "BACKUP_DAEMON_HEARTBEAT_URL",
                "",
                "Address to ping every five minutes while Dagster's daemon works; another one than "
                "BACKUP_HEARTBEAT_URL",
                is_secret=True,
                example="https://hc-ping.com/another-uuid",
            ),
            Variable(
                METRICS_VARIABLE,
                "",
                "File of metrics for node_exporter's textfile collector, outside BACKUP_DIR, written after "
                "every run, every five minutes by the daemon, and by `status`",
                example="/var/lib/node_exporter/schedgen.prom",
            ),
            Variable(
                "BACKUP_DOCUMENTATION_URL",
                "",
                "Address under which you publish docs/; alerts then link to their page there instead of "
                "naming the file",
                example="https://docs.example.com/backups",
            ),
        ),
    ),
    VariableGroup(
        "The Dagster UI",
        "docs/deploy.md describes access from other machines, and logins.",
        (
            Variable(
                "DAGSTER_WEBSERVER_URL",
                "",
                "Address of the Dagster UI, for links in alerts; the UI answers to its host name",
                example="http://127.0.0.1:3000",
            ),
            Variable(
                "BACKUP_UI_HOSTS",
                "",
                "Other host names that the UI answers to, as host or host:port; separated by commas",
                example="backups.example.com",
            ),
            Variable(
                "BACKUP_UI_USER_HEADER",
                "",
                "Header in which a reverse proxy names the user that it has authenticated; needs "
                "BACKUP_UI_PROXIES",
                example="X-Remote-User",
            ),
            Variable(
                "BACKUP_UI_PROXIES",
                "",
                "IP addresses or networks from which BACKUP_UI_USER_HEADER is trusted; separated by commas",
                example="127.0.0.1",
            ),
            Variable(
                "BACKUP_UI_PASSWORD",
                "",
                "Lines of user:hash (argon2) for HTTP Basic logins; use BACKUP_UI_PASSWORD_FILE",
                is_secret=True,
            ),
        ),
    ),
)
VARIABLES = tuple(variable for group in VARIABLE_GROUPS for variable in group.variables)

FILE_SUFFIX = "_FILE"
"""NAME_FILE names a file that holds the value of NAME."""
ENV_FILE_VARIABLE = "BACKUP_ENV_FILE"
"""Names the environment file, as --env-file does. Read from the process's environment only."""
CERTIFICATES_VARIABLE = "SSL_CERT_FILE"
"""OpenSSL's own: the certificate authorities to trust. Taken from the process's environment only, since other
libraries read it there themselves."""
LIBPQ_VARIABLES = (
    "PGSSLROOTCERT",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGSSLSNI",
    "PGSSLCERTMODE",
    "PGSSLNEGOTIATION",
    "PGSSLCOMPRESSION",
    "PGSSLMINPROTOCOLVERSION",
    "PGSSLMAXPROTOCOLVERSION",
    "PGREQUIREAUTH",
    "PGREQUIREPEER",
    "PGCHANNELBINDING",
    "PGGSSENCMODE",
    "PGGSSLIB",
    "PGGSSDELEGATION",
    "PGKRBSRVNAME",
    "PGTARGETSESSIONATTRS",
)
"""Variables of libpq that are passed on as they are (PostgreSQL manual, section 34.15): how a connection is
secured, never a server or a program."""
NAMES = frozenset(
    {
        *(variable.name for variable in VARIABLES),
        *(variable.name + FILE_SUFFIX for variable in VARIABLES),
        *LIBPQ_VARIABLES,
    }
)
"""What is taken from an environment file; the application's own variables stay there."""
