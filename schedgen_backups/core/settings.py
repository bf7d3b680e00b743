"""Settings of core as frozen values: database, bucket, transfer, capture, drill and mail.

Add a field here when core needs it; `schedgen_backups.config` reads the values from the environment. No
parsing, no machine-dependent defaults and no connections here. Secrets are left out of every `repr`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Literal

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
    """One of libpq's `sslmode` values (PostgreSQL manual, section 34.19)."""
    libpq_variables: tuple[tuple[str, str], ...] = ()
    """Other environment variables of libpq with their values, for example PGSSLROOTCERT (PostgreSQL manual,
    section 34.15)."""

    @property
    def is_local(self) -> bool:
        """Whether the server is reached over loopback or a Unix socket, where TLS adds no protection."""
        return self.host in LOOPBACK_HOSTS or self.host.startswith("/")

    @property
    def label(self) -> str:
        """`user@host:port/database` for messages, without the password."""
        return f"{self.user}@{self.host}:{self.port}/{self.database}"

    def with_database(self, database: str) -> DatabaseSettings:
        """Return the settings for another database on the same server with the same login."""
        return replace(self, database=database)


@dataclass(frozen=True)
class BucketSettings:
    """One S3 bucket and its key pair."""

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
        """`http(s)://endpoint/bucket` for messages, without the keys."""
        return f"{'https' if self.is_secure else 'http'}://{self.endpoint}/{self.bucket}"

    def with_bucket(self, bucket: str) -> BucketSettings:
        """Return the settings for another bucket on the same server with the same key pair."""
        return replace(self, bucket=bucket)


@dataclass(frozen=True)
class TransferSettings:
    """How data is moved: concurrency, rate, time limits, client programs."""

    compression_threads: int = 2
    dump_jobs: int = 1
    """Maximum number of concurrent pg_dumps when there are several large tables."""
    download_threads: int = 16
    """Maximum number of concurrent object transfers; lowered automatically when more would not be faster."""
    stall_timeout_seconds: int = 600
    """Seconds without data after which pg_dump, psql or the S3 server is considered hung."""
    max_mb_per_second: int = 0
    """Maximum rate of reading dump and objects, in millions of bytes per second; 0 means unlimited."""
    postgres_bin_dir: Path | None = None
    """Directory with pg_dump, psql and pg_dumpall that is searched first."""


@dataclass(frozen=True)
class KeyColumns:
    """Columns of one table that hold object keys or parts of them; read without planning a query."""

    table: str
    """Written as in a query on that database."""
    columns: tuple[str, ...]
    """The parts in order. When the last one is null, the key ends before it; when another one is null, the
    row has no key."""
    prefix: str = ""
    """Prefix of every key."""


SCHEDGEN_KEYS = KeyColumns("jobs", ("s3_key",))


@dataclass(frozen=True)
class References:
    """The query that returns the object keys to which the database refers."""

    query: str = DEFAULT_REFERENCE_QUERY
    built_in: KeyColumns | None = SCHEDGEN_KEYS
    """What the default query reads; None for a query of the operator. With it, a missing table means "not
    configured" instead of an error."""

    @property
    def is_configured(self) -> bool:
        """Whether there is a query."""
        return bool(self.query)


@dataclass(frozen=True)
class Exclusions:
    """What the operator excludes from recovery points, as patterns of `core.patterns`."""

    tables: tuple[str, ...] = ()
    """Tables whose rows are excluded; their definitions are kept."""
    objects: tuple[str, ...] = ()


class Layout(str, Enum):
    """How the artifacts of new recovery points lie in the backup directory."""

    FILES = "files"
    """Each is a file that stock tools open."""
    PACKS = "packs"
    """Each is a recipe; what is new in it lies in packs, which points share."""


@dataclass(frozen=True)
class CaptureSettings:
    """How a recovery point is taken."""

    transfer: TransferSettings = field(default_factory=TransferSettings)
    references: References = field(default_factory=References)
    exclusions: Exclusions = field(default_factory=Exclusions)
    is_empty_allowed: bool = False
    is_new_source_allowed: bool = False
    """Whether the name of the database or bucket may differ from that in the directory's newest point."""
    layout: Layout = Layout.FILES
    pack_reread_days: int = 30
    """Days within which each pack is read again."""
    pack_recipients: tuple[str, ...] = ()
    """Public keys for which new packs are encrypted; without any, they are not."""
    reread_days: int = 30
    """Days for which an unchanged object is copied from the previous archive before it is read from the
    bucket again; 0 means never copied."""


@dataclass(frozen=True)
class DatabaseSource:
    """A database of a site, and its name in recovery points."""

    name: str
    settings: DatabaseSettings
    capture: CaptureSettings
    """With the references and exclusions of this database."""


@dataclass(frozen=True)
class BucketSource:
    """A bucket of a site, and its name in recovery points."""

    name: str
    settings: BucketSettings
    capture: CaptureSettings
    """With the exclusions of this bucket."""


@dataclass(frozen=True)
class CommandSettings:
    """Shell commands that the operator wants run around a backup; empty for none."""

    before: str = ""
    after: str = ""
    on_failure: str = ""
    timeout_seconds: int = 600
    """Maximum duration of each command."""


@dataclass(frozen=True)
class DrillObjects:
    """Which objects a drill restores."""

    kind: Literal["all", "sample", "referenced"] = "all"
    """`sample`: of all objects; `referenced`: of those that the database refers to."""
    sample_count: int = 0
    """Number of objects of a sample."""


@dataclass(frozen=True)
class DrillSettings:
    """Where a restore drill restores to, and its limits."""

    directory: Path
    """Absolute path of the directory in which scratch directories are created."""
    database: DatabaseSettings | None = None
    """A database of the server on which a scratch database is created; None to start a temporary server."""
    is_source_server_allowed: bool = False
    bucket: BucketSettings | None = None
    """Server on which a scratch bucket is created (its bucket name is unused); None to start a temporary
    server."""
    max_minutes: int = 60
    objects: DrillObjects = field(default_factory=DrillObjects)
    sql_checks_path: Path | None = None
    """File of SQL statements that must each return true; None for none."""
    hidden_paths: tuple[Path, ...] = ()
    """Files and directories that a temporary server of the drill must not access; hidden from it where the
    system allows that."""


@dataclass(frozen=True)
class MailSettings:
    """The SMTP server that accepts outgoing mail."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    sender: str
    security: str
    """`starttls`, `ssl` or `insecure`."""
