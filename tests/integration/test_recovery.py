"""Recovery: tasks of dead workers become recovery jobs, once each, and nothing else does."""

import asyncio
import logging
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from support import CLUSTER, RETURNED, SCOPE, Work, eventually

from intervaljob.database.connection import as_records, load_queries
from intervaljob.model.scope import Scope
from intervaljob.recovery.detector import recover_at_start
from intervaljob.recovery.recover import Lost, give_back


@pytest.fixture(autouse=True)
def _hear_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="intervaljob")


async def lose(work: Work, **job: Any) -> UUID:
    """A task whose worker is dead; returns its id."""
    worker, attempt = await work.start(**job)
    await work.end(worker)
    return attempt.task_id


async def test_the_task_of_a_dead_worker_becomes_a_recovery_job(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    worker, attempt = await work.start(payload="input", queue="default", priority=3, backoff_limit=5)
    await work.end(worker)
    assert await work.recover() == 1

    (new,) = await work.recovery_jobs()
    (job,) = await work.execute("SELECT * FROM {schema}.jobs")
    assert new["args"] == {
        "job_id": str(attempt.job_id),
        "user_id": str(job["user_id"]),
        "workspace_id": str(job["workspace_id"]),
        "payload": "input",
        "task_id": str(attempt.task_id),
    }
    assert (new["kind"], new["state"], new["queue"]) == ("interval_job", "available", "default")
    assert (new["priority"], new["max_attempts"], new["attempt"]) == (3, 6, 0)

    old = await work.queue_job(attempt.queue_job_id)
    assert old["state"] == "cancelled"
    assert old["finalized_at"] is not None
    (entry,) = old["errors"]
    assert set(entry) == {"at", "attempt", "error", "trace"}
    assert entry["error"] == (
        f"worker {worker.name} is gone (lease_expired); operator test recovers task {attempt.task_id}"
    )

    task = await work.task(attempt.task_id)
    assert (task["status"], task["attempt"], task["recoveries"]) == ("recovering", 1, 1)
    assert task["queue_job_id"] == new["id"]
    assert f"Added recovery job for task {attempt.task_id} (job: {attempt.job_id})" in caplog.messages

    await work.claim(await work.worker())
    assert f"Recovery job: using existing task {attempt.task_id} for job {attempt.job_id}" in caplog.messages


async def test_recovery_at_start_says_how_many_it_added(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        await lose(work)
    assert await recover_at_start(work.database, scope=SCOPE, by="operator test") == 3
    assert "Task recovery completed. Added 3 recovery jobs to queue" in caplog.messages
    assert await recover_at_start(work.database, scope=SCOPE, by="operator test") == 0
    assert "Task recovery completed. Added 0 recovery jobs to queue" in caplog.messages


@pytest.mark.parametrize("evidence", ["lease_expired", "superseded", "drained", "pod_gone"])
async def test_whatever_ended_the_worker_is_noted(work: Work, evidence: str) -> None:
    worker, attempt = await work.start()
    await work.end(worker, evidence)
    assert await work.recover() == 1
    (new,) = await work.recovery_jobs()
    assert new["metadata"] == {"intervaljob:evidence": evidence}
    assert f"({evidence})" in (await work.queue_job(attempt.queue_job_id))["errors"][0]["error"]
    counted = evidence not in ("drained", "pod_gone")
    assert (await work.task(attempt.task_id))["recoveries"] == int(counted)


async def test_a_worker_nobody_knows_is_gone(work: Work) -> None:
    worker, _ = await work.start()
    await work.end(worker)
    await work.execute("DELETE FROM {schema}.workers WHERE id = %(id)s", id=worker.id)
    assert await work.recover() == 1
    (new,) = await work.recovery_jobs()
    assert new["metadata"] == {"intervaljob:evidence": "unknown_worker"}


async def test_a_living_worker_cannot_be_forgotten(work: Work) -> None:
    """Its tasks would be given away while it runs them."""
    worker, _ = await work.start()
    with pytest.raises(psycopg.errors.RaiseException, match=f"worker {worker.name} .* has not ended"):
        await work.execute("DELETE FROM {schema}.workers")
    assert await work.recover() == 0


async def test_the_task_of_a_living_worker_is_left_alone(work: Work) -> None:
    _, attempt = await work.start()
    assert await work.recover() == 0
    assert await work.recover(every_task=True) == 0
    assert (await work.task(attempt.task_id))["status"] == "running"


async def test_recovering_twice_adds_one_recovery_job(work: Work) -> None:
    await lose(work)
    assert await work.recover() == 1
    assert await work.recover() == 0
    assert await work.recover(every_task=True) == 0
    assert len(await work.recovery_jobs()) == 1


async def test_operators_that_recover_many_tasks_at_once_add_one_recovery_job_each(work: Work) -> None:
    job, worker = await work.add_job(), await work.worker()
    for _ in range(40):
        await work.enqueue(job)
    tasks = {attempt.task_id for attempt in await work.claim(worker)}
    assert len(tasks) == 40
    await work.end(worker)
    added = await asyncio.gather(*(work.recover(every_task=index % 2 == 0) for index in range(6)))
    assert sum(added) == 40
    rows = await work.recovery_jobs()
    assert sorted(row["args"]["task_id"] for row in rows) == sorted(str(task) for task in tasks)


async def test_the_task_of_a_recovery_job_is_recovered_again(work: Work) -> None:
    task = await lose(work)
    await work.recover()
    worker = await work.worker()
    (second,) = await work.claim(worker)
    await work.end(worker)
    assert await work.recover() == 1
    (third,) = await work.claim(await work.worker())
    assert (third.task_id, third.number) == (task, 3)
    assert (await work.queue_job(second.queue_job_id))["state"] == "cancelled"
    assert (await work.task(task))["recoveries"] == 2


async def test_a_task_that_keeps_ending_its_workers_is_given_up(work: Work) -> None:
    task = await lose(work)
    for _ in range(3):
        assert await work.recover() == 1
        worker = await work.worker()
        (attempt,) = await work.claim(worker)
        await work.end(worker)
    assert await work.recover() == 0
    row = await work.task(task)
    assert (row["status"], row["attempt"]) == ("failed", 4)
    assert row["error"] == "RecoveryLimitExceeded: its worker was lost 4 times"
    assert row["finished_at"] is not None
    queue_job = await work.queue_job(attempt.queue_job_id)
    assert queue_job["state"] == "cancelled"
    assert "RecoveryLimitExceeded" in queue_job["errors"][-1]["error"]


async def test_drains_do_not_bring_a_task_nearer_to_its_limit(work: Work) -> None:
    worker, _ = await work.start()
    for _ in range(6):
        await work.end(worker, "drained")
        assert await work.recover() == 1
        worker = await work.worker()
        await work.claim(worker)


async def test_the_task_of_a_deleted_job_is_cancelled(work: Work) -> None:
    task = await lose(work)
    await work.execute("UPDATE {schema}.jobs SET deleted_at = now()")
    assert await work.recover() == 0
    row = await work.task(task)
    assert (row["status"], row["error"]) == ("cancelled", "the IntervalJob was deleted")
    assert await work.recovery_jobs() == []


async def test_another_clusters_task_is_left_alone_and_a_legacy_one_is_not(work: Work) -> None:
    other, legacy = await lose(work, cluster_id="other"), await lose(work)
    await work.execute("UPDATE {schema}.jobs SET cluster_id = NULL WHERE cluster_id = %(own)s", own=CLUSTER)
    assert await work.recover() == 1
    assert (await work.task(other))["status"] == "running"
    assert (await work.task(legacy))["status"] == "recovering"
    assert await work.recover(every_task=True) == 0


async def test_another_namespaces_task_is_left_to_the_operator_that_watches_it(work: Work) -> None:
    mine, theirs = await lose(work, namespace="mine"), await lose(work, namespace="theirs")
    scope = Scope(cluster=CLUSTER, namespaces=("mine",))
    assert await work.recover(scope=scope) == 1
    assert await work.recover(scope=scope, every_task=True) == 0
    assert (await work.task(mine))["status"] == "recovering"
    assert (await work.task(theirs))["status"] == "running"


async def test_several_running_tasks_of_one_job_are_recovered_each(work: Work) -> None:
    job, worker = await work.add_job(), await work.worker()
    for _ in range(3):
        await work.enqueue(job)
    attempts = await work.claim(worker)
    await work.end(worker)
    assert await work.recover() == 3
    again = await work.claim(await work.worker())
    assert {one.task_id for one in again} == {one.task_id for one in attempts}


async def test_a_task_whose_queue_job_was_deleted_is_found_by_the_thorough_look(work: Work) -> None:
    task = await lose(work)
    await work.execute("DELETE FROM {schema}.river_job")
    assert await work.recover() == 0
    assert await work.recover(every_task=True) == 1
    assert (await work.claim(await work.worker()))[0].task_id == task


async def test_a_finish_that_races_with_recovery_wins_or_changes_nothing(work: Work) -> None:
    worker = await work.worker()
    attempts = [(await work.start(worker))[1] for _ in range(12)]

    async def end_and_recover() -> int:
        await work.end(worker)
        return await work.recover()

    *finished, recovered = await asyncio.gather(
        *(work.finish(worker, attempt) for attempt in attempts), end_and_recover()
    )
    assert sum(finished) + recovered == len(attempts)
    for attempt, won in zip(attempts, finished, strict=True):
        task = await work.task(attempt.task_id)
        assert task["status"] == ("succeeded" if won else "recovering")


async def test_a_finish_that_waits_for_the_recovery_changes_nothing(work: Work) -> None:
    """The finish begins while the worker still counts as alive, and meets the recovery's lock."""
    worker, attempt = await work.start()
    schema = work.database.schema
    async with work.database.transaction() as session:
        await session.fetch("end_worker", worker=worker.id, reason="lease_expired")
        await session.connection.execute(f"UPDATE {schema}.tasks SET status = 'recovering'".encode())
        finish = asyncio.create_task(work.finish(worker, attempt, RETURNED), name="finish")
        await eventually(
            lambda: work.execute("SELECT pid FROM pg_locks WHERE NOT granted"), what="the finish waits for the lock"
        )
    assert not await finish
    assert (await work.task(attempt.task_id))["status"] == "recovering"


@pytest.mark.parametrize("query", ["lock_orphans", "lock_all_orphans"])
async def test_a_task_that_moved_on_after_the_look_began_stays_with_its_new_worker(
    work: Work, database_url: str, query: str
) -> None:
    """A look over many tasks may last; by the time it locks one, that may run on a living worker."""
    await lose(work)
    sql = load_queries(work.database.schema)[query].decode()
    async with await psycopg.AsyncConnection.connect(database_url) as slow:
        cursor = psycopg.AsyncClientCursor(slow)
        parameters = {"limit": 10, **SCOPE.parameters()}
        await cursor.execute(f"DECLARE look CURSOR FOR {sql}".encode(), parameters)
        assert await work.recover() == 1
        worker = await work.worker()
        (attempt,) = await work.claim(worker)
        locked = await (await slow.execute("FETCH ALL FROM look")).fetchall()
        orphans = await slow.execute(
            load_queries(work.database.schema)["read_orphans"], {"lost": as_records({"id": row[0]} for row in locked)}
        )
        assert await orphans.fetchall() == []
    assert await work.finish(worker, attempt)


async def test_a_living_worker_gives_back_what_its_dead_executor_ran(work: Work) -> None:
    worker, attempt = await work.start()
    lost = [Lost(attempt.task_id, attempt.number, "executor_exited")]
    assert await give_back(work.database, worker=worker.id, name=worker.name, lost=lost) == 1
    assert await give_back(work.database, worker=worker.id, name=worker.name, lost=lost) == 0
    assert (await work.task(attempt.task_id))["status"] == "recovering"
    entry = (await work.queue_job(attempt.queue_job_id))["errors"][0]
    assert "(executor_exited)" in entry["error"]


async def test_a_worker_gives_back_neither_stale_attempts_nor_those_of_others(work: Work) -> None:
    worker, attempt = await work.start()
    other = await work.worker()
    for by, number in ((other, attempt.number), (worker, attempt.number + 1)):
        lost = [Lost(attempt.task_id, number, "executor_exited")]
        assert await give_back(work.database, worker=by.id, name=by.name, lost=lost) == 0
    assert (await work.task(attempt.task_id))["status"] == "running"


async def test_running_queue_jobs_without_a_task_end_with_their_worker(work: Work) -> None:
    worker, attempt = await work.start()
    _, living = await work.start()
    await work.execute("DELETE FROM {schema}.tasks WHERE id = %(id)s", id=attempt.task_id)
    await work.end(worker)
    await recover_at_start(work.database, scope=SCOPE, by="operator test")
    queue_job = await work.queue_job(attempt.queue_job_id)
    assert queue_job["state"] == "cancelled"
    assert set(queue_job["errors"][0]) == {"at", "attempt", "error", "trace"}
    assert (await work.queue_job(living.queue_job_id))["state"] == "running"


async def test_a_recovered_task_is_announced_to_the_workers_of_its_queue(work: Work, database_url: str) -> None:
    await lose(work)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as listening:
        await listening.execute(f'LISTEN "{work.database.schema}.river_insert"')
        await work.recover()
        async for notification in listening.notifies(timeout=5, stop_after=1):
            assert notification.payload.replace(" ", "") == '{"queue":"default"}'
            return
    pytest.fail("no notification")


async def test_a_task_without_a_job_ends(work: Work) -> None:
    task = await lose(work)
    await work.execute("UPDATE {schema}.tasks SET job_id = %(id)s", id=uuid4())
    assert await work.recover(every_task=True) == 0
    assert (await work.task(task))["status"] == "cancelled"
