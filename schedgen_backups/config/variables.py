"""The environment variables: name, default and meaning, and the names of other programs' variables that are passed on.

Add a variable here, in .env.example and in the README's table; a test compares the three. No values and no parsing here.
"""

from __future__ import annotations

from dataclasses import dataclass

from schedgen_backups.config.presets import PRESETS

DEFAULT_SCHEDULE = "0 2 * * *"
DEFAULT_DRILL_SCHEDULE = "0 4 * * 0"
"""Sunday, two hours after the default backup."""
DEFAULT_AUDIT_SCHEDULE = "0 6 * * 1"


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    A relative path in a value starts at the folder of the environment file in force, and without one at the checkout. The files in /etc and ~/.config
    are no place for data: with one of them, or without a checkout, a relative path is an error.
    """

    name: str
    default: str
    meaning: str
    is_secret: bool = False


VARIABLES = (
    Variable("POSTGRES_HOST", "postgres", "database server"),
    Variable("POSTGRES_PORT", "5432", "its port"),
    Variable("POSTGRES_USER", "schedgen", "role that reads the database; pg_read_all_data is enough"),
    Variable("POSTGRES_PASSWORD", "", "its password; required", is_secret=True),
    Variable("POSTGRES_DB", "schedgen", "database to back up"),
    Variable("PGSSLMODE", "prefer", "libpq's word for TLS to the database: disable, prefer, require, verify-ca, verify-full"),
    Variable("PG_BIN_DIR", "", "folder with pg_dump, pg_dumpall and psql; by default the machine is searched for the server's version"),
    Variable("MINIO_ENDPOINT", "minio:9000", "S3 server as host:port"),
    Variable("MINIO_ACCESS_KEY", "", "access key that may list and read; required"),
    Variable("MINIO_SECRET_KEY", "", "its secret key; required", is_secret=True),
    Variable("MINIO_BUCKET", "schedgen-pdfs", "bucket to back up"),
    Variable("MINIO_SECURE", "false", "true for https to the S3 server"),
    Variable("MINIO_REGION", "us-east-1", "region that requests are signed for"),
    Variable("RESTORE_POSTGRES_USER", "", "role for `restore --database` and the like; by default POSTGRES_USER, or the URL's"),
    Variable("RESTORE_POSTGRES_PASSWORD", "", "password for `restore --database`; by default POSTGRES_PASSWORD, on that server only", is_secret=True),
    Variable("RESTORE_POSTGRES_HOST", "", "the only server that RESTORE_POSTGRES_PASSWORD is sent to; by default POSTGRES_HOST"),
    Variable("RESTORE_POSTGRES_PORT", "", "its port; by default POSTGRES_PORT, or 5432 where RESTORE_POSTGRES_HOST is set"),
    Variable("RESTORE_MINIO_ACCESS_KEY", "", "access key that may write, for `restore --bucket`; by default MINIO_ACCESS_KEY"),
    Variable("RESTORE_MINIO_SECRET_KEY", "", "its secret key; by default MINIO_SECRET_KEY", is_secret=True),
    Variable("BACKUP_DIR", "./backups", "where recovery points are kept; a relative path starts at the folder of `.env`"),
    Variable("BACKUP_SCHEDULE", DEFAULT_SCHEDULE, "when to back up, as a cron string"),
    Variable("BACKUP_TIMEZONE", "UTC", "time zone of the schedule, such as Africa/Johannesburg"),
    Variable("BACKUP_PRESET", "schedgen", f"application whose tables name the objects: {', '.join(PRESETS)}"),
    Variable("BACKUP_REFERENCE_QUERY", "", "one SELECT of one column: the object keys that the database refers to; by default the preset's"),
    Variable("BACKUP_EXCLUDE_TABLE_DATA", "", "tables whose rows are left out, as name, schema.name or a glob; several with commas"),
    Variable("BACKUP_EXCLUDE_OBJECTS", "", "objects that are left out, as a key, a prefix that ends in / or a glob; several with commas"),
    Variable("BACKUP_ALLOW_EMPTY", "false", "true to accept a database without a single row"),
    Variable(
        "BACKUP_ALLOW_NEW_SOURCE", "false", "true for the first backup of a database or bucket under another name than the directory's points have"
    ),
    Variable("BACKUP_BEFORE_COMMAND", "", "run by /bin/sh before a backup; when it fails there is no backup"),
    Variable("BACKUP_AFTER_COMMAND", "", "run by /bin/sh when a backup has gone well"),
    Variable("BACKUP_FAILURE_COMMAND", "", "run by /bin/sh when a backup has failed or was cancelled, also when its BACKUP_BEFORE_COMMAND failed"),
    Variable("BACKUP_COMMAND_TIMEOUT_SECONDS", "600", "how long each of these commands may take"),
    Variable("BACKUP_GIT_DIRECTORY", "", "checkout of the application: its commit and branch are kept in each point; by default none are"),
    Variable("BACKUP_COMPRESSION_THREADS", "", "threads that compress; by default one per core, at most 8"),
    Variable("BACKUP_DUMP_JOBS", "", "pg_dumps side by side where there are several large tables; by default 2 on four cores and more, otherwise 1"),
    Variable("BACKUP_DOWNLOAD_THREADS", "16", "most objects that are read or written at the same time; fewer are read where more only wait longer"),
    Variable("BACKUP_REREAD_DAYS", "30", "after so many days an unchanged object is read again instead of copied from the last archive; 0: always"),
    Variable("BACKUP_MAX_MB_PER_SECOND", "0", "dump and objects are read no faster than so many million bytes per second; 0: no limit"),
    Variable("BACKUP_NICE", "10", "niceness of a backup: it yields processor and disk to others; 0 to 19"),
    Variable("BACKUP_MAX_HOURS", "6", "a backup that takes longer is ended and counts as failed"),
    Variable("BACKUP_RETENTION_DAYS", "7", "recovery points of so many days are kept, today included"),
    Variable("BACKUP_RETENTION_KEEP_LAST", "3", "so many verified points are kept however old they are"),
    Variable("BACKUP_RETENTION_WEEKS", "0", "keep the last verified point of each of so many weeks"),
    Variable("BACKUP_RETENTION_MONTHS", "0", "keep the last verified point of each of so many months"),
    Variable("BACKUP_MAX_AGE_HOURS", "", "alert when no verified point is younger; by default the schedule's longest gap and two hours"),
    Variable(
        "BACKUP_ALERT_WEBHOOK_URL",
        "",
        "where alerts go: Slack, Discord, Teams, an apprise address, a JSON endpoint; several with spaces",
        is_secret=True,
    ),
    Variable("BACKUP_NAME", "", "name of this installation, in every alert; by default alerts name the machine and the database"),
    Variable("BACKUP_ALERT_EMAIL", "", "who gets alerts by mail, several with commas"),
    Variable("BACKUP_ALERT_ON_SUCCESS", "false", "true for a message after each recovery point"),
    Variable("BACKUP_HEARTBEAT_URL", "", "pinged at start, after verification and on failure, as healthchecks.io expects", is_secret=True),
    Variable("SMTP_HOST", "", "mail server for BACKUP_ALERT_EMAIL"),
    Variable("SMTP_PORT", "587", "its port"),
    Variable("SMTP_USER", "", "its login, where it wants one"),
    Variable("SMTP_PASSWORD", "", "the login's password", is_secret=True),
    Variable("SMTP_FROM", "", "sender of the mails; by default SMTP_USER"),
    Variable("SMTP_SECURITY", "starttls", "starttls, ssl, or insecure for a server on this machine"),
    Variable("DAGSTER_WEBSERVER_URL", "", "address of the Dagster UI, for links in alerts; its host is one that the UI answers to"),
    Variable("BACKUP_UI_HOSTS", "", "further hosts that the Dagster UI answers to, as host or host:port, several with commas"),
    Variable("BACKUP_UI_USER_HEADER", "", "header in which a reverse proxy names the user that it has logged in; needs BACKUP_UI_PROXIES"),
    Variable("BACKUP_UI_PROXIES", "", "IP addresses or networks that BACKUP_UI_USER_HEADER is believed from, several with commas"),
    Variable("BACKUP_UI_PASSWORD", "", "lines of user:hash (argon2) for a login by HTTP Basic; set BACKUP_UI_PASSWORD_FILE", is_secret=True),
    Variable("AUDIT_SCHEDULE", DEFAULT_AUDIT_SCHEDULE, "when to look at the live system, as a cron string in BACKUP_TIMEZONE"),
    Variable("DRILL_SCHEDULE", DEFAULT_DRILL_SCHEDULE, "when to drill a restore, as a cron string in BACKUP_TIMEZONE"),
    Variable("DRILL_MAX_MINUTES", "60", "a drill that takes longer fails its check; at twice as long it is ended"),
    Variable("DRILL_DIR", "", "where a drill's own servers keep their data; by default .drill in BACKUP_DIR"),
    Variable(
        "DRILL_DATABASE_URL",
        "",
        "postgresql://user@host:port/dbname of a server to drill on, where a scratch database is made; by default one is started on this machine",
        is_secret=True,
    ),
    Variable("DRILL_POSTGRES_PASSWORD", "", "password for DRILL_DATABASE_URL", is_secret=True),
    Variable("DRILL_ON_SOURCE_SERVER", "false", "true to allow DRILL_DATABASE_URL to be the server that is backed up"),
    Variable("DRILL_MINIO_ENDPOINT", "", "S3 server to drill on, where a scratch bucket is made; by default one is started on this machine"),
    Variable("DRILL_MINIO_ACCESS_KEY", "", "its access key, which may make and remove buckets"),
    Variable("DRILL_MINIO_SECRET_KEY", "", "its secret key", is_secret=True),
    Variable("DRILL_MINIO_SECURE", "false", "true for https to it"),
    Variable("DRILL_SQL_CHECKS", "", "file of SQL statements that a drill runs; each must return one row with one true"),
    Variable(
        "BACKUP_STALL_TIMEOUT_SECONDS",
        "600",
        "seconds without data after which pg_dump, psql, a session or the S3 server is considered hung; for whole S3 requests, plus size at 5 kB/s",
    ),
)

FILE_SUFFIX = "_FILE"
"""NAME_FILE names a file that holds the value of NAME."""
ENV_FILE_VARIABLE = "BACKUP_ENV_FILE"
"""Names the environment file; the option --env-file does the same. Taken from the process's environment only."""
CERTIFICATES_VARIABLE = "SSL_CERT_FILE"
"""OpenSSL's own: the certificate authorities to trust. Taken from the process's environment only, since other libraries read it there themselves."""
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
"""Variables of libpq that are passed on as they are (PostgreSQL manual, section 34.15): how a connection is secured, never a server or a program."""
NAMES = frozenset({*(variable.name for variable in VARIABLES), *(variable.name + FILE_SUFFIX for variable in VARIABLES), *LIBPQ_VARIABLES})
"""What is taken from an environment file; the application's own variables stay there."""
