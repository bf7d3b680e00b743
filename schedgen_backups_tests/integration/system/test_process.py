"""Running other programs: pipes, silence, exit codes, their output, and that they and their children end.

Programs here are small shell scripts and tools of every Unix; other integration tests cover pg_dump and psql.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from schedgen_backups.core.system.process import (
    PIPE_BYTES,
    Program,
    ProgramError,
    make_environment,
    run_program,
)

PATIENCE_SECONDS = 30


def run_shell(
    script: str, *, stall: float = PATIENCE_SECONDS, stdin: int = subprocess.DEVNULL, **environment: str
) -> Program:
    return Program(["sh", "-c", script], environment=environment, stall_timeout_seconds=stall, stdin=stdin)


def is_running(process_id: int) -> bool:
    return psutil.pid_exists(process_id) and psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE


def assert_ends(process_id: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_running(process_id):
        assert time.monotonic() < deadline, "the process still runs"
        time.sleep(0.01)


def test_output_arrives_unchanged() -> None:
    with run_shell("seq 1 200000") as program:
        output = b"".join(program.read_blocks())
        assert program.wait() == 0
    assert output == b"".join(b"%d\n" % number for number in range(1, 200001))


def test_input_larger_than_a_pipe_arrives_whole() -> None:
    data = os.urandom(1 << 16) * 80
    with run_shell("cat > /dev/null; echo read it all", stdin=subprocess.PIPE) as program:
        program.write(data)
        program.close_stdin()
        assert b"".join(program.read_blocks()) == b"read it all\n"
        assert program.wait() == 0


def test_input_and_output_flow_concurrently(tmp_path: Path) -> None:
    target = tmp_path / "copy"
    data = os.urandom(3 << 20)
    with run_shell(f"cat > {target}", stdin=subprocess.PIPE) as program:
        for start in range(0, len(data), 100_000):
            program.write(data[start : start + 100_000])
        program.close_stdin()
        assert program.wait() == 0
    assert target.read_bytes() == data


@pytest.mark.parametrize("code", [0, 1, 3, 127])
def test_the_exit_code_is_returned(code: int) -> None:
    with run_shell(f"exit {code}") as program:
        assert list(program.read_blocks()) == []
        assert program.wait() == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_is_a_negative_exit_code(number: signal.Signals) -> None:
    with run_shell(f"echo before; kill -{int(number)} $$") as program:
        assert b"".join(program.read_blocks()) == b"before\n"
        assert program.wait() == -number


def test_a_program_that_goes_silent_is_noticed_and_killed() -> None:
    with run_shell("echo first; exec sleep 600", stall=0.3) as program:
        blocks = program.read_blocks()
        assert next(blocks) == b"first\n"
        with pytest.raises(ProgramError, match=r"wrote no data for 0\.3 seconds") as caught:
            next(blocks)
        process_id = program._process.pid
    assert "BACKUP_STALL_TIMEOUT_SECONDS" in caught.value.hint
    assert not is_running(process_id)


def test_a_program_that_reads_nothing_is_noticed() -> None:
    with (
        run_shell("exec sleep 600", stall=0.3, stdin=subprocess.PIPE) as program,
        pytest.raises(ProgramError, match="read no data"),
    ):
        program.write(bytes(3 * PIPE_BYTES))


def test_a_program_that_closes_its_output_and_stays_is_noticed() -> None:
    with run_shell("exec >&- ; exec sleep 600", stall=0.3) as program:
        assert list(program.read_blocks()) == []
        with pytest.raises(ProgramError, match="closed its output but did not end"):
            program.wait()


def test_a_slow_program_that_keeps_writing_is_left_alone() -> None:
    """Its total time exceeds the stall limit, but it is never silent for that time."""
    with run_shell("for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done", stall=0.8) as program:
        assert b"".join(program.read_blocks()).split() == [b"%d" % number for number in range(1, 7)]
        assert program.wait() == 0


@pytest.mark.parametrize(
    "script", ["sleep 1; echo done", "exec >&-; sleep 1"], ids=["before its output", "after its output"]
)
def test_a_silent_program_whose_server_works_is_waited_for(script: str) -> None:
    """Its server is asked again after each silence."""
    asked: list[float] = []

    def is_working() -> bool:
        asked.append(time.monotonic())
        return True

    with Program(
        ["sh", "-c", script], environment={}, stall_timeout_seconds=0.3, is_working=is_working
    ) as program:
        assert b"".join(program.read_blocks()) in {b"done\n", b""}
        assert program.wait() == 0
    assert len(asked) >= 2


def test_a_program_that_reads_nothing_while_its_server_works_is_waited_for() -> None:
    words = ["sh", "-c", "sleep 1; cat >/dev/null"]
    with Program(
        words, environment={}, stall_timeout_seconds=0.3, stdin=subprocess.PIPE, is_working=lambda: True
    ) as program:
        program.write(b"x" * (4 << 20))
        program.close_stdin()
        assert program.wait() == 0


def test_a_silent_program_is_killed_once_its_server_stops_working() -> None:
    answers = iter([True, False])
    words = ["sh", "-c", "exec sleep 600"]
    with (
        Program(
            words, environment={}, stall_timeout_seconds=0.2, is_working=lambda: next(answers)
        ) as program,
        pytest.raises(ProgramError, match="wrote no data"),
    ):
        list(program.read_blocks())
    assert list(answers) == []


def test_writing_to_a_program_that_ended_is_an_error() -> None:
    with run_shell("exit 3", stdin=subprocess.PIPE) as program:
        assert program.wait() == 3
        with pytest.raises(ProgramError, match="ended before it had read everything"):
            program.write(b"data")


def test_the_last_fifty_lines_of_stderr_are_kept() -> None:
    with run_shell("seq 1 1000 >&2") as program:
        assert list(program.read_blocks()) == []
        assert program.wait() == 0
        assert program.stderr_tail.split() == [str(number) for number in range(951, 1001)]


def test_a_flood_on_stderr_blocks_nothing_and_fills_no_memory() -> None:
    with run_shell("yes 'a warning of some length' | head -c 20000000 >&2; echo done") as program:
        assert b"".join(program.read_blocks()) == b"done\n"
        assert program.wait() == 0
        assert len(program.stderr_tail) < 10_000


def test_stderr_without_a_newline_is_bounded() -> None:
    with run_shell("head -c 30000000 /dev/zero | tr '\\0' 'x' >&2; echo done") as program:
        assert b"".join(program.read_blocks()) == b"done\n"
        assert program.wait() == 0
        assert len(program.stderr_tail) < 1 << 20


def test_invalid_utf8_on_stderr_is_reported() -> None:
    with run_shell(r"printf '\377\376 wrong\n' >&2; exit 1") as program:
        assert list(program.read_blocks()) == []
        assert program.wait() == 1
        assert program.stderr_tail.endswith("wrong")


def test_leaving_the_block_ends_the_program_and_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "child"
    with run_shell(f"sleep 600 & echo $! > {pid_file}; echo started; wait") as program:
        assert next(program.read_blocks()) == b"started\n"
        parent, child = program._process.pid, int(pid_file.read_text())
        assert is_running(child)
    assert not is_running(parent)
    assert_ends(child)


def test_a_child_that_outlives_its_parent_is_killed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_END_GRACE_SECONDS", "_ORPHAN_GRACE_SECONDS"):
        monkeypatch.setattr(f"schedgen_backups.core.system.process.{name}", 0.3)
    pid_file = tmp_path / "child"
    with run_shell(f"sleep 600 & echo $! > {pid_file}; echo started; exit 1") as program:
        assert next(program.read_blocks()) == b"started\n"
        assert program.wait() == 1
        child = int(pid_file.read_text())
    assert_ends(child)


def test_a_program_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schedgen_backups.core.system.process._END_GRACE_SECONDS", 0.3)
    with run_shell("trap '' TERM; echo started; while :; do sleep 1; done") as program:
        assert next(program.read_blocks()) == b"started\n"
        process_id = program._process.pid
    assert not is_running(process_id)


def test_an_error_in_the_block_ends_the_program() -> None:
    with pytest.raises(RuntimeError), run_shell("exec sleep 600") as program:  # noqa: PT012 - the error is ours
        process_id = program._process.pid
        raise RuntimeError
    assert not is_running(process_id)


def test_a_missing_program_is_reported() -> None:
    with pytest.raises(ProgramError, match="no-such-program could not be started"):
        Program(["/nowhere/no-such-program"], environment={}, stall_timeout_seconds=1)
    with pytest.raises(ProgramError, match="no-such-program could not be started"):
        run_program(["/nowhere/no-such-program"], environment={}, timeout_seconds=1)


def test_a_completed_program_returns_code_output_and_errors() -> None:
    code, output, stderr = run_program(
        ["sh", "-c", "echo ä; echo bad >&2; exit 4"], environment={}, timeout_seconds=PATIENCE_SECONDS
    )
    assert (code, output, stderr) == (4, "ä\n", "bad\n")


def test_a_program_that_takes_too_long_is_reported() -> None:
    with pytest.raises(ProgramError, match=r"sh did not end within 0\.2 seconds"):
        run_program(["sh", "-c", "exec sleep 600"], environment={}, timeout_seconds=0.2)


def test_no_secret_of_ours_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "MINIO_SECRET_KEY",
        "POSTGRES_PASSWORD",
        "PGPASSWORD",
        "BACKUP_ALERT_WEBHOOK_URL",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSFILE",
    ):
        monkeypatch.setenv(name, "canary-7d1f")
    monkeypatch.setenv("PGSSLROOTCERT", "/etc/ca.pem")
    _code, output, _stderr = run_program(
        ["env"], environment={"PGUSER": "backup"}, timeout_seconds=PATIENCE_SECONDS
    )
    assert "canary" not in output
    assert {"PGUSER=backup", "PGSSLROOTCERT=/etc/ca.pem", "LC_ALL=C"} <= set(output.splitlines())
    with run_shell("env") as program:
        assert b"canary" not in b"".join(program.read_blocks())


def test_given_variables_override_inherited_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "disable")
    assert make_environment({"PGSSLMODE": "verify-full"})["PGSSLMODE"] == "verify-full"
    assert make_environment({})["PATH"] == os.environ["PATH"]


def test_no_secret_is_in_the_process_list() -> None:
    """The password is passed in the environment; a process list shows arguments only."""
    with run_shell("exec sleep 600", PGPASSWORD="canary-7d1f") as program:
        assert "canary" not in " ".join(psutil.Process(program._process.pid).cmdline())


def test_a_child_program_gets_no_signal_sent_to_us() -> None:
    """Ctrl-C in the terminal reaches only us; we stop the program in order."""
    with run_shell("exec sleep 600") as program:
        assert os.getpgid(program._process.pid) != os.getpgid(0)
