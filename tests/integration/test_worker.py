"""Whole workers, as processes, against a real database: what they run, how they end, and what they survive."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from uuid import UUID

import pytest
from support import SCOPE, Work, eventually, pid_in, process_gone, runs
from worker_process import WorkerProcess

from intervaljob.database.connection import Row
from intervaljob.recovery.detector import detect

NewWorker = Callable[..., WorkerProcess]


@pytest.fixture
def worker(database_url: str, tmp_path: Path) -> NewWorker:
    """Makes workers of the test's database."""
    return lambda **settings: WorkerProcess(database_url, folder=tmp_path, **settings)


@pytest.fixture
async def _operator(work: Work) -> AsyncIterator[None]:
    """An operator's detector at work."""
    task = asyncio.create_task(detect(work.database, scope=SCOPE, by="operator test"), name="detector")
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Talk:
    """The files by which a handler and its test talk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.started, self.go, self.child = folder / "started", folder / "go", folder / "child"
        self.payload = json.dumps({"started": str(self.started), "go": str(self.go), "child": str(self.child)})

    async def pid(self, *, other_than: int = 0, within: float = 10.0) -> int:
        """The process that runs the handler."""
        if other_than:
            await eventually(lambda: self.started.read_text() != str(other_than), what="another process", within=within)
        return await pid_in(self.started, within=within)


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return Talk(tmp_path / "talk")


async def ended(work: Work, *, count: int = 1, within: float = 10.0) -> list[Row]:
    """The tasks, once so many have ended."""

    async def look() -> list[Row]:
        rows = [row for row in await work.tasks() if row["finished_at"] is not None]
        return rows if len(rows) == count else []

    return await eventually(look, what=f"{count} tasks have ended", within=within)


async def test_queued_jobs_are_run_to_their_end(work: Work, worker: NewWorker) -> None:
    async with worker():
        for handler, payload in (("echo", "7"), ("test.async", "21"), ("test.returns", '"nul"')):
            await work.enqueue(await work.add_job(handler=handler, payload=payload))
        await work.enqueue(await work.add_job(handler="test.raises", payload='"no luck"', backoff_limit=0))
        rows = await ended(work, count=4)
    by_status = sorted((row["status"], row["attempt"]) for row in rows)
    assert by_status == [("failed", 1), ("succeeded", 1), ("succeeded", 1), ("succeeded", 1)]
    assert [row["output"] for row in rows if row["payload"] == "7"] == [7]
    assert [row["error"] for row in rows if row["status"] == "failed"] == ["ValueError: no luck"]
    states = await work.execute("SELECT state::text FROM {schema}.river_job ORDER BY state::text")
    assert [row["state"] for row in states] == ["completed", "completed", "completed", "discarded"]


async def test_a_notification_starts_a_task_long_before_the_next_poll(work: Work, worker: NewWorker) -> None:
    async with worker(poll_seconds=60):
        await eventually(lambda: _listens(work), what="the worker listens")
        await work.enqueue(await work.add_job(payload="7"))
        await work.database.fetch("notify_queues", queues=["default"])
        await ended(work)


async def test_no_more_tasks_run_at_once_than_the_worker_may(work: Work, worker: NewWorker, tmp_path: Path) -> None:
    talks = [Talk(tmp_path / str(number)) for number in range(4)]
    for talk in talks:
        await work.enqueue(await work.add_job(handler="test.waits", payload=talk.payload))
    async with worker(concurrency=2):
        await talks[0].pid()
        await talks[1].pid()
        assert len(await work.tasks()) == 2
        talks[0].go.touch()
        await talks[2].pid()
        assert not talks[3].started.exists()
        for talk in talks:
            talk.go.touch()
        rows = await ended(work, count=4)
    assert {row["status"] for row in rows} == {"succeeded"}


@pytest.mark.parametrize("how", ["exit", "segfault", "kill", "cpu_limit", "close"])
async def test_a_task_whose_process_died_is_recovered_at_once_under_its_id(
    work: Work, worker: NewWorker, how: str
) -> None:
    async with worker(poll_seconds=60) as process:
        await process.ready()
        payload = json.dumps({"how": how})
        await work.enqueue(await work.add_job(handler="test.dies_once", payload=payload, active_deadline_seconds=4))
        await work.database.fetch("notify_queues", queues=["default"])
        (task,) = await ended(work)
    assert (task["status"], task["attempt"], task["recoveries"]) == ("succeeded", 2, 1)
    assert task["output"] == {"attempt": 2, "recovered": True}
    (new,) = await work.recovery_jobs()
    assert (new["metadata"], new["state"]) == ({"intervaljob:evidence": "executor_exited"}, "completed")
    (lost,) = task["earlier_attempts"]
    said = {"exit": "ended with 3", "segfault": "killed by signal 11", "cpu_limit": "killed by signal 24"}
    said |= {"kill": "killed by signal 9", "close": "ended with 0"}
    assert (lost["evidence"], lost["error"]) == ("executor_exited", said[how])
    assert f"Recovery job: using existing task {task['id']} for job {task['job_id']}" in process.log()


async def test_a_killed_task_runs_again_within_a_second(work: Work, worker: NewWorker, talk: Talk) -> None:
    await work.enqueue(await work.add_job(handler="test.waits", payload=talk.payload))
    async with worker(poll_seconds=60):
        first = await talk.pid()
        os.kill(first, signal.SIGKILL)
        second = await talk.pid(other_than=first, within=1.0)
        assert runs(second)
        talk.go.touch()
        (task,) = await ended(work)
    assert (task["status"], task["attempt"]) == ("succeeded", 2)


@pytest.mark.parametrize("handler", ["test.waits", "test.stubborn", "test.holds_the_lock"])
async def test_a_task_that_runs_longer_than_it_may_is_stopped_and_fails(
    work: Work, worker: NewWorker, talk: Talk, handler: str
) -> None:
    await work.enqueue(await work.add_job(handler=handler, payload=talk.payload, active_deadline_seconds=1))
    async with worker() as process:
        pid = await talk.pid()
        (task,) = await ended(work)
        assert (pid in process.processes()) == (handler == "test.waits")
    assert (task["status"], task["attempt"]) == ("failed", 1)
    assert task["error"] == "DeadlineExceeded: it ran for 1 s, spec.activeDeadlineSeconds"


async def test_retries_are_attempts_of_one_task(work: Work, worker: NewWorker) -> None:
    await work.enqueue(await work.add_job(handler="test.raises", payload='"no luck"', backoff_limit=1))
    async with worker():
        (task,) = await ended(work)
    assert (task["status"], task["attempt"], task["failures"]) == ("failed", 2, 2)
    (queue_job,) = await work.execute("SELECT * FROM {schema}.river_job")
    assert (queue_job["state"], queue_job["attempt"]) == ("discarded", 2)
    assert [entry["attempt"] for entry in queue_job["errors"]] == [1, 2]


async def test_an_unknown_handler_fails_the_task_and_says_what_there_is(work: Work, worker: NewWorker) -> None:
    await work.enqueue(await work.add_job(handler="no.such", backoff_limit=3))
    async with worker():
        (task,) = await ended(work)
    assert (task["status"], task["attempt"]) == ("failed", 1)
    assert "this worker has no handler 'no.such'; it has: " in task["error"]


@pytest.mark.parametrize("notify", [True, False])
async def test_a_cancelled_queue_job_stops_its_handler(work: Work, worker: NewWorker, talk: Talk, notify: bool) -> None:
    job = await work.add_job(handler="test.waits_sync", payload=talk.payload)
    queue_job = await work.enqueue(job)
    async with worker(lease_seconds=30 if notify else 3) as process:
        pid = await talk.pid()
        await eventually(lambda: _listens(work), what="the worker listens")
        if notify:
            await work.database.fetch("cancel_running_queue_jobs", jobs=[job])
        else:
            await work.execute("""UPDATE {schema}.river_job SET metadata = '{"cancel_attempted_at": "now"}'""")
        (task,) = await ended(work, within=1.5)
        assert pid in process.processes()
    assert task["status"] == "cancelled"
    assert (await work.queue_job(queue_job))["state"] == "cancelled"


async def _listens(work: Work) -> list[Row]:
    return await work.execute("SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%worker_condemned%'")


async def test_an_attempt_that_somebody_took_away_is_stopped_and_its_end_not_recorded(
    work: Work, worker: NewWorker, talk: Talk
) -> None:
    await work.enqueue(await work.add_job(handler="test.waits_sync", payload=talk.payload))
    async with worker() as process:
        await talk.pid()
        await work.execute("UPDATE {schema}.tasks SET attempt = 7")
        await process.says("Attempt taken away")
        await eventually(lambda: _metric(process, "intervaljob_tasks_running", 0), what="nothing runs")
        (task,) = await work.tasks()
        assert (task["status"], task["attempt"]) == ("running", 7)


async def _metric(process: WorkerProcess, name: str, value: float) -> bool:
    _, text = await process.get("/metrics")
    return f"\n{name} {value:.1f}\n" in text


async def test_sigterm_lets_tasks_end_hands_the_rest_back_and_says_goodbye(
    work: Work, worker: NewWorker, tmp_path: Path
) -> None:
    ends, lasts = Talk(tmp_path / "ends"), Talk(tmp_path / "lasts")
    for talk in (ends, lasts):
        await work.enqueue(await work.add_job(handler="test.waits", payload=talk.payload))
    async with worker(drain_seconds=1.5, poll_seconds=30) as process:
        await ends.pid()
        last = await lasts.pid()
        process.signal(signal.SIGTERM)
        await process.says("Draining", within=1.0)
        late = await work.enqueue(await work.add_job())
        await work.database.fetch("notify_queues", queues=["default"])
        assert (await process.get("/readyz")) == (503, "draining\n")
        ends.go.touch()
        assert await process.ended(within=5) == 0
    assert not runs(last)
    by_payload = {row["payload"]: row for row in await work.tasks()}
    assert by_payload[ends.payload]["status"] == "succeeded"
    handed_back = by_payload[lasts.payload]
    assert (handed_back["status"], handed_back["recoveries"]) == ("recovering", 0)
    (new,) = await work.recovery_jobs()
    assert (new["state"], new["id"]) == ("available", handed_back["queue_job_id"])
    assert (await work.queue_job(late))["state"] == "available"
    (row,) = await work.execute("SELECT * FROM {schema}.workers")
    assert row["end_reason"] == "drained"


async def test_a_task_that_was_handed_back_before_it_had_a_process_never_starts(
    work: Work, worker: NewWorker, talk: Talk
) -> None:
    async with worker(drain_seconds=0) as process:
        await process.ready()
        zygote = process.zygote()
        os.kill(zygote, signal.SIGSTOP)
        await work.enqueue(await work.add_job(handler="test.waits", payload=talk.payload))
        await eventually(work.tasks, what="the task was claimed")
        process.signal(signal.SIGTERM)
        await eventually(work.recovery_jobs, what="the task was handed back")
        os.kill(zygote, signal.SIGCONT)
        assert await process.ended() == 0
    assert not talk.started.exists()


@pytest.mark.parametrize("stopped", ["manager", "everything"])
@pytest.mark.usefixtures("_operator")
async def test_a_frozen_worker_loses_its_tasks_before_its_lease_and_starts_over_when_woken(
    work: Work, worker: NewWorker, talk: Talk, stopped: str
) -> None:
    await work.enqueue(await work.add_job(handler="test.waits", payload=talk.payload))
    async with worker(worker_name="the-worker") as process:
        pid = await talk.pid()
        (old,) = await work.execute("SELECT * FROM {schema}.workers")
        frozen = [process.pid] if stopped == "manager" else process.processes()
        for each in frozen:
            os.kill(each, signal.SIGSTOP)
        await process_gone(pid, within=3)
        (row,) = await work.execute("SELECT * FROM {schema}.workers")
        assert row["ended_at"] is None, "the lease ran out before the executor was dead"
        (task,) = await work.tasks()
        assert (task["status"], task["attempt"]) == ("running", 1)

        await eventually(work.recovery_jobs, what="the task is recovered")
        talk.started.unlink()
        for each in set(frozen) - {pid}:
            with suppress(ProcessLookupError):  # the manager buries its zygote as soon as it is woken
                os.kill(each, signal.SIGCONT)
        await talk.pid()
        talk.go.touch()
        (task,) = await ended(work)
    assert (task["status"], task["attempt"], task["output"]["recovered"]) == ("succeeded", 2, True)
    rows = await work.execute("SELECT * FROM {schema}.workers ORDER BY started_at")
    assert [(row["name"], row["end_reason"]) for row in rows] == [("the-worker", "lease_expired"), ("the-worker", None)]
    assert rows[0]["id"] == old["id"]
    assert task["worker_id"] == rows[1]["id"]


@pytest.mark.usefixtures("_operator")
async def test_with_a_killed_manager_everything_ends_and_its_successor_goes_on(
    work: Work, worker: NewWorker, talk: Talk
) -> None:
    await work.enqueue(await work.add_job(handler="test.starts_a_process", payload=talk.payload))
    async with worker(worker_name="the-worker", lease_seconds=3600) as process:
        pid, child, zygote = await talk.pid(), await pid_in(talk.child), process.zygote()
        process.signal(signal.SIGKILL)
        for each in (zygote, pid, child):
            await process_gone(each)
    async with worker(worker_name="the-worker"):
        await talk.pid(other_than=pid)
    (new,) = await work.recovery_jobs()
    assert new["metadata"] == {"intervaljob:evidence": "superseded"}


@pytest.mark.usefixtures("_operator")
async def test_a_worker_whose_zygote_died_starts_over(work: Work, worker: NewWorker, talk: Talk) -> None:
    await work.enqueue(await work.add_job(handler="test.waits", payload=talk.payload))
    async with worker(lease_seconds=3600) as process:
        pid = await talk.pid()
        os.kill(process.zygote(), signal.SIGKILL)
        await process_gone(pid)
        talk.go.touch()
        (task,) = await ended(work)
        assert "the process that executors are forked from has ended" in process.log()
    assert (task["status"], task["attempt"]) == ("succeeded", 2)


async def test_a_missing_module_of_handlers_is_one_line_and_exit_code_2(worker: NewWorker) -> None:
    async with worker(handlers="no_such_handlers") as process:
        assert await process.ended() == 2
        expected = "intervaljob: handlers 'no_such_handlers': ModuleNotFoundError: No module named 'no_such_handlers'\n"
        assert process.log() == expected


async def test_a_worker_that_is_declared_dead_stops_everything_and_starts_over(
    work: Work, worker: NewWorker, talk: Talk
) -> None:
    await work.enqueue(await work.add_job(handler="test.waits", payload=talk.payload))
    async with worker() as process:
        pid = await talk.pid()
        await work.execute("UPDATE {schema}.workers SET ended_at = now(), end_reason = 'pod_gone'")
        await process_gone(pid)
        talk.go.touch()
        assert await work.recover() == 1
        (task,) = await ended(work)
        assert "somebody declared this worker dead" in process.log()
    assert (task["status"], task["attempt"]) == ("succeeded", 2)


async def test_the_same_queue_is_shared_by_workers_without_a_task_run_twice(
    work: Work, database_url: str, tmp_path: Path
) -> None:
    jobs = [await work.add_job(payload=str(number)) for number in range(3)]
    for number in range(60):
        await work.enqueue(jobs[number % 3])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    begun = monotonic()
    async with (
        WorkerProcess(database_url, folder=tmp_path / "a", concurrency=5),
        WorkerProcess(database_url, folder=tmp_path / "b", concurrency=5),
    ):
        rows = await ended(work, count=60, within=20)
    assert {(row["status"], row["attempt"]) for row in rows} == {("succeeded", 1)}
    assert len({row["queue_job_id"] for row in rows}) == 60
    assert monotonic() - begun < 20
    workers: set[UUID] = {row["worker_id"] for row in rows}
    assert 1 <= len(workers) <= 2
