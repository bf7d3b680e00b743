"""Run external programs: no secrets in arguments, minimal environment, end of stderr kept, stalls detected.

Core starts every program here, so that all get the same treatment: errors of both pipe ends are checked, a
hung program is ended, and a program that is no longer needed is ended with its children. The callers
interpret the output.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from schedgen_backups.core.errors import BackupError

PIPE_BYTES = 1 << 20
"""Largest pipe that an unprivileged process may request on Linux (/proc/sys/fs/pipe-max-size)."""
_FILL_SECONDS = 0.002
"""Pause that lets a nearly empty pipe fill: pg_dump writes 4 KiB at a time, and every read costs both
programs (2026-11-25: 1 GB took 37,000 reads without this pause and 5,000 with it)."""
_STDERR_LINES = 50
_STDERR_BYTES = 64 * 1024
_END_GRACE_SECONDS = 5
_ORPHAN_GRACE_SECONDS = 1
_INHERITED_NAMES = frozenset(
    {"PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "PERL5LIB", "SYSTEMROOT", "USER", "LOGNAME"}
)
_INHERITED_PREFIXES = (
    "PGSSL",
    "PGREQUIRE",
    "PGCHANNEL",
    "PGGSS",
    "PGKRB",
    "PGCONNECT",
    "PGTARGET",
    "PGLOCALEDIR",
    "SSL_",
    "KRB5",
)


class ProgramError(BackupError):
    """A program could not be started, failed, or hung.

    Callers convert it into an error of their own package.
    """


def make_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return a program's environment: `extra` and the variables needed to run and to use TLS.

    It contains no secrets of ours other than those in `extra`.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED_NAMES or name.startswith(_INHERITED_PREFIXES)
    }
    return {**inherited, "LC_ALL": "C", **extra}


class Program:
    """A running program with its pipes; it has ended when the `with` block is left.

    `stall_timeout_seconds` limits the time without a byte in either direction. After it, the waiting thread
    calls `is_working`; while that returns True, for example because the server works for the program, the
    program may be silent for the same time again.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        stall_timeout_seconds: float,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        is_working: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = Path(arguments[0]).name
        self._is_working = is_working
        self._stall_timeout_seconds = stall_timeout_seconds
        self._stderr_end = b""
        with _defer_interrupts(on_interrupt=self.end):
            self._start(arguments, environment, stdin=stdin, stdout=stdout)

    def _start(
        self, arguments: Sequence[str | Path], environment: Mapping[str, str], *, stdin: int, stdout: int
    ) -> None:
        try:
            self._process = subprocess.Popen(
                [str(argument) for argument in arguments],
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                env=make_environment(environment),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise ProgramError(f"{self.name} could not be started: {error}") from error
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # A smaller pipe is only slower.
                    fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        assert self._process.stderr is not None  # noqa: S101 - a PIPE was asked for
        self._stderr_reader = threading.Thread(
            target=self._keep_stderr, args=(self._process.stderr,), daemon=True
        )
        self._stderr_reader.start()

    @property
    def stderr_tail(self) -> str:
        """The last fifty lines of stderr."""
        return "\n".join(self._stderr_end.decode("utf-8", "replace").strip().split("\n")[-_STDERR_LINES:])

    def read_blocks(self) -> Iterator[bytes]:
        """Yield the program's output in blocks, one or two megabytes each if there is much.

        ProgramError if the program hangs.
        """
        assert self._process.stdout is not None  # noqa: S101
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
        pieces: list[bytes] = []
        size_bytes = 0
        is_open = True
        while is_open:
            has_more = bool(poll.poll(0 if size_bytes else self._stall_timeout_seconds * 1000))
            if not has_more and not size_bytes:
                if self._is_working():
                    continue
                raise ProgramError(
                    f"{self.name} wrote no data for {self._stall_timeout_seconds:g} seconds and was ended",
                    hint="Look for a lock or an overloaded server; BACKUP_STALL_TIMEOUT_SECONDS sets how "
                    "long to wait.",
                )
            piece = os.read(descriptor, PIPE_BYTES) if has_more else b""
            is_open = bool(piece) or not has_more
            pieces.append(piece)
            size_bytes += len(piece)
            if size_bytes >= PIPE_BYTES or (size_bytes and not piece):
                yield b"".join(pieces)
                pieces.clear()
                size_bytes = 0
            if len(piece) < PIPE_BYTES // 4 and is_open:
                time.sleep(_FILL_SECONDS)

    def write(self, data: bytes) -> None:
        """Write `data` to the program's stdin. ProgramError if it ended or hangs."""
        assert self._process.stdin is not None  # noqa: S101
        descriptor = self._process.stdin.fileno()
        os.set_blocking(descriptor, False)
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        view = memoryview(data)
        while view:
            if not poll.poll(self._stall_timeout_seconds * 1000):
                if self._is_working():
                    continue
                raise ProgramError(
                    f"{self.name} read no data for {self._stall_timeout_seconds:g} seconds and was ended",
                    hint="Look for a lock or an overloaded server; BACKUP_STALL_TIMEOUT_SECONDS sets how "
                    "long to wait.",
                )
            try:
                written = os.write(descriptor, view)
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise ProgramError(f"{self.name} ended before it had read everything") from error
            view = view[written:]

    def close_stdin(self) -> None:
        """Close the program's input."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def wait(self) -> int:
        """Wait for the program; return the exit code, negative for a signal.

        ProgramError if it does not end in time after closing its output.
        """
        while True:
            try:
                code = self._process.wait(timeout=self._stall_timeout_seconds)
                break
            except subprocess.TimeoutExpired as error:
                if not self._is_working():
                    raise ProgramError(f"{self.name} closed its output but did not end") from error
        self._stderr_reader.join(timeout=_END_GRACE_SECONDS)
        return code

    def stop(self) -> None:
        """Ask the program to end, from any thread; a reader sees the end of its output."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def end(self) -> None:
        """End the program and its children if they still run; return when they are gone."""
        if self._process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                try:
                    self._process.wait(timeout=_END_GRACE_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # Unread input no longer matters.
                    pipe.close()
        self._stderr_reader.join(timeout=_ORPHAN_GRACE_SECONDS)
        if self._stderr_reader.is_alive():  # The program has ended, but a child still holds our pipe.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._stderr_reader.join(timeout=_END_GRACE_SECONDS)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _keep_stderr(self, pipe: IO[bytes]) -> None:
        with pipe:
            while block := pipe.read(_STDERR_BYTES):
                self._stderr_end = (self._stderr_end + block)[-_STDERR_BYTES:]


def run_program(
    arguments: Sequence[str | Path], *, environment: Mapping[str, str], timeout_seconds: float
) -> tuple[int, str, str]:
    """Run a program to its end; return exit code, stdout and stderr as text.

    ProgramError if it cannot start or exceeds the timeout.
    """
    name = Path(arguments[0]).name
    try:
        finished = subprocess.run(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=make_environment(environment),
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramError(f"{name} did not end within {timeout_seconds:g} seconds") from error
    except OSError as error:
        raise ProgramError(f"{name} could not be started: {error}") from error
    return (
        finished.returncode,
        finished.stdout.decode("utf-8", "replace"),
        finished.stderr.decode("utf-8", "replace"),
    )


@contextlib.contextmanager
def _defer_interrupts(on_interrupt: Callable[[], object]) -> Generator[None, None, None]:
    """Delay SIGINT and SIGTERM until the block ends, so that no started program is left without an owner.

    If a signal arrived, `on_interrupt` is called before the signal's own handler. Only the main thread
    receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    is_started = False
    try:
        yield
        is_started = True
    finally:
        if received and is_started:
            on_interrupt()
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)
