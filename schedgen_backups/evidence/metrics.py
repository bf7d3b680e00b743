"""The metrics of a configured site, and the file for node_exporter's textfile collector."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from schedgen_backups.config.config import Config
from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.errors import BackupError, ConfigurationError
from schedgen_backups.core.metrics import families
from schedgen_backups.core.metrics.exposition import render_metrics
from schedgen_backups.core.metrics.samples import MonitoredSite, Sample, measure_site
from schedgen_backups.core.notify.channels import make_channels
from schedgen_backups.core.system.files import write_atomically

_UNNAMED = "default"
"""The site's label without BACKUP_NAME; a host's name would change with every container."""
_READABLE_BY_ALL = 0o644
"""node_exporter runs as another user. It contains no secret."""
_LOG = logging.getLogger(__name__)


def measure_sites(sites: Sequence[Config]) -> dict[str, tuple[Sample, ...]]:
    """Return the samples of every site, by a name that no other site has.

    The only site raises errors as `measure` does. A site among others that cannot be measured has one sample,
    by which an alarm knows it.
    """
    if len(sites) == 1:
        return measure(sites[0])
    found: dict[str, tuple[Sample, ...]] = {}
    for site in sites:
        try:
            [(name, samples)] = measure(site).items()
        except (BackupError, OSError) as error:
            _LOG.warning("the site %s cannot be measured: %s", site.site_name, error)
            name, samples = site.site_name, (Sample(families.SETTINGS_WRONG, 1),)
        found[f"{name} ({site.site_name})" if name in found else name] = samples
    return found


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
        has_wrong_settings=_has_wrong_settings(config),
    )
    return {site.name: measure_site(site, datetime.now(timezone.utc))}


def _has_wrong_settings(config: Config) -> bool:
    try:
        config.check("database", "bucket", "capture", "schedule", "retention", "commands")
    except ConfigurationError:
        return True
    return False


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
