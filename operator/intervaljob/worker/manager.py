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
from uuid import UUID

from intervaljob.database.connection import Database
from intervaljob.errors import DatabaseUnavailable, IntervalJobError
from intervaljob.model.lease import renew_every
from intervaljob.model.policy import CLAIM_LOST, DRAINED
from intervaljob.model.task import Outcome
from intervaljob.recovery.recover import Lost
from intervaljob.settings import WorkerSettings
from intervaljob.worker.attempts import Attempts
from intervaljob.worker.claims import claim
from intervaljob.worker.finisher import Finisher
from intervaljob.worker.head import Head
from intervaljob.worker.incarnation import Incarnation, Over
from intervaljob.worker.pool import Pool

logger = logging.getLogger(__name__)


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
        self._look = asyncio.Event()
        self._more = False
        self._claiming = asyncio.Lock()
        self._heads = {queue: Head() for queue in settings.queues}
        self._group = asyncio.TaskGroup()
        self._attempts = Attempts(
            database,
            settings,
            worker=worker,
            pool=pool,
            finisher=self._finisher,
            group=self._group,
            freed=self._look_for_more,
        )

    async def run(self) -> None:
        """Work until `stopping` is set and everything has ended or was handed back.

        Raises Over (in a group, see `reason`) when this incarnation is over.
        """
        duties = {
            "lease": self._worker.keep,
            "deadline": self._worker.watch_deadline,
            "renewals": self._pass_on_renewals,
            "held": self._watch_held,
            "shown": self._attempts.show_what_runs,
            "waiting": self._attempts.hand_back_what_waits,
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
            self._attempts.leave()

    async def _claim_until_stopping(self) -> None:
        first, unsure = 0, False
        while not self._stopping.is_set():
            self._look.clear()
            first += 1
            try:
                async with self._claiming:
                    if unsure:
                        await self._give_back_unknown(await self._unknown())
                    self._more = await self._claim_all(first=first)
                unsure = False
            except DatabaseUnavailable as error:
                logger.warning("Cannot claim", extra={"worker": self._worker.name, "error": error})
                self._more, unsure = False, True
            if not self._more or self._attempts.free() == 0:
                await self._wait_for_work()

    async def _claim_all(self, *, first: int) -> bool:
        """Claim from each queue in turn, another one first each time; returns whether there may be more."""
        queues, more = self._settings.queues, False
        for index in range(len(queues)):
            limit = self._attempts.free()
            if limit == 0:
                return True
            if not self._worker.alive():
                return more
            queue = queues[(first + index) % len(queues)]
            attempts, found = await claim(
                self._database, worker=self._worker, queue=queue, limit=limit, head=self._heads[queue]
            )
            self._attempts.begin(attempts)
            more = more or found == limit
        return more

    def _look_for_more(self) -> None:
        if self._more and not self._look.is_set() and self._attempts.free():
            self._look.set()

    async def _unknown(self) -> list[Lost]:
        """What is ours and was not known before the look: a claim under way may bring it, or a lost one has.

        The look reads an index entry of every queue job that ran since the last vacuum, so no claim waits for it.
        """
        rows = await self._database.fetch("unknown_tasks", worker=self._worker.id, known=self._known())
        return [Lost(row["id"], row["attempt"], CLAIM_LOST) for row in rows]

    async def _give_back_unknown(self, unknown: list[Lost]) -> None:
        """A claim whose answer was lost may have been committed, also later: nobody works on what it took.

        No claim may be under way: then its tasks are known. What has ended meanwhile stays as it is.
        """
        known = set(self._known())
        if lost := [one for one in unknown if one.task_id not in known]:
            await self._attempts.give_back(lost)

    def _known(self) -> list[UUID]:
        return [*self._attempts.running, *self._finisher.unwritten]

    async def _wait_for_work(self) -> None:
        """Until a notification, a free place where there may be more, the end, or the next poll."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.poll_seconds):
                await self._look.wait()

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
                unknown = await self._unknown()
                async with self._claiming:
                    await self._give_back_unknown(unknown)

    async def _compare_held(self) -> None:
        """What notifications may have missed: cancellations, and attempts that somebody took from us."""
        before = dict(self._attempts.running)
        rows = await self._database.fetch("held_tasks", tasks=list(before), worker=self._worker.id)
        held = {row["id"]: row for row in rows}
        for task_id, running in before.items():
            row = held.get(task_id)
            if self._attempts.running.get(task_id) is not running:
                continue
            if row is None or row["attempt"] != running.attempt.number:
                logger.warning("Attempt taken away", extra=self._attempts.fields(running.attempt))
                self._attempts.abandon(running)
            elif row["cancel"]:
                self._attempts.stop(running, Outcome.CANCELLED)

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
            for running in tuple(self._attempts.running.values()):
                if running.attempt.queue_job_id == message.get("job_id"):
                    self._attempts.stop(running, Outcome.CANCELLED)
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
        logger.info("Draining", extra={"worker": self._worker.name, "running": len(self._attempts.running)})
        await self._bounded(self._attempts.all_ended(), self._settings.drain_seconds)
        left = list(self._attempts.running.values())
        for running in left:
            self._attempts.abandon(running)
        await self._pool.kill_all()
        if left:
            await self._attempts.give_back([one.handed_back() for one in left])
        await self._finisher.flushed()
        await self._worker.end(DRAINED)
        logger.info("Drained", extra={"worker": self._worker.name, "handed_back": len(left)})

    async def _bounded(self, waiting: Awaitable[None], seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await waiting


def reason(group: BaseExceptionGroup) -> BaseException:
    """Why a manager's group ended: Over when that is all there is, else the error of ours, else the group."""
    over, worse = group.split(Over)
    if worse is None:
        assert over is not None
        return over.exceptions[0]
    ours = worse.subgroup(IntervalJobError)
    return ours.exceptions[0] if ours is not None and len(ours.exceptions) == 1 else worse
