from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intervaljob.errors import ResourceError
from intervaljob.model.schedule import Cron, Interval, Plan, Schedule, Skipped, after, parse_schedule, plan

if TYPE_CHECKING:
    from collections.abc import Iterator

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
WINDOW = 4 * DAY
ANCHOR = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)

# A zone and the first day of a window in which its clocks change.
CHANGES = [
    ("Europe/Berlin", (2026, 3, 28)),
    ("Europe/Berlin", (2026, 10, 24)),
    ("Europe/London", (2026, 3, 28)),
    ("Europe/Dublin", (2026, 10, 24)),  # winter is the saving time there
    ("America/New_York", (2026, 3, 7)),
    ("America/New_York", (2026, 10, 31)),
    ("America/St_Johns", (2010, 3, 13)),  # at one minute past midnight
    ("America/St_Johns", (2010, 11, 6)),
    ("America/Santiago", (2026, 9, 5)),  # midnight is jumped over
    ("America/Santiago", (2026, 4, 4)),  # the hour before midnight comes twice
    ("America/Sao_Paulo", (2018, 11, 3)),
    ("Asia/Beirut", (2022, 3, 26)),
    ("Asia/Beirut", (2022, 10, 29)),
    ("Australia/Lord_Howe", (2026, 10, 3)),  # by half an hour
    ("Australia/Lord_Howe", (2026, 4, 4)),
    ("Pacific/Apia", (2011, 12, 29)),  # a whole day is jumped over
    ("Asia/Kathmandu", (2026, 3, 28)),  # never
]


class Minute(NamedTuple):
    """A minute of real time: what the clock shows, if for the second time, what it has just jumped over."""

    instant: datetime
    face: datetime
    again: bool
    jumped: list[datetime]


