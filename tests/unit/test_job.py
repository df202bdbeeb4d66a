"""What an IntervalJob changes about its row."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from definitions import WANTED

from intervaljob.errors import ResourceError
from intervaljob.model.custom_resource import Definition, IntervalJob
from intervaljob.model.job import Change, reconcile, schedule_of
from intervaljob.model.schedule import Cron, Interval

BORN = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
NOW = BORN + timedelta(seconds=90)
UID = UUID(int=7)
RESOURCE = IntervalJob(
    uid=UID,
    namespace="team",
    name="report",
    generation=1,
    created_at=BORN,
    resource_version="11",
    run_requested_at=None,
    cancel_requested_at=None,
    deleting=False,
    spec={},
    status={},
)
PROBLEM = ResourceError("InvalidSchedule", "spec.schedule: write five fields")


def change(
    wanted: Definition | ResourceError,
    known: dict[str, Any] | None,
    *,
    resource: IntervalJob = RESOURCE,
    now: datetime = NOW,
) -> Change | None:
    return reconcile(resource, wanted, known, cluster="here", now=now)


def changed(
    wanted: Definition | ResourceError,
    known: dict[str, Any] | None,
    *,
    resource: IntervalJob = RESOURCE,
    now: datetime = NOW,
) -> Change:
    found = change(wanted, known, resource=resource, now=now)
    assert found is not None
    return found


def row(wanted: Definition | ResourceError = WANTED, **columns: Any) -> dict[str, Any]:
    """The row that the first sight left, with these columns since."""
    return {**changed(wanted, None).row, "deleted_at": None, **columns}


def edited(generation: int = 2, *, run_requested_at: str | None = None) -> IntervalJob:
    return replace(RESOURCE, generation=generation, run_requested_at=run_requested_at)


def test_the_first_sight_writes_the_definition_and_the_next_occurrence_from_the_creation() -> None:
    found = changed(WANTED, None)
    assert found.row["id"] == UID
    assert (found.row["cluster_id"], found.row["namespace"], found.row["name"]) == ("here", "team", "report")
    assert found.row["anchor"] == BORN
    assert found.row["next_run_at"] == BORN + timedelta(seconds=120)
    assert found.row["interval_seconds"] == 60
    assert found.row["problem_reason"] is None
    assert "suspend" not in found.row
    assert (found.run_now, found.became_forbid, found.event) == (False, False, None)


def test_what_was_seen_already_changes_nothing() -> None:
    assert change(WANTED, row()) is None


def test_an_older_generation_than_the_rows_changes_nothing() -> None:
    known = row(generation=3)
    assert change(replace(WANTED, handler="old"), known, resource=edited(2)) is None
    assert change(PROBLEM, known, resource=edited(2)) is None
    assert change(WANTED, known, resource=edited(2, run_requested_at="an old one")) is None


def test_an_edit_keeps_the_next_occurrence_where_the_schedule_is_the_same() -> None:
    due = NOW + timedelta(seconds=17)
    found = changed(replace(WANTED, handler="other"), row(next_run_at=due), resource=edited())
    assert found.row["handler"] == "other"
    assert found.row["next_run_at"] == due


def test_a_new_schedule_is_counted_from_now() -> None:
    found = changed(replace(WANTED, interval_seconds=3600), row(), resource=edited())
    assert found.row["next_run_at"] == BORN + timedelta(hours=1)
    found = changed(
        replace(WANTED, interval_seconds=None, schedule="30 * * * *", time_zone="UTC"), row(), resource=edited()
    )
    assert found.row["next_run_at"] == BORN + timedelta(minutes=30)


def test_a_new_schedule_does_not_take_away_an_occurrence_that_is_due() -> None:
    due = NOW - timedelta(seconds=30)
    found = changed(replace(WANTED, interval_seconds=3600), row(next_run_at=due), resource=edited())
    assert found.row["next_run_at"] == due


def test_an_invalid_edit_keeps_all_that_runs_and_says_what_is_wrong() -> None:
    known = row(queue="slow", next_run_at=NOW + timedelta(seconds=5), run_requested_at="once")
    later = NOW + timedelta(minutes=5)
    found = changed(PROBLEM, known, resource=edited(), now=later)
    touched = {"generation", "problem_reason", "problem_message", "ready_changed_at"}
    assert {name for name in found.row if found.row[name] != known[name]} == touched
    assert found.row["generation"] == 2
    assert (found.row["problem_reason"], found.row["problem_message"]) == (PROBLEM.reason, PROBLEM.message)
    assert found.row["ready_changed_at"] == later
    assert found.event == ("Warning", PROBLEM.reason, PROBLEM.message)
    assert (found.run_now, found.became_forbid) == (False, False)
    assert "deleted_at" not in found.row


def test_an_invalid_edit_does_not_run_now() -> None:
    assert not changed(PROBLEM, row(), resource=edited(run_requested_at="new")).run_now


def test_a_second_invalid_edit_keeps_the_time_since_which_it_is_not_ready() -> None:
    first = changed(PROBLEM, row(), resource=edited()).row | {"deleted_at": None}
    later = NOW + timedelta(hours=1)
    second = changed(ResourceError("Other", "else"), first, resource=edited(3), now=later)
    assert second.row["ready_changed_at"] == NOW
    assert second.row["problem_reason"] == "Other"


def test_an_invalid_first_sight_has_no_next_occurrence() -> None:
    found = changed(PROBLEM, None)
    assert found.row["next_run_at"] is None
    assert found.row["problem_reason"] == PROBLEM.reason
    assert found.row.keys() == changed(WANTED, None).row.keys()


def test_a_mended_first_sight_is_scheduled_and_said_to_be() -> None:
    later = NOW + timedelta(minutes=5)
    found = changed(WANTED, row(PROBLEM), resource=edited(), now=later)
    assert found.row["next_run_at"] == BORN + timedelta(minutes=7)
    assert found.row["problem_reason"] is None
    assert found.row["ready_changed_at"] == later
    assert found.event is not None
    assert found.event[:2] == ("Normal", "Accepted")


def test_suspending_keeps_the_occurrence_and_says_so() -> None:
    known = row()
    found = changed(replace(WANTED, suspend=True), known, resource=edited())
    assert found.row["suspended"] is True
    assert found.row["next_run_at"] == known["next_run_at"]
    assert found.row["runnable_since"] is None
    assert found.event is not None
    assert found.event[1] == "Suspended"


def test_resuming_notes_since_when_occurrences_may_run() -> None:
    known = row(suspended=True, next_run_at=NOW - timedelta(hours=1))
    found = changed(WANTED, known, resource=edited())
    assert found.row["suspended"] is False
    assert found.row["runnable_since"] == NOW
    assert found.row["next_run_at"] == known["next_run_at"]
    assert found.event is not None
    assert found.event[1] == "Resumed"


def test_a_later_edit_keeps_since_when_occurrences_may_run() -> None:
    since = NOW - timedelta(minutes=1)
    found = changed(replace(WANTED, handler="other"), row(runnable_since=since), resource=edited())
    assert found.row["runnable_since"] == since
    assert found.event is None


def test_run_now_is_asked_for_by_a_new_value_only_and_at_the_same_generation() -> None:
    asked = edited(1, run_requested_at="monday")
    found = changed(WANTED, row(), resource=asked)
    assert found.run_now
    assert found.row["run_requested_at"] == "monday"
    known = {**found.row, "deleted_at": None}
    assert change(WANTED, known, resource=asked) is None
    assert not changed(WANTED, known, resource=edited(2, run_requested_at="monday")).run_now
    assert changed(WANTED, known, resource=edited(1, run_requested_at="tuesday")).run_now


def test_run_now_holds_for_one_that_is_seen_for_the_first_time() -> None:
    assert changed(WANTED, None, resource=edited(1, run_requested_at="at birth")).run_now


def test_removing_the_annotation_runs_nothing() -> None:
    assert change(WANTED, row(run_requested_at="monday"), resource=edited(1)) is None


@pytest.mark.parametrize(("before", "after", "became"), [("Allow", "Forbid", True), ("Forbid", "Forbid", False)])
def test_forbidding_is_noticed_when_it_begins(before: str, after: Any, became: bool) -> None:
    known = row(concurrency_policy=before)
    found = changed(replace(WANTED, concurrency_policy=after), known, resource=edited())
    assert found.became_forbid is became


def test_a_retired_row_comes_back_with_the_first_occurrence_from_now_on() -> None:
    known = row(deleted_at=NOW, next_run_at=None)
    assert changed(WANTED, known).row["next_run_at"] == BORN + timedelta(seconds=120)


def test_a_rows_schedule_is_the_interval_or_the_cron_schedule_in_its_zone() -> None:
    assert schedule_of(row()) == Interval(60)
    assert schedule_of(row(interval_seconds=None, schedule="0 * * * *", time_zone="Europe/Berlin")) == Cron(
        "0 * * * *", "Europe/Berlin"
    )
