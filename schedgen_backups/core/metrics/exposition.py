"""The text of metrics, as Prometheus and the textfile collector of node_exporter read it.

The only module that knows prometheus_client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from schedgen_backups.core.metrics.families import FAMILIES, SITE_LABEL
from schedgen_backups.core.metrics.samples import Sample

Measure = Callable[[], Mapping[str, Sequence[Sample]]]
"""Returns the samples by the name of their site."""


class _Collector(Collector):
    """Measures at each scrape; an error fails the scrape, which an alarm reports."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def describe(self) -> list[GaugeMetricFamily]:
        """Describe nothing: registering must not measure anything."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = self._measure()
        for family in FAMILIES:
            gauge = GaugeMetricFamily(family.full_name, family.meaning, labels=(SITE_LABEL, *family.labels))
            for site, samples in found.items():
                for sample in samples:
                    if sample.family is family:
                        gauge.add_metric((site, *sample.labels), sample.value)
            if gauge.samples:
                yield gauge


def render_metrics(samples: Mapping[str, Sequence[Sample]]) -> bytes:
    """Return the exposition of these samples."""
    return generate_latest(_make_registry(lambda: samples))


def serve_metrics(measure: Measure, host: str, port: int) -> Callable[[], None]:
    """Serve the metrics at /metrics from a thread; return what ends that. OSError if the port is taken."""
    server, thread = start_http_server(port, addr=host, registry=_make_registry(measure))

    def end() -> None:
        server.shutdown()
        thread.join()

    return end


def _make_registry(measure: Measure) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Collector(measure))
    return registry
