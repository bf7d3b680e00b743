"""The metrics of a configured site, and the file for node_exporter's textfile collector."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone

from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError
from schedgen_backups.core.metrics.exposition import render_metrics
from schedgen_backups.core.metrics.samples import MonitoredSite, Sample, measure_site
from schedgen_backups.core.notify.channels import make_channels
from schedgen_backups.core.system.files import write_atomically

_UNNAMED = "default"
"""The site's label without BACKUP_NAME; a host's name would change with every container."""
_READABLE_BY_ALL = 0o644
"""node_exporter runs as another user. It contains no secret."""
_LOG = logging.getLogger(__name__)


def measure(config: Config) -> dict[str, tuple[Sample, ...]]:
    """Return the samples by the name of the site; raise the errors of the settings and of the directory.

    Also when the file of stores cannot be read: without their metrics, no alarm would know of the stores.
    """
    settings = config.alerts
    planned = config.definitions
    site = MonitoredSite(
        name=settings.name or _UNNAMED,
        catalog=Catalog(config.site_directory, config.pack_keys),
        max_age=settings.max_age,
        schedule_gap=planned.schedule_gap,
        drill_max_age=planned.drill_max_age,
        drill_max_duration=timedelta(minutes=planned.drill_max_minutes),
        layout=planned.layout,
        channels=tuple(make_channels(settings.webhook_urls, settings.mail_recipients, settings.mail)),
        stores=tuple(config.read_store_statuses()),
    )
    return {site.name: measure_site(site, datetime.now(timezone.utc))}


def write_metrics_file(config: Config) -> None:
    """Write the metrics into the file of BACKUP_METRICS_FILE, if it is set.

    A failure is logged as a warning and stops nothing: the file then becomes old, which a rule reports.
    """
    try:
        path = config.metrics_file
        if path is not None:
            write_atomically(path, render_metrics(measure(config)), mode=_READABLE_BY_ALL)
    except BackupError as error:
        _LOG.warning("the metrics cannot be written: %s", error.message)
    except OSError as error:
        _LOG.warning("the metrics cannot be written: %s", error)
