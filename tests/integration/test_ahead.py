"""Executors that are given more than one attempt: quick handlers need not wait, and slow ones keep nobody waiting."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from manager_support import begun, managed, payload
from pool_process import attempt_of, no_checkpoint
from pool_support import LONG, Started
from support import Work, eventually

from intervaljob.model.task import Attempt, Outcome, Result
from intervaljob.worker.fence import boot_time
from intervaljob.worker.pool import Pool
from intervaljob.worker.remote import AHEAD_SECONDS, Executor, ExecutorDied, NotBegun

pytestmark = pytest.mark.usefixtures("handlers_for_tests")

QUICK = AHEAD_SECONDS / 10


@pytest.fixture
async def _patience(executors: Pool) -> AsyncIterator[None]:
    """What a manager has running all the while."""
    task = asyncio.create_task(executors.ask_back_what_waits(), name="ahead")
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def give(executor: Executor, attempt: Attempt) -> asyncio.Task[Result]:
    return asyncio.create_task(executor.run(attempt, checkpoint=no_checkpoint), name="attempt")


async def take(executors: Pool, expected: float = QUICK) -> Executor:
    return await executors.take(deadline=boot_time() + LONG, expected=expected)


async def behind(
    executors: Pool, started: Started, handler: str = "test.waits"
) -> tuple[Executor, asyncio.Task[Result]]:
    """An executor that is taken to be quick, busy for long, and given another attempt."""
    executor = await take(executors)
    started.attempt = attempt_of(handler, started.files)
    started.result = give(executor, started.attempt)
    await eventually(Path(started.files["started"]).exists, what="the first has begun")
    assert await take(executors) is executor
    return executor, give(executor, attempt_of("test.sync", 1))


async def test_quick_attempts_share_a_process_until_it_has_enough_to_do(executors: Pool) -> None:
    taken = [await take(executors) for _ in range(18)]
    assert [taken.count(one) for one in dict.fromkeys(taken)] == [9, 9]
    results = await asyncio.gather(*(give(one, attempt_of("test.sync", at)) for at, one in enumerate(taken)))
    assert [result.output["doubled"] for result in results] == [2 * number for number in range(18)]


async def test_slow_ones_share_with_nobody(executors: Pool) -> None:
    quick = await take(executors)
    slow = [await take(executors, expected=AHEAD_SECONDS) for _ in range(3)]
    assert len({quick, *slow}) == 4


@pytest.mark.parametrize("handler", ["test.waits", "test.waits_sync"])
@pytest.mark.usefixtures("_patience")
async def test_what_waits_behind_a_slow_one_comes_back(executors: Pool, started: Started, handler: str) -> None:
    executor, second = await behind(executors, started, handler)
    with pytest.raises(NotBegun):
        await asyncio.wait_for(second, 5)
    assert await take(executors) is not executor
    executor.cancel(started.attempt)
    assert (await started.result).outcome is Outcome.CANCELLED


@pytest.mark.usefixtures("_patience")
async def test_what_waits_comes_back_also_when_the_slow_one_was_not_the_first(
    executors: Pool, started: Started
) -> None:
    """A look that comes while the slow one has just begun is followed by another."""
    taken = [await take(executors) for _ in range(3)]
    assert len(set(taken)) == 1
    brief = give(taken[0], attempt_of("sleep", {"seconds": 0.006}))
    slow = attempt_of("test.waits", started.files)
    waits = give(taken[0], slow)
    last = give(taken[0], attempt_of("test.sync", 1))
    with pytest.raises(NotBegun):
        await asyncio.wait_for(last, 5)
    assert (await brief).outcome is Outcome.RETURNED
    taken[0].cancel(slow)
    assert (await waits).outcome is Outcome.CANCELLED


async def test_with_its_process_only_the_first_is_lost(executors: Pool, started: Started) -> None:
    executor, second = await behind(executors, started)
    os.kill(executor.pid, signal.SIGKILL)
    with pytest.raises(ExecutorDied):
        await started.result
    with pytest.raises(NotBegun):
        await second


async def test_what_an_executor_said_before_it_died_is_heard(executors: Pool) -> None:
    """An attempt that has ended is not run again because the next one takes the process with it."""
    executor = await take(executors)
    attempts = [attempt_of("test.sync", 1), attempt_of("test.sync", 2), attempt_of("test.dies", {"how": "kill"})]
    first, second, third = [give(executor, attempt) for attempt in attempts]
    with pytest.raises(ExecutorDied):
        await third
    assert [(await one).output["doubled"] for one in (first, second)] == [2, 4]


async def test_one_that_is_cancelled_before_its_turn_is_never_begun(executors: Pool, started: Started) -> None:
    executor = await take(executors)
    first = give(executor, attempt_of("test.sync", 1))
    attempt = attempt_of("test.waits", started.files)
    waiting = give(executor, attempt)
    executor.cancel(attempt)
    assert (await waiting).outcome is Outcome.CANCELLED
    assert (await first).outcome is Outcome.RETURNED


async def test_a_slow_task_does_not_delay_quick_ones(database_url: str, work: Work, tmp_path: Path) -> None:
    """The worker has learnt that tasks are quick, and holds more than it has places."""
    async with managed(database_url, concurrency=2) as (manager, executors, _):
        quick = await work.add_job(handler="test.sync", payload="1")
        slow = await work.add_job(handler="test.waits", payload=payload(tmp_path))

        async def ended(count: int) -> bool:
            return [task["status"] for task in await work.tasks()].count("succeeded") == count

        for _ in range(200):
            await work.enqueue(quick)
        await eventually(lambda: ended(200), what="quick tasks have ended", within=30)
        await work.enqueue(slow)
        await eventually((tmp_path / "started").exists, what="the slow one has begun")
        for _ in range(50):
            await work.enqueue(quick)
        await eventually(lambda: ended(250), what="the others have ended beside it", within=30)
        assert await begun(manager, executors)
        assert len(executors._executors) <= 2
