"""Ends of attempts: the fence that stale ones meet, retries, and River's bookkeeping."""

import asyncio
from datetime import timedelta

import pytest
from msgspec.structs import replace
from support import RETURNED, Work

from intervaljob.model.task import Attempt, Outcome, Result
from intervaljob.worker.incarnation import Incarnation

RAISED = Result(Outcome.RAISED, error="no luck", trace="Traceback …")


async def checkpoint(
    work: Work, worker: Incarnation, attempt: Attempt, *, number: int = 0, data: str = '"stale"'
) -> bool:
    of = {"task": attempt.task_id, "attempt": attempt.number, "worker": worker.id}
    return bool(await work.database.fetch("save_checkpoint", **of, number=number, checkpoint=data))


async def changes_nothing(work: Work, worker: Incarnation, attempt: Attempt) -> None:
    """Neither a finish nor a checkpoint of this attempt is to have any effect."""
    before = (await work.tasks(), await work.execute("SELECT * FROM {schema}.river_job ORDER BY id"))
    for result in (RETURNED, RAISED, Result(Outcome.CANCELLED, error="stop")):
        assert not await work.finish(worker, attempt, result)
    assert not await checkpoint(work, worker, attempt)
    assert (await work.tasks(), await work.execute("SELECT * FROM {schema}.river_job ORDER BY id")) == before


async def test_a_success_ends_the_task_and_its_queue_job(work: Work) -> None:
    worker, attempt = await work.start()
    assert await work.finish(worker, attempt)
    task = await work.task(attempt.task_id)
    assert (task["status"], task["output"], task["error"]) == ("succeeded", {"ok": True}, None)
    assert task["finished_at"] >= task["started_at"]
    queue_job = await work.queue_job(attempt.queue_job_id)
    assert (queue_job["state"], queue_job["errors"]) == ("completed", None)
    assert queue_job["finalized_at"] is not None


async def test_an_attempt_that_ended_already_cannot_end_again(work: Work) -> None:
    worker, attempt = await work.start()
    await work.finish(worker, attempt)
    await changes_nothing(work, worker, attempt)


async def test_a_stale_attempt_changes_nothing_even_from_the_same_worker(work: Work) -> None:
    worker, first = await work.start()
    await work.finish(worker, first, RAISED)
    await work.execute("UPDATE {schema}.river_job SET scheduled_at = now()")
    (second,) = await work.claim(worker)
    await changes_nothing(work, worker, first)
    assert await work.finish(worker, second)


async def test_another_worker_changes_nothing(work: Work) -> None:
    _, attempt = await work.start()
    await changes_nothing(work, await work.worker(), attempt)


async def test_a_worker_that_has_ended_changes_nothing(work: Work) -> None:
    worker, attempt = await work.start()
    await work.end(worker)
    await changes_nothing(work, worker, attempt)


async def test_a_task_that_is_being_recovered_is_not_changed_by_its_former_worker(work: Work) -> None:
    worker, attempt = await work.start()
    await work.end(worker)
    await work.recover()
    await work.execute("UPDATE {schema}.workers SET ended_at = NULL")  # the status alone has to hold
    await changes_nothing(work, worker, attempt)


async def test_a_checkpoint_of_the_current_attempt_is_kept(work: Work) -> None:
    worker, attempt = await work.start()
    assert await checkpoint(work, worker, attempt)
    assert (await work.task(attempt.task_id))["checkpoint"] == "stale"


async def test_a_checkpoint_that_comes_late_replaces_no_newer_one(work: Work) -> None:
    """Its answer was lost, it was written again, the handler went on, and then the first write arrives."""
    worker, attempt = await work.start()
    assert await checkpoint(work, worker, attempt, number=4, data='"older"')
    assert await checkpoint(work, worker, attempt, number=5, data='"newer"')
    assert await checkpoint(work, worker, attempt, number=5, data='"newer"')
    assert not await checkpoint(work, worker, attempt, number=4, data='"older"')
    assert (await work.task(attempt.task_id))["checkpoint"] == "newer"
    await work.end(worker)
    await work.recover()
    other = await work.worker()
    (again,) = await work.claim(other)
    assert await checkpoint(work, other, again, number=0, data='"newest"')


