"""A report says what happened, what did not, and what is unknown; its page loads nothing."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path

import pytest

from schedgen_backups.core.catalog.catalog import Catalog
from schedgen_backups.core.history.events import (
    AlertDelivered,
    CopiesProved,
    DrillEnded,
    HistoryEvent,
    IncidentBegan,
    IncidentEnded,
    Outcome,
    PointCommitted,
    PointsCopied,
    PointsRemoved,
    RemovedPoint,
    RestoreEnded,
    RunFailed,
    RunStarted,
)
from schedgen_backups.core.history.journal import HISTORY_NAME, History
from schedgen_backups.core.model import RecoveryPointId
from schedgen_backups.core.receipts.receipts import issue_receipt
from schedgen_backups.core.report.content import Report, ReportedSite, compile_report
from schedgen_backups.core.report.page import render_page
from schedgen_backups_tests.support.histories import add_point, name_night

UTC = timezone.utc
BEGIN, END = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
NOW = datetime(2026, 12, 3, tzinfo=UTC)
NIGHTS = tuple(BEGIN + timedelta(days=day, hours=2) for day in range(30))
HOSTILE = "<script>alert(1)</script>&\"'"


def commit(at: datetime) -> PointCommitted:
    return PointCommitted(
        at=at + timedelta(minutes=1),
        point_id=RecoveryPointId.from_time(at).text,
        snapshot_at=at,
        manifest_sha256="ab" * 32,
        size_bytes=5_000_000,
        outcomes=(Outcome(check="dump_is_stored", status="passed"),),
    )


def drill(at: datetime, **values: object) -> DrillEnded:
    fields: dict[str, object] = {
        "at": at + timedelta(minutes=5),
        "began_at": at,
        "point_id": RecoveryPointId.from_time(NIGHTS[0]).text,
        "is_passed": True,
        "rto_seconds": 300,
        "rpo_seconds": 7200,
        **values,
    }
    return DrillEnded.model_validate(fields)


class Reporter:
    """A backup directory, and its report."""

    def __init__(self, directory: Path) -> None:
        self.catalog = Catalog(directory)
        self.catalog.prepare()

    def record(self, *events: HistoryEvent) -> None:
        for event in events:
            History(self.catalog.directory).record(event)

    def compile(self, *, now: datetime = NOW, settings: dict[str, str] | None = None) -> Report:
        site = ReportedSite(
            name="production",
            catalog=self.catalog,
            scheduled=NIGHTS,
            max_age=timedelta(hours=26),
            max_recovery=timedelta(hours=4),
            settings=settings or {},
        )
        return compile_report(site, BEGIN, END, now)


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    return Reporter(tmp_path / "points")


def test_a_scheduled_time_without_a_point_before_the_next_one_was_missed(reporter: Reporter) -> None:
    taken = [night for night in NIGHTS if night not in {NIGHTS[3], NIGHTS[29]}]
    reporter.record(*map(commit, taken), commit(NIGHTS[3] - timedelta(hours=8)))
    report = reporter.compile()
    assert (report.scheduled_count, report.missed) == (30, (NIGHTS[3], NIGHTS[29]))
    assert [point.point_id for point in report.points if not point.is_scheduled] == [
        RecoveryPointId.from_time(NIGHTS[3] - timedelta(hours=8)).text
    ]


def test_a_late_point_fulfils_the_schedule_and_a_second_one_does_not(reporter: Reporter) -> None:
    late, second = NIGHTS[0] + timedelta(hours=7), NIGHTS[0] + timedelta(hours=9)
    reporter.record(commit(late), commit(second))
    report = reporter.compile(now=NIGHTS[1])
    assert report.missed == ()
    assert [point.is_scheduled for point in report.points] == [True, False]


def test_whether_a_backup_was_missed_before_the_history_began_is_not_known(reporter: Reporter) -> None:
    reporter.record(*map(commit, NIGHTS[10:20]))
    report = reporter.compile()
    assert (report.scheduled_count, report.unrecorded_count, report.missed) == (30, 10, NIGHTS[20:])
    nothing = Reporter(reporter.catalog.directory / "none").compile()
    assert (nothing.scheduled_count, nothing.unrecorded_count, nothing.missed) == (30, 30, ())
    assert "30, of which 0 missed; 30 before the history begins" in render_page(nothing)


def test_the_time_until_the_first_point_counts(reporter: Reporter) -> None:
    reporter.record(RunStarted(at=NIGHTS[0], kind="run", run_id="1"), commit(NIGHTS[29]))
    assert reporter.compile().max_gap_seconds == timedelta(days=29).total_seconds()


def test_times_that_are_still_to_come_are_not_missed(reporter: Reporter) -> None:
    reporter.record(commit(NIGHTS[0]))
    report = reporter.compile(now=NIGHTS[1] - timedelta(hours=1))
    assert (report.scheduled_count, report.missed) == (1, ())


def test_the_longest_gap_reaches_from_the_month_before_and_to_the_end(reporter: Reporter) -> None:
    reporter.record(commit(BEGIN - timedelta(days=2)), *map(commit, NIGHTS[:28]))
    assert reporter.compile().max_gap_seconds == timedelta(days=2, hours=22).total_seconds()
    assert Reporter(reporter.catalog.directory / "none").compile().max_gap_seconds is None


def test_points_that_the_history_does_not_know_are_those_that_exist(reporter: Reporter) -> None:
    add_point(reporter.catalog, name_night(0))
    report = reporter.compile()
    assert [point.point_id for point in report.points] == [name_night(0).text]
    assert len(report.points[0].manifest_sha256) == 64
    assert report.recorded_since is not None or report.unreadable_lines == 0


def test_a_point_shows_its_drill_and_its_removal(reporter: Reporter) -> None:
    point = commit(NIGHTS[0])
    removal = PointsRemoved(
        at=NIGHTS[20],
        removed=(RemovedPoint(point_id=point.point_id, reasons=("older than 7 days",)),),
        kept_count=7,
        freed_bytes=1000,
    )
    reporter.record(point, drill(NIGHTS[1]), drill(NIGHTS[2], is_passed=False), removal)
    report = reporter.compile()
    assert report.points[0].drilled_at == NIGHTS[1] + timedelta(minutes=5)
    assert report.points[0].removed_at == NIGHTS[20]
    assert report.points[0].removed_because == "older than 7 days"
    assert [each.is_passed for each in report.drills] == [True, False]
    assert report.removals[0].removed == (f"{point.point_id}: older than 7 days",)


def test_a_drill_of_a_sample_is_not_shown_as_a_restore_of_the_point(reporter: Reporter) -> None:
    sampled = Outcome(check="bucket_is_equal", status="sample", summary="a sample of 5 objects")
    reporter.record(commit(NIGHTS[0]), drill(NIGHTS[1], outcomes=(sampled,)))
    report = reporter.compile()
    assert report.points[0].drilled_at is None
    assert report.drills[0].not_passed == ("bucket_is_equal: sample, a sample of 5 objects",)
    assert '<td class="wide">bucket_is_equal: sample, a sample of 5 objects</td>' in render_page(report)


def test_each_version_is_shown_with_its_first_and_last_use(reporter: Reporter) -> None:
    used = ({"psql": "16.4"}, {"psql": "16.4"}, {"psql": "17.0", "PostgreSQL": "16.4"})
    reporter.record(*(drill(night, versions=each) for night, each in zip(NIGHTS, used, strict=False)))
    shown = [(each.name, each.version, each.first_at, each.last_at) for each in reporter.compile().versions]
    ended = [night + timedelta(minutes=5) for night in NIGHTS]
    assert shown == [
        ("PostgreSQL", "16.4", ended[2], ended[2]),
        ("psql", "16.4", ended[0], ended[1]),
        ("psql", "17.0", ended[2], ended[2]),
    ]


def test_an_incident_of_the_month_before_is_shown_until_it_ends(reporter: Reporter) -> None:
    fields = {"severity": "HIGH", "title": "Backup failed", "cause": "no disk"}
    reporter.record(
        IncidentBegan(at=BEGIN - timedelta(days=9), area="run", subject="old", **fields),
        IncidentEnded(at=BEGIN - timedelta(days=8), area="run", subject="old", began_at=BEGIN),
        IncidentBegan(at=BEGIN - timedelta(days=2), area="run", subject="a", **fields),
        IncidentEnded(at=NIGHTS[1], area="run", subject="a", began_at=BEGIN),
        IncidentBegan(at=NIGHTS[5], area="run", subject="b", **fields),
        AlertDelivered(at=NIGHTS[5], channel="mail", title="production: Backup failed", is_accepted=True),
        AlertDelivered(at=NIGHTS[5], channel="slack", title="Backup failed", is_accepted=False, answer="503"),
        AlertDelivered(at=NIGHTS[6], channel="slack", title="Backup failed", is_accepted=True),
        AlertDelivered(at=NIGHTS[9], channel="mail", title="Backup failed", is_accepted=True),
    )
    first, second = reporter.compile().incidents
    assert (first.subject, first.ended_at, first.deliveries) == ("a", NIGHTS[1], ())
    assert (second.subject, second.ended_at) == ("b", None)
    assert second.deliveries == (
        f"mail: accepted {NIGHTS[5]:%Y-%m-%d %H:%M:%S} UTC",
        f"slack: refused (503) {NIGHTS[5]:%Y-%m-%d %H:%M:%S} UTC",
        f"slack: accepted {NIGHTS[6]:%Y-%m-%d %H:%M:%S} UTC",
    )


def test_a_store_shows_copies_proofs_and_problems(reporter: Reporter) -> None:
    reporter.record(
        PointsCopied(at=NIGHTS[0], store="b2", point_ids=("20261101_020000",), uploaded_bytes=7),
        CopiesProved(
            at=NIGHTS[1],
            store="b2",
            copy_count=1,
            pack_count=2,
            read_count=1,
            unread_count=1,
            problems=("x",),
        ),
    )
    [store] = reporter.compile().stores
    assert (store.points, store.uploaded_bytes, store.packs_read) == (("20261101_020000",), 7, 1)
    assert store.problems == (f"{NIGHTS[1]:%Y-%m-%d %H:%M} UTC: x",)


def test_receipts_of_the_month_are_verified(reporter: Reporter) -> None:
    for night in NIGHTS[:3]:
        issue_receipt(reporter.catalog.directory, commit(night), [])
    issue_receipt(reporter.catalog.directory, commit(BEGIN - timedelta(days=1)), [])
    [broken, *_others] = sorted((reporter.catalog.directory / "receipts").glob("202611*.json"))
    broken.write_text(broken.read_text().replace('"sig": "', '"sig": "AAAA'))
    report = reporter.compile()
    assert (report.valid_receipts, report.invalid_receipts) == (2, (broken.name,))


def test_lines_that_cannot_be_read_are_counted(reporter: Reporter) -> None:
    reporter.record(commit(NIGHTS[0]))
    with (reporter.catalog.directory / HISTORY_NAME).open("a") as file:
        file.write("torn\n")
    report = reporter.compile()
    assert report.unreadable_lines == 1
    assert "1 lines of the history cannot be" in " ".join(render_page(report).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [
            value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "action"}
        ]


def test_the_page_is_whole_loads_nothing_and_runs_nothing(reporter: Reporter) -> None:
    reporter.record(
        *map(commit, NIGHTS),
        drill(NIGHTS[3], target=HOSTILE),
        RestoreEnded(
            at=NIGHTS[4],
            began_at=NIGHTS[4],
            point_id="20261101_020000",
            subject=HOSTILE,
            target=HOSTILE,
            result=HOSTILE,
            reason=HOSTILE,
        ),
        RunFailed(at=NIGHTS[5], kind="run", run_id="1", subject=HOSTILE, cause=HOSTILE),
    )
    page = render_page(reporter.compile(settings={"BACKUP_NAME": HOSTILE}))
    reader = _Reader()
    reader.feed(page)
    assert reader.loaded == []
    assert not {"script", "link", "iframe", "img", "object", "embed", "form"} & set(reader.tags)
    assert reader.tags.count("svg") == 3
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;") >= 6
    assert not re.search(r"url\(|@import", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_a_page_of_720_points_is_folded_by_day_and_has_every_fact(reporter: Reporter) -> None:
    """Each hour a point that is drilled, and one that is removed."""
    hours = [BEGIN + timedelta(hours=hour) for hour in range(720)]
    digests = [f"{number:064x}" for number in range(720)]
    wrong = (Outcome(check="dump_is_complete", status="failed"),)
    for number, hour in enumerate(hours):
        point = commit(hour).model_copy(update={"manifest_sha256": digests[number]})
        reporter.record(
            point if number != 300 else point.model_copy(update={"outcomes": wrong}),
            drill(hour + timedelta(minutes=10), point_id=point.point_id, is_passed=number != 400),
        )
        if number >= 48:
            old = RecoveryPointId.from_time(hours[number - 48]).text
            reasons = (f"older than 48 hours, and not the last of one of {number} days",)
            removed = (RemovedPoint(point_id=old, reasons=reasons),)
            reporter.record(PointsRemoved(at=hour, removed=removed, kept_count=48, freed_bytes=number))
    report = reporter.compile()
    page = render_page(report)
    assert len(page.encode()) < 1_500_000
    reader = _Reader()
    reader.feed(page)
    assert "script" not in reader.tags
    assert reader.tags.count("details") == 30 + 30 + 28
    text = " ".join(page.split())
    for fact in (*(point.point_id for point in report.points), *digests):
        assert fact in text
    for number in range(48, 720):
        assert f"older than 48 hours, and not the last of one of {number} days" in text
    assert '<summary class="">2026-11-02: 24 recovery points, 24 restored and equal, 24 removed<' in text
    # What is wrong is never folded away.
    [bad_day] = re.findall(r'<details open><summary class="bad">([^<]*)recovery points', text)
    assert bad_day == "2026-11-13: 24 "
    assert '<details open><summary class="bad">2026-11-17: 24 drills, 1 failed<' in text


def test_a_page_of_a_nightly_schedule_is_not_folded(reporter: Reporter) -> None:
    reporter.record(*map(commit, NIGHTS))
    assert "<details" not in render_page(reporter.compile())


def test_the_same_report_is_the_same_file(reporter: Reporter) -> None:
    reporter.record(*map(commit, NIGHTS))
    report = reporter.compile()
    assert render_page(report) == render_page(reporter.compile())
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_an_empty_month_says_that_there_is_nothing(reporter: Reporter) -> None:
    report = reporter.compile()
    page = " ".join(render_page(report).split())
    assert (report.unrecorded_count, report.missed) == (30, ())
    for text in ("The history begins after this month", "no drill", "every copy is on one host"):
        assert text in page
    # What was not proved is not green.
    assert 'class="good"' not in page


def test_a_month_in_which_nothing_happened_missed_everything(reporter: Reporter) -> None:
    reporter.record(RunStarted(at=BEGIN - timedelta(days=3), kind="run", run_id="1"))
    report = reporter.compile()
    assert (report.unrecorded_count, report.missed) == (0, NIGHTS)
    assert 'class="good"' not in render_page(report)
