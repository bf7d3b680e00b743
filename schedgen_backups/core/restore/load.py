"""Load a prepared dump: in one transaction committed last, in several sessions, or without a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event
from typing import Protocol

from schedgen_backups.core.concurrency.serial_worker import SerialWorker
from schedgen_backups.core.errors import DatabaseError, RestoreError, VerificationError
from schedgen_backups.core.formats.dump_sections import LargeObjectFilter, make_loadable
from schedgen_backups.core.formats.dump_text import DumpDigest, Segment, Text, split_dump
from schedgen_backups.core.postgres.database_properties import read_properties
from schedgen_backups.core.postgres.emptiness import count_user_objects
from schedgen_backups.core.postgres.psql import Psql
from schedgen_backups.core.postgres.session import Connection
from schedgen_backups.core.restore.database import REMOVE_EVERYTHING, LoadWay, PreparedDatabase, check_empty
from schedgen_backups.core.restore.load_roles import LoadRoles
from schedgen_backups.core.restore.new_database import create_database, drop_database
from schedgen_backups.core.restore.parallel_load import SESSION_SETTINGS, ParallelLoad
from schedgen_backups.core.restore.roles import drop_roles, make_roles
from schedgen_backups.core.restore.unprivileged_load import UnprivilegedLoad
from schedgen_backups.core.units import name_some


class Feeder(Protocol):
    """Runs a dump's segments in order, on connections of its choice."""

    def feed(self, segment: Segment) -> None:
        """Run the segment, or queue it."""
        ...

    def settle(self) -> None:
        """Wait until everything that was fed has run."""
        ...

    def commit(self) -> None:
        """Commit everything that was fed."""
        ...


class TransactionFeeder:
    """Feeds one psql in one transaction that only `commit` ends.

    pg_dump's own transactions around large objects are left out.
    """

    def __init__(self, psql: Psql, beginning: str) -> None:
        self._psql = psql
        self._large_objects = LargeObjectFilter()
        self.has_sent_commit = False
        psql.feed(f"BEGIN;\n{beginning}".encode())

    def feed(self, segment: Segment) -> None:
        """Send the segment to psql."""
        if isinstance(segment, Text):
            self._psql.feed(self._large_objects.filter_text(segment.data))
        else:
            self._psql.feed(self._large_objects.flush())
            self._psql.feed(segment.data)

    def settle(self) -> None:
        """Wait until psql has run everything."""
        self._psql.feed(self._large_objects.flush())
        self._psql.settle()

    def commit(self) -> None:
        """Commit the transaction. Without it psql's end is a rollback, so a killed feeder commits nothing."""
        self._psql.feed(b"COMMIT;\n")
        self.has_sent_commit = True
        self._psql.finish()


class PlainFeeder:
    """Feeds one psql; each statement is its own transaction."""

    def __init__(self, psql: Psql, beginning: str) -> None:
        self._psql = psql
        psql.feed(beginning.encode())

    def feed(self, segment: Segment) -> None:
        """Send the segment to psql."""
        self._psql.feed(segment.data)

    def settle(self) -> None:
        """Wait until psql has run everything."""
        self._psql.settle()

    def commit(self) -> None:
        """End psql; everything is committed already."""
        self._psql.finish()


class Load(Protocol):
    """A way to load a dump into a database."""

    is_in_doubt: bool
    """Whether it is unknown if the load was committed: the connection broke after COMMIT was sent."""

    def run(self, before_commit: Callable[[], object]) -> None:
        """Load the dump; `before_commit` returns if it may be committed, and raises otherwise."""
        ...

    def describe_target(self) -> str:
        """Return what the target contains after an error."""
        ...


