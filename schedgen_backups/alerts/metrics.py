"""The metrics of a configured site: its exposition, and the file for node_exporter's textfile collector."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import datetime, timedelta, timezone

from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.copies.status import StoreStatus
from schedgen_backups.core.errors import BackupError, ConfigurationError
from schedgen_backups.core.metrics.exposition import render_metrics
from schedgen_backups.core.metrics.samples import MonitoredSite, measure_site
from schedgen_backups.core.notify.channels import make_channels
from schedgen_backups.core.system.files import write_atomically

_UNNAMED = "default"
"""The site's label without BACKUP_NAME; a host's name would change with every container."""
_READABLE_BY_ALL = 0o644
"""node_exporter runs as another user. It contains no secret."""
_LOG = logging.getLogger(__name__)


def make_exposition(config: Config) -> bytes:
    """Return the metrics as text; raise the errors of the settings and of the backup directory."""
    settings = config.alerts
    planned = config.definitions
    site = MonitoredSite(
        name=settings.name or _UNNAMED,
        catalog=Catalog(config.site_directory),
        max_age=settings.max_age,
        schedule_gap=planned.schedule_gap,
        drill_max_age=planned.drill_max_age,
        drill_max_duration=timedelta(minutes=planned.drill_max_minutes),
        channels=tuple(make_channels(settings.webhook_urls, settings.mail_recipients, settings.mail)),
        stores=_read_stores(config),
    )
    return render_metrics({site.name: measure_site(site, datetime.now(timezone.utc))})


def write_metrics_file(config: Config) -> None:
    """Write the metrics into the file of BACKUP_METRICS_FILE, if it is set.

    A failure is logged as a warning and stops nothing: the file then becomes old, which a rule reports.
    """
    try:
        path = config.metrics_file
        if path is not None:
            write_atomically(path, make_exposition(config), mode=_READABLE_BY_ALL)
    except BackupError as error:
        _LOG.warning("the metrics cannot be written: %s", error.message)
    except OSError as error:
        _LOG.warning("the metrics cannot be written: %s", error)


def _read_stores(config: Config) -> tuple[StoreStatus, ...]:
    # The command `status` and `copy_sensor` report a file that cannot be read.
    with suppress(ConfigurationError):
        return tuple(config.read_store_statuses())
    return ()
