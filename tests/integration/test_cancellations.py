"""Cancelling: whatever a job has waiting or running ends as cancelled, also what was under way just then."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import pytest
from support import RETURNED, SCOPE, Work, eventually

from intervaljob.database.cancellations import cancel
from intervaljob.database.connection import Row, Session, as_records
from intervaljob.database.ledger import Skip
from intervaljob.database.occurrences import Occurrence, enqueue
from intervaljob.model.task import Outcome, Result
from intervaljob.recovery.recover import recover_orphans
from intervaljob.scheduler.scheduler import Scheduler
from intervaljob.worker.head import BEGINNING

RAISED = Result(Outcome.RAISED, error="no luck")


def occurrence(job: Row) -> Occurrence:
    """One of now."""
    now = datetime.now(UTC)
    return Occurrence(job, now, now)


async def cancelled(work: Work, job: UUID) -> tuple[Skip, ...]:
    """Cancel what the job has, as a user's annotation does; what never began."""
    async with work.database.transaction() as session:
        await session.fetch("lock_jobs", jobs=[job])
        return await cancel(session, [job], reason="a user cancelled it", skipped_as="Cancelled")


async def held(work: Work, attempt_of: UUID, worker: UUID) -> bool:
    """Whether the worker, at its next renewal, is told to cancel this task."""
    (row,) = await work.database.fetch("held_tasks", tasks=[attempt_of], worker=worker)
    return bool(row["cancel"])


async def ledger(work: Work) -> dict[str, int]:
    rows = await work.execute("SELECT reason, count FROM {schema}.skipped_occurrences")
    return {row["reason"]: row["count"] for row in rows}


async def test_an_occurrence_that_waits_is_cancelled_and_handed_to_the_ledger(work: Work) -> None:
    job = await work.add_job()
    queue_job = await work.enqueue(job)
    (skip,) = await cancelled(work, job)
    row = await work.queue_job(queue_job)
    assert (row["state"], row["errors"][0]["error"]) == ("cancelled", "JobCancelError: a user cancelled it")
    assert (skip.job_id, skip.reason, skip.first_at) == (job, "Cancelled", row["scheduled_at"])
    assert await work.claim(await work.worker()) == []


async def test_a_running_task_is_asked_to_stop_and_ends_as_cancelled_even_where_it_would_be_retried(work: Work) -> None:
    worker, attempt = await work.start()
    assert not await held(work, attempt.task_id, worker.id)
    assert await cancelled(work, attempt.job_id) == ()
    assert await held(work, attempt.task_id, worker.id)
    assert await work.finish(worker, attempt, RAISED)
    assert (await work.task(attempt.task_id))["status"] == "cancelled"
    assert (await work.queue_job(attempt.queue_job_id))["state"] == "cancelled"


async def test_a_task_that_ended_well_before_the_worker_heard_of_it_has_succeeded(work: Work) -> None:
    worker, attempt = await work.start()
    await cancelled(work, attempt.job_id)
    assert await work.finish(worker, attempt, RETURNED)
    assert (await work.task(attempt.task_id))["status"] == "succeeded"


async def test_a_task_that_waits_for_its_retry_is_cancelled(work: Work) -> None:
    worker, attempt = await work.start()
    await work.finish(worker, attempt, RAISED)
    assert await cancelled(work, attempt.job_id) == ()
    task = await work.task(attempt.task_id)
    assert (task["status"], task["error"]) == ("cancelled", "a user cancelled it")
    assert (await work.queue_job(attempt.queue_job_id))["state"] == "cancelled"


async def test_a_task_that_waits_to_be_recovered_is_cancelled_with_its_recovery_job(work: Work) -> None:
    worker, attempt = await work.start()
    await work.end(worker)
    await work.recover()
    assert await cancelled(work, attempt.job_id) == ()
    assert (await work.task(attempt.task_id))["status"] == "cancelled"
    assert [row["state"] for row in await work.recovery_jobs()] == ["cancelled"]


async def test_a_running_task_that_was_cancelled_is_not_recovered(work: Work) -> None:
    worker, attempt = await work.start()
    await cancelled(work, attempt.job_id)
    await work.end(worker)
    assert await work.recover() == 0
    task = await work.task(attempt.task_id)
    assert (task["status"], task["error"]) == ("cancelled", "it was cancelled")
    assert await work.recovery_jobs() == []


async def test_rivers_own_cancellation_is_not_lost_with_the_worker(work: Work) -> None:
    """River §2.8: its clients mark the running queue job."""
    worker, attempt = await work.start()
    await work.execute("""UPDATE {schema}.river_job SET metadata = '{"cancel_attempted_at": "now"}'""")
    await work.end(worker)
    assert await work.recover() == 0
    assert (await work.task(attempt.task_id))["status"] == "cancelled"


