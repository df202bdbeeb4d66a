"""The story of a task: each attempt that was lost or followed by another, how it ended, and by what that was known."""

from typing import Any

import pytest
from support import SCOPE, Work

from intervaljob.database.connection import Row
from intervaljob.model.task import Outcome, Result
from intervaljob.recovery.recover import Lost, give_back
from intervaljob.recovery.stranded import settle_stranded

RAISED = Result(Outcome.RAISED, error="no luck")


def told(task: Row) -> list[dict[str, Any]]:
    """The earlier attempts without their times, which are checked to be there."""
    entries = task["earlier_attempts"]
    for entry in entries:
        assert entry["startedAt"] <= entry["endedAt"]
    return [{k: v for k, v in entry.items() if k not in ("startedAt", "endedAt")} for entry in entries]


async def test_a_task_that_ends_well_at_once_has_no_earlier_attempts(work: Work) -> None:
    worker, attempt = await work.start()
    await work.finish(worker, attempt)
    assert told(await work.task(attempt.task_id)) == []


async def test_a_failure_that_is_retried_is_told(work: Work) -> None:
    worker, attempt = await work.start()
    await work.finish(worker, attempt, RAISED)
    assert told(await work.task(attempt.task_id)) == [
        {"attempt": 1, "worker": worker.name, "outcome": "failed", "error": "no luck"}
    ]


@pytest.mark.parametrize("evidence", ["lease_expired", "superseded", "drained", "container_terminated", "pod_gone"])
async def test_a_lost_worker_is_told_with_its_evidence(work: Work, evidence: str) -> None:
    worker, attempt = await work.start()
    await work.end(worker, evidence)
    await work.recover()
    assert told(await work.task(attempt.task_id)) == [
        {"attempt": 1, "worker": worker.name, "outcome": "lost", "evidence": evidence, "recovered": True}
    ]


async def test_a_lost_process_is_told_with_what_ended_it(work: Work) -> None:
    worker, attempt = await work.start()
    lost = [Lost(attempt.task_id, 1, "executor_exited", "killed by signal 11")]
    await give_back(work.database, worker=worker.id, name=worker.name, lost=lost)
    assert told(await work.task(attempt.task_id)) == [
        {
            "attempt": 1,
            "worker": worker.name,
            "outcome": "lost",
            "evidence": "executor_exited",
            "error": "killed by signal 11",
            "recovered": True,
        }
    ]
    (entry,) = (await work.queue_job(attempt.queue_job_id))["errors"]
    assert "(executor_exited: killed by signal 11)" in entry["error"]


@pytest.mark.parametrize(("policy", "limit"), [("Fail", 3), ("Rerun", 0)])
async def test_a_task_that_is_given_up_tells_what_it_lost(work: Work, policy: str, limit: int) -> None:
    worker, attempt = await work.start(recovery_policy=policy, recovery_limit=limit)
    await work.end(worker)
    assert await work.recover() == 0
    task = await work.task(attempt.task_id)
    assert task["status"] == "failed"
    assert task["error"].startswith("RecoveryPolicyFail" if policy == "Fail" else "RecoveryLimitExceeded")
    assert [(one["outcome"], one["recovered"]) for one in told(task)] == [("lost", False)]
    assert await work.recovery_jobs() == []


async def test_a_claim_that_nobody_worked_on_runs_also_where_nothing_may_run_twice(work: Work) -> None:
    worker, attempt = await work.start(recovery_policy="Fail")
    lost = [Lost(attempt.task_id, 1, "not_started")]
    assert await give_back(work.database, worker=worker.id, name=worker.name, lost=lost) == 1
    assert (await work.task(attempt.task_id))["recoveries"] == 0


async def test_the_limit_is_the_jobs_own(work: Work) -> None:
    worker, attempt = await work.start(recovery_limit=5)
    for _ in range(5):
        await work.end(worker)
        assert await work.recover() == 1
        worker = await work.worker()
        await work.claim(worker)
    await work.end(worker)
    assert await work.recover() == 0
    assert (await work.task(attempt.task_id))["status"] == "failed"


async def test_the_newest_ten_attempts_are_kept(work: Work) -> None:
    worker, attempt = await work.start()
    for _ in range(12):
        await work.end(worker, "drained")
        await work.recover()
        worker = await work.worker()
        await work.claim(worker)
    assert [one["attempt"] for one in told(await work.task(attempt.task_id))] == list(range(3, 13))


async def lose(work: Work) -> Any:
    worker, attempt = await work.start()
    await work.end(worker)
    await work.recover()
    return attempt


async def test_a_waiting_task_whose_queue_job_was_deleted_is_queued_again(work: Work) -> None:
    attempt = await lose(work)
    await work.execute("DELETE FROM {schema}.river_job WHERE args ? 'task_id'")
    assert await settle_stranded(work.database, scope=SCOPE) == 1
    assert await settle_stranded(work.database, scope=SCOPE) == 0
    (again,) = await work.claim(await work.worker())
    assert (again.task_id, again.number) == (attempt.task_id, 2)


async def test_a_retry_whose_running_queue_job_was_deleted_is_queued_again(work: Work) -> None:
    worker, attempt = await work.start()
    await work.execute("DELETE FROM {schema}.river_job")
    await work.finish(worker, attempt, RAISED)
    assert await settle_stranded(work.database, scope=SCOPE) == 1
    (again,) = await work.claim(worker)
    assert (again.task_id, again.number, again.failures) == (attempt.task_id, 2, 1)


async def test_a_waiting_task_whose_queue_job_was_cancelled_elsewhere_is_cancelled(work: Work) -> None:
    attempt = await lose(work)
    await work.execute("UPDATE {schema}.river_job SET state = 'cancelled', finalized_at = now() WHERE args ? 'task_id'")
    assert await settle_stranded(work.database, scope=SCOPE) == 0
    task = await work.task(attempt.task_id)
    assert (task["status"], task["error"]) == ("cancelled", "its queue job was ended by other means")


async def test_waiting_tasks_whose_queue_jobs_are_sound_are_left_alone(work: Work) -> None:
    worker, failed = await work.start(backoff_initial_seconds=60, backoff_max_seconds=60)
    await work.finish(worker, failed, RAISED)
    attempt = await lose(work)
    assert await settle_stranded(work.database, scope=SCOPE) == 0
    assert (await work.task(attempt.task_id))["status"] == "recovering"
    assert (await work.task(failed.task_id))["status"] == "retrying"


async def test_a_running_queue_job_whose_task_was_deleted_ends_also_while_its_worker_lives(work: Work) -> None:
    _, attempt = await work.start()
    _, sound = await work.start()
    await work.execute("DELETE FROM {schema}.tasks WHERE id = %(id)s", id=attempt.task_id)
    await work.database.fetch("end_lost_queue_jobs")
    assert (await work.queue_job(attempt.queue_job_id))["state"] == "cancelled"
    assert (await work.queue_job(sound.queue_job_id))["state"] == "running"
