"""The texts that `setup` writes: the .env with only differing lines changed, and the deployment's files.

Pure functions from values to texts. Add a deployment's files here.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from zoneinfo import ZoneInfo

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from schedgen_backups.config.variables import FILE_SUFFIX, VARIABLES
from schedgen_backups.core.errors import ConfigurationError

DEPLOYED_AT = "/opt/schedgen-backups"
"""Path of the checkout in the files of deploy/."""
STATE_AT = "/var/lib/schedgen-backups"
POINTS_AT = "/var/backups/schedgen-backups"
LOG_AT = "/var/log/schedgen-backups"
SERVICE_USER = "schedgen-backups"
DAEMON_UNIT = "schedgen-backups-daemon.service"
UNITS = (
    "schedgen-backup.service",
    "schedgen-backup.timer",
    DAEMON_UNIT,
    "schedgen-backups-webserver.service",
    "schedgen-backups-metrics.service",
)
"""Only the timer is enabled by `setup`."""
CRON_FILE = "schedgen-backups"
MASK = "********"
_PLAIN = re.compile(r"[A-Za-z0-9_./:@,+%=-]*")
_COMMENT = re.compile(r"[^\S\r\n]+#[^\r\n'\"]*$")
_SECRETS = frozenset(variable.name for variable in VARIABLES if variable.is_secret)
_SAFE_PATH = re.compile(r"/[A-Za-z0-9_./@+-]*")
_HOMES = ("/home", "/root", "/run/user")
"""Directories that ProtectHome=true hides from a unit (systemd.exec, "Sandboxing")."""
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_CRON_FIELDS = 5
_MONTH_SECONDS = 30 * 24 * 3600


class Deployment(str, Enum):
    """What starts the backups."""

    COMPOSE = "compose"
    SYSTEMD = "systemd"
    CRON = "cron"
    NONE = "none"


@dataclass(frozen=True)
class Place:
    """This machine's paths of checkout, environment file, programs, state, points and log; and the user."""

    project: Path
    env_file: Path
    bin_dir: Path
    state: Path
    points: Path
    log: Path
    user: str
    stores: tuple[Path, ...] = ()
    """Folders that are stores of copies: only the daemon writes to them."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All paths."""
        return (self.project, self.env_file, self.bin_dir, self.state, self.points, self.log, *self.stores)


@dataclass(frozen=True)
class PlannedFile:
    """A file with the text that it should contain."""

    path: Path
    text: str
    mode: int


def merge_env(text: str, values: Mapping[str, str]) -> str:
    """Return the .env with these values: differing lines are replaced, new ones appended, others unchanged.

    Raise ConfigurationError for a value that a .env cannot contain.
    """
    present = dotenv_values(stream=io.StringIO(text))
    wanted = {
        name: value
        for name, value in values.items()
        if (present.get(name) or "") != value or name not in present
    }
    lines: list[str] = []
    written: set[str] = set()
    for binding in parse_stream(io.StringIO(text)):
        original = binding.original.string
        if binding.key in wanted:
            ending = original[len(original.rstrip("\r\n")) :] or "\n"
            comment = _COMMENT.search(original.rstrip("\r\n"))
            tail = (comment[0] if comment else "") + ending
            leading = original[: len(original) - len(original.lstrip())]
            lines.append(f"{leading}{format_line(binding.key, wanted[binding.key])}{tail}")
            written.add(binding.key)
        else:
            lines.append(original)
    merged = "".join(lines)
    missing = [name for name in wanted if name not in written and wanted[name]]
    if missing and merged and not merged.endswith("\n"):
        merged += "\n"
    return merged + "".join(f"{format_line(name, wanted[name])}\n" for name in missing)


def format_line(name: str, value: str) -> str:
    """Return NAME=value, quoted so that Compose and python-dotenv read the same value.

    Raise ConfigurationError if no notation works for both.
    """
    if _PLAIN.fullmatch(value):
        return f"{name}={value}"
    if "'" not in value and "\\" not in value and "\n" not in value and "${" not in value:
        return f"{name}='{value}'"
    if not set(value) & set('"\\$`\n'):
        return f'{name}="{value}"'
    raise ConfigurationError(
        f"the value of {name} cannot be written to a .env file: programs would read it differently",
        hint=f"Write it to a file, and set {name}{FILE_SUFFIX} to the file's path.",
    )


def describe_env(text: str, merged: str) -> list[str]:
    """Return the lines that change, with masked secrets, and the number of other values."""
    before, after = dotenv_values(stream=io.StringIO(text)), dotenv_values(stream=io.StringIO(merged))
    changed = [name for name, value in after.items() if before.get(name) != value]
    return [
        *(
            f"{name}={MASK}" if name in _SECRETS and after[name] else format_line(name, after[name] or "")
            for name in changed
        ),
        f"# {len(after) - len(changed)} other values are unchanged",
    ]


