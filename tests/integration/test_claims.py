"""Claims: who gets a queue job, what becomes of the task, and what is refused."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from msgspec.structs import fields
from support import Work

from intervaljob.model.task import Attempt, Outcome, Result
from intervaljob.worker.claims import claim
from intervaljob.worker.head import BEGINNING, Head, Key

RAISED = Result(Outcome.RAISED, error="no luck")

NOBODY = str(UUID(int=1))


async def refused(work: Work, queue_job: int, *, saying: str) -> None:
    """Claim everything: nothing is to run, and the queue job is to end with an entry that says why."""
    before = await work.tasks()
    assert await work.claim(await work.worker()) == []
    row = await work.queue_job(queue_job)
    assert row["state"] == "cancelled"
    assert row["finalized_at"] is not None
    (entry,) = row["errors"]
    assert set(entry) == {"at", "attempt", "error", "trace"}
    assert entry["attempt"] == row["attempt"]
    assert saying in entry["error"]
    assert await work.tasks() == before


@pytest.mark.parametrize(
    ("args", "saying"),
    [
        (["no", "object"], "args are not an object"),
        ("text", "args are not an object"),
        ({}, "args.payload is missing"),
        (
            {"job_id": "x", "user_id": str(UUID(int=1)), "workspace_id": str(UUID(int=2)), "payload": ""},
            "args.job_id is not a uuid",
        ),
        *(
            ({"job_id": no_uuid, "user_id": NOBODY, "workspace_id": NOBODY, "payload": ""}, "args.job_id is not a uuid")
            for no_uuid in ("-" * 36, f"-{NOBODY[1:]}", f"{NOBODY[:-1]}g")
        ),
        ({"job_id": str(UUID(int=1)), "payload": {}}, "args.payload is not a string"),
    ],
)
async def test_args_that_cannot_be_read_are_refused(work: Work, args: object, saying: str) -> None:
    await refused(work, await work.enqueue(args=args), saying=saying)


@pytest.mark.parametrize(
    "change",
    [
        "scheduled_at = '-infinity'",
        "attempt = 32767",
        """args = args || ('{"x": ' || repeat('[', 3000) || repeat(']', 3000) || '}')::jsonb""",
        """args = args || ('{"payload": ' || repeat('[', 3000) || repeat(']', 3000) || '}')::jsonb""",
        """args = args || ('{"x": ' || repeat('1', 5000) || '}')::jsonb""",
        "created_at = 'infinity'",
        "created_at = '-infinity'",
        "created_at = '20000-01-01'",
        *(
            f"""metadata = '{{"intervaljob:occurrence": {no_time}}}'"""
            for no_time in ('"infinity"', '"tomorrow, perhaps"', "1e300", "-1e300", "1e-400", "{}", "null")
        ),
        """args = args - 'user_id'""",
        """args = args || '{"user_id": 5, "workspace_id": []}'""",
    ],
)
async def test_a_senseless_queue_job_ends_no_worker_and_holds_up_no_other(work: Work, change: str) -> None:
    await work.enqueue(await work.add_job())
    await work.execute(f"UPDATE {{schema}}.river_job SET {change}")
    job = await work.add_job()
    await work.enqueue(job)
    assert job in {attempt.job_id for attempt in await work.claim(await work.worker())}


@pytest.mark.parametrize("change", ["id = -id", "id = id + 281474976710656 * 4096"])
async def test_queue_jobs_of_strange_numbers_have_tasks_of_their_own(work: Work, change: str) -> None:
    for _ in range(2):
        await work.enqueue(await work.add_job())
    await work.execute(f"UPDATE {{schema}}.river_job SET {change}")
    assert len({attempt.task_id for attempt in await work.claim(await work.worker())}) == 2


async def test_a_job_that_does_not_exist_is_refused(work: Work) -> None:
    job = uuid4()
    args = {"job_id": job, "user_id": uuid4(), "workspace_id": uuid4(), "payload": ""}
    await refused(work, await work.enqueue(args=args), saying=f"job {job} does not exist")


async def test_a_deleted_job_is_refused(work: Work) -> None:
    job = await work.add_job()
    await work.execute("UPDATE {schema}.jobs SET deleted_at = now()")
    await refused(work, await work.enqueue(job), saying=f"job {job} was deleted")


async def test_a_recovery_job_for_a_task_that_does_not_exist_is_refused(work: Work) -> None:
    task = uuid4()
    queue_job = await work.enqueue(await work.add_job(), task=task)
    await refused(work, queue_job, saying=f"task {task} does not exist")


async def test_a_recovery_job_for_a_task_that_has_ended_is_refused(work: Work) -> None:
    worker, attempt = await work.start()
    await work.finish(worker, attempt)
    queue_job = await work.enqueue(attempt.job_id, task=attempt.task_id)
    await refused(work, queue_job, saying=f"task {attempt.task_id} has already ended: succeeded")


async def test_a_recovery_job_for_a_task_of_another_job_is_refused(work: Work) -> None:
    worker, attempt = await work.start()
    await work.end(worker)
    await work.recover()
    queue_job = await work.enqueue(await work.add_job(), task=attempt.task_id)
    await work.execute("DELETE FROM {schema}.river_job WHERE id <> %(id)s", id=queue_job)
    await refused(work, queue_job, saying=f"task {attempt.task_id} belongs to job {attempt.job_id}")


async def test_a_recovery_job_for_a_task_that_a_living_worker_holds_is_refused(work: Work) -> None:
    _, attempt = await work.start()
    queue_job = await work.enqueue(attempt.job_id, task=attempt.task_id)
    await refused(work, queue_job, saying=f"task {attempt.task_id} is running, held by a worker")


async def test_a_task_that_waited_for_a_refused_queue_job_ends_with_it(work: Work) -> None:
    worker, attempt = await work.start()
    await work.finish(worker, attempt, RAISED)
    await work.execute("UPDATE {schema}.jobs SET deleted_at = now()")
    await work.execute("UPDATE {schema}.river_job SET scheduled_at = now()")
    assert await work.claim(worker) == []
    task = await work.task(attempt.task_id)
    assert (task["status"], task["error"]) == ("cancelled", f"job {attempt.job_id} was deleted")
    assert task["finished_at"] is not None
    assert len((await work.queue_job(attempt.queue_job_id))["errors"]) == 2


async def test_of_two_recovery_jobs_for_one_task_one_is_refused_even_when_claimed_together(work: Work) -> None:
    worker, attempt = await work.start()
    await work.end(worker)
    await work.recover()
    await work.enqueue(attempt.job_id, task=attempt.task_id)  # as somebody may have done by hand
    started = await work.claim(await work.worker())
    assert [(one.task_id, one.number) for one in started] == [(attempt.task_id, 2)]
    states = sorted(row["state"] for row in await work.recovery_jobs())
    assert states == ["cancelled", "running"]
    assert (await work.task(attempt.task_id))["queue_job_id"] == started[0].queue_job_id


async def test_a_claim_creates_the_task_with_attempt_one(work: Work) -> None:
    limits = {"active_deadline_seconds": 7, "backoff_limit": 5, "backoff_initial_seconds": 2, "backoff_max_seconds": 9}
    worker = await work.worker()
    await work.enqueue(await work.add_job(payload="input", **limits), delay=-60)
    (attempt,) = await work.claim(worker)
    task = await work.task(attempt.task_id)
    assert (task["status"], task["attempt"], task["worker_id"]) == ("running", 1, worker.id)
    assert (task["payload"], task["queue_job_id"]) == ("input", attempt.queue_job_id)
    assert (attempt.number, attempt.recovered, attempt.payload) == (1, False, "input")
    assert {name: getattr(attempt, name) for name in limits} == limits
    (job,) = await work.execute("SELECT * FROM {schema}.jobs")
    assert (attempt.job_id, attempt.user_id, attempt.workspace_id, attempt.handler) == (
        *(job["id"], str(job["user_id"]), str(job["workspace_id"]), job["handler"]),
    )
    assert (attempt.scheduled_for, attempt.created_at) == (task["scheduled_for"], task["created_at"])
    assert (attempt.failures, attempt.checkpoint) == (0, None)
    queue_job = await work.queue_job(attempt.queue_job_id)
    assert (queue_job["state"], queue_job["attempt"]) == ("running", 1)
    assert queue_job["attempted_by"] == [str(worker.id)]
    assert task["scheduled_for"] == queue_job["scheduled_at"]


async def test_a_claim_returns_a_place_and_what_an_attempt_is_made_of(work: Work) -> None:
    worker = await work.worker()
    await work.enqueue(await work.add_job())
    place = BEGINNING._asdict()
    (row,) = await work.database.fetch("claim_queue_jobs", queue="default", worker=worker.id, limit=1, **place)
    made_of = [field.name for field in fields(Attempt) if field.required]
    assert list(row) == [*place, *(name.replace("scheduled_for", "due") for name in made_of)]


async def test_only_what_a_worker_runs_is_noted_as_begun(work: Work) -> None:
    worker, running = await work.start()
    _, ended = await work.start(worker)
    await work.finish(worker, ended)
    _, others = await work.start()
    tasks = [one.task_id for one in (running, ended, others)]
    await work.database.fetch("note_started", tasks=tasks, worker=worker.id)
    rows = await work.execute("SELECT task_id FROM {schema}.transitions WHERE kind = 'started'")
    assert [row["task_id"] for row in rows] == [running.task_id]


async def test_a_recovery_job_reuses_its_task_and_raises_the_attempt(work: Work) -> None:
    dead, lost = await work.start(payload="input")
    await work.database.fetch(
        "save_checkpoint", task=lost.task_id, attempt=1, worker=dead.id, number=0, checkpoint='{"page": 3}'
    )
    await work.end(dead)
    await work.recover()
    worker = await work.worker()
    (attempt,) = await work.claim(worker)
    assert (attempt.task_id, attempt.number, attempt.recovered) == (lost.task_id, 2, True)
    assert (attempt.payload, attempt.checkpoint) == ("input", '{"page": 3}')
    assert attempt.scheduled_for == lost.scheduled_for
    task = await work.task(lost.task_id)
    assert (task["status"], task["attempt"], task["worker_id"]) == ("running", 2, worker.id)
    assert len(await work.tasks()) == 1


async def test_a_retried_queue_job_reuses_its_task(work: Work) -> None:
    worker, first = await work.start()
    await work.finish(worker, first, RAISED)
    await work.execute("UPDATE {schema}.river_job SET scheduled_at = now()")
    (second,) = await work.claim(worker)
    assert (second.task_id, second.number, second.failures) == (first.task_id, 2, 1)
    assert (second.queue_job_id, second.recovered) == (first.queue_job_id, False)
    assert second.scheduled_for == first.scheduled_for


async def test_workers_that_claim_at_once_never_share(work: Work) -> None:
    job = await work.add_job()
    expected = {await work.enqueue(job) for _ in range(60)}
    workers = [await work.worker() for _ in range(4)]

    async def claim_all(index: int) -> list[Attempt]:
        got: list[Attempt] = []
        while batch := await work.claim(workers[index], limit=3):
            got += batch
        return got

    shares = await asyncio.gather(*(claim_all(index) for index in range(4)))
    claimed = [attempt.queue_job_id for share in shares for attempt in share]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) == expected
    assert len(await work.tasks()) == 60


async def test_a_worker_that_has_ended_claims_nothing(work: Work) -> None:
    worker = await work.worker()
    await work.end(worker)
    queue_job = await work.enqueue(await work.add_job())
    assert await work.claim(worker) == []
    assert (await work.queue_job(queue_job))["state"] == "available"


async def test_a_paused_queue_gives_nothing_until_it_is_resumed(work: Work) -> None:
    worker = await work.worker()
    await work.enqueue(await work.add_job())
    await work.execute("UPDATE {schema}.river_queue SET paused_at = now()")
    assert await work.claim(worker) == []
    await work.execute("UPDATE {schema}.river_queue SET paused_at = NULL")
    assert len(await work.claim(worker)) == 1


async def test_the_most_important_comes_first_and_then_the_oldest(work: Work) -> None:
    job, worker = await work.add_job(), await work.worker()
    late = await work.enqueue(job, priority=2, delay=-1)
    early = await work.enqueue(job, priority=2, delay=-60)
    urgent = await work.enqueue(job, priority=1)
    order = [(await work.claim(worker, limit=1))[0].queue_job_id for _ in range(3)]
    assert order == [urgent, early, late]


@pytest.mark.parametrize("columns", [{"kind": "other"}, {"queue": "elsewhere"}, {"delay": 60.0}])
async def test_what_is_not_ours_or_not_due_is_left_alone(work: Work, columns: dict[str, Any]) -> None:
    queue_job = await work.enqueue(await work.add_job(), **columns)
    before = await work.queue_job(queue_job)
    assert await work.claim(await work.worker()) == []
    assert await work.queue_job(queue_job) == before


async def test_the_list_of_attempting_workers_is_bounded(work: Work) -> None:
    queue_job = await work.enqueue(await work.add_job())
    await work.execute("UPDATE {schema}.river_job SET attempted_by = array_fill('w'::text, ARRAY[100])")
    worker = await work.worker()
    await work.claim(worker)
    attempted_by = (await work.queue_job(queue_job))["attempted_by"]
    assert len(attempted_by) == 100
    assert attempted_by[-1] == str(worker.id)


async def test_after_a_slow_look_claims_go_on_in_order_and_the_next_from_the_beginning_misses_nothing(
    work: Work,
) -> None:
    """Of several workers, each from its own place."""
    job = await work.add_job()
    low, *others = [await work.enqueue(job, priority=priority) for priority in (1, 3, 2, 4, 3)]
    row = await work.queue_job(others[1])
    slow = Head(lambda: 0.0)
    slow.looked(BEGINNING, [Key(row["priority"], row["scheduled_at"], row["id"])], count=1, seconds=60)

    async def claimed(head: Head, limit: int) -> list[int]:
        worker = await work.worker()
        attempts, _ = await claim(work.database, worker=worker, queue="default", limit=limit, head=head)
        return sorted(attempt.queue_job_id for attempt in attempts)

    assert await claimed(slow, 2) == [others[0], others[1]]
    assert await claimed(Head(), 1) == [low]
    soon = await work.enqueue(job, priority=1)
    assert await claimed(slow, 9) == [others[2], others[3]]
    assert await claimed(slow, 9) == []
    assert await claimed(Head(), 9) == [soon]