async def test_what_is_asked_for_afterwards_runs(work: Work) -> None:
    job = await work.add_job()
    await cancelled(work, job)
    await work.enqueue(job)
    (attempt,) = await work.claim(await work.worker())
    assert attempt.job_id == job


async def test_a_claim_that_is_under_way_sees_the_wish(work: Work) -> None:
    """The queue job is locked by the claim, so that the cancellation passes it over."""
    job = await work.add_job()
    queue_job = await work.enqueue(job)
    schema = work.database.schema
    async with work.database.transaction() as claiming:
        await claiming.connection.execute(f"SELECT FROM {schema}.river_job FOR UPDATE".encode())
        assert await cancelled(work, job) == ()
    assert await work.claim(await work.worker()) == []
    row = await work.queue_job(queue_job)
    assert row["state"] == "cancelled"
    assert "was cancelled" in row["errors"][0]["error"]
    assert await ledger(work) == {"Cancelled": 1}
    assert await work.tasks() == []


async def test_a_recovery_that_is_under_way_does_not_outrun_the_wish(work: Work) -> None:
    """The recovery has read that nobody wants the task cancelled; the recovery job that it adds is refused."""
    worker, attempt = await work.start()
    await work.end(worker)
    async with work.database.transaction() as session:
        await session.fetch("lock_jobs", jobs=[attempt.job_id])
        await session.fetch("request_cancel", jobs=[attempt.job_id])
        assert await recover_orphans(work.database, scope=SCOPE, by="operator test") == 1
    assert await work.claim(await work.worker()) == []
    assert (await work.task(attempt.task_id))["status"] == "cancelled"


async def test_a_failure_that_is_recorded_meanwhile_is_not_left_waiting(work: Work) -> None:
    """Its task becomes one that waits for a retry after the cancellation has looked for those."""
    worker, attempt = await work.start()
    async with work.database.transaction() as session:
        await session.fetch("cancel_waiting_tasks", jobs=[attempt.job_id], reason="a user cancelled it")
        await work.finish(worker, attempt, RAISED)
        await session.fetch("request_cancel", jobs=[attempt.job_id])
        await session.fetch("cancel_running_queue_jobs", jobs=[attempt.job_id])
    await work.execute("UPDATE {schema}.river_job SET scheduled_at = now()")
    assert await work.claim(worker) == []
    assert (await work.task(attempt.task_id))["status"] == "cancelled"


async def test_a_cancellation_and_a_claim_at_once_do_not_wait_for_each_other(work: Work) -> None:
    """The claim has the queue job and wants the task; the cancellation has the task."""
    worker, attempt = await work.start()
    await work.end(worker)
    await work.recover()
    other = await work.worker()
    async with work.database.transaction() as claims, work.database.transaction() as cancels:
        (found,) = await claims.fetch(
            "claim_queue_jobs", queue="default", worker=other.id, limit=10, **BEGINNING._asdict()
        )
        (claimed,) = await claims.fetch("claim_other_queue_jobs", queue_jobs=[found["id"]], worker=other.id)
        await cancels.fetch("cancel_waiting_tasks", jobs=[attempt.job_id], reason="a user cancelled it")
        task = as_records([{"task_id": attempt.task_id, "queue_job_id": claimed["id"]}])
        resuming = asyncio.create_task(claims.fetch("resume_tasks", worker=other.id, tasks=task), name="claim")
        await eventually(
            lambda: work.execute("SELECT pid FROM pg_locks WHERE NOT granted"), what="the claim waits for the task"
        )
        waiting = await cancels.fetch("cancel_waiting_queue_jobs", jobs=[attempt.job_id], reason="a user cancelled it")
        assert waiting == []
        resuming.cancel()
        await asyncio.gather(resuming, return_exceptions=True)


async def test_a_job_that_becomes_forbid_while_its_task_is_recovered_does_not_overlap(work: Work) -> None:
    worker, attempt = await work.start()
    await work.end(worker)
    await work.recover()
    await work.execute("UPDATE {schema}.jobs SET concurrency_policy = 'Forbid'")
    async with work.database.transaction() as session:
        (row,) = await session.fetch("lock_jobs", jobs=[attempt.job_id])
        queued, skips = await enqueue(session, [occurrence(row)])
    assert (queued, [skip.reason for skip in skips]) == (frozenset(), ["ConcurrencyForbidden"])


