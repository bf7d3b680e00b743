"""The text of metrics, as Prometheus and the textfile collector of node_exporter read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from schedgen_backups.core.metrics.families import FAMILIES, SITE_LABEL
from schedgen_backups.core.metrics.samples import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Sites(Collector):
    def __init__(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for family in FAMILIES:
            gauge = GaugeMetricFamily(family.full_name, family.meaning, labels=(SITE_LABEL, *family.labels))
            for site, samples in self._samples.items():
                for sample in samples:
                    if sample.family is family:
                        gauge.add_metric((site, *sample.labels), sample.value)
            if gauge.samples:
                yield gauge


def render_metrics(samples: Mapping[str, Sequence[Sample]]) -> bytes:
    """Return the exposition of these samples by the name of their site."""
    registry = CollectorRegistry()
    registry.register(_Sites(samples))
    return generate_latest(registry)
