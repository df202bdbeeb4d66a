"""What the cleaner deletes, and what it leaves."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from prometheus_client import REGISTRY
from support import RETURNED, SCOPE, AddJob, Execute, Work, eventually

from intervaljob.cleaner.cleaner import Cleaner, Retention
from intervaljob.database.connection import Database, Row
from intervaljob.model.scope import Scope
from intervaljob.model.status import build_status
from intervaljob.model.task import Attempt, Outcome, Result
from intervaljob.worker.incarnation import Incarnation

DAY = 86_400.0
RETENTION = Retention(succeeded=DAY, cancelled=2 * DAY, failed=7 * DAY)
TABLES = ("jobs", "tasks", "river_job", "workers", "job_status", "transitions", "skipped_occurrences", "forbid_holds")

Age = Callable[..., Awaitable[None]]


def cleaner(database: Database, *, scope: Scope = SCOPE, batch: int = 10) -> Cleaner:
    return Cleaner(database, scope=scope, retention=RETENTION, batch=batch)


async def counts(work: Work) -> dict[str, int]:
    """How many rows each table has."""
    columns = ", ".join(f"(SELECT count(*) FROM {{schema}}.{table}) AS {table}" for table in TABLES)
    (row,) = await work.execute(f"SELECT {columns}")
    return dict(row)


@pytest.fixture
def age(execute: Execute) -> Age:
    """Make everything that there is older by so many days."""

    async def add(days: float) -> None:
        for table, columns in {
            "tasks": ("created_at", "started_at", "finished_at"),
            "river_job": ("created_at", "finalized_at"),
            "workers": ("ended_at",),
            "jobs": ("deleted_at",),
            "transitions": ("at",),
        }.items():
            older = ", ".join(f"{column} = {column} - make_interval(secs => %(seconds)s)" for column in columns)
            await execute(f"UPDATE {{schema}}.{table} SET {older}", seconds=days * DAY)

    return add


async def ended(
    work: Work, job: UUID, *, worker: Incarnation | None = None, result: Result = RETURNED, count: int = 1
) -> list[Attempt]:
    """Tasks of this job that have ended so."""
    worker = worker or await work.worker()
    for _ in range(count):
        await work.enqueue(job)
    attempts = await work.claim(worker)
    for attempt in attempts:
        assert await work.finish(worker, attempt, result)
    return attempts


async def retire(work: Work, *jobs: UUID) -> None:
    await work.database.fetch("retire_jobs", jobs=list(jobs), cluster=SCOPE.cluster)


async def fold(work: Work) -> None:
    await work.database.fetch("fold_transitions", limit=1000, watched_seconds=60, **SCOPE.parameters())


def remaining(rows: list[Row]) -> set[UUID]:
    return {row["id"] for row in rows}


FAILED = Result(Outcome.RAISED, error="no", retry=False)
CANCELLED = Result(Outcome.CANCELLED, error="cancelled")


@pytest.mark.parametrize(
    ("result", "days"), [(RETURNED, 1), (CANCELLED, 2), (FAILED, 7)], ids=["succeeded", "cancelled", "failed"]
)
async def test_a_task_and_its_queue_job_go_when_they_are_older_than_their_kind_is_kept(
    work: Work, age: Age, result: Result, days: float
) -> None:
    job = await work.add_job()
    await ended(work, job, result=result, count=7)
    await retire(work, job)
    await age(days - 0.01)
    await cleaner(work.database).clean()
    assert (await counts(work))["tasks"] == 7
    assert (await counts(work))["river_job"] == 7
    await age(0.02)
    await cleaner(work.database).clean()
    assert (await counts(work))["tasks"] == 0
    assert (await counts(work))["river_job"] == 0


async def test_the_newest_tasks_of_an_intervaljob_stay_until_newer_ones_have_come(
    work: Work, age: Age, execute: Execute
) -> None:
    job = await work.add_job()
    await ended(work, job)
    await age(1)
    second = [(await ended(work, job))[0].task_id for _ in range(5)]
    await age(8)
    await cleaner(work.database).clean()
    assert remaining(await work.tasks()) == set(second)
    assert await execute("SELECT id FROM {schema}.river_job") == []
    third = [(await ended(work, job))[0].task_id for _ in range(2)]
    await cleaner(work.database).clean()
    assert remaining(await work.tasks()) == {*second[2:], *third}


async def test_a_status_says_the_same_after_cleaning(work: Work, age: Age, execute: Execute) -> None:
    job = await work.add_job()
    for result in (RETURNED, FAILED, CANCELLED, RETURNED, RETURNED, RETURNED, FAILED):
        await ended(work, job, result=result)
    await work.start()
    await fold(work)
    await execute("UPDATE {schema}.workers SET ended_at = now() WHERE id <> ALL(%(held)s)", held=await holders(work))
    await age(30)

    async def statuses() -> dict[UUID, dict[str, Any]]:
        jobs = [row["id"] for row in await execute("SELECT id FROM {schema}.jobs")]
        return {row["job_id"]: build_status(row) for row in await work.database.fetch("read_statuses", jobs=jobs)}

    before = await statuses()
    await cleaner(work.database).clean()
    assert await statuses() == before
    assert len(await work.tasks()) == 6
    assert before[job]["lastTask"]["worker"] is not None


async def holders(work: Work) -> list[UUID]:
    return [row["worker_id"] for row in await work.tasks() if row["status"] == "running"]


async def test_nothing_that_is_unfinished_goes_however_old_it_is(work: Work, age: Age) -> None:
    """Queue jobs in each state that is not final, and tasks in each status that is not."""
    job = await work.add_job(backoff_limit=3)
    worker = await work.worker()
    await work.enqueue(job)
    (retried,) = await work.claim(worker)
    await work.finish(worker, retried, Result(Outcome.RAISED, error="again"))
    await work.start(worker)
    lost = await work.worker()
    await work.start(lost)
    await work.end(lost)
    await work.recover()
    for state in ("available", "scheduled", "pending"):
        waiting = await work.enqueue(job, delay=3600)
        await work.execute("UPDATE {schema}.river_job SET state = %(state)s WHERE id = %(id)s", state=state, id=waiting)
    await age(30)
    await retire(work, job)
    before = await counts(work)
    await cleaner(work.database).clean()
    # Only the orphaned queue job has ended: its task goes on by another.
    assert await counts(work) == {**before, "river_job": before["river_job"] - 1}


async def test_a_queue_job_stays_while_its_task_has_not_ended(work: Work, age: Age, execute: Execute) -> None:
    """That it was cancelled, and not deleted, is what ends the task."""
    _, attempt = await work.start()
    await execute("UPDATE {schema}.tasks SET status = 'retrying'")
    await execute("UPDATE {schema}.river_job SET state = 'cancelled', finalized_at = now()")
    await age(30)
    await cleaner(work.database).clean()
    assert (await work.queue_job(attempt.queue_job_id))["state"] == "cancelled"


@pytest.mark.parametrize("state", ["available", "running", "retryable", "scheduled", "pending"])
@pytest.mark.parametrize("outlived", [False, True], ids=["with its queue job", "without its queue job"])
async def test_a_task_stays_while_an_unfinished_queue_job_names_it(
    work: Work, age: Age, execute: Execute, state: str, outlived: bool
) -> None:
    job = await work.add_job()
    ((named), *_) = await ended(work, job, count=2)
    await retire(work, job)
    queue_job = await work.enqueue(job, task=named.task_id)
    await execute("UPDATE {schema}.river_job SET state = %(state)s WHERE id = %(id)s", state=state, id=queue_job)
    if outlived:
        await execute("DELETE FROM {schema}.river_job WHERE id <> %(id)s", id=queue_job)
    await age(30)
    await cleaner(work.database).clean()
    assert remaining(await work.tasks()) == {named.task_id}


@pytest.mark.parametrize("args", ["[]", '"text"', '{"job_id": 7}', '{"task_id": null}'])
async def test_args_that_nobody_can_read_keep_nothing(work: Work, age: Age, execute: Execute, args: str) -> None:
    """An unfinished queue job with such args stays, one that has ended goes, and so does everything else."""
    job = await work.add_job()
    await ended(work, job)
    await retire(work, job)
    insert = (
        "INSERT INTO {schema}.river_job (kind, args, state, finalized_at)"
        " VALUES ('interval_job', %(args)s, 'cancelled', now()), ('interval_job', %(args)s, 'pending', NULL)"
    )
    await execute(insert, args=args)
    await age(30)
    await cleaner(work.database).clean()
    assert [row["state"] for row in await execute("SELECT state FROM {schema}.river_job")] == ["pending"]
    assert await work.tasks() == []


async def test_queue_jobs_of_other_kinds_are_not_ours(work: Work, age: Age) -> None:
    await work.enqueue(args={}, kind="theirs")
    await work.execute("UPDATE {schema}.river_job SET state = 'completed', finalized_at = now()")
    await age(30)
    await cleaner(work.database).clean()
    assert (await counts(work))["river_job"] == 1


@pytest.mark.parametrize(
    ("scope", "columns"),
    [
        (Scope(cluster="test-cluster"), {"cluster_id": "another"}),
        (Scope(cluster="test-cluster", namespaces=("mine",)), {"namespace": "theirs"}),
    ],
    ids=["cluster", "namespace"],
)
@pytest.mark.parametrize("kept", ["queue jobs", "outlived tasks", "jobs"])
async def test_what_belongs_to_others_stays(
    work: Work, age: Age, scope: Scope, columns: dict[str, Any], kept: str
) -> None:
    job = await work.add_job(**columns)
    if kept != "jobs":
        await ended(work, job)
    await work.execute("UPDATE {schema}.jobs SET deleted_at = now()")
    await work.execute("DELETE FROM {schema}.transitions")
    if kept == "outlived tasks":
        await work.execute("DELETE FROM {schema}.river_job")
    await age(30)
    before = await counts(work)
    await cleaner(work.database, scope=scope).clean()
    assert await counts(work) == before
    everybody = Scope(cluster=columns.get("cluster_id", SCOPE.cluster))
    await cleaner(work.database, scope=everybody).clean()
    assert {name: count for name, count in (await counts(work)).items() if count} == (
        {} if kept == "jobs" else {"workers": 1}
    )


async def test_legacy_rows_have_no_cluster_and_anybody_deletes_them(work: Work, age: Age) -> None:
    job = await work.add_job(cluster_id=None)
    await ended(work, job, count=6)
    await age(30)
    await cleaner(work.database, scope=Scope(cluster="any", namespaces=("any",))).clean()
    assert len(await work.tasks()) == 5


async def test_what_stays_at_the_head_of_the_queue_hides_nothing(work: Work, age: Age, execute: Execute) -> None:
    """More of it than a batch, and of one moment."""
    await execute(
        "INSERT INTO {schema}.river_job (kind, args, state, finalized_at)"
        " SELECT 'theirs', '{}', 'completed', now() FROM generate_series(1, 25)"
    )
    job = await work.add_job()
    await ended(work, job, count=25)
    await retire(work, job)
    await age(30)
    await cleaner(work.database).clean()
    assert await work.tasks() == []
    assert len(await execute("SELECT id FROM {schema}.river_job")) == 25


async def test_a_later_look_goes_on_from_where_the_earlier_one_ended(work: Work, age: Age) -> None:
    job = await work.add_job()
    ours = cleaner(work.database)
    for _ in range(3):
        await ended(work, job, count=12)
        await age(30)
        await ours._clean_queue()
        assert len(await work.tasks()) == 5 or await work.execute("SELECT id FROM {schema}.river_job") == []
    await ours.clean()
    assert len(await work.tasks()) == 5


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("UPDATE {schema}.tasks SET finished_at = now()", True),
        ("UPDATE {schema}.tasks SET status = 'recovering'", True),
        ("UPDATE {schema}.jobs SET deleted_at = NULL", True),
        ("UPDATE {schema}.tasks SET finished_at = NULL", False),
    ],
    ids=["young", "unfinished", "newest", "of an unknown age"],
)
async def test_a_task_without_a_queue_job_goes_when_it_is_old(
    work: Work, age: Age, execute: Execute, keep: str, kept: bool
) -> None:
    job = await work.add_job()
    await ended(work, job)
    await execute("DELETE FROM {schema}.river_job")
    await execute("UPDATE {schema}.jobs SET deleted_at = now()")
    await age(30)
    await execute(keep)
    await cleaner(work.database).clean()
    assert bool(await work.tasks()) is kept


async def test_tasks_without_queue_jobs_are_more_than_a_batch_of_many_jobs(
    work: Work, age: Age, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intervaljob.cleaner.cleaner.PAGE", 2)
    worker = await work.worker()
    for _ in range(5):
        await ended(work, await work.add_job(), worker=worker, count=12)
    await execute("DELETE FROM {schema}.river_job")
    await age(30)
    await cleaner(work.database).clean()
    assert len(await work.tasks()) == 25


async def test_a_retired_job_goes_with_all_that_is_its_own(work: Work, age: Age) -> None:
    gone, young, lives = [await work.add_job() for _ in range(3)]
    await work.database.fetch("touch_statuses", jobs=[gone, young, lives])
    for job in (gone, young, lives):
        await work.execute(
            "INSERT INTO {schema}.skipped_occurrences VALUES (%(job)s, 'Missed', now(), now(), 1)", job=job
        )
        await work.execute("INSERT INTO {schema}.forbid_holds VALUES (%(job)s, 1)", job=job)
    await retire(work, gone)
    await age(8)
    await retire(work, young)
    await cleaner(work.database).clean()
    two = {"jobs": 2, "job_status": 2, "skipped_occurrences": 2, "forbid_holds": 2}
    assert {name: count for name, count in (await counts(work)).items() if count} == two
    assert remaining(await work.execute("SELECT id FROM {schema}.jobs")) == {young, lives}


@pytest.mark.parametrize("by", ["task", "queue job"])
async def test_a_retired_job_stays_while_something_refers_to_it(work: Work, age: Age, by: str) -> None:
    job = await work.add_job()
    if by == "task":
        await work.execute("INSERT INTO {schema}.tasks (id, job_id) VALUES (%(id)s, %(id)s)", id=job)
    else:
        await work.enqueue(job)
    await retire(work, job)
    await age(30)
    await cleaner(work.database).clean()
    assert remaining(await work.execute("SELECT id FROM {schema}.jobs")) == {job}


async def test_workers_go_when_they_ended_long_ago_and_no_status_shows_them(work: Work, age: Age) -> None:
    old, shown = await work.worker(), await work.worker()
    slow = await work.add_job()
    await ended(work, slow, worker=shown)
    for worker in (old, shown):
        await work.end(worker)
    await age(8)
    young = await work.worker()
    await young.end("drained")
    living = await work.worker()
    await cleaner(work.database).clean()
    assert remaining(await work.execute("SELECT id FROM {schema}.workers")) == {shown.id, young.id, living.id}
    await retire(work, slow)
    await cleaner(work.database).clean()
    assert remaining(await work.execute("SELECT id FROM {schema}.workers")) == {young.id, living.id}


async def test_a_worker_stays_while_it_holds_a_running_task(work: Work, age: Age) -> None:
    """How it ended is the evidence by which the task is recovered, if that is long after."""
    job = await work.add_job()
    await work.enqueue(job)
    holding = await work.worker()
    assert len(await work.claim(holding)) == 1
    await work.end(holding)
    await retire(work, job)
    await age(8)
    await cleaner(work.database).clean()
    assert remaining(await work.execute("SELECT id FROM {schema}.workers")) == {holding.id}
    await work.recover()
    await cleaner(work.database).clean()
    assert await work.execute("SELECT id FROM {schema}.workers") == []


async def test_transitions_without_a_job_go(work: Work, age: Age, execute: Execute) -> None:
    """Nobody could fold them. Those of a job wait to be folded, however long."""
    job, unknown = await work.add_job(), uuid4()
    insert = "INSERT INTO {schema}.transitions (job_id, kind) VALUES (%(job)s, 'failed')"
    for of in (unknown, job):
        await execute(insert, job=of)
    await age(8)
    await execute(insert, job=unknown)
    await cleaner(work.database).clean()
    rows = await execute("SELECT job_id FROM {schema}.transitions ORDER BY id")
    assert [row["job_id"] for row in rows] == [job, unknown]


async def test_two_at_once_delete_the_same_as_one_and_again_nothing(work: Work, age: Age, add_job: AddJob) -> None:
    jobs = [await add_job() for _ in range(4)]
    worker = await work.worker()
    for job in jobs:
        await ended(work, job, worker=worker, count=40)
    await retire(work, *jobs[:2])
    await fold(work)
    await work.end(worker)
    await age(30)
    deleted = REGISTRY.get_sample_value("intervaljob_rows_deleted_total", {"table": "tasks"}) or 0.0
    await asyncio.gather(*(cleaner(work.database, batch=7).clean() for _ in range(4)))
    left = await counts(work)
    assert {name: count for name, count in left.items() if count} == {
        "jobs": 2,
        "job_status": 2,
        "tasks": 10,
        "workers": 1,
    }
    now = REGISTRY.get_sample_value("intervaljob_rows_deleted_total", {"table": "tasks"})
    assert now == deleted + 4 * 40 - 10
    await cleaner(work.database).clean()
    assert await counts(work) == left


async def test_what_another_one_has_locked_is_not_waited_for(work: Work, age: Age) -> None:
    job = await work.add_job()
    first, *_ = await ended(work, job, count=3)
    await retire(work, job)
    await age(30)
    async with work.database.transaction() as session:
        lock = f"SELECT FROM {work.database.schema}.river_job WHERE id = {first.queue_job_id} FOR UPDATE"
        await session.connection.execute(lock.encode())
        await cleaner(work.database).clean()
        assert remaining(await work.tasks()) == {first.task_id}


async def test_it_cleans_by_itself_and_says_what_it_did(work: Work, age: Age, caplog: pytest.LogCaptureFixture) -> None:
    job = await work.add_job()
    await ended(work, job, count=8)
    await retire(work, job)
    await age(30)
    caplog.set_level(logging.INFO)
    running = asyncio.create_task(cleaner(work.database).run(), name="cleaner")
    (record,) = await eventually(
        lambda: [record for record in caplog.records if record.message == "Old rows deleted"], what="the log line"
    )
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (vars(record)["tasks"], vars(record)["river_job"]) == (8, 8)
