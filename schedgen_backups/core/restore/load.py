"""Loads a prepared dump: in one transaction that is committed last, in several sessions, or piece by piece
where a transaction is impossible.
"""

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
from schedgen_backups.core.restore.new_database import create_database, drop_database
from schedgen_backups.core.restore.parallel_load import SESSION_SETTINGS, ParallelLoad
from schedgen_backups.core.restore.roles import drop_roles, make_roles
from schedgen_backups.core.restore.unprivileged_load import LoadRoles, UnprivilegedLoad
from schedgen_backups.core.units import name_some


class Feeder(Protocol):
    """Runs a dump's segments in their order; on how many connections, and which segment goes to which, is its
    own decision.
    """

    def feed(self, segment: Segment) -> None:
        """Run the segment, or send it on its way."""
        ...

    def settle(self) -> None:
        """Wait until everything that was fed has run."""
        ...

    def commit(self) -> None:
        """Make everything that was fed durable."""
        ...


class TransactionFeeder:
    """Feeds one psql, in one transaction that only `commit` ends: pg_dump's own transactions around large
    objects are left out.
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
        """End the transaction. Without it, psql's end is a rollback: a feeder that is killed commits nothing."""
        self._psql.feed(b"COMMIT;\n")
        self.has_sent_commit = True
        self._psql.finish()


class PlainFeeder:
    """Feeds one psql, each statement its own transaction."""

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
        """End psql: everything is committed already."""
        self._psql.finish()


class Load(Protocol):
    """One way of getting a dump into a database."""

    is_in_doubt: bool
    """Whether nobody knows if it was committed: the connection broke behind the COMMIT."""

    def run(self, before_commit: Callable[[], object]) -> None:
        """Load the dump; `before_commit` returns when it may be committed, and raises when it must not be."""
        ...

    def describe_target(self) -> str:
        """Return what the target holds after an error."""
        ...


class AtomicLoad:
    """Loads in one transaction, whose COMMIT is sent when everything else has succeeded."""

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
        """Load the dump; `before_commit` returns when the transaction may be committed, and raises otherwise."""
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
        """Return what the target holds after an error."""
        database = self._prepared.target.label
        if self.is_in_doubt:
            return (
                f"The connection broke while {database} was being committed: look whether it holds the "
                "restored or the former contents."
            )
        return "The target is as it was."


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
        """Load the dump as soon as `before_commit` has returned."""
        before_commit()
        with _open_psql(self._prepared) as psql:
            self._has_begun = True
            feeder = PlainFeeder(psql, self._beginning)
            _send_dump(self._prepared, feeder, self._stop, self._on_progress)
            feeder.commit()

    def describe_target(self) -> str:
        """Return what the target holds after an error."""
        if not self._has_begun:
            return "The target is as it was."
        return (
            "The load was too large for one transaction: drop the database "
            f"{self._prepared.target.database} before the next try."
        )


class DatabaseLoad:
    """One load of a prepared dump, the missing roles first."""

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
        """Roles that could not be made as they were, and why."""

    @property
    def is_in_doubt(self) -> bool:
        """Whether nobody knows if the load was committed."""
        return self._load.is_in_doubt

    @property
    def uncompared(self) -> str:
        """What of the schema's text cannot be equal to the dump's; empty when all of it can."""
        return self._load.uncompared if isinstance(self._load, UnprivilegedLoad) else ""

    def run(self, before_commit: Callable[[], object] = lambda: None) -> None:
        """Load the dump; nothing else is in the target afterwards if its contents were to be replaced.

        `before_commit` is called when only the commit is left, and by its error rolls the load back.
        RestoreError or VerificationError at the first error or when `stop` is set; `describe_target` says
        then what is in the target.
        """
        self._make_database()
        try:
            with self._prepared.session.use() as connection:
                if not self._replace_contents:
                    # Files were verified since it was looked at, which may have taken hours; a load in
                    # several sessions removes what it finds.
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
        """Return what the target holds after an error, and which roles were made on its server all the same."""
        if self.is_committed:
            return "The target holds the restored database."
        state = self._describe_failed_target()
        return (
            f"{state} The roles {name_some(self.made_roles)} were made on its server and stay."
            if self.made_roles
            else state
        )

    def _describe_failed_target(self) -> str:
        name = self._prepared.target.database
        if self._prepared.maintenance is not None and not self.is_in_doubt:
            if self._has_made_database:
                return (
                    f"The database {name}, which was made for this restore, is still there: drop it "
                    "before the next try."
                )
            return f"There is no database {name}, as before."
        return self._load.describe_target() if self._has_begun else "The target is as it was."

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
        """Only what this restore made, and not while the load may have been committed."""
        maintenance = self._prepared.maintenance
        if maintenance is None or self.is_in_doubt:
            return
        self._prepared.session.close()
        try:
            with maintenance.use() as connection:
                drop_database(connection, self._prepared.target.database)
        except DatabaseError:  # the server is gone: it stays, and is named
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
        # A swap's database gets these last, and is compared with the live one.
        if captured is not None and present is not None and not prepared.is_fresh:
            differences = present.list_differences(captured)
            notes += (
                [f"the database itself is not as it was captured: {', '.join(differences)}"]
                if differences
                else []
            )
        self.notes = tuple(notes)

    def _drop_roles(self) -> None:
        """Only what this restore made, and not while the load may have been committed.

        `made_roles` are then those that stay.
        """
        if not self.made_roles or self.is_in_doubt:
            return
        try:
            with (self._prepared.maintenance or self._prepared.session).use() as connection:
                self.made_roles = drop_roles(connection, self.made_roles)
        except DatabaseError:  # the server is gone: they stay, and are named
            return


def _open_psql(prepared: PreparedDatabase) -> Psql:
    psql = Psql(prepared.client, prepared.target, prepared.facts.session, prepared.transfer)
    psql.feed(SESSION_SETTINGS.encode())
    return psql


def _send_dump(
    prepared: PreparedDatabase, feeder: Feeder, stop: Event, on_progress: Callable[[int], object]
) -> None:
    """Feed the whole dump and wait until it has run; VerificationError when it is not what its index says."""
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
