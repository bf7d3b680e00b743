"""PDF timetables like those that students upload: several pages, some with a picture, up to some hundred KB.

Add here what changes the content of such a file. `seed` decides where it is stored and to which job it
belongs.
"""

from __future__ import annotations

import io
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from fpdf import FPDF
from PIL import Image

if TYPE_CHECKING:
    from random import Random
    from uuid import UUID

# A fixed date makes the same random seed give the same bytes.
CREATION_DATE = datetime(2026, 2, 2, 8, 0, tzinfo=timezone.utc)
# As long as a UUID, so that replacing it does not move any byte to which the cross-reference table points.
TITLE_PLACEHOLDER = "00000000-0000-0000-0000-000000000000"
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri")
MODULES = (
    *("COS 132", "COS 151", "WTW 114", "WTW 124", "PHY 114", "STK 110", "EOT 110", "INF 112"),
    *("EBN 111", "CMY 117", "MLB 111", "AIM 102", "FSK 116", "BME 120", "KRM 110", "GEO 101"),
)
VENUES = ("IT 2-24", "Centenary 1", "Thuto 1-2", "Roos Hall", "EMB 4-150", "Aula", "Louw Hall", "HB 4-2")
LARGEST_PICTURE_SIDE_PIXELS = 520


def make_picture(random: Random) -> bytes:
    """Return a JPEG of noise, 10 to 300 KB; like a scan or a campus map, it does not compress further."""
    side = random.randint(90, LARGEST_PICTURE_SIDE_PIXELS)
    stream = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.randbytes(side * side * 3)).save(stream, "JPEG", quality=60)
    return stream.getvalue()


def make_timetable(random: Random, pictures: list[bytes]) -> bytes:
    """Return a valid PDF of one to six pages titled `TITLE_PLACEHOLDER`; every third has a picture."""
    document = FPDF()
    document.set_creation_date(CREATION_DATE)
    document.set_title(TITLE_PLACEHOLDER)
    document.set_author("University timetable office")
    for week in range(random.randint(1, 6)):
        document.add_page()
        document.set_font("Helvetica", "B", 14)
        document.cell(0, 10, f"Lecture timetable, week {week + 1}", new_x="LMARGIN", new_y="NEXT")
        document.set_font("Helvetica", size=8)
        for hour in range(7, 18):
            document.cell(20, 9, f"{hour:02}:30", border=1)
            for _ in DAYS:
                is_taken = random.random() < 0.5  # noqa: PLR2004 (half of a week is free)
                text = f"{random.choice(MODULES)} {random.choice(VENUES)}" if is_taken else ""
                document.cell(34, 9, text, border=1)
            document.ln()
    if random.randrange(3) == 0:
        document.add_page()
        document.image(io.BytesIO(random.choice(pictures)), w=180)
    return bytes(document.output())


def with_title(timetable: bytes, title: UUID) -> bytes:
    """Return the timetable with another title: different bytes, the same length, still a valid PDF."""
    return timetable.replace(TITLE_PLACEHOLDER.encode(), str(title).encode(), 1)


def make_events(random: Random, module_count: int) -> list[dict[str, str | int]]:
    """Return calendar events for `jobs.result`, as the application's parser makes them from a timetable."""
    return [
        {
            "module": random.choice(MODULES),
            "venue": random.choice(VENUES),
            "day": random.choice(DAYS),
            "start": f"{random.randint(7, 16):02}:30",
            "duration_minutes": 50,
            "activity": random.choice(("Lecture", "Tutorial", "Practical")),
            "group": f"G{random.randint(1, 9):02}",
        }
        for _ in range(module_count)
    ]