class AtomicLoad:
    """Loads in one transaction, whose COMMIT is sent after everything else has succeeded."""

    def __init__(
        self, prepared: PreparedDatabase, *, beginning: str, stop: Event, on_progress: Callable[[int], object]
    ) -> None:
        self._prepared, self._beginning, self._stop, self._on_progress = (
            prepared,
            beginning,
            stop,
            on_progress,
        )
        self.is_in_doubt = False

    def run(self, before_commit: Callable[[], object]) -> None:
        """Load the dump; `before_commit` returns if it may be committed, and raises otherwise."""
        with _open_psql(self._prepared) as psql:
            feeder = TransactionFeeder(psql, self._beginning)
            _send_dump(self._prepared, feeder, self._stop, self._on_progress)
            with psql.keep_alive():
                before_commit()
            try:
                feeder.commit()
            except BaseException:
                self.is_in_doubt = feeder.has_sent_commit and not psql.is_stopped_by_error
                raise

    def describe_target(self) -> str:
        """Return what the target contains after an error."""
        database = self._prepared.target.label
        if self.is_in_doubt:
            return (
                f"The connection broke while {database} was being committed: check whether it contains the "
                "restored or the previous contents."
            )
        return "The target is unchanged."


class PiecemealLoad:
    """Loads without a transaction, after everything else has succeeded."""

    def __init__(
        self, prepared: PreparedDatabase, *, beginning: str, stop: Event, on_progress: Callable[[int], object]
    ) -> None:
        self._prepared, self._beginning, self._stop, self._on_progress = (
            prepared,
            beginning,
            stop,
            on_progress,
        )
        self._has_begun = False
        self.is_in_doubt = False

    def run(self, before_commit: Callable[[], object]) -> None:
        """Load the dump after `before_commit` has returned."""
        before_commit()
        with _open_psql(self._prepared) as psql:
            self._has_begun = True
            feeder = PlainFeeder(psql, self._beginning)
            _send_dump(self._prepared, feeder, self._stop, self._on_progress)
            feeder.commit()

    def describe_target(self) -> str:
        """Return what the target contains after an error."""
        if not self._has_begun:
            return "The target is unchanged."
        return (
            "The load was too large for one transaction: drop the database "
            f"{self._prepared.target.database} before you try again."
        )


