"""Executors that are given more than one attempt: quick handlers need not wait, and slow ones keep nobody waiting."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from manager_support import begun, managed, payload
from pool_process import ExecutorDied, NotBegun, Placed, attempt_of
from pool_support import Started, run
from support import Work, eventually

from intervaljob.model.task import Outcome
from intervaljob.worker.pool import Pool
from intervaljob.worker.remote import AHEAD_SECONDS, Executor

pytestmark = pytest.mark.usefixtures("handlers_for_tests")

QUICK = AHEAD_SECONDS / 10


@pytest.fixture
async def _patience(executors: Pool) -> AsyncIterator[None]:
    """What a manager has running all the while."""
    task = asyncio.create_task(executors.ask_back_what_waits(), name="ahead")
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def place(executors: Pool, handler: str, payload: object, expected: float = QUICK) -> Placed:
    return Placed(executors, attempt_of(handler, payload), expected=expected)


async def behind(executors: Pool, started: Started, handler: str = "test.waits") -> tuple[Executor, Placed, Placed]:
    """An executor that is taken to be quick, busy for long, and given another attempt."""
    first = place(executors, handler, started.files)
    await eventually(Path(started.files["started"]).exists, what="the first has begun")
    executor, second = await first.turn(), place(executors, "test.sync", 1)
    assert second.running.executor is executor
    return executor, first, second


async def test_quick_attempts_share_a_process_until_it_has_enough_to_do(executors: Pool) -> None:
    await asyncio.gather(*(run(executors, attempt_of("test.async", at)) for at in range(2)))
    placed = [place(executors, "test.sync", at) for at in range(18)]
    taken = [one.running.executor for one in placed]
    assert [taken.count(one) for one in dict.fromkeys(taken)] == [9, 9]
    results = await asyncio.gather(*(one.result for one in placed))
    assert [result.output["doubled"] for result in results] == [2 * number for number in range(18)]


async def test_slow_ones_share_with_nobody(executors: Pool) -> None:
    quick = place(executors, "sleep", {"seconds": 1})
    slow = [place(executors, "sleep", {"seconds": 1}, expected=AHEAD_SECONDS) for _ in range(3)]
    assert len({await one.turn() for one in (quick, *slow)}) == 4


@pytest.mark.parametrize("handler", ["test.waits", "test.waits_sync"])
@pytest.mark.usefixtures("_patience")
async def test_what_waits_behind_a_slow_one_comes_back(executors: Pool, started: Started, handler: str) -> None:
    executor, first, second = await behind(executors, started, handler)
    with pytest.raises(NotBegun):
        await asyncio.wait_for(second.result, 5)
    assert await place(executors, "test.sync", 1).turn() is not executor
    first.cancel()
    assert (await first.result).outcome is Outcome.CANCELLED


@pytest.mark.usefixtures("_patience")
async def test_what_waits_comes_back_also_when_the_slow_one_was_not_the_first(
    executors: Pool, started: Started
) -> None:
    """A look that comes while the slow one has just begun is followed by another."""
    await run(executors, attempt_of("test.sync", 1))
    brief = place(executors, "sleep", {"seconds": 0.006})
    slow = place(executors, "test.waits", started.files)
    last = place(executors, "test.sync", 1)
    assert len({one.running.executor for one in (brief, slow, last)}) == 1
    with pytest.raises(NotBegun):
        await asyncio.wait_for(last.result, 5)
    assert (await brief.result).outcome is Outcome.RETURNED
    slow.cancel()
    assert (await slow.result).outcome is Outcome.CANCELLED


async def test_with_its_process_only_the_first_is_lost(executors: Pool, started: Started) -> None:
    executor, first, second = await behind(executors, started)
    os.kill(executor.pid, signal.SIGKILL)
    with pytest.raises(ExecutorDied):
        await first.result
    with pytest.raises(NotBegun):
        await second.result


async def test_what_an_executor_said_before_it_died_is_heard(executors: Pool) -> None:
    """An attempt that has ended is not run again because the next one takes the process with it."""
    await run(executors, attempt_of("test.sync", 1))
    handlers = [("test.sync", 1), ("test.sync", 2), ("test.dies", {"how": "kill"})]
    first, second, third = [place(executors, handler, payload) for handler, payload in handlers]
    with pytest.raises(ExecutorDied):
        await third.result
    assert [(await one.result).output["doubled"] for one in (first, second)] == [2, 4]


async def test_one_that_is_cancelled_before_its_turn_is_never_begun(executors: Pool, started: Started) -> None:
    await run(executors, attempt_of("test.sync", 1))
    first, waiting = place(executors, "test.sync", 1), place(executors, "test.waits", started.files)
    assert waiting.running.executor is first.running.executor
    waiting.cancel()
    assert (await waiting.result).outcome is Outcome.CANCELLED
    assert (await first.result).outcome is Outcome.RETURNED


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