async def test_a_cancellation_and_a_recovery_at_once_leave_nothing_to_run(work: Work) -> None:
    worker = await work.worker()
    attempts = [(await work.start(worker))[1] for _ in range(8)]
    await work.end(worker)
    await asyncio.gather(*(cancelled(work, attempt.job_id) for attempt in attempts), work.recover(), work.recover())
    await work.recover()
    assert await work.claim(await work.worker()) == []
    assert {row["status"] for row in await work.tasks()} == {"cancelled"}


async def test_a_recovery_in_the_middle_of_a_cancellation_leaves_no_task_without_a_queue_job(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not see the wish, which is not committed; its recovery job is seen."""
    worker, attempt = await work.start()
    await work.end(worker)
    fetch = Session.fetch

    async def recovered_meanwhile(session: Session, query: str, /, **parameters: object) -> list[Row]:
        if query == "cancel_waiting_queue_jobs":
            monkeypatch.setattr(Session, "fetch", fetch)
            await work.recover()
        return await fetch(session, query, **parameters)

    monkeypatch.setattr(Session, "fetch", recovered_meanwhile)
    await cancelled(work, attempt.job_id)
    (task,) = await work.tasks()
    assert task["status"] == "cancelled"


async def replace_with_new(work: Work, job: UUID) -> tuple[Skip, ...]:
    """The next occurrence of a Replace job is due."""
    async with work.database.transaction() as session:
        (row,) = await session.fetch("lock_jobs", jobs=[job])
        return (await enqueue(session, [occurrence(row)]))[1]


async def test_a_new_occurrence_replaces_one_that_waits(work: Work) -> None:
    job = await work.add_job(concurrency_policy="Replace")
    assert await replace_with_new(work, job) == ()
    (skip,) = await replace_with_new(work, job)
    assert skip.reason == "Replaced"
    assert await ledger(work) == {"Replaced": 1}
    assert len(await work.claim(await work.worker())) == 1


async def test_a_new_occurrence_begins_when_the_one_it_replaces_has_ended(work: Work) -> None:
    job = await work.add_job(concurrency_policy="Replace")
    worker = await work.worker()
    await replace_with_new(work, job)
    (old,) = await work.claim(worker)
    await replace_with_new(work, job)
    assert await held(work, old.task_id, worker.id)
    assert await work.claim(worker) == []
    (waiting,) = await work.execute("SELECT * FROM {schema}.river_job WHERE state = 'available'")
    assert (waiting["attempt"], waiting["errors"]) == (0, None)
    await work.finish(worker, old, Result(Outcome.CANCELLED, error="JobCancelError: the task was cancelled"))

    (new,) = await eventually(lambda: work.claim(worker), what="the new one begins")
    metadata = (await work.queue_job(new.queue_job_id))["metadata"]
    assert new.scheduled_for == datetime.fromtimestamp(metadata["intervaljob:occurrence"], UTC)
    assert (new.number, old.task_id == new.task_id) == (1, False)


async def test_of_two_queue_jobs_of_a_replacing_job_one_begins_also_when_claimed_at_once(work: Work) -> None:
    job = await work.add_job(concurrency_policy="Replace")
    for _ in range(6):
        await work.enqueue(job)
    workers = [await work.worker() for _ in range(6)]
    begun = await asyncio.gather(*(work.claim(worker, limit=1) for worker in workers))
    assert sum(map(len, begun)) == 1


async def test_two_occurrences_in_one_claim_of_a_replacing_job_begin_one_after_the_other(work: Work) -> None:
    job = await work.add_job(concurrency_policy="Replace")
    for _ in range(3):
        await work.enqueue(job)
    assert len(await work.claim(await work.worker())) == 1


@pytest.mark.parametrize("policy", ["Allow", "Forbid"])
async def test_other_policies_cancel_nothing(work: Work, policy: str) -> None:
    job = await work.add_job(concurrency_policy=policy)
    await replace_with_new(work, job)
    worker = await work.worker()
    (attempt,) = await work.claim(worker)
    await replace_with_new(work, job)
    assert not await held(work, attempt.task_id, worker.id)


async def test_the_scheduler_replaces_and_moves_on(work: Work) -> None:
    (clock,) = await work.execute("SELECT now() - interval '1 second' AS due")
    job = await work.add_job(concurrency_policy="Replace", anchor=clock["due"], next_run_at=clock["due"])
    waiting = await work.enqueue(job)
    assert await Scheduler(work.database, scope=SCOPE, batch_size=10).schedule_due() == 1
    assert (await work.queue_job(waiting))["state"] == "cancelled"
    (row,) = await work.execute("SELECT last_run_at FROM {schema}.jobs")
    assert row["last_run_at"] == clock["due"]
    assert await ledger(work) == {"Replaced": 1}