class DatabaseLoad:
    """One load of a prepared dump, after creating the missing roles."""

    def __init__(
        self,
        prepared: PreparedDatabase,
        *,
        replace_contents: bool,
        jobs: int,
        roles: LoadRoles | None,
        stop: Event,
        on_progress: Callable[[int], object],
    ) -> None:
        self._prepared, self._replace_contents, self._roles = prepared, replace_contents, roles
        way = prepared.choose_way(jobs)
        beginning = REMOVE_EVERYTHING if replace_contents else ""
        self._load: Load
        if roles is not None:
            self._load = UnprivilegedLoad(prepared, roles, stop=stop, on_progress=on_progress)
        elif way is LoadWay.SEVERAL_SESSIONS:
            self._load = ParallelLoad(prepared, jobs=jobs, stop=stop, on_progress=on_progress)
        elif way is LoadWay.ONE_TRANSACTION:
            self._load = AtomicLoad(prepared, beginning=beginning, stop=stop, on_progress=on_progress)
        else:
            self._load = PiecemealLoad(prepared, beginning=beginning, stop=stop, on_progress=on_progress)
        self._has_begun = False
        self._has_made_database = False
        self.is_committed = False
        self.made_roles: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        """Roles that could not be created as captured, and why."""

    @property
    def is_in_doubt(self) -> bool:
        """Whether it is unknown if the load was committed."""
        return self._load.is_in_doubt

    @property
    def uncompared(self) -> str:
        """Parts of the schema's text that cannot be equal to the dump's; empty if all can."""
        return self._load.uncompared if isinstance(self._load, UnprivilegedLoad) else ""

    def run(self, before_commit: Callable[[], object] = lambda: None) -> None:
        """Load the dump; if the contents are replaced, the target contains nothing else afterwards.

        `before_commit` is called when only the commit is left; if it raises, the load is rolled back.
        RestoreError or VerificationError at the first error or when `stop` is set; `describe_target` then
        says what the target contains.
        """
        self._make_database()
        try:
            with self._prepared.session.use() as connection:
                if not self._replace_contents:
                    # Verifying the files since the first check may have taken hours, and a load in several
                    # sessions removes what it finds.
                    check_empty(self._prepared.target, count_user_objects(connection))
                if self._roles is None:
                    self._make_roles(connection)
            self._has_begun = True
            self._load.run(before_commit)
        except BaseException:
            self._drop_database()
            self._drop_roles()
            raise
        self.is_committed = True

    def describe_target(self) -> str:
        """Return what the target contains after an error, and which roles were created on its server."""
        if self.is_committed:
            return "The target contains the restored database."
        state = self._describe_failed_target()
        return (
            f"{state} The roles {name_some(self.made_roles)} were created on its server and remain."
            if self.made_roles
            else state
        )

    def _describe_failed_target(self) -> str:
        name = self._prepared.target.database
        if self._prepared.maintenance is not None and not self.is_in_doubt:
            if self._has_made_database:
                return (
                    f"The database {name}, which was created for this restore, still exists: drop it "
                    "before you try again."
                )
            return f"The database {name} does not exist, as before."
        return self._load.describe_target() if self._has_begun else "The target is unchanged."

    def _make_database(self) -> None:
        maintenance, record = self._prepared.maintenance, self._prepared.record
        if maintenance is None:
            return
        with maintenance.use() as connection:
            target = self._prepared.target
            create_database(
                connection, target.database, target, encoding=record.encoding, like=record.properties
            )
        self._has_made_database = True

    def _drop_database(self) -> None:
        """Drop the database if this restore created it, unless the load may have been committed."""
        maintenance = self._prepared.maintenance
        if maintenance is None or self.is_in_doubt:
            return
        self._prepared.session.close()
        try:
            with maintenance.use() as connection:
                drop_database(connection, self._prepared.target.database)
        except DatabaseError:  # the server is unreachable: the database remains and is named
            return
        self._has_made_database = False

    def _make_roles(self, connection: Connection) -> None:
        prepared = self._prepared
        captured = prepared.record.properties
        made = make_roles(
            connection,
            prepared.dump.roles,
            prepared.facts.roles,
            database=prepared.target.database,
            captured=captured,
        )
        self.made_roles = made.names
        notes = list(made.notes)
        present = read_properties(connection, prepared.target.database)
        # A swap sets these last and compares them with the live database's.
        if captured is not None and present is not None and not prepared.is_fresh:
            differences = present.list_differences(captured)
            notes += (
                [f"the database itself differs from what was captured: {', '.join(differences)}"]
                if differences
                else []
            )
        self.notes = tuple(notes)

    def _drop_roles(self) -> None:
        """Drop the roles that this restore created, unless the load may have been committed.

        `made_roles` are then those that remain.
        """
        if not self.made_roles or self.is_in_doubt:
            return
        try:
            with (self._prepared.maintenance or self._prepared.session).use() as connection:
                self.made_roles = drop_roles(connection, self.made_roles)
        except DatabaseError:  # the server is unreachable: the roles remain and are named
            return


def _open_psql(prepared: PreparedDatabase) -> Psql:
    psql = Psql(prepared.client, prepared.target, prepared.facts.session, prepared.transfer)
    psql.feed(SESSION_SETTINGS.encode())
    return psql


def _send_dump(
    prepared: PreparedDatabase, feeder: Feeder, stop: Event, on_progress: Callable[[int], object]
) -> None:
    """Feed the whole dump and wait until it has run; VerificationError if it does not match its index."""
    dump = prepared.dump
    with SerialWorker("digest") as worker, prepared.artifact.name_errors():
        contents = DumpDigest(worker)

        def read_segments() -> Iterator[Segment]:
            for segment in split_dump(dump.read_contents(on_progress=lambda block: on_progress(len(block)))):
                if stop.is_set():
                    raise RestoreError("the restore of the database was stopped")
                contents.add(segment)
                yield segment

        for segment in make_loadable(read_segments()):
            feeder.feed(segment)
        facts = contents.facts()
    if facts.text_sha256 != dump.record.text_sha256 or [table.sha256 for table in facts.tables] != [
        table.sha256 for table in dump.tables
    ]:
        raise VerificationError("the dump changed while it was read")
    feeder.settle()
