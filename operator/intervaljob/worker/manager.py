"""The worker's manager process: claims, hands out, watches, records. It runs no user code, so nothing blocks its lease.

One incarnation is one task group: lease, queue, notifications, ends. When the lease is lost the group ends, every
executor with it, and a new incarnation begins.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable
from contextlib import aclosing, suppress
from functools import partial
from uuid import UUID

from intervaljob.database.connection import Database
from intervaljob.errors import DatabaseUnavailable, IntervalJobError
from intervaljob.model.lease import renew_every
from intervaljob.model.policy import CLAIM_LOST, DRAINED, NOT_STARTED
from intervaljob.model.task import Attempt, Outcome, Result, conclude
from intervaljob.recovery.recover import Lost, give_back
from intervaljob.settings import WorkerSettings
from intervaljob.telemetry import metrics
from intervaljob.worker.claims import claim
from intervaljob.worker.finisher import Finisher
from intervaljob.worker.head import Head
from intervaljob.worker.incarnation import Incarnation, Over
from intervaljob.worker.pace import Pace
from intervaljob.worker.pool import Pool
from intervaljob.worker.remote import Executor, ExecutorDied, NotBegun
from intervaljob.worker.running import Running

logger = logging.getLogger(__name__)

#: Evidence of a loss: the process of the attempt ended, by itself or by a signal, while its worker lived on.
EXECUTOR_EXITED = "executor_exited"

#: Seconds that an attempt beyond the worker's concurrency waits for its turn; then another worker may have it.
HOLD_SECONDS = 1.0
#: Bound on getting an attempt back that an executor has not begun.
ASK_BACK_SECONDS = 0.5


class Manager:
    """One incarnation at work. `run` returns when it has drained."""

    def __init__(
        self, database: Database, settings: WorkerSettings, *, worker: Incarnation, pool: Pool, stopping: asyncio.Event
    ) -> None:
        self._database = database
        self._settings = settings
        self._worker = worker
        self._pool = pool
        self._stopping = stopping
        self._finisher = Finisher(database, worker)
        self._running: dict[UUID, Running] = {}
        self._look = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._pace = Pace(settings.concurrency)
        self._heads = {queue: Head() for queue in settings.queues}
        self._group = asyncio.TaskGroup()
        metrics.TASKS_RUNNING.set_function(lambda: len(self._running))

    async def run(self) -> None:
        """Work until `stopping` is set and everything has ended or was handed back.

        Raises Over (in a group, see `reason`) when this incarnation is over.
        """
        duties = {
            "lease": self._worker.keep,
            "deadline": self._worker.watch_deadline,
            "renewals": self._pass_on_renewals,
            "held": self._watch_held,
            "listen": self._listen,
            "finisher": self._finisher.run,
            "ahead": self._pool.ask_back_what_waits,
            "zygote": self._watch_zygote,
            "stopping": self._watch_stopping,
        }
        async with self._group as group:
            for_ever = [group.create_task(duty(), name=name) for name, duty in duties.items()]
            await self._claim_until_stopping()
            await self._drain()
            for task in for_ever:
                task.cancel()

    async def _claim_until_stopping(self) -> None:
        first, unsure = 0, False
        while not self._stopping.is_set():
            self._look.clear()
            first += 1
            try:
                async with self._claiming:
                    if unsure:
                        await self._give_back_unknown()
                    more = await self._claim_all(first=first)
                unsure = False
            except DatabaseUnavailable as error:
                logger.warning("Cannot claim", extra={"worker": self._worker.name, "error": error})
                more, unsure = False, True
            if not more or self._free() == 0:
                await self._wait_for_work()

    async def _claim_all(self, *, first: int) -> bool:
        """Claim from each queue in turn, another one first each time; returns whether there may be more."""
        queues, more = self._settings.queues, False
        for index in range(len(queues)):
            limit = self._free()
            if limit == 0 or not self._worker.alive():
                return more
            queue = queues[(first + index) % len(queues)]
            attempts, found = await claim(
                self._database, worker=self._worker, queue=queue, limit=limit, head=self._heads[queue]
            )
            for attempt in attempts:
                self._running[attempt.task_id] = running = Running(attempt)
                self._group.create_task(self._work(running), name=f"task {attempt.task_id}")
            more = more or found == limit
        return more

    async def _give_back_unknown(self) -> None:
        """A claim whose answer was lost may have been committed, also later: nobody works on what it took.

        No claim may be under way.
        """
        known = [*self._running, *self._finisher.unwritten]
        rows = await self._database.fetch("unknown_tasks", worker=self._worker.id, known=known)
        if rows:
            await self._give_back([Lost(row["id"], row["attempt"], CLAIM_LOST) for row in rows])

    def _free(self) -> int:
        """How many more may be claimed. Where tasks are quick it is worth the while to wait until that is many."""
        most = self._pace.most()
        free = max(0, most - len(self._running))
        return free if most == self._settings.concurrency or free >= most / 2 else 0

    async def _wait_for_work(self) -> None:
        """Until a notification, a free place, the end, or the next poll."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.poll_seconds):
                await self._look.wait()

    async def _work(self, running: Running) -> None:
        """One attempt from its executor to its record."""
        attempt = running.attempt
        if attempt.number == 1:
            metrics.PICKUP_SECONDS.observe(max(0.0, (running.started_at - attempt.scheduled_for).total_seconds()))
        try:
            result = await self._execute(running)
            self._measure(attempt, result)
            if not running.abandoned:
                self._finisher.put(attempt, conclude(attempt, result, started_at=running.started_at))
        except (ExecutorDied, NotBegun) as error:
            if not running.abandoned:
                died = isinstance(error, ExecutorDied)
                evidence = EXECUTOR_EXITED if died else NOT_STARTED
                event = "Executor died" if died else "Attempt handed back"
                logger.warning(event, extra={**self._fields(attempt), "error": error})
                await self._give_back([Lost(attempt.task_id, attempt.number, evidence, str(error))])
        finally:
            self._forget(running)

    def _measure(self, attempt: Attempt, result: Result) -> None:
        self._pace.note(attempt.handler, result.seconds)
        metrics.TASK_SECONDS.observe(result.seconds)
        if attempt.recovered:
            metrics.RECOVERED_EXECUTION_SECONDS.observe(result.seconds)

    def _forget(self, running: Running) -> None:
        if running.ended is not None:
            running.ended.set()
        if self._running.get(running.attempt.task_id) is running:  # the next attempt may have come here, too
            del self._running[running.attempt.task_id]
        if not self._running or self._free():
            self._look.set()

    async def _execute(self, running: Running) -> Result:
        """Run the attempt in an executor, no longer than it may.

        Raises ExecutorDied; NotBegun where no handler has seen it, as the lease or this worker has no time left.
        """
        while running.outcome is None:
            expected = self._pace.expected(running.attempt.handler)
            executor = await self._take(expected)
            try:
                result = await self._run_in(executor, running)
                return result if running.outcome is None else running.ended_early(running.outcome)
            except NotBegun:
                if not self._worker.alive():
                    raise
            except ExecutorDied:
                if running.outcome is None or running.abandoned:
                    raise
            finally:
                self._pool.put_back(executor, expected=expected)
        return running.ended_early(running.outcome)

    async def _run_in(self, executor: Executor, running: Running) -> Result:
        if running.outcome is not None:
            return running.ended_early(running.outcome)
        if not self._worker.alive():
            raise NotBegun("the lease had no time left")
        running.executor = executor
        try:
            begun = partial(self._begin, running)
            return await executor.run(running.attempt, checkpoint=self._checkpoint, begun=begun)
        except NotBegun:
            running.handed_over = False
            raise
        finally:
            running.executor = None
            if running.deadline is not None:
                running.deadline.cancel()

    async def _take(self, expected: float) -> Executor:
        """Raises NotBegun where more was claimed than can be begun soon, since tasks take longer than they did."""
        while True:
            try:
                return await self._pool.take(deadline=self._worker.deadline, expected=expected, within=HOLD_SECONDS)
            except TimeoutError:
                if len(self._running) > self._settings.concurrency:
                    raise NotBegun("the worker had no place for it") from None

    def _begin(self, running: Running) -> None:
        """A handler may see it from now on."""
        running.handed_over = True
        if running.attempt.active_deadline_seconds is not None:
            running.deadline = asyncio.get_running_loop().call_later(
                running.attempt.active_deadline_seconds, self._stop, running, Outcome.DEADLINE_EXCEEDED
            )

    def _abandon(self, running: Running) -> None:
        """The attempt is no longer ours: it is stopped, and its end is not recorded."""
        running.abandoned = True
        self._stop(running, Outcome.CANCELLED)

    def _stop(self, running: Running, outcome: Outcome) -> None:
        """It is to end early, for this reason unless there is one already."""
        if running.outcome is None:
            running.outcome = outcome
            running.ended = asyncio.Event()
            self._group.create_task(self._stop_early(running, running.ended), name=f"stop {running.attempt.task_id}")

    async def _stop_early(self, running: Running, ended: asyncio.Event) -> None:
        """Ask the handler to stop, and kill its process when it does not, or when the attempt is another's already."""
        while (executor := running.executor) is not None and not ended.is_set():
            runs = executor.runs(running.attempt)
            if not (running.abandoned and runs):
                executor.ask_back()
                executor.cancel(running.attempt)
                with suppress(TimeoutError):
                    async with asyncio.timeout(ASK_BACK_SECONDS if not runs else self._settings.cancel_seconds):
                        await ended.wait()
            if not ended.is_set() and (running.abandoned or runs):
                await self._pool.kill(executor)
                await ended.wait()

    async def _checkpoint(self, attempt: Attempt, number: int, data: str) -> bool:
        while True:
            try:
                return bool(
                    await self._database.fetch(
                        "save_checkpoint",
                        task=attempt.task_id,
                        attempt=attempt.number,
                        worker=self._worker.id,
                        number=number,
                        checkpoint=data,
                    )
                )
            except DatabaseUnavailable as error:
                logger.warning("Checkpoint waits", extra={**self._fields(attempt), "error": error})
                await asyncio.sleep(0.5)

    async def _give_back(self, lost: list[Lost]) -> None:
        """Put attempts of ours on the queue again, as recovery jobs; waits for the database if need be."""
        while True:
            try:
                await give_back(self._database, worker=self._worker.id, name=self._worker.name, lost=lost)
            except DatabaseUnavailable as error:
                logger.warning("Recovery waits", extra={"worker": self._worker.name, "error": error})
                await asyncio.sleep(0.5)
            else:
                return

    async def _pass_on_renewals(self) -> None:
        """After each renewal: push the executors' deadlines out. This waits for no other statement."""
        while True:
            await self._worker.renewed.wait()
            self._worker.renewed.clear()
            self._pool.push_out(self._worker.deadline)

    async def _watch_held(self) -> None:
        """As often as the lease is renewed: see which attempts are still ours, and which are that nobody knows of."""
        while True:
            await asyncio.sleep(renew_every(self._settings.lease_seconds))
            with suppress(DatabaseUnavailable):
                await self._database.fetch("refresh_queues", queues=list(self._settings.queues))
                await self._compare_held()
                async with self._claiming:
                    await self._give_back_unknown()

    async def _compare_held(self) -> None:
        """What notifications may have missed: cancellations, and attempts that somebody took from us."""
        before = dict(self._running)
        rows = await self._database.fetch("held_tasks", tasks=list(before), worker=self._worker.id)
        held = {row["id"]: row for row in rows}
        for task_id, running in before.items():
            row = held.get(task_id)
            if self._running.get(task_id) is not running:
                continue
            if row is None or row["attempt"] != running.attempt.number:
                logger.warning("Attempt taken away", extra=self._fields(running.attempt))
                self._abandon(running)
            elif row["cancel"]:
                self._stop(running, Outcome.CANCELLED)

    async def _listen(self) -> None:
        """River's notifications (§2.2), new work and cancellations, and ours. They only make things faster."""
        topics = ("river_insert", "river_control", "worker_condemned")
        while True:
            try:
                async with aclosing(self._database.listen(*topics)) as heard:
                    async for topic, payload in heard:
                        self._hear(topic, payload)
            except DatabaseUnavailable as error:
                logger.warning("Cannot listen", extra={"worker": self._worker.name, "error": error})
            await asyncio.sleep(1)

    def _hear(self, topic: str, payload: str) -> None:
        try:
            message = json.loads(payload or "{}")
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        if topic == "worker_condemned":
            if message.get("worker") == str(self._worker.id):
                raise Over("an operator condemned this worker")
        elif topic == "river_control" and message.get("action") == "cancel":
            for running in self._running.values():
                if running.attempt.queue_job_id == message.get("job_id"):
                    self._stop(running, Outcome.CANCELLED)
        elif topic != "river_insert" or message.get("queue") in self._settings.queues:
            self._look.set()

    async def _watch_zygote(self) -> None:
        await self._pool.ended.wait()
        raise Over("the process that executors are forked from has ended")

    async def _watch_stopping(self) -> None:
        await self._stopping.wait()
        self._look.set()

    async def _drain(self) -> None:
        """Let running attempts end, hand the rest back, and say goodbye."""
        logger.info("Draining", extra={"worker": self._worker.name, "running": len(self._running)})
        await self._bounded(self._all_ended(), self._settings.drain_seconds)
        left = list(self._running.values())
        for running in left:
            self._abandon(running)
        await self._pool.kill_all()
        if left:
            await self._give_back([one.handed_back() for one in left])
        await self._finisher.flushed()
        await self._worker.end(DRAINED)
        logger.info("Drained", extra={"worker": self._worker.name, "handed_back": len(left)})

    async def _all_ended(self) -> None:
        while self._running:
            self._look.clear()
            await self._look.wait()

    async def _bounded(self, waiting: Awaitable[None], seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await waiting

    def _fields(self, attempt: Attempt) -> dict[str, object]:
        return {
            "job": attempt.job_id,
            "task": attempt.task_id,
            "attempt": attempt.number,
            "worker": self._worker.name,
        }


def reason(group: BaseExceptionGroup) -> BaseException:
    """Why a manager's group ended: Over when that is all there is, else the error of ours, else the group."""
    over, worse = group.split(Over)
    if worse is None:
        assert over is not None
        return over.exceptions[0]
    ours = worse.subgroup(IntervalJobError)
    return ours.exceptions[0] if ours is not None and len(ours.exceptions) == 1 else worse
