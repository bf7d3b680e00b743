"""Dagster's webserver behind the gate. Only this module uses private names of dagster-webserver.

Dagster 1.13's webserver is a Starlette application that can be wrapped.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType

import dagster as dg
import uvicorn
from starlette.types import ASGIApp

from schedgen_backups.config.ui import UiSettings
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.ui.gate import Gate
from schedgen_backups.ui.processes import DEFINITIONS_MODULE

SUPPORTED_VERSION = "1.13."
_STATEMENT_TIMEOUT_MILLISECONDS = 15_000
_POOL_RECYCLE_SECONDS = 3600
_POOL_OVERFLOW = 20
"""These three are the defaults of `dagster-webserver` 1.13 (dagster_webserver/cli.py)."""


def run_webserver(settings: UiSettings, host: str, port: int, workspace: Path | None) -> None:
    """Serve the UI behind the gate until the process is stopped.

    The code locations are those of the workspace file, by default this package.
    """
    check_version()
    # uvicorn stops and then sends itself the signal again: the default handler would end this process before
    # its code servers.
    signal.signal(signal.SIGTERM, _exit)
    try:
        from dagster._core.workspace.context import WorkspaceProcessContext  # noqa: PLC0415 - a private name, and its absence is explained
        from dagster._core.workspace.load_target import ModuleTarget, WorkspaceFileTarget  # noqa: PLC0415
        from dagster_webserver.app import (  # noqa: PLC0415
            create_app_from_workspace_process_context,  # pyright: ignore[reportUnknownVariableType]
        )
        from dagster_webserver.version import __version__  # noqa: PLC0415
    except ImportError as error:
        raise _make_version_error(str(error)) from error
    target = (
        WorkspaceFileTarget([str(workspace)])
        if workspace is not None
        else ModuleTarget(DEFINITIONS_MODULE, None, None, None)
    )
    with dg.DagsterInstance.get() as instance:
        instance.optimize_for_webserver(
            _STATEMENT_TIMEOUT_MILLISECONDS, _POOL_RECYCLE_SECONDS, _POOL_OVERFLOW
        )
        with WorkspaceProcessContext(instance, workspace_load_target=target, version=__version__) as context:
            app = create_app_from_workspace_process_context(context, "", lifespan=_lifespan)
            # Use the peer's real address: a client that can set another one could pose as the login proxy.
            uvicorn.run(Gate(app, settings), host=host, port=port, log_level="warning", proxy_headers=False)


def check_version() -> None:
    """Raise ConfigurationError if the gate was not tested with the installed version of Dagster."""
    if not dg.__version__.startswith(SUPPORTED_VERSION):
        raise _make_version_error(f"version {dg.__version__}")


def _make_version_error(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"the gate in front of the Dagster UI does not support this Dagster: {reason}",
        hint=f"Install Dagster {SUPPORTED_VERSION}x (locks/host.txt). The UI must not be served without "
        "the gate.",
    )


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


@asynccontextmanager
async def _lifespan(_app: ASGIApp) -> AsyncGenerator[None]:
    # uvicorn cancels the lifespan when it is stopped by a signal.
    try:
        yield
    except asyncio.CancelledError:
        return