@cache
def minutes_of(zone: str, start: datetime) -> list[Minute]:
    """Every minute of the window, read off the zone's clock one by one."""
    found = []
    before = (start - MINUTE).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    for number in range(WINDOW // MINUTE):
        instant = start + number * MINUTE
        local = instant.astimezone(ZoneInfo(zone))
        face = local.replace(tzinfo=None)
        jumped = [before + n * MINUTE for n in range(1, max(1, (face - before) // MINUTE))]
        found.append(Minute(instant, face, bool(local.fold), jumped))
        before = face
    return found


class Field(NamedTuple):
    text: str
    values: frozenset[int]


class Times(NamedTuple):
    """A cron schedule with the sets that it means."""

    minutes: Field
    hours: Field
    weekdays: Field

    @property
    def expression(self) -> str:
        return f"{self.minutes.text} {self.hours.text} * * {self.weekdays.text}"

    def matches(self, face: datetime) -> bool:
        return (
            face.minute in self.minutes.values
            and face.hour in self.hours.values
            and face.isoweekday() % 7 in self.weekdays.values
        )

    def occurrences(self, zone: str, start: datetime) -> list[datetime]:
        """What is due in the window, by looking at every minute of it."""
        fixed = not (self.minutes.text.startswith("*") or self.hours.text.startswith("*"))
        return [
            minute.instant
            for minute in minutes_of(zone, start)
            if (self.matches(minute.face) and not (fixed and minute.again))
            or (fixed and any(map(self.matches, minute.jumped)))
        ]


def fields(size: int) -> st.SearchStrategy[Field]:
    everything = st.just(Field("*", frozenset(range(size))))
    steps = st.integers(1, size - 1).map(lambda n: Field(f"*/{n}", frozenset(range(0, size, n))))
    lists = st.frozensets(st.integers(0, size - 1), min_size=1, max_size=4).map(
        lambda values: Field(",".join(map(str, sorted(values))), values)
    )
    return everything | steps | lists


times = st.builds(Times, minutes=fields(60), hours=fields(24), weekdays=fields(7))
windows = st.sampled_from(CHANGES).map(lambda change: (change[0], datetime(*change[1], tzinfo=UTC)))


def walk(schedule: Schedule, *, anchor: datetime, start: datetime, end: datetime) -> Iterator[datetime]:
    """The occurrences from `start` on and before `end`, each asked for on its own."""
    moment = after(schedule, anchor=anchor, moment=start - timedelta(microseconds=1))
    while moment < end:
        yield moment
        moment = after(schedule, anchor=anchor, moment=moment)


@settings(max_examples=300, deadline=None)
@given(times=times, window=windows)
def test_cron_is_due_when_the_clock_says_so_across_changes(times: Times, window: tuple[str, datetime]) -> None:
    zone, start = window
    cron = parse_schedule(interval=None, schedule=times.expression, time_zone=zone)
    assert list(walk(cron, anchor=start, start=start, end=start + WINDOW)) == times.occurrences(zone, start)


@settings(max_examples=200, deadline=None)
@given(times=times, window=windows, offset=st.integers(0, int(WINDOW.total_seconds()) - 1))
def test_the_next_occurrence_of_cron_does_not_depend_on_where_one_stands(
    times: Times, window: tuple[str, datetime], offset: int
) -> None:
    zone, start = window
    cron = Cron(times.expression, zone)
    moment = start + timedelta(seconds=offset)
    later = [instant for instant in times.occurrences(zone, start) if instant > moment]
    found = after(cron, anchor=start, moment=moment)
    assert found == later[0] if later else found >= start + WINDOW


@pytest.mark.parametrize(("zone", "day"), CHANGES)
@pytest.mark.parametrize("hour", [0, 1, 2, 3, 23])
def test_a_daily_job_runs_once_per_local_day(zone: str, day: tuple[int, int, int], hour: int) -> None:
    start = datetime(*day, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    cron = Cron(f"30 {hour} * * *", zone)
    runs = [run.astimezone(ZoneInfo(zone)) for run in walk(cron, anchor=start, start=start, end=start + WINDOW)]
    if zone == "Pacific/Apia":  # 30 December 2011 did not exist there: its run is where it would have ended
        assert [run.day for run in runs[:4]] == [29, 31, 31, 1]
        assert (runs[1].hour, runs[1].minute) == (0, 0)
    else:
        assert all(b.date() - a.date() == DAY for a, b in pairwise(runs))
        assert len(runs) >= 3


@pytest.mark.parametrize(
    ("expression", "day", "local"),
    [
        ("30 2 * * *", (2026, 3, 8), ["03:00-0400"]),
        ("15,45 2 * * *", (2026, 3, 8), ["03:00-0400"]),
        ("0 2,3 * * *", (2026, 3, 8), ["03:00-0400"]),
        ("*/30 2 * * *", (2026, 3, 8), []),
        ("*/30 1-3 * * *", (2026, 3, 8), ["01:00-0500", "01:30-0500", "03:00-0400", "03:30-0400"]),
        ("30 1 * * *", (2026, 11, 1), ["01:30-0400"]),
        ("30 * * * 0", (2026, 11, 1), [f"{h:02}:30-0{o}00" for h, o in [(0, 4), (1, 4), (1, 5), (2, 5)]]),
    ],
)
def test_debians_rule_where_new_york_changes_its_clocks(
    expression: str, day: tuple[int, int, int], local: list[str]
) -> None:
    zone = ZoneInfo("America/New_York")
    start = datetime(*day, tzinfo=zone).astimezone(UTC)
    end = datetime(*day, 3, 45, tzinfo=zone) if day[1] == 3 else datetime(*day, 3, tzinfo=zone)
    runs = walk(Cron(expression, zone.key), anchor=start, start=start, end=end.astimezone(UTC))
    assert [run.astimezone(zone).strftime("%H:%M%z") for run in runs] == local


@given(
    seconds=st.integers(1, 366 * 86_400),
    offset=st.integers(-(10**9), 10**9),
    fraction=st.integers(0, 999_999),
)
def test_an_interval_never_drifts_from_its_anchor(seconds: int, offset: int, fraction: int) -> None:
    moment = ANCHOR + timedelta(seconds=offset, microseconds=fraction)
    found = after(Interval(seconds), anchor=ANCHOR, moment=moment)
    step = timedelta(seconds=seconds)
    assert found > moment
    assert (found - ANCHOR) % step == timedelta()
    assert found == ANCHOR + step or (found > ANCHOR and found - step <= moment)


class Case(NamedTuple):
    schedule: Schedule
    anchor: datetime
    occurrences: list[datetime]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A schedule with all that is due in a window, counted one by one."""
    zone, start = draw(windows)
    if draw(st.booleans()):
        found = draw(times)
        return Case(Cron(found.expression, zone), start, found.occurrences(zone, start))
    seconds = draw(st.integers(60, 86_400))
    grid = range(seconds, int(WINDOW.total_seconds()), seconds)
    return Case(Interval(seconds), start, [start + timedelta(seconds=second) for second in grid])


def merge(plans: list[Plan]) -> tuple[datetime | None, dict[str, tuple[datetime, datetime, int]]]:
    """What several calls for one `now` say together."""
    skipped: dict[str, tuple[datetime, datetime, int]] = {}
    for skip in (skip for part in plans for skip in part.skipped):
        first, _, count = skipped.get(skip.reason, (skip.first, None, 0))
        skipped[skip.reason] = (first, skip.last, count + skip.count)
    runs = [part.run for part in plans if part.run is not None]
    assert len(runs) <= 1
    return (runs[0] if runs else None), skipped


def handled_by(part: Plan) -> int:
    return sum(skip.count for skip in part.skipped) + (part.run is not None)


@settings(max_examples=400, deadline=None)
@given(
    case=cases(),
    stops=st.lists(st.integers(0, int(WINDOW.total_seconds()) - 1), min_size=1, max_size=5),
    resumed=st.none() | st.integers(0, int(WINDOW.total_seconds())),
    limit=st.integers(1, 50) | st.just(10_000),
)
def test_every_occurrence_is_run_or_counted_exactly_once_across_restarts_suspends_and_limits(
    case: Case, stops: list[int], resumed: int | None, limit: int
) -> None:
    schedule, anchor, remaining = case
    since = None if resumed is None else anchor + timedelta(seconds=resumed)
    due = after(schedule, anchor=anchor, moment=anchor - timedelta(seconds=1))
    for now in (anchor + timedelta(seconds=stop) for stop in sorted(stops)):
        plans = []
        while due <= now:
            plans.append(plan(schedule, anchor=anchor, due=due, now=now, runnable_since=since, limit=limit))
            assert plans[-1].next > due
            assert isinstance(schedule, Interval) or handled_by(plans[-1]) <= limit
            due = plans[-1].next
        handled = [instant for instant in remaining if instant <= now]
        remaining = remaining[len(handled) :]
        suspended = [instant for instant in handled if since is not None and instant < since]
        runnable = handled[len(suspended) :]
        missed, run = runnable[:-1], (runnable[-1] if runnable else None)
        expected = {
            reason: (skipped[0], skipped[-1], len(skipped))
            for reason, skipped in (("Suspended", suspended), ("Missed", missed))
            if skipped
        }
        assert merge(plans) == (run, expected)
    assert due == remaining[0] if remaining else due >= anchor + WINDOW


def test_nothing_is_due_before_its_time() -> None:
    due = ANCHOR + MINUTE
    assert plan(Interval(60), anchor=ANCHOR, due=due, now=ANCHOR, runnable_since=None) == Plan(None, (), due)


def test_ten_years_of_missed_seconds_are_one_call() -> None:
    now = ANCHOR + 3650 * DAY
    due = ANCHOR + timedelta(seconds=1)
    found = plan(Interval(1), anchor=ANCHOR, due=due, now=now, runnable_since=None, limit=1)
    last = now - timedelta(seconds=1)
    missed = Skipped("Missed", first=due, last=last, count=3650 * 86_400 - 1)
    assert found == Plan(run=now, skipped=(missed,), next=now + timedelta(seconds=1))


def test_a_due_time_off_the_grid_is_handled_and_the_grid_goes_on() -> None:
    """After an edit of the interval, what was already stored as due keeps its time."""
    due = ANCHOR + timedelta(seconds=90)
    found = plan(Interval(60), anchor=ANCHOR, due=due, now=ANCHOR + 3 * MINUTE, runnable_since=None)
    skipped = (Skipped("Missed", first=due, last=ANCHOR + 2 * MINUTE, count=2),)
    assert found == Plan(run=ANCHOR + 3 * MINUTE, skipped=skipped, next=ANCHOR + 4 * MINUTE)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("90m", 5400),
        ("1d", 86_400),
        ("366d", 31_622_400),
    ],
)
def test_intervals_are_read(text: str, seconds: int) -> None:
    assert parse_schedule(interval=text, schedule=None, time_zone=None) == Interval(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "0s", "30", "1.5h", "500ms", "5m1h", "-5m", "5 m", "5m\n", "\u0665m", "367d", "9999999999s", "1w"],
)
def test_other_intervals_are_refused(text: str) -> None:
    with pytest.raises(ResourceError, match=r"^spec\.interval: write") as caught:
        parse_schedule(interval=text, schedule=None, time_zone=None)
    assert caught.value.reason == "InvalidInterval"


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("*/5 * * * *", "*/5 * * * *"),
        ("  0   9 * * MON-FRI ", "0 9 * * MON-FRI"),
        ("*/59 */23 */31 */12 */7", "*/59 */23 */31 */12 */7"),
        ("0 0 29 2 *", "0 0 29 2 *"),
        ("0 0 L * *", "0 0 L * *"),
        ("0 0 * * mon#2", "0 0 * * mon#2"),
        ("@Daily", "0 0 * * *"),
        ("@yearly", "0 0 1 1 *"),
    ],
)
def test_cron_expressions_are_read(text: str, expression: str) -> None:
    found = parse_schedule(interval=None, schedule=text, time_zone="Europe/Berlin")
    assert found == Cron(expression, "Europe/Berlin")
    assert after(found, anchor=ANCHOR, moment=ANCHOR) > ANCHOR


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("0 */5 * * * *", "five fields"),
        ("@every 5m", r"spec\.interval"),
        ("@reboot", "five fields"),
        ("TZ=Europe/Berlin 0 * * * *", r"spec\.timeZone"),
        ("CRON_TZ=UTC 0 * * * *", r"spec\.timeZone"),
        ("*/90 * * * *", "step from 1 to 59"),
        ("*/60 * * * *", "step from 1 to 59"),
        ("0,*/0 * * * *", "step from 1 to 59"),
        ("0 */24 * * *", "step from 1 to 23"),
        ("0 0 */32 * *", "step from 1 to 31"),
        ("0 0 * 1-12/13 *", "step from 1 to 12"),
        ("0 0 * * */8", "step from 1 to 7"),
        ("60 * * * *", "minute"),
        ("5-1 * * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 0 0 * *", "day-of-month"),
        ("0 0 * 13 *", "month"),
        ("0 0 * * 8", "day-of-week"),
        ("0 0 30 2 *", "day-of-month"),
        ("0 0 31 4,6,9,11 *", "day-of-month"),
        ("0 0 */31 * 5L", "never fires"),
        ("0," * 200 + "0 * * * *", "256 characters"),
    ],
)
def test_other_cron_expressions_are_refused(text: str, what: str) -> None:
    with pytest.raises(ResourceError, match=rf"^spec\.schedule: .*{what}") as caught:
        parse_schedule(interval=None, schedule=text, time_zone=None)
    assert caught.value.reason == "InvalidSchedule"


@pytest.mark.parametrize(
    "name",
    [
        *("", "Local", "localtime", "Factory", "Europe", "Mars/Olympus", "../etc/passwd", "/etc/localtime"),
        *("right/Europe/Berlin", "posix/UTC", "UTC\0", "x" * 300, "é", "Europe/Berlin "),
    ],
)
def test_other_zones_are_refused(name: str) -> None:
    with pytest.raises(ResourceError, match=r"^spec\.timeZone: .*Europe/Berlin") as caught:
        parse_schedule(interval=None, schedule="@daily", time_zone=name)
    assert caught.value.reason == "UnknownTimeZone"


@pytest.mark.parametrize(
    ("interval", "schedule", "time_zone", "reason"),
    [
        (None, None, None, "InvalidSchedule"),
        ("5m", "@daily", None, "InvalidSchedule"),
        ("5m", None, "UTC", "InvalidInterval"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(
    interval: str | None, schedule: str | None, time_zone: str | None, reason: str
) -> None:
    with pytest.raises(ResourceError, match=r"spec\.(schedule|timeZone)") as caught:
        parse_schedule(interval=interval, schedule=schedule, time_zone=time_zone)
    assert caught.value.reason == reason


def test_a_cron_schedule_without_a_zone_is_in_utc() -> None:
    found = parse_schedule(interval=None, schedule="0 12 * * *", time_zone=None)
    assert after(found, anchor=ANCHOR, moment=ANCHOR) == datetime(2026, 11, 23, 12, tzinfo=UTC)
