"""The command `metrics`: print the metrics, or serve them to Prometheus."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from schedgen_backups.alerts.metrics import make_exposition
from schedgen_backups.cli.app import app, err, get_config
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.core.errors import ConfigurationError

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
    """Print the metrics of this site in the format of Prometheus (docs/reference/metrics.md)."""
    config = get_config(context)
    if not listen:
        typer.echo(make_exposition(config).decode(), nl=False)
        return
    host, port = _parse_address(listen)
    registry = CollectorRegistry()
    registry.register(_SiteCollector(config))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {listen}: {error.strerror or error}", hint="Use another address or port."
        ) from error
    err.print(escape(f"metrics at http://{listen}/metrics; Ctrl-C ends"))
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: ended.set())
    ended.wait()
    server.shutdown()
    thread.join()


class _SiteCollector(Collector):
    """Reads settings and backup directory at each scrape; an error fails the scrape, which a rule reports."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def describe(self) -> list[Metric]:
        """Describe nothing: registering must not compute anything."""
        return []

    def collect(self) -> Iterator[Metric]:
        text = make_exposition(self._config.reload()).decode()
        yield from text_string_to_metric_families(text)


def _parse_address(text: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found["port"]) <= _LAST_PORT:
        raise ConfigurationError(
            f"--listen {text} is not an address", hint="Write HOST:PORT, such as 127.0.0.1:9854."
        )
    return found["host"].strip("[]"), int(found["port"])
