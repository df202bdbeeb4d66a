"""The status that rows amount to."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from intervaljob.model.status import MAX_ACTIVE, MAX_RECENT, build_status, same_status

NOON = datetime(2026, 11, 23, 12, 0, 0, 987654, tzinfo=UTC)
ROW: dict[str, Any] = {
    "job_id": UUID(int=7),
    "generation": 4,
    "interval_seconds": 60,
    "schedule": None,
    "suspended": False,
    "next_run_at": NOON,
    "last_run_at": None,
    "problem_reason": None,
    "problem_message": None,
    "ready_changed_at": NOON,
    "succeeded": 5,
    "failed": 1,
    "cancelled": 0,
    "recovered": 2,
    "skipped": 3,
    "last_result": "failed",
    "last_success_at": NOON - timedelta(hours=1),
    "last_failure_at": NOON,
    "tasks": [],
}


def status(**columns: Any) -> dict[str, Any]:
    return build_status(ROW | columns)


def task(**columns: Any) -> dict[str, Any]:
    """A task as the database's JSON has it."""
    return {
        "id": str(UUID(int=1)),
        "status": "running",
        "attempt": 1,
        "recoveries": 0,
        "worker": "w-1",
        "scheduled_for": "2026-11-23T13:00:00.5+01:00",
        "started_at": "2026-11-23T12:00:01+00:00",
        "finished_at": None,
        "error": None,
        "evidence": None,
    } | columns


def test_it_says_what_the_row_says() -> None:
    assert status() == {
        "observedGeneration": 4,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Scheduled",
                "message": "tasks are started as scheduled",
                "observedGeneration": 4,
                "lastTransitionTime": "2026-11-23T12:00:00Z",
            }
        ],
        "jobId": "00000000-0000-0000-0000-000000000007",
        "schedule": "every 1m",
        "nextScheduleTime": "2026-11-23T12:00:00Z",
        "lastScheduleTime": None,
        "lastSuccessfulTime": "2026-11-23T11:00:00Z",
        "lastFailureTime": "2026-11-23T12:00:00Z",
        "lastResult": "Failed",
        "active": [],
        "activeCount": 0,
        "lastTask": None,
        "recentTasks": [],
        "counts": {"succeeded": 5, "failed": 1, "cancelled": 0, "recovered": 2, "skipped": 3},
    }


def test_recent_tasks_say_in_short_how_each_went_and_are_bounded() -> None:
    tasks = [task(id=str(UUID(int=number)), status="succeeded") for number in range(1, 10)]
    tasks[1] |= {"status": "failed", "recoveries": 1, "attempt": 2, "evidence": "lease_expired", "error": "x" * 1000}
    recent = status(tasks=tasks)["recentTasks"]
    assert len(recent) == MAX_RECENT
    assert recent[0] == {
        "taskId": str(UUID(int=1)),
        "status": "succeeded",
        "attempt": 1,
        "recoveries": 0,
        "startedAt": "2026-11-23T12:00:01Z",
    }
    assert (recent[1]["lastEvidence"], recent[1]["recoveries"], len(recent[1]["message"])) == ("lease_expired", 1, 256)


def test_a_problem_is_not_ready_even_when_suspended() -> None:
    (ready,) = status(problem_reason="InvalidSchedule", problem_message="write five fields", suspended=True)[
        "conditions"
    ]
    assert (ready["status"], ready["reason"], ready["message"]) == ("False", "InvalidSchedule", "write five fields")


def test_a_suspended_job_is_ready_and_has_no_next_time() -> None:
    found = status(suspended=True)
    assert found["nextScheduleTime"] is None
    assert (found["conditions"][0]["status"], found["conditions"][0]["reason"]) == ("True", "Suspended")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(30, "every 30s"), (90, "every 1m30s"), (3600, "every 1h"), (90_061, "every 1d1h1m1s"), (86_400, "every 1d")],
)
def test_an_interval_is_shown_in_the_units_that_a_user_writes(seconds: int, text: str) -> None:
    assert status(interval_seconds=seconds)["schedule"] == text


def test_a_cron_schedule_is_shown_as_it_is_and_none_as_none() -> None:
    assert status(interval_seconds=None, schedule="*/5 * * * *")["schedule"] == "*/5 * * * *"
    assert status(interval_seconds=None, schedule=None)["schedule"] is None


def test_times_are_in_utc_whatever_zone_they_came_in() -> None:
    berlin = NOON.astimezone(timezone(timedelta(hours=1)))
    assert status(last_run_at=berlin)["lastScheduleTime"] == "2026-11-23T12:00:00Z"


@pytest.mark.parametrize("state", ["running", "recovering", "retrying"])
def test_a_task_that_has_not_ended_is_active(state: str) -> None:
    found = status(tasks=[task(status=state, recoveries=1, attempt=2)])
    assert found["activeCount"] == 1
    assert found["active"] == [
        {
            "taskId": str(UUID(int=1)),
            "attempt": 2,
            "worker": "w-1",
            "recovered": True,
            "startedAt": "2026-11-23T12:00:01Z",
        }
    ]


def test_an_active_task_without_a_worker_names_none() -> None:
    (active,) = status(tasks=[task(worker=None, started_at=None)])["active"]
    assert active.keys() == {"taskId", "attempt", "recovered"}


def test_the_list_of_active_tasks_is_bounded_and_the_count_is_not() -> None:
    found = status(tasks=[task(id=str(UUID(int=n))) for n in range(1, 15)])
    assert [one["taskId"] for one in found["active"]] == [str(UUID(int=n)) for n in range(1, MAX_ACTIVE + 1)]
    assert found["activeCount"] == 14


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_the_last_task_is_the_newest_and_names_every_field(state: str) -> None:
    ended = task(status=state, finished_at="2026-11-23T12:00:03.9+00:00", error="no")
    found = status(tasks=[ended, task(id=str(UUID(int=2)))])
    assert found["lastTask"] == {
        "taskId": str(UUID(int=1)),
        "status": state,
        "attempt": 1,
        "recoveries": 0,
        "worker": "w-1",
        "scheduledFor": "2026-11-23T12:00:00Z",
        "startedAt": "2026-11-23T12:00:01Z",
        "finishedAt": "2026-11-23T12:00:03Z",
        "message": "no",
    }
    assert found["activeCount"] == 1


def test_a_status_is_the_same_when_it_says_all_that_is_wanted() -> None:
    assert same_status(status(), status() | {"foreign": 1})
    assert same_status({"gone": None}, {})


@pytest.mark.parametrize(
    "other",
    [
        {"counts": {**status()["counts"], "failed": 2}},
        {"active": [{"taskId": "x"}]},
        {"lastResult": "Succeeded"},
        {"conditions": [{**status()["conditions"][0], "status": "False"}]},
        {"conditions": []},
        {"lastTask": {"taskId": "x"}},
    ],
)
def test_a_status_differs_when_any_part_of_it_does(other: dict[str, Any]) -> None:
    assert not same_status(status(), status() | other)
