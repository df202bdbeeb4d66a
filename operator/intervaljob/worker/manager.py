"""The worker's manager process: claims, hands out, watches, records. It runs no user code, so nothing blocks its lease.

One incarnation is one task group: lease, queue, notifications, ends. When the lease is lost the group ends, every
executor with it, and a new incarnation begins.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Coroutine
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from uuid import UUID

from intervaljob.database.connection import Database
from intervaljob.errors import DatabaseUnavailable, IntervalJobError
from intervaljob.model.lease import renew_every
from intervaljob.model.policy import CLAIM_LOST, DRAINED, NOT_STARTED
from intervaljob.model.task import Attempt, Outcome, Result, conclude
from intervaljob.recovery.recover import Lost, give_back
from intervaljob.settings import WorkerSettings
from intervaljob.telemetry import metrics
from intervaljob.worker import wire
from intervaljob.worker.claims import claim
from intervaljob.worker.finisher import Finisher
from intervaljob.worker.incarnation import Incarnation, Over
from intervaljob.worker.pace import Pace
from intervaljob.worker.pool import Pool
from intervaljob.worker.remote import Executor
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
            "waiting": self._hand_back_what_waits,
            "listen": self._listen,
            "finisher": self._finisher.run,
            "ahead": self._pool.ask_back_what_waits,
            "zygote": self._watch_zygote,
            "stopping": self._watch_stopping,
        }
        try:
            async with self._group as group:
                for_ever = [group.create_task(duty(), name=name) for name, duty in duties.items()]
                await self._claim_until_stopping()
                await self._drain()
                for task in for_ever:
                    task.cancel()
        finally:
            for running in self._running.values():  # their executors end with the pool, and tell
                running.abandoned = True
                running.keep_no_deadline()

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
            attempts, found = await claim(self._database, worker=self._worker, queue=queue, limit=limit)
            now = datetime.now(UTC)
            for attempt in attempts:
                if attempt.number == 1:
                    metrics.PICKUP_SECONDS.observe(max(0.0, (now - attempt.scheduled_for).total_seconds()))
                running = Running(attempt, self, now, self._pace.expected(attempt.handler))
                self._running[attempt.task_id] = running
                self._place(running)
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

    def begun(self, running: Running) -> None:
        if running.attempt.active_deadline_seconds is not None and not running.abandoned:
            running.deadline = asyncio.get_running_loop().call_later(
                running.attempt.active_deadline_seconds, self._stop, running, Outcome.DEADLINE_EXCEEDED
            )

    def ended(self, running: Running, result: Result) -> None:
        self._pace.note(running.attempt.handler, result.seconds)
        metrics.TASK_SECONDS.observe(result.seconds)
        if running.attempt.recovered:
            metrics.RECOVERED_EXECUTION_SECONDS.observe(result.seconds)
        self._conclude(running, result if running.outcome is None else running.ended_early(running.outcome))

    def died(self, running: Running, why: str) -> None:
        if running.outcome is None or running.abandoned:
            self._lose(running, EXECUTOR_EXITED, why)
        else:
            self._conclude(running, running.ended_early(running.outcome))

    def returned(self, running: Running) -> None:
        running.keep_no_deadline()
        self._place(running)

    def checkpointed(self, running: Running, number: int, data: str) -> None:
        if running.executor is not None and not running.abandoned:
            self._start(self._checkpoint(running, running.executor, number, data), name="checkpoint")

    def _place(self, running: Running) -> None:
        """Have an executor run it, unless it is to end before."""
        if running.abandoned:
            self._forget(running)
        elif running.outcome is not None:
            self._conclude(running, running.ended_early(running.outcome))
        elif not self._worker.alive():
            self._lose(running, NOT_STARTED, "the lease had no time left")
        else:
            running.expected = self._pace.expected(running.attempt.handler)
            self._pool.place(running, deadline=self._worker.deadline)

    def _conclude(self, running: Running, result: Result) -> None:
        if not running.abandoned:
            finish = conclude(running.attempt, result, started_at=running.started_at)
            self._finisher.put(running.attempt, finish)
        self._forget(running)

    def _lose(self, running: Running, evidence: str, why: str) -> None:
        """It goes back on the queue, unless it is another's already."""
        if running.abandoned:
            self._forget(running)
            return
        event = "Executor died" if evidence == EXECUTOR_EXITED else "Attempt handed back"
        logger.warning(event, extra={**self._fields(running.attempt), "error": why})
        lost = Lost(running.attempt.task_id, running.attempt.number, evidence, why)
        self._start(self._hand_back(running, lost), name=f"hand back {lost.task_id}")

    def _start(self, work: Coroutine[None, None, None], *, name: str) -> None:
        """Beside the duties; where they have ended, what is left is for those who recover it."""
        try:
            self._group.create_task(work, name=name)
        except RuntimeError:
            work.close()

    async def _hand_back(self, running: Running, lost: Lost) -> None:
        await self._give_back([lost])
        self._forget(running)

    def _forget(self, running: Running) -> None:
        running.keep_no_deadline()
        if running.stopped is not None:
            running.stopped.set()
        if self._running.get(running.attempt.task_id) is running:  # the next attempt may have come here, too
            del self._running[running.attempt.task_id]
        if not self._running or self._free():
            self._look.set()

    async def _hand_back_what_waits(self) -> None:
        """Where more was claimed than can be begun soon, since tasks take longer than they did, others may have it."""
        while True:
            await asyncio.sleep(HOLD_SECONDS / 2)
            for running in self._pool.withdraw_older(HOLD_SECONDS):
                if len(self._running) > self._settings.concurrency:
                    self._lose(running, NOT_STARTED, "the worker had no place for it")
                else:
                    self._place(running)

    def _abandon(self, running: Running) -> None:
        """The attempt is no longer ours: it is stopped, and its end is not recorded."""
        running.abandoned = True
        self._stop(running, Outcome.CANCELLED)

    def _stop(self, running: Running, outcome: Outcome) -> None:
        """It is to end early, for this reason unless there is one already."""
        if running.outcome is not None:
            return
        running.outcome = outcome
        if self._pool.withdraw(running):
            self._conclude(running, running.ended_early(outcome))
        else:
            running.stopped = asyncio.Event()
            self._start(self._stop_early(running, running.stopped), name=f"stop {running.attempt.task_id}")

    async def _stop_early(self, running: Running, stopped: asyncio.Event) -> None:
        """Ask the handler to stop, and kill its process when it does not, or when the attempt is another's already."""
        while (executor := running.executor) is not None and not stopped.is_set():
            runs = executor.runs(running)
            if not (running.abandoned and runs):
                executor.ask_back()
                executor.cancel(running)
                with suppress(TimeoutError):
                    async with asyncio.timeout(ASK_BACK_SECONDS if not runs else self._settings.cancel_seconds):
                        await stopped.wait()
            if not stopped.is_set() and (running.abandoned or runs):
                await self._pool.kill(executor)
                await stopped.wait()

    async def _checkpoint(self, running: Running, executor: Executor, number: int, data: str) -> None:
        attempt, saved = running.attempt, None
        while saved is None:
            try:
                saved = await self._database.fetch(
                    "save_checkpoint",
                    task=attempt.task_id,
                    attempt=attempt.number,
                    worker=self._worker.id,
                    number=number,
                    checkpoint=data,
                )
            except DatabaseUnavailable as error:
                logger.warning("Checkpoint waits", extra={**self._fields(attempt), "error": error})
                await asyncio.sleep(0.5)
        executor.send(wire.Saved(number, ok=bool(saved)))

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
