"""Due jobs become queue jobs: each occurrence once, or in the ledger with its reason."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from support import CLUSTER, SCOPE, AddJob, Execute, Work, eventually

from intervaljob.database.connection import Database
from intervaljob.embedded.postgres import Postgres
from intervaljob.errors import DatabaseError
from intervaljob.model.schedule import jitter
from intervaljob.model.scope import Scope
from intervaljob.scheduler import scheduler as module
from intervaljob.scheduler.scheduler import Scheduler
from intervaljob.settings import DatabaseSettings, load


def ago(**duration: float) -> datetime:
    return datetime.now(UTC) - timedelta(**duration)


def scheduler(database: Database, *, scope: Scope = SCOPE, batch_size: int = 500) -> Scheduler:
    return Scheduler(database, scope=scope, batch_size=batch_size)


@asynccontextmanager
async def running(one: Scheduler) -> AsyncIterator[None]:
    """The scheduler runs inside; that it stopped by itself is an error."""
    task = asyncio.create_task(one.run(), name="scheduler")
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def add_due(add_job: AddJob, **columns: Any) -> UUID:
    """A job whose one occurrence so far, a minute after its anchor, was due half a minute ago."""
    anchor = ago(seconds=90)
    return await add_job(**{"anchor": anchor, "next_run_at": anchor + timedelta(seconds=60), **columns})


async def ledger(execute: Execute) -> list[dict[str, Any]]:
    return await execute("SELECT * FROM {schema}.skipped_occurrences ORDER BY reason")


async def test_an_occurrence_becomes_a_queue_job_as_every_worker_expects_it(
    database: Database, execute: Execute, add_job: AddJob
) -> None:
    due = ago(seconds=30)
    user, workspace = uuid4(), uuid4()
    job = await add_job(
        user_id=user,
        workspace_id=workspace,
        payload='{"text": "Zoë\\n"}',
        queue="slow",
        priority=3,
        backoff_limit=6,
        anchor=due - timedelta(seconds=60),
        next_run_at=due,
    )
    assert await scheduler(database).schedule_due() == 1
    (queue_job,) = await execute("SELECT * FROM {schema}.river_job")
    assert queue_job["args"] == {
        "job_id": str(job),
        "user_id": str(user),
        "workspace_id": str(workspace),
        "payload": '{"text": "Zoë\\n"}',
    }
    assert queue_job["kind"] == "interval_job"
    assert queue_job["state"] == "available"
    assert (queue_job["queue"], queue_job["priority"], queue_job["max_attempts"]) == ("slow", 3, 7)
    assert queue_job["scheduled_at"] == due
    assert (queue_job["unique_key"], queue_job["unique_states"]) == (None, None)
    (row,) = await execute("SELECT next_run_at, last_run_at FROM {schema}.jobs")
    assert (row["next_run_at"], row["last_run_at"]) == (due + timedelta(seconds=60), due)
    (noted,) = await execute("SELECT job_id, kind, count FROM {schema}.transitions")
    assert noted == {"job_id": job, "kind": "scheduled", "count": 1}
    assert await scheduler(database).schedule_due() == 0


async def test_an_occurrence_with_jitter_is_due_later_and_keeps_its_time(
    database: Database, execute: Execute, add_job: AddJob, work: Work
) -> None:
    job, occurrence = uuid4(), ago(seconds=90)
    delay = jitter(job, seconds=60)
    columns = {"id": job, "anchor": occurrence, "jitter_seconds": 60}
    await add_job(**columns, next_run_at=occurrence + delay)
    assert await scheduler(database).schedule_due() == 1
    (queue_job,) = await execute("SELECT scheduled_at FROM {schema}.river_job")
    assert queue_job["scheduled_at"] in (occurrence + delay, occurrence + delay + timedelta(seconds=60))
    (row,) = await execute("SELECT next_run_at, last_run_at FROM {schema}.jobs")
    assert row["last_run_at"] == queue_job["scheduled_at"]
    assert row["next_run_at"] == queue_job["scheduled_at"] + timedelta(seconds=60)
    (attempt,) = await work.claim(await work.worker())
    assert attempt.scheduled_for == queue_job["scheduled_at"] - delay
    (task,) = await work.tasks()
    assert task["scheduled_for"] == attempt.scheduled_for


async def test_workers_are_notified_once_for_each_queue(database: Database, execute: Execute, add_job: AddJob) -> None:
    for queue in ("b", "a", "b"):
        await add_due(add_job, queue=queue)
    async with asyncio.timeout(10), aclosing(database.listen("river_insert")) as notifications:
        await anext(notifications)
        await scheduler(database).schedule_due()
        await execute("SELECT pg_notify('{schema}.river_insert', 'the end')")
        heard = [await anext(notifications) for _ in range(3)]
    queues = sorted(json.loads(payload)["queue"] for _, payload in heard[:2])
    assert queues == ["a", "b"]
    assert heard[2] == ("river_insert", "the end")


@pytest.mark.parametrize("table", ["river_job", "transitions", "skipped_occurrences", "jobs"])
async def test_when_any_part_fails_the_occurrence_is_neither_queued_nor_passed(
    database: Database, execute: Execute, add_job: AddJob, table: str
) -> None:
    anchor = ago(seconds=200)
    await add_job(anchor=anchor, next_run_at=anchor + timedelta(seconds=60))
    before = await execute("SELECT * FROM {schema}.jobs")
    await execute(
        "CREATE FUNCTION {schema}.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk on fire'; END $$;"
        f"CREATE TRIGGER fail AFTER INSERT OR UPDATE ON {{schema}}.{table} EXECUTE FUNCTION {{schema}}.fail()"
    )
    with pytest.raises(DatabaseError, match="disk on fire"):
        await scheduler(database).schedule_due()
    assert await execute("SELECT * FROM {schema}.jobs") == before
    for other in ("river_job", "transitions", "skipped_occurrences"):
        assert await execute(f"SELECT 1 FROM {{schema}}.{other}") == []
    await execute(f"DROP TRIGGER fail ON {{schema}}.{table}")
    assert await scheduler(database).schedule_due() == 1


async def test_several_schedulers_at_once_neither_lose_nor_double_an_occurrence(
    database: Database, execute: Execute, add_job: AddJob
) -> None:
    jobs = {await add_due(add_job, concurrency_policy=("Allow", "Forbid")[n % 2]) for n in range(120)}
    added = await asyncio.gather(*(scheduler(database, batch_size=7).schedule_due() for _ in range(4)))
    assert sum(added) == len(jobs)
    queued = await execute("SELECT args ->> 'job_id' AS job_id FROM {schema}.river_job")
    assert sorted(row["job_id"] for row in queued) == sorted(map(str, jobs))
    assert await ledger(execute) == []
    (left,) = await execute("SELECT count(*) AS due FROM {schema}.jobs WHERE next_run_at <= now()")
    assert left["due"] == 0


async def test_what_was_missed_is_counted_and_the_newest_is_run(
    database: Database, execute: Execute, add_job: AddJob
) -> None:
    anchor = ago(seconds=300 + 30)
    job = await add_job(anchor=anchor, next_run_at=anchor + timedelta(seconds=60))
    assert await scheduler(database).schedule_due() == 1
    assert await ledger(execute) == [
        {
            "job_id": job,
            "reason": "Missed",
            "first_at": anchor + timedelta(seconds=60),
            "last_at": anchor + timedelta(seconds=240),
            "count": 4,
        }
    ]
    (queue_job,) = await execute("SELECT scheduled_at FROM {schema}.river_job")
    assert queue_job["scheduled_at"] == anchor + timedelta(seconds=300)
    await execute("UPDATE {schema}.jobs SET next_run_at = %(due)s", due=anchor)
    await scheduler(database).schedule_due()
    (missed,) = await ledger(execute)
    assert (missed["count"], missed["first_at"]) == (9, anchor)
    noted = await execute("SELECT count, detail FROM {schema}.transitions WHERE kind = 'skipped' ORDER BY id")
    assert noted == [{"count": 4, "detail": "Missed"}, {"count": 5, "detail": "Missed"}]


async def test_what_fell_into_a_suspension_is_counted_as_that(
    database: Database, execute: Execute, add_job: AddJob
) -> None:
    anchor = ago(seconds=300 + 30)
    await add_job(
        anchor=anchor, next_run_at=anchor + timedelta(seconds=60), runnable_since=anchor + timedelta(seconds=200)
    )
    assert await scheduler(database).schedule_due() == 1
    missed, suspended = await ledger(execute)
    assert (missed["reason"], missed["count"]) == ("Missed", 1)
    assert (suspended["reason"], suspended["count"]) == ("Suspended", 3)
    assert suspended["last_at"] == anchor + timedelta(seconds=180)


async def test_suspended_deleted_and_foreign_jobs_are_left_alone(
    database: Database, execute: Execute, add_job: AddJob
) -> None:
    await add_due(add_job, suspended=True)
    await add_due(add_job, cluster_id="another")
    await add_due(add_job, namespace="elsewhere")
    deleted = await add_due(add_job)
    await execute("UPDATE {schema}.jobs SET deleted_at = now() WHERE id = %(id)s", id=deleted)
    ours = await add_due(add_job, namespace="ours")
    narrow = scheduler(database, scope=Scope(cluster=CLUSTER, namespaces=("ours",)))
    before = {row["id"]: row for row in await execute("SELECT * FROM {schema}.jobs")}
    assert await narrow.schedule_due() == 1
    after = {row["id"]: row for row in await execute("SELECT * FROM {schema}.jobs")}
    assert {job for job in before if before[job] != after[job]} == {ours}
    (queue_job,) = await execute("SELECT args FROM {schema}.river_job")
    assert queue_job["args"]["job_id"] == str(ours)
    assert await scheduler(database).schedule_due() == 1, "the one elsewhere"


async def test_what_waits_for_its_time_is_promoted_before_it_and_due_queues_are_notified(
    database: Database, execute: Execute
) -> None:
    await execute(
        """
        INSERT INTO {schema}.river_job (kind, args, queue, state, scheduled_at)
        SELECT kind, '{}', queue, state::{schema}.river_job_state, now() + make_interval(secs => seconds)
        FROM (VALUES
            ('interval_job', 'due', 'retryable', -1), ('interval_job', 'due', 'scheduled', -1),
            ('interval_job', 'soon', 'retryable', 4), ('interval_job', 'late', 'retryable', 60),
            ('interval_job', 'pending', 'pending', -1), ('another_kind', 'foreign', 'scheduled', -1)
        ) AS row(kind, queue, state, seconds)
        """
    )

    async def states() -> dict[str, str]:
        rows = await execute("SELECT queue, max(state::text) AS state FROM {schema}.river_job GROUP BY queue")
        return {row["queue"]: row["state"] for row in rows}

    async with asyncio.timeout(10), aclosing(database.listen("river_insert")) as notifications:
        await anext(notifications)
        async with running(scheduler(database)):
            _, payload = await anext(notifications)
        await execute("SELECT pg_notify('{schema}.river_insert', 'the end')")
        assert (await anext(notifications))[1] == "the end"
    assert json.loads(payload) == {"queue": "due"}
    assert await states() == {
        "due": "available",
        "soon": "available",
        "late": "retryable",
        "pending": "pending",
        "foreign": "scheduled",
    }


async def test_all_that_is_due_is_promoted_at_once(
    database: Database, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROMOTE_BATCH", 2)
    await execute(
        "INSERT INTO {schema}.river_job (kind, args, state)"
        " SELECT 'interval_job', '{}', 'retryable' FROM generate_series(1, 7)"
    )

    async def promoted() -> bool:
        return not await execute("SELECT 1 FROM {schema}.river_job WHERE state = 'retryable'")

    async with running(scheduler(database)):
        await eventually(promoted, what="every queue job is available", within=3)


async def test_it_wakes_when_the_next_job_is_due_and_looks_seldom_until_then(
    database_url: str, execute: Execute, add_job: AddJob
) -> None:
    due = datetime.now(UTC) + timedelta(seconds=2)
    await add_job(anchor=due - timedelta(seconds=60), next_run_at=due)

    async def queued() -> list[dict[str, Any]]:
        return await execute("SELECT created_at - scheduled_at AS lateness FROM {schema}.river_job")

    async with Database(load(DatabaseSettings, database_url=database_url), application="scheduler") as its_own:
        async with running(scheduler(its_own)):
            (row,) = await eventually(queued, what="the occurrence is queued")
            assert await statements(its_own) < 20
    assert timedelta() <= row["lateness"] < timedelta(seconds=0.5)


async def statements(database: Database) -> int:
    """How many statements a pool has been asked for."""
    return int(database._pool.get_stats().get("requests_num", 0))


async def test_it_does_not_spin_while_another_holds_what_is_due(
    database: Database, database_url: str, execute: Execute, add_job: AddJob
) -> None:
    await add_due(add_job)
    async with Database(load(DatabaseSettings, database_url=database_url), application="other") as other:
        async with other.transaction() as session:
            await session.fetch("lock_due_jobs", limit=1, **SCOPE.parameters())
            async with running(scheduler(database)):
                before = await statements(database)
                async with asyncio.timeout(5):
                    while await statements(database) < before + 15:
                        await asyncio.sleep(0.01)
                    started = asyncio.get_running_loop().time()
                    while await statements(database) < before + 45:
                        await asyncio.sleep(0.01)
                    assert asyncio.get_running_loop().time() - started > 10 * module.SHORTEST_SLEEP_SECONDS * 0.8


async def test_it_looks_again_when_it_is_woken(database: Database, execute: Execute, add_job: AddJob) -> None:
    one = scheduler(database)

    async def queued() -> bool:
        return bool(await execute("SELECT 1 FROM {schema}.river_job"))

    async def looked() -> bool:
        return await statements(database) >= 3

    async with running(one):
        await eventually(looked, what="it has looked once and sleeps")
        await add_due(add_job)
        one.wake()
        await eventually(queued, what="the job is scheduled", within=module.LONGEST_SLEEP_SECONDS / 2)


@pytest.mark.postgres_only(18)
async def test_it_goes_on_after_the_database_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intervaljob.database.connection.CONNECT_SECONDS", 1)
    from intervaljob.database.migrations import migrate_up

    with Postgres(durable=False) as server:
        async with Database(load(DatabaseSettings, database_url=server.url()), application="tests") as database:
            await migrate_up(database)
            async with database.session() as session:
                await session.connection.execute(
                    "INSERT INTO intervaljob.jobs"
                    " (id, user_id, workspace_id, cluster_id, interval_seconds, next_run_at)"
                    " SELECT uuidv7(), uuidv7(), uuidv7(), %s, 1, now()",
                    [CLUSTER],
                )

            async def occurrences() -> int:
                async with database.session() as session:
                    cursor = await session.connection.execute(
                        "SELECT (SELECT count(*) FROM intervaljob.river_job) + coalesce(sum(count), 0) AS known"
                        " FROM intervaljob.skipped_occurrences"
                    )
                    (row,) = await cursor.fetchall()
                return int(row["known"])

            async with running(scheduler(database)):
                await eventually(occurrences, what="an occurrence is queued")
                server.stop("immediate")

                async def noticed() -> bool:
                    return database.problem is not None

                await eventually(noticed, what="the scheduler misses the database")
                server.start()
                before = await occurrences()

                async def more() -> bool:
                    return await occurrences() > before

                await eventually(more, what="further occurrences are queued")
