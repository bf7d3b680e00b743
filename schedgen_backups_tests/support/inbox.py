"""An inbox that accepts messages by HTTP, and sensors evaluated as the daemon does it.

The HTTP server is that of `alerts`; sites and runs are in `sites`. Add what two test files of alerts need.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from http import HTTPStatus

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster_shared.error import SerializableErrorInfo

from schedgen_backups.definitions import defs
from schedgen_backups_tests.support.alerts import Answer, RecordingServer, recording_server

CANARY = "wrong-canary-4711"
PATH_CANARY = "path-canary-0815"
_GOOD_NEWS = "[INFO] Backups work again"


class Inbox:
    """All delivered messages."""

    def __init__(self, server: RecordingServer) -> None:
        self._server = server
        self.url = server.url(f"/alerts/{PATH_CANARY}")

    @property
    def texts(self) -> list[str]:
        """Return every message, including refused ones."""
        return [str(received.json["text"]) for received in self._server.received]

    @property
    def recoveries(self) -> list[str]:
        """Return the messages that something is resolved."""
        return [text for text in self.texts if text.startswith(_GOOD_NEWS)]

    @property
    def alerts(self) -> list[str]:
        """Return every other message."""
        return [text for text in self.texts if not text.startswith(_GOOD_NEWS)]

    @property
    def bodies(self) -> bytes:
        """Return everything ever sent, as bytes."""
        return b"\n".join(received.body for received in self._server.received)

    def go_down(self) -> None:
        """Refuse every message from now on."""
        self._server.default = Answer(HTTPStatus.FORBIDDEN)

    def take_only(self, number: int) -> None:
        """Accept this many more messages, and refuse the others."""
        self._server.answers = [Answer()] * number
        self.go_down()

    def answer_slowly(self, *, seconds_per_byte: float) -> None:
        """Accept every message from now on, taking this many seconds for each of the answer's two bytes."""
        self._server.default = Answer(seconds_per_byte=seconds_per_byte)

    def come_up(self) -> None:
        """Accept messages again, and forget those that were refused."""
        self._server.received.clear()
        self._server.default = Answer()


@contextmanager
def open_inbox() -> Generator[Inbox, None, None]:
    """Yield an inbox for the block."""
    with recording_server() as server:
        yield Inbox(server)


class Watcher:
    """Evaluates a sensor again and again, and keeps its cursor."""

    def __init__(
        self,
        sensor: str,
        instance: dg.DagsterInstance,
        cursor: str | None = None,
        definitions: dg.Definitions = defs,
    ) -> None:
        self._sensor = definitions.resolve_sensor_def(sensor)
        self._instance = instance
        self.cursor = cursor

    def evaluate(self, times: int = 1) -> str:
        """Evaluate the sensor; return its last reason for requesting no run."""
        reason = ""
        for _ in range(times):
            with dg.build_sensor_context(instance=self._instance, cursor=self.cursor) as context:
                answer = self._sensor(context)
                assert isinstance(answer, dg.SkipReason)
                reason = answer.skip_message or ""
                self.cursor = context.cursor
        return reason


class Ticks:
    """Ticks of one schedule, written into the instance as the daemon writes them."""

    def __init__(self, instance: dg.DagsterInstance, name: str) -> None:
        self._instance = instance
        location = InProcessCodeLocationOrigin(
            LoadableTargetOrigin(module_name="schedgen_backups.definitions")
        )
        origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
        self._state = instance.add_instigator_state(
            InstigatorState(
                origin,
                InstigatorType.SCHEDULE,
                InstigatorStatus.DECLARED_IN_CODE,
                ScheduleInstigatorData("0 2 * * *"),
            )
        )

    def add(
        self,
        status: TickStatus,
        *,
        reason: str = "",
        seconds_ago: float = 0.0,
        run_ids: Sequence[str] = (),
    ) -> None:
        """Add a tick that ended this long ago with this status, and the reason of a skip or an error."""
        is_skipped = status is TickStatus.SKIPPED
        self._instance.create_tick(
            TickData(
                self._state.instigator_origin_id,
                self._state.instigator_name,
                InstigatorType.SCHEDULE,
                status,
                time.time() - seconds_ago,
                run_ids=list(run_ids) if status is TickStatus.SUCCESS else None,
                error=SerializableErrorInfo(reason, [], "ValueError") if reason and not is_skipped else None,
                skip_reason=reason if is_skipped else None,
                selector_id=self._state.selector_id,
            )
        )