def plan_units(
    sources: Path, unit_dir: Path, place: Place, schedule: str, timezone: str
) -> tuple[PlannedFile, ...]:
    """Return the units of deploy/systemd for this machine; the timer has the given schedule."""
    calendar = "\n".join(f"OnCalendar={line} {timezone}" for line in make_calendar(schedule))
    files: list[PlannedFile] = []
    for name in UNITS:
        text = _move((sources / "systemd" / name).read_text(encoding="utf-8"), place)
        if name.endswith(".timer"):
            text = re.sub(r"^OnCalendar=.*$", calendar, text, flags=re.MULTILINE)
        text = re.sub(r"^(User|Group)=.*$", rf"\1={place.user}", text, flags=re.MULTILINE)
        if any(path.is_relative_to(home) for path in place.paths for home in _HOMES):
            # Otherwise the unit's program would be hidden and could not be started.
            text = text.replace("ProtectHome=true", "ProtectHome=read-only")
        if name == DAEMON_UNIT:
            # Its runs copy; everything else is read-only for them.
            writable = f"ReadWritePaths=-{place.points}\n"
            stores = "".join(f"ReadWritePaths=-{folder}\n" for folder in place.stores)
            text = text.replace(writable, writable + stores)
        files.append(PlannedFile(unit_dir / name, text, 0o644))
    return tuple(files)


def plan_cron(sources: Path, cron_dir: Path, place: Place, schedule: str) -> tuple[PlannedFile, ...]:
    """Return the cron file of deploy/cron for this machine and schedule, in local time."""
    text = _move((sources / "cron" / CRON_FILE).read_text(encoding="utf-8"), place)
    text = re.sub(
        rf"^0 2 \* \* \* {re.escape(SERVICE_USER)} ",
        lambda _found: f"{schedule} {place.user} ",
        text,
        flags=re.MULTILINE,
    )
    return (PlannedFile(cron_dir / CRON_FILE, text, 0o644),)


def check_path(path: Path) -> None:
    """Raise ConfigurationError for a path with characters that are special in units or cron files."""
    if not _SAFE_PATH.fullmatch(str(path)):
        raise ConfigurationError(
            f"{str(path)!r} cannot be used in a unit or a cron file",
            hint="Use a path of letters, digits and ._-@+/.",
        )


def check_local_zone(zone: ZoneInfo) -> None:
    """Raise ConfigurationError if this machine's local time differs from the zone's at any time of the year.

    cron uses only the local time.
    """
    now = time.time()
    months = (now + month * _MONTH_SECONDS for month in range(12))
    if any(
        datetime.fromtimestamp(moment, zone).utcoffset()
        != timedelta(seconds=time.localtime(moment).tm_gmtoff)
        for moment in months
    ):
        raise ConfigurationError(
            f"cron uses this machine's local time ({time.tzname[0]}), but the schedule is in {zone}",
            hint="Use the machine's time zone for the schedule, change it (timedatectl), or choose systemd, "
            "whose timers support time zones.",
        )


def make_calendar(cron: str) -> tuple[str, ...]:
    """Return the systemd.time(7) expressions for a cron string.

    There are two if cron means "day of month or day of week". Raise ConfigurationError for names such as
    @daily or MON.
    """
    fields = cron.split()
    if len(fields) != _CRON_FIELDS or not all(re.fullmatch(r"[0-9*,/-]+", field) for field in fields):
        raise ConfigurationError(
            f"{cron!r} cannot be converted to a systemd timer",
            hint="Use five fields of numbers, such as '0 2 * * 1-5'.",
        )
    minute, hour, day, month, weekday = fields
    clock = f"{_translate(hour, 0)}:{_translate(minute, 0)}:00"
    dates, weekdays = f"*-{_translate(month, 1)}-{_translate(day, 1)}", _translate_weekdays(weekday)
    if not weekdays:
        return (f"{dates} {clock}",)
    if day.startswith("*"):
        return (f"{weekdays} {dates} {clock}",)
    return (f"{dates} {clock}", f"{weekdays} *-{_translate(month, 1)}-* {clock}")


def _translate(field: str, first: int) -> str:
    return ",".join(part.replace("*/", f"{first}/").replace("-", "..") for part in field.split(","))


def _translate_weekdays(field: str) -> str:
    if field == "*":
        return ""
    days: set[int] = set()
    for part in field.split(","):
        span, _slash, step = part.partition("/")
        low, dash, high = ("0", "-", "6") if span == "*" else span.partition("-")
        days |= set(range(int(low), int(high if dash else "6" if step else low) + 1, int(step or 1)))
    names = dict.fromkeys(_WEEKDAYS[day] for day in sorted(days, key=lambda day: (day - 1) % 7))
    return ",".join(names)


def _move(text: str, place: Place) -> str:
    for path in place.paths:
        check_path(path)
    text = text.replace(f"{DEPLOYED_AT}/.venv/bin", str(place.bin_dir)).replace(
        "cd " + DEPLOYED_AT, f"cd {place.project}"
    )
    text = text.replace(f"{DEPLOYED_AT}/.env", str(place.env_file))
    text = (
        text.replace(" .venv/bin/", f" {place.bin_dir}/")
        .replace(POINTS_AT, str(place.points))
        .replace(LOG_AT, str(place.log))
    )
    if str(place.state) != STATE_AT:
        text = text.replace(STATE_AT, str(place.state))
        # StateDirectory= is a name below /var/lib; any other directory must be allowed by its path.
        text = re.sub(
            r"^StateDirectory=.*\nStateDirectoryMode=.*$",
            f"ReadWritePaths={place.state}",
            text,
            flags=re.MULTILINE,
        )
    return text.replace(DEPLOYED_AT, str(place.project))
