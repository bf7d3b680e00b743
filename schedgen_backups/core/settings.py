"""What core needs to know to reach the database and the bucket, to transfer data and to drill, as frozen
values.

Add a field here when core needs it. `schedgen_backups.config` reads the values from the environment. No
parsing, no defaults that depend on the machine, no connections. Secrets are kept out of every `repr`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

DEFAULT_REFERENCE_QUERY = "SELECT s3_key FROM jobs WHERE s3_key IS NOT NULL"
LOOPBACK_HOSTS = frozenset({"", "localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class DatabaseSettings:
    """One PostgreSQL database and how to log in to it."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str
    ssl_mode: str = "prefer"
    """One of libpq's `sslmode` words (PostgreSQL manual, section 34.19)."""
    libpq_variables: tuple[tuple[str, str], ...] = ()
    """Other environment variables of libpq with their values, such as PGSSLROOTCERT (PostgreSQL manual,
    section 34.15)."""

    @property
    def is_local(self) -> bool:
        """Whether the server is reached over loopback or a Unix socket, where TLS protects nothing."""
        return self.host in LOOPBACK_HOSTS or self.host.startswith("/")

    @property
    def label(self) -> str:
        """`user@host:port/database`, without the password, for messages."""
        return f"{self.user}@{self.host}:{self.port}/{self.database}"

    def with_database(self, database: str) -> DatabaseSettings:
        """The same server and login, another database."""
        return replace(self, database=database)


@dataclass(frozen=True)
class BucketSettings:
    """One S3 bucket and the key pair that opens it."""

    endpoint: str
    """`host:port`, without a scheme."""
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    is_secure: bool = False
    region: str = "us-east-1"
    certificates_path: Path | None = None
    """PEM file of the certificate authorities to trust; None for the public ones."""

    @property
    def label(self) -> str:
        """`http(s)://endpoint/bucket`, without the keys, for messages."""
        return f"{'https' if self.is_secure else 'http'}://{self.endpoint}/{self.bucket}"

    def with_bucket(self, bucket: str) -> BucketSettings:
        """The same server and key pair, another bucket."""
        return replace(self, bucket=bucket)


@dataclass(frozen=True)
class TransferSettings:
    """How data is moved: concurrency, rate, time limits, client programs."""

    compression_threads: int = 2
    dump_jobs: int = 1
    """Maximum number of concurrent pg_dumps, where there are several large tables."""
    download_threads: int = 16
    """Maximum number of concurrent object transfers; lowered automatically when more would not be faster."""
    stall_timeout_seconds: int = 600
    """Seconds without data after which pg_dump, psql or the S3 server is considered hung."""
    max_mb_per_second: int = 0
    """Maximum rate of reading dump and objects, in millions of bytes per second; 0 means unlimited."""
    postgres_bin_dir: Path | None = None
    """A directory with pg_dump, psql and pg_dumpall that is searched before any other."""


@dataclass(frozen=True)
class KeyColumns:
    """The columns of one table that hold object keys, or parts of them: read without planning a query."""

    table: str
    """As a query of the database's own would write it."""
    columns: tuple[str, ...]
    """The parts in their order; a row without the last one has a key without it, one without another has
    none."""
    prefix: str = ""
    """What each key begins with."""


SCHEDGEN_KEYS = KeyColumns("jobs", ("s3_key",))


@dataclass(frozen=True)
class References:
    """The query whose rows are the object keys that the database refers to."""

    query: str = DEFAULT_REFERENCE_QUERY
    built_in: KeyColumns | None = SCHEDGEN_KEYS
    """What the query reads where nobody wrote it: then a missing table means "not configured" and not an
    error."""

    @property
    def is_configured(self) -> bool:
        """Whether there is a query at all."""
        return bool(self.query)


@dataclass(frozen=True)
class Exclusions:
    """What the operator leaves out of recovery points, as patterns of `core.patterns`."""

    tables: tuple[str, ...] = ()
    """Tables whose rows are left out; their definitions are not."""
    objects: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptureSettings:
    """How a recovery point is taken."""

    transfer: TransferSettings = field(default_factory=TransferSettings)
    references: References = field(default_factory=References)
    exclusions: Exclusions = field(default_factory=Exclusions)
    is_empty_allowed: bool = False
    is_new_source_allowed: bool = False
    """Whether the database or bucket may have another name than that of the backup directory's newest point."""
    reread_days: int = 30
    """Days for which an unchanged object is copied from the previous archive before it is read from the
    bucket again; 0 means never copied."""


@dataclass(frozen=True)
class CommandSettings:
    """What the operator wants to be run around a backup, each as text for a shell; empty for nothing."""

    before: str = ""
    after: str = ""
    on_failure: str = ""
    timeout_seconds: int = 600
    """How long each may take."""


@dataclass(frozen=True)
class DrillSettings:
    """Where a restore drill restores to, and what it is held to."""

    directory: Path
    """Absolute path of the folder that scratch folders are made in."""
    database: DatabaseSettings | None = None
    """A server, by a database of it, on which a scratch database is made; None for one of our own."""
    is_source_server_allowed: bool = False
    bucket: BucketSettings | None = None
    """A server on which a scratch bucket is made, its bucket's name unused; None for one of our own."""
    max_minutes: int = 60
    sql_checks_path: Path | None = None
    """A file of SQL statements that must each be true; None for none."""
    hidden_paths: tuple[Path, ...] = ()
    """Files and folders that a server of the drill's own has no business with; it does not see them where the
    system lets that be done."""


@dataclass(frozen=True)
class MailSettings:
    """The SMTP server that takes our mail."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    sender: str
    security: str
    """`starttls`, `ssl` or `insecure`."""
