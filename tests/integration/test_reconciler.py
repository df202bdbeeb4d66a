"""What several operators that see the same IntervalJobs make of them, and what one bad one does to the others."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from kubernetes.aio import client
from support import SCOPE, Work, eventually

from intervaljob.controller.api import Api
from intervaljob.controller.events import Announcer
from intervaljob.controller.reconciler import Reconciler, _apply
from intervaljob.database.connection import Database
from intervaljob.model.custom_resource import IntervalJob
from intervaljob.model.schedule import jitter
from intervaljob.scheduler.scheduler import Scheduler


def seen(**fields: Any) -> IntervalJob:
    """An IntervalJob that was created just now."""
    return IntervalJob(
        **{
            "uid": uuid4(),
            "namespace": "default",
            "name": "job",
            "generation": 1,
            "created_at": datetime.now(UTC),
            "resource_version": "1",
            "run_requested_at": None,
            "cancel_requested_at": None,
            "deleting": False,
            "spec": {"interval": "1h", "handler": "echo"},
            "status": {},
            **fields,
        }
    )


@pytest.fixture
async def api() -> Any:
    """An API server that nothing here asks anything."""
    async with client.ApiClient() as api_client:
        yield Api(api_client)


def reconciler(database: Database, api: Api) -> Reconciler:
    return Reconciler(database, api, scope=SCOPE, announcer=Announcer(api), changed=lambda: None)


async def queued_times(work: Work) -> list[datetime]:
    rows = await work.execute("SELECT scheduled_at FROM {schema}.river_job ORDER BY scheduled_at")
    return [row["scheduled_at"] for row in rows]


async def test_operators_that_see_a_new_resource_at_once_run_it_once(database: Database, work: Work, api: Api) -> None:
    for number in range(10):
        resource = seen(name=f"job-{number}", run_requested_at="now")
        operators = [reconciler(database, api) for _ in range(3)]
        await asyncio.gather(*(operator._write([resource]) for operator in operators))
        assert len(await queued_times(work)) == number + 1


async def test_an_operator_that_was_slow_does_not_set_a_new_job_back(database: Database, work: Work, api: Api) -> None:
    """It read that there is no row; meanwhile another wrote the row, and its first occurrence was queued."""
    resource = seen(spec={"interval": "1s", "handler": "echo"})
    slow, other = reconciler(database, api), reconciler(database, api)
    scheduler = Scheduler(database, scope=SCOPE, batch_size=10)
    async with database.transaction() as session:
        changes = await slow._changes(session, [resource])
        await other._write([resource])
        await eventually(scheduler.schedule_due, what="an occurrence is due")
        assert await _apply(session, changes) == set()
    await scheduler.schedule_due()
    times = await queued_times(work)
    assert len(times) == len(set(times)) > 0


async def test_a_resource_whose_row_came_from_another_is_looked_at_again(
    database: Database, work: Work, api: Api
) -> None:
    """It may have been a newer sight of it that lost the race."""
    resource = seen()
    newer = seen(uid=resource.uid, generation=2, resource_version="2", spec={"interval": "2h", "handler": "echo"})
    slow, other = reconciler(database, api), reconciler(database, api)
    waits = asyncio.Event()
    changes_of = slow._changes

    async def changes_then_wait(*arguments: Any) -> Any:
        found = await changes_of(*arguments)
        await waits.wait()
        return found

    slow._changes = changes_then_wait  # type: ignore[method-assign, assignment]
    writing = asyncio.create_task(slow._write([newer]), name="slow")
    await asyncio.sleep(0)
    await other._write([resource])
    waits.set()
    await writing
    slow._changes = changes_of  # type: ignore[method-assign]
    await slow._step()
    (row,) = await work.execute("SELECT generation, interval_seconds FROM {schema}.jobs")
    assert (row["generation"], row["interval_seconds"]) == (2, 7200)


async def test_a_schedule_that_never_comes_in_its_zone_is_a_problem_of_that_resource_alone(
    database: Database, work: Work, api: Api
) -> None:
    """At 02:xx of the last Sunday of March there is no time in Berlin."""
    never = {"schedule": "*/5 2 * 3 0L", "timeZone": "Europe/Berlin", "handler": "echo"}
    bad, good = seen(name="bad", spec=never), seen(name="good")
    await reconciler(database, api)._write([bad, good])
    rows = await work.execute(
        "SELECT name, problem_reason, problem_message, next_run_at FROM {schema}.jobs ORDER BY name"
    )
    assert [(row["name"], row["problem_reason"], row["next_run_at"] is None) for row in rows] == [
        ("bad", "InvalidSchedule", True),
        ("good", None, False),
    ]
    assert "write one that occurs in spec.timeZone" in rows[0]["problem_message"]


async def test_an_older_sight_of_a_request_runs_nothing(database: Database, work: Work, api: Api) -> None:
    """Another operator, or a page of a list, shows the first request after the second was handled."""
    first = seen(run_requested_at="1", resource_version="10")
    second = seen(
        uid=first.uid, run_requested_at="2", resource_version="12", created_at=first.created_at + timedelta(0)
    )
    one = reconciler(database, api)
    for resource in (first, second, first, second):
        await one._write([resource])
    assert len(await queued_times(work)) == 2


async def test_a_request_to_run_a_resource_that_cannot_be_scheduled_is_no_endless_edit(
    database: Database, work: Work, api: Api
) -> None:
    one = reconciler(database, api)
    bad = seen(run_requested_at="1", spec={"interval": "never", "handler": "echo"})
    await one._write([bad])
    (before,) = await work.execute("SELECT revision FROM {schema}.job_status")
    status = {"jobId": str(bad.uid)}
    await one._write([seen(**{**vars(bad), "resource_version": "2", "status": status})])
    (after,) = await work.execute("SELECT revision FROM {schema}.job_status")
    assert before == after


async def test_a_request_to_cancel_is_heard_once_also_by_a_resource_that_cannot_be_scheduled(
    database: Database, work: Work, api: Api
) -> None:
    one = reconciler(database, api)
    resource = seen(run_requested_at="1")
    await one._write([resource])
    (attempt,) = await work.claim(await work.worker())
    bad = {"interval": "never", "handler": "echo"}
    asked = {"cancel_requested_at": "1", "resource_version": "5", "generation": 2, "spec": bad}
    await one._write([seen(**{**vars(resource), **asked})])
    (held,) = await database.fetch(
        "held_tasks", tasks=[attempt.task_id], worker=await _worker_of(work, attempt.task_id)
    )
    assert held["cancel"]
    (before,) = await work.execute("SELECT cancel_before FROM {schema}.jobs")
    await one._write([seen(**{**vars(resource), **asked, "resource_version": "6"})])
    assert (await work.execute("SELECT cancel_before FROM {schema}.jobs"))[0] == before


async def test_a_request_to_run_now_waits_for_no_jitter_and_puts_nothing_off(
    database: Database, work: Work, api: Api
) -> None:
    resource = seen(spec={"interval": "1h", "handler": "echo", "jitterSeconds": 3600}, run_requested_at="now")
    await reconciler(database, api)._write([resource])
    (attempt,) = await work.claim(await work.worker())
    (row,) = await work.execute("SELECT next_run_at, last_run_at, jitter_seconds FROM {schema}.jobs")
    assert attempt.scheduled_for == row["last_run_at"] <= datetime.now(UTC)
    assert row["next_run_at"] == resource.created_at + timedelta(hours=1) + jitter(resource.uid, seconds=3600)


async def _worker_of(work: Work, task: Any) -> Any:
    return (await work.task(task))["worker_id"]
