"""One incarnation of a worker: its row, its lease, and its end.

A worker that could not renew for the time of its lease has been dead for the others since then, or may be. It stops
everything before that moment (the executors' kernels do if it cannot), and starts over as a new incarnation.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from uuid import UUID, uuid4

from intervaljob.database.connection import Database, Session
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.lease import fence_after, renew_every
from intervaljob.settings import WorkerSettings
from intervaljob.telemetry import metrics
from intervaljob.worker.fence import boot_time

logger = logging.getLogger(__name__)

#: By the clock of the worker's node, which is its kubelet's too: a container that finished after this was ours.
_PROCESS_STARTED_AT = datetime.now(UTC)


class Over(Exception):  # noqa: N818 - the word says it
    """This incarnation is over: its lease was not renewed in time, it was declared dead, or its zygote has ended."""


class Incarnation:
    """A worker's promise to be alive. `deadline` is the boot time at which its executors are dead."""

    def __init__(self, database: Database, settings: WorkerSettings, *, name: str) -> None:
        self.id: UUID = uuid4()
        self.name = name
        self.deadline = 0.0
        self.renewed = asyncio.Event()
        self._database = database
        self._settings = settings

    def alive(self) -> bool:
        """Whether the lease, by this machine's clock, still has time."""
        return boot_time() < self.deadline

    async def register(self) -> None:
        """Write the incarnation's row; that ends earlier ones of the same worker, and no later one.

        A registration may be delayed until its sender has given up and registered anew, or has been started again.
        Raises DatabaseUnavailable. The row may have been written all the same: each try has an id of its own.
        """
        self.id = uuid4()
        async with self._database.dedicated() as session:
            (clock,) = await session.fetch("database_time")
            sent = boot_time()
            superseded = await session.fetch(
                "register_worker",
                worker=self.id,
                name=self.name,
                pod_uid=self._settings.pod_uid,
                version=version("intervaljob"),
                queues=list(self._settings.queues),
                lease_seconds=self._settings.lease_seconds,
                process_started_at=_PROCESS_STARTED_AT,
                asked_at=clock["now"],
            )
        self._push_out(sent)
        for row in superseded:
            metrics.WORKERS_ENDED.labels("superseded").inc()
            logger.warning("Worker declared dead: superseded", extra={"worker": row["name"], "id": row["id"]})
        logger.info("Worker registered", extra={"worker": self.name, "id": self.id})

    async def keep(self) -> None:
        """Renew for ever, a period after the last renewal was sent, however long its answer took.

        One without an answer is given up after a period, and the next is sent over a new connection.
        Raises Over when the row has ended or is condemned, or the time has run out.
        """
        every = renew_every(self._settings.lease_seconds)
        while True:
            try:
                async with AsyncExitStack() as stack:
                    async with asyncio.timeout(every):
                        session = await stack.enter_async_context(self._database.dedicated())
                    while True:
                        sent = await self._renew(session, every)
                        await asyncio.sleep(sent + every - boot_time())
            except (DatabaseUnavailable, TimeoutError) as error:
                metrics.LEASE_RENEWALS.labels("failed").inc()
                logger.warning(
                    "Lease not renewed",
                    extra={
                        "worker": self.name,
                        "seconds_left": f"{self.deadline - boot_time():.1f}",
                        "error": error,
                    },
                )
                await asyncio.sleep(min(1.0, every / 5))

    async def watch_deadline(self) -> None:
        """Raises Over when the deadline has passed; a renewal in flight changes nothing then."""
        while self.alive():
            metrics.LEASE_REMAINING.set(self.deadline - boot_time())
            await asyncio.sleep(min(0.5, self.deadline - boot_time()))
        metrics.LEASE_REMAINING.set(0)
        raise Over("the lease could not be renewed in time")

    async def end(self, reason: str) -> None:
        """Say goodbye: the row ends, whatever this incarnation still held is recovered at once.

        Where the database is away the lease runs out by itself.
        """
        try:
            ended = await self._database.fetch("end_worker", worker=self.id, reason=reason)
        except DatabaseUnavailable as error:
            logger.warning("Cannot say goodbye", extra={"worker": self.name, "error": error})
        else:
            for _ in ended:
                metrics.WORKERS_ENDED.labels(reason).inc()

    async def end_if_condemned(self) -> bool:
        """Say goodbye if an operator condemned this incarnation, so that its tasks are recovered at once.

        To be called when nothing of it runs any more: until then it is not dead, whatever became of its Pod.
        Raises DatabaseUnavailable.
        """
        async with self._database.dedicated() as session:
            rows = await session.fetch("end_condemned_worker", worker=self.id)
        for row in rows:
            metrics.WORKERS_ENDED.labels(row["end_reason"]).inc()
            logger.warning("Worker ended: condemned", extra={"worker": self.name, "reason": row["end_reason"]})
        return bool(rows)

    async def _renew(self, session: Session, bound: float) -> float:
        """Returns the boot time at which it was sent."""
        sent = boot_time()
        rows = await session.fetch_within(bound, "renew_lease", worker=self.id)
        if not rows:
            metrics.LEASE_RENEWALS.labels("ended").inc()
            raise Over("somebody declared this worker dead, or condemned it")
        metrics.LEASE_RENEWALS.labels("ok").inc()
        self._push_out(sent)
        return sent

    def _push_out(self, sent: float) -> None:
        """The time counts from before the renewal was sent, so it ends before the database's does (DESIGN §7)."""
        if self.deadline and not self.alive():
            raise Over("the answer to the renewal came too late")
        self.deadline = sent + fence_after(self._settings.lease_seconds)
        self.renewed.set()
