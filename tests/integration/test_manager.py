"""A manager in this process: what lost answers, locked tables and stubborn handlers do to it."""

import asyncio
import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from manager_support import begun, managed, payload
from support import Work, eventually, process_gone, runs

from intervaljob.database.connection import Database, Row
from intervaljob.errors import DatabaseUnavailable
from intervaljob.recovery.recover import give_back
from intervaljob.worker import attempts as module
from intervaljob.worker.pace import Pace

QUICK = timedelta(seconds=module.SHOW_SECONDS)

pytestmark = pytest.mark.usefixtures("handlers_for_tests")


async def test_a_lost_answer_to_giving_back_does_not_make_a_manager_forget_the_next_attempt(
    database_url: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same worker takes the recovery job before it knows that it had given the first attempt back."""
    lost = asyncio.Event()

    async def lossy(database: Database, **arguments: Any) -> int:
        added = await give_back(database, **arguments)
        if not lost.is_set():
            lost.set()
            raise DatabaseUnavailable("the answer to COMMIT was lost")
        return added

    monkeypatch.setattr(module, "give_back", lossy)
    async with managed(database_url, lease_seconds=10) as (manager, executors, _):
        await work.enqueue(await work.add_job(handler="test.waits", payload=payload(tmp_path)))
        os.kill(await begun(manager, executors), signal.SIGKILL)
        await lost.wait()
        (task,) = await work.tasks()

        async def again() -> bool:
            row = await work.task(task["id"])
            return (row["attempt"], row["status"]) == (2, "running")

        await eventually(again, what="the second attempt")
        first = [one for one in asyncio.all_tasks() if one.get_name() == f"hand back {task['id']}"]
        await eventually(lambda: all(one.done() for one in first), what="the first attempt is done with")
        assert manager._attempts.running[task["id"]].attempt.number == 2


async def test_renewals_reach_the_executors_while_another_statement_waits(
    database_url: str, work: Work, tmp_path: Path
) -> None:
    """Somebody locks a table for longer than the lease; the lease is renewed all the time."""
    async with managed(database_url, lease_seconds=3) as (manager, executors, worker):
        await work.enqueue(await work.add_job(handler="test.waits", payload=payload(tmp_path)))
        pid = await begun(manager, executors)
        before = worker.deadline
        async with work.database.transaction() as session:
            await session.connection.execute(b"LOCK TABLE intervaljob.tasks")
            await eventually(lambda: worker.deadline > before + 4, what="a lease's worth of renewals")
            assert worker.alive()
            assert runs(pid)


async def test_an_attempt_that_was_taken_away_is_killed_and_not_asked(
    database_url: str, work: Work, tmp_path: Path
) -> None:
    """Another worker has it already: each moment in which this one goes on is an overlap."""
    settings = {"lease_seconds": 3, "cancel_seconds": 600}
    async with managed(database_url, **settings) as (manager, executors, _):
        await work.enqueue(await work.add_job(handler="test.stubborn", payload=payload(tmp_path)))
        pid = await begun(manager, executors)
        await work.execute("UPDATE {schema}.tasks SET attempt = 2, worker_id = gen_random_uuid()")
        await process_gone(pid)


async def test_a_claim_that_commits_after_it_was_given_up_is_found_and_its_task_run(
    database_url: str, work: Work
) -> None:
    """Its COMMIT waits in the server when the connection is lost, and the worker has looked for it in vain."""
    async with managed(database_url, lease_seconds=3) as (manager, _, worker):
        async with manager._claiming:
            await work.enqueue(await work.add_job())
            (attempt,) = await work.claim(worker)
            assert attempt.task_id not in manager._attempts.running

        async def ended() -> bool:
            return bool((await work.task(attempt.task_id))["status"] == "succeeded")

        await eventually(ended, what="given back and run")
    (lost,) = (await work.task(attempt.task_id))["earlier_attempts"]
    assert (lost["evidence"], lost["recovered"]) == ("claim_lost", True)


async def test_a_look_for_lost_claims_holds_up_no_claim_and_takes_none_for_lost(
    database_url: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: asyncio.Queue[None] = asyncio.Queue()
    enough = asyncio.Event()
    fetch = Database.fetch

    async def slow(database: Database, query: str, /, **parameters: object) -> list[Row]:
        if query == "unknown_tasks":
            looks.put_nowait(None)
            await enough.wait()
        return await fetch(database, query, **parameters)

    monkeypatch.setattr(Database, "fetch", slow)
    async with managed(database_url, lease_seconds=3) as (manager, executors, _):
        await looks.get()
        await work.enqueue(await work.add_job(handler="test.waits", payload=payload(tmp_path)))
        await begun(manager, executors)
        enough.set()
        await looks.get()
        (task,) = await work.tasks()
        assert (task["status"], task["attempt"]) == ("running", 1)


async def test_a_cancellation_of_what_waits_for_an_executor_concerns_nothing_else(
    database_url: str, work: Work, tmp_path: Path
) -> None:
    async with managed(database_url, concurrency=1) as (manager, executors, _):
        job = await work.add_job(handler="test.waits", payload=payload(tmp_path))
        await work.enqueue(job)
        await begun(manager, executors)
        manager._settings = manager._settings.model_copy(update={"concurrency": 3})  # as if it had been quick so far
        manager._attempts._pace = Pace(3)
        waits = [await work.enqueue(job) for _ in range(2)]
        await eventually(lambda: len(manager._attempts.running) == 3, what="two wait")
        for queue_job in waits:
            message = json.dumps({"action": "cancel", "job_id": queue_job, "queue": "default"})
            await work.execute("SELECT pg_notify('intervaljob.river_control', %(message)s)", message=message)
        await eventually(lambda: len(manager._attempts.running) == 1, what="they are cancelled")
        (tmp_path / "go").touch()

        async def ended() -> bool:
            return sorted(task["status"] for task in await work.tasks()) == ["cancelled", "cancelled", "succeeded"]

        await eventually(ended, what="the first one goes on")


async def test_what_has_no_place_is_handed_back_once_and_not_claimed_again_and_again(
    database_url: str, work: Work, tmp_path: Path
) -> None:
    """Tasks were quick, and the worker holds many; now long ones have taken every place."""
    async with managed(database_url, concurrency=2) as (manager, _, _):
        for _ in range(80):
            manager._attempts._pace.note("test.sync", 0.00001)
        slow = await work.add_job(handler="test.waits", payload=payload(tmp_path))
        quick = await work.add_job(handler="test.sync", payload="1")
        for _ in range(2):
            await work.enqueue(slow)
        for _ in range(10):
            await work.enqueue(quick)

        async def handed_back() -> bool:
            return len([task for task in await work.tasks() if task["status"] == "recovering"]) == 10

        await eventually(handed_back, what="the others were handed back")
        for _ in range(3):  # looks of the worker at the queue
            manager._look.set()
            await eventually(lambda: not manager._look.is_set(), what="it looks")
        assert manager._attempts.free() == 0
        assert max(task["attempt"] for task in await work.tasks()) == 1
        (tmp_path / "go").touch()

        async def ended() -> bool:
            return {task["status"] for task in await work.tasks()} == {"succeeded"}

        await eventually(ended, what="all have ended")


async def test_what_runs_for_a_while_is_news_and_what_is_quick_only_by_its_end(
    database_url: str, work: Work, tmp_path: Path
) -> None:
    async def news() -> dict[str, list[Any]]:
        rows = await work.execute("SELECT task_id, kind FROM {schema}.transitions ORDER BY id")
        return {kind: [row["task_id"] for row in rows if row["kind"] == kind] for kind in ("started", "succeeded")}

    async with managed(database_url):
        await work.enqueue(await work.add_job(handler="test.waits", payload=payload(tmp_path)))

        async def long_one_is_shown() -> bool:
            return len((await news())["started"]) == 1

        await eventually(long_one_is_shown, what="a note that it runs")
        (long_one,) = await work.tasks()
        quick = await work.add_job(handler="test.sync", payload="1")
        for _ in range(3):
            await work.enqueue(quick)

        async def all_quick_ones_ended() -> bool:
            return len((await news())["succeeded"]) == 3

        await eventually(all_quick_ones_ended, what="the ends of the quick ones")
        (tmp_path / "go").touch()

        async def all_ended() -> bool:
            return len((await news())["succeeded"]) == 4

        await eventually(all_ended, what="the end of the long one")
        lasted = {task["id"] for task in await work.tasks() if task["finished_at"] - task["started_at"] > QUICK}
        started = (await news())["started"]
        assert started.count(long_one["id"]) == 1
        assert set(started) <= lasted  # a machine that is busy may make a quick one last


async def test_what_runs_is_shown_after_an_outage_too(
    database_url: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = asyncio.Event()
    fetch = Database.fetch

    async def lossy(database: Database, query: str, /, **parameters: object) -> list[Row]:
        if query == "note_started" and not failed.is_set():
            failed.set()
            raise DatabaseUnavailable("away for a moment")
        return await fetch(database, query, **parameters)

    monkeypatch.setattr(Database, "fetch", lossy)
    async with managed(database_url):
        await work.enqueue(await work.add_job(handler="test.waits", payload=payload(tmp_path)))
        await failed.wait()

        async def is_shown() -> bool:
            return bool(await work.execute("SELECT task_id FROM {schema}.transitions WHERE kind = 'started'"))

        await eventually(is_shown, what="a note that it runs")