async def test_many_ends_in_one_batch_are_fenced_one_by_one(work: Work) -> None:
    worker = await work.worker()
    attempts = [(await work.start(worker))[1] for _ in range(5)]
    stale = replace(attempts[2], number=7)
    results = await asyncio.gather(*(work.finish(worker, one) for one in [*attempts[:2], stale, *attempts[3:]]))
    assert results == [True, True, False, True, True]
    assert (await work.task(stale.task_id))["status"] == "running"


@pytest.mark.parametrize(("initial", "state"), [(2, "available"), (60, "retryable")])
async def test_a_failure_is_tried_again_after_its_backoff(work: Work, initial: int, state: str) -> None:
    worker, attempt = await work.start(backoff_initial_seconds=initial, backoff_max_seconds=600)
    assert await work.finish(worker, attempt, RAISED)
    task = await work.task(attempt.task_id)
    assert (task["status"], task["failures"], task["error"]) == ("retrying", 1, "no luck")
    assert task["finished_at"] is None
    queue_job = await work.queue_job(attempt.queue_job_id)
    assert (queue_job["state"], queue_job["finalized_at"]) == (state, None)
    (now,) = await work.database.fetch("database_time")
    waits = queue_job["scheduled_at"] - now["now"]
    assert timedelta(seconds=initial * 0.9 - 1) < waits <= timedelta(seconds=initial * 1.1)
    assert await work.claim(worker) == []


async def test_the_failure_after_the_last_retry_is_final(work: Work) -> None:
    worker, attempt = await work.start(backoff_limit=0)
    await work.finish(worker, attempt, RAISED)
    task = await work.task(attempt.task_id)
    assert (task["status"], task["failures"]) == ("failed", 1)
    assert (await work.queue_job(attempt.queue_job_id))["state"] == "discarded"


async def test_an_entry_has_rivers_four_keys(work: Work) -> None:
    worker, attempt = await work.start()
    await work.finish(worker, attempt, RAISED)
    (entry,) = (await work.queue_job(attempt.queue_job_id))["errors"]
    assert set(entry) == {"at", "attempt", "error", "trace"}
    assert entry["at"].endswith("Z")
    assert (entry["attempt"], entry["error"], entry["trace"]) == (1, "no luck", "Traceback …")


async def test_a_queue_job_keeps_its_last_ten_errors(work: Work) -> None:
    worker, attempt = await work.start(backoff_limit=100)
    for _ in range(12):
        await work.finish(worker, attempt, RAISED)
        await work.execute("UPDATE {schema}.river_job SET scheduled_at = now()")
        (attempt,) = await work.claim(worker)
    errors = (await work.queue_job(attempt.queue_job_id))["errors"]
    assert [entry["attempt"] for entry in errors] == list(range(3, 13))


async def test_who_asked_to_cancel_gets_no_retry(work: Work) -> None:
    worker, attempt = await work.start()
    await work.execute("""UPDATE {schema}.river_job SET metadata = '{"cancel_attempted_at": "now"}'""")
    await work.finish(worker, attempt, RAISED)
    assert (await work.task(attempt.task_id))["status"] == "cancelled"
    queue_job = await work.queue_job(attempt.queue_job_id)
    assert queue_job["state"] == "cancelled"
    assert queue_job["finalized_at"] is not None


async def test_a_cancelled_attempt_ends_as_cancelled(work: Work) -> None:
    worker, attempt = await work.start()
    await work.finish(worker, attempt, Result(Outcome.CANCELLED, error="stop"))
    assert (await work.task(attempt.task_id))["status"] == "cancelled"
    assert (await work.queue_job(attempt.queue_job_id))["state"] == "cancelled"


async def test_an_attempt_that_ran_too_long_ends_as_failed(work: Work) -> None:
    worker, attempt = await work.start()
    await work.finish(worker, attempt, Result(Outcome.DEADLINE_EXCEEDED, error="DeadlineExceeded"))
    assert (await work.task(attempt.task_id))["status"] == "failed"
    assert (await work.queue_job(attempt.queue_job_id))["state"] == "discarded"
