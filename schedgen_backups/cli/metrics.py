"""The command `metrics`: print the metrics, or serve them to Prometheus."""

from __future__ import annotations

import re
import signal
import threading
from typing import Annotated

import typer

from schedgen_backups.cli.app import app, err
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.config.sites import load_site, load_sites
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.metrics.exposition import render_metrics, serve_metrics
from schedgen_backups.core.metrics.samples import Sample
from schedgen_backups.evidence.metrics import measure_sites

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})")
_LAST_PORT = 65535


@app.command()
def metrics(
    context: typer.Context,
    *,
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve them at http://HOST:PORT/metrics until Ctrl-C, such as 127.0.0.1:9854. It needs no "
            "login: do not listen on a public address.",
        ),
    ] = "",
) -> None:
    """Print the metrics of every site in the format of Prometheus (docs/reference/metrics.md)."""
    named = context.find_object(Config)
    name = named.site_name if named is not None else ""

    def measure_now() -> dict[str, tuple[Sample, ...]]:
        return measure_sites((load_site(name),) if name else load_sites())

    if not listen:
        typer.echo(render_metrics(measure_now()).decode(), nl=False)
        return
    host, port = _parse_address(listen)
    try:
        end = serve_metrics(measure_now, host, port)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {listen}: {error.strerror or error}", hint="Use another address or port."
        ) from error
    err.print(escape(f"metrics at http://{listen}/metrics; Ctrl-C ends"))
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: ended.set())
    ended.wait()
    end()


def _parse_address(text: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found["port"]) <= _LAST_PORT:
        raise ConfigurationError(
            f"--listen {text} is not an address", hint="Write HOST:PORT, such as 127.0.0.1:9854."
        )
    return found["host"].strip("[]"), int(found["port"])
