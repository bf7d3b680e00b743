"""Commands as separate processes, forked from a loaded one to save four seconds of imports each.

A command has its own environment, folder, output and exit code, and ends as any process does. Tests of the
interpreter's start or of signals use `Site.start_cli`. Run as a module, this file is the loaded process.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
PROJECT = Path(__file__).resolve().parents[2]


class CommandServer:
    """A loaded process that runs command lines one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = Lock()

    def run(
        self, arguments: tuple[str, ...], folder: Path, environment: Mapping[str, str]
    ) -> tuple[int, str, str]:
        """Run the command; return the exit code, as `subprocess` has it, stdout and stderr."""
        with TemporaryDirectory(prefix="command-") as outputs, self._lock:
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None
            assert stdout is not None
            request = {
                "arguments": arguments,
                "folder": str(folder),
                "environment": dict(environment),
                "outputs": outputs,
            }
            stdin.write(f"{json.dumps(request)}\n")
            stdin.flush()
            code = int(stdout.readline())
            printed, errors = (
                Path(outputs, name).read_text(encoding="utf-8") for name in ("stdout", "stderr")
            )
        return code, printed, errors

    def stop(self) -> None:
        """Stop the loaded process."""
        self._process.communicate()


@cache
def open_command_server() -> CommandServer:
    """Return the server of this process, which ends with it."""
    server = CommandServer()
    atexit.register(server.stop)
    return server


def _serve() -> bool:
    """Fork for each request.

    Return True in a child, which is set up as the request says, and False when there are no more requests.
    """
    replies = os.fdopen(os.dup(1), "w")
    # Output of the loaded process must not look like a reply.
    os.dup2(2, 1)
    while line := sys.stdin.buffer.readline():
        child = os.fork()
        if child == 0:
            replies.close()
            _become(json.loads(line))
            return True
        _pid, status = os.waitpid(child, 0)
        replies.write(f"{os.waitstatus_to_exitcode(status)}\n")
        replies.flush()
    return False


def _become(request: dict[str, object]) -> None:
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    os.chdir(str(request["folder"]))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        opened = os.open(Path(str(request["outputs"]), name), os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.close(nothing)
    sys.argv[1:] = list(request["arguments"])  # type: ignore[call-overload]


def _load() -> None:
    """Load what any command needs; the first run loads much of Dagster."""
    import dagster as dg  # noqa: PLC0415 - tests that start no command do not wait for it
    from dagster._core.instance.ref import InstanceRef  # noqa: PLC0415

    from schedgen_backups.cli.app import COMMAND_MODULES  # noqa: PLC0415
    from schedgen_backups.config.config import load_config  # noqa: PLC0415
    from schedgen_backups.defs.site import build_site_definitions  # noqa: PLC0415
    from schedgen_backups.runs import in_process  # noqa: PLC0415

    for module in COMMAND_MODULES.values():
        import_module(f"schedgen_backups.{module}")
    assert in_process.__name__ in sys.modules
    build_site_definitions(load_config()).resolve_job_def("backup_job")

    @dg.op
    def nothing() -> None: ...

    @dg.job
    def empty_job() -> None:
        nothing()

    with TemporaryDirectory() as home, dg.DagsterInstance.from_ref(InstanceRef.from_dir(home)) as instance:
        assert empty_job.execute_in_process(instance=instance, run_config=QUIET).success
    assert threading.active_count() == 1, "a fork has one thread only"
    gc.freeze()


if __name__ == "__main__":
    _load()
    if _serve():
        from schedgen_backups.cli.main import main

        main()
