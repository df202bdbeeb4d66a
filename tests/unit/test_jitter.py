"""Jitter: a delay of a job's own, which neither loses nor doubles an occurrence whenever it is edited."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from definitions import WANTED
from hypothesis import given, settings
from hypothesis import strategies as st

from intervaljob.model.custom_resource import Definition, IntervalJob
from intervaljob.model.job import delay_of, reconcile, schedule_of
from intervaljob.model.schedule import Cron, Interval, Plan, Skipped, after, jitter, plan

MINUTE = timedelta(minutes=1)
BORN = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)
UID = UUID("0b0c7a52-7d52-4b3e-9a3f-0d6c1a9d8a11")
#: A window in which the clocks of Berlin jump.
CRON = replace(WANTED, payload="", interval_seconds=None, schedule="30 2,3 * * *", time_zone="Europe/Berlin")
INTERVAL = replace(CRON, interval_seconds=3600, schedule=None, time_zone=None)

uids = st.uuids()


@given(uid=uids, seconds=st.integers(1, 604_800))
def test_a_job_keeps_its_part_of_the_jitter(uid: UUID, seconds: int) -> None:
    delay = jitter(uid, seconds=seconds)
    assert timedelta() <= delay < timedelta(seconds=seconds)
    assert delay == jitter(UUID(str(uid)), seconds=seconds)
    assert delay // timedelta(microseconds=2) == jitter(uid, seconds=2 * seconds) // timedelta(microseconds=4)


def test_no_jitter_is_no_delay_and_the_part_is_the_same_in_every_version() -> None:
    assert jitter(UID, seconds=0) == timedelta()
    assert jitter(UID, seconds=60) == timedelta(seconds=12, microseconds=154_347)


def test_many_jobs_are_spread_evenly_within_a_second_and_over_many() -> None:
    """Uids that differ in little, as somebody may choose them."""
    for seconds, parts in ((1, 20), (60, 60)):
        delays = [jitter(UUID(int=n), seconds=seconds) for n in range(12_000)]
        part = timedelta(seconds=seconds) / parts
        counts = [sum(delay // part == number for delay in delays) for number in range(parts)]
        assert sum(counts) == len(delays)
        expected = len(delays) / parts
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts)


def test_an_occurrence_is_due_after_its_delay_and_keeps_its_time() -> None:
    delay = timedelta(seconds=42.5)
    due = BORN + MINUTE + delay

    def planned(now: datetime) -> Plan:
        return plan(Interval(60), anchor=BORN, due=due, now=now, runnable_since=None, delay=delay)

    assert planned(due - timedelta(microseconds=1)) == Plan(None, (), due)
    assert planned(due) == Plan(BORN + MINUTE, (), due + MINUTE)
    late = planned(due + 2 * MINUTE)
    assert late == Plan(BORN + 3 * MINUTE, (Skipped("Missed", BORN + MINUTE, BORN + 2 * MINUTE, 2),), due + 3 * MINUTE)


def test_what_becomes_due_in_a_suspension_fell_into_it_and_what_becomes_due_after_it_did_not() -> None:
    delay = timedelta(seconds=50)
    due = BORN + MINUTE + delay
    for resumed, fell in ((due - timedelta(seconds=1), 0), (due + timedelta(seconds=1), 1)):
        found = plan(Interval(60), anchor=BORN, due=due, now=due + MINUTE, runnable_since=resumed, delay=delay)
        assert [(skip.reason, skip.count) for skip in found.skipped] == [("Suspended" if fell else "Missed", 1)]
        assert found.run == BORN + 2 * MINUTE


def test_a_fixed_time_that_clocks_jump_over_is_due_its_delay_after_the_jump() -> None:
    """On 29 March 2026 half past two does not exist in Berlin; there, three o'clock is one o'clock in UTC."""
    cron, delay = Cron("30 2 * * *", "Europe/Berlin"), timedelta(minutes=45)
    first = after(cron, anchor=BORN, moment=BORN)
    assert first == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
    found = plan(cron, anchor=BORN, due=first + delay, now=first + delay, runnable_since=None, delay=delay)
    assert found == Plan(first, (), datetime(2026, 3, 30, 0, 30, tzinfo=UTC) + delay)


class Edit(NamedTuple):
    """Minutes later, this jitter, and whether the scheduler looks before it."""

    minutes: int
    jitter_seconds: int
    looks: bool


edits = st.lists(st.builds(Edit, st.integers(0, 200), st.integers(0, 3600), st.booleans()), max_size=12)


def resource(generation: int, uid: UUID) -> IntervalJob:
    return IntervalJob(
        uid=uid,
        namespace="team",
        name="report",
        generation=generation,
        created_at=BORN,
        resource_version=str(generation),
        run_requested_at=None,
        cancel_requested_at=None,
        deleting=False,
        spec={},
        status={},
    )


def edited(
    wanted: Definition, known: dict[str, Any] | None, *, generation: int, uid: UUID, now: datetime
) -> dict[str, Any]:
    change = reconcile(resource(generation, uid), wanted, known, cluster="here", now=now)
    assert change is not None
    return {**change.row, "deleted_at": None}


def looked(row: dict[str, Any], *, now: datetime) -> tuple[list[datetime], dict[str, Any]]:
    """The first and last times of what the scheduler handles, and the row after that."""
    found = plan(
        schedule_of(row),
        anchor=row["anchor"],
        due=row["next_run_at"],
        now=now,
        runnable_since=row["runnable_since"],
        delay=delay_of(row),
    )
    handled: list[datetime] = []
    for skip in found.skipped:
        time = skip.first
        handled.append(time)
        while time < skip.last:
            time = after(schedule_of(row), anchor=row["anchor"], moment=time)
            handled.append(time)
        assert len(handled) == skip.count
    return handled + ([found.run] if found.run else []), {**row, "next_run_at": found.next}


@settings(max_examples=300, deadline=None)
@given(wanted=st.sampled_from([CRON, INTERVAL]), edits=edits, uid=uids)
def test_edits_of_the_jitter_lose_and_double_nothing(wanted: Definition, edits: list[Edit], uid: UUID) -> None:
    now = BORN
    row = edited(wanted, None, generation=1, uid=uid, now=now)
    handled: list[datetime] = []
    for number, edit in enumerate(edits, start=2):
        now += timedelta(minutes=edit.minutes)
        if edit.looks:
            times, row = looked(row, now=now)
            handled += times
        changed = replace(wanted, jitter_seconds=edit.jitter_seconds, handler=f"handler-{number}")
        row = edited(changed, row, generation=number, uid=uid, now=now)
    times, row = looked(row, now=now + timedelta(hours=3))
    handled += times
    expected, time = [], BORN
    while (time := after(schedule_of(row), anchor=BORN, moment=time)) + delay_of(row) < row["next_run_at"]:
        expected.append(time)
    assert handled == expected
    assert time + delay_of(row) == row["next_run_at"]
    assert time + delay_of(row) > now + timedelta(hours=3)


def test_another_schedule_leaves_what_has_come_and_is_not_yet_due() -> None:
    wanted = replace(INTERVAL, jitter_seconds=3600)
    row = edited(wanted, None, generation=1, uid=UID, now=BORN)
    come = BORN + timedelta(hours=1)
    assert row["next_run_at"] == come + jitter(UID, seconds=3600) > come
    other = replace(wanted, interval_seconds=7200)
    for now, occurrence in ((come - MINUTE, BORN + timedelta(hours=2)), (come, come)):
        assert edited(other, row, generation=2, uid=UID, now=now)["next_run_at"] == occurrence + delay_of(row)


@pytest.mark.parametrize("seconds", [60, 600])
def test_a_cron_schedule_whose_times_are_closer_than_its_jitter_is_only_later(seconds: int) -> None:
    cron, delay = Cron("* * * * *"), timedelta(seconds=seconds, microseconds=7)
    due, ran = BORN + delay, []
    for _ in range(20):
        found = plan(cron, anchor=BORN, due=due, now=due, runnable_since=None, delay=delay)
        ran.append(found.run)
        due = found.next
    assert ran == [BORN + number * MINUTE for number in range(20)]
