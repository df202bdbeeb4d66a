"""Ends of attempts, written in batches: while one batch is under way, the next gathers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from uuid import UUID

import msgspec

from intervaljob.database.connection import Database
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.task import Attempt, Finish, Status
from intervaljob.telemetry import metrics
from intervaljob.worker.incarnation import Incarnation

logger = logging.getLogger(__name__)

BATCH = 500
#: While so many end in the time that a write takes, the next one gathers for a while: a statement costs as much as tens
#: of the rows that it changes.
MANY = 16
GATHER_SECONDS = 0.005

_encoder = msgspec.json.Encoder()


class Finisher:
    """Writes how attempts ended, behind the fence: a stale attempt's end changes nothing."""

    def __init__(self, database: Database, worker: Incarnation) -> None:
        self._database = database
        self._worker = worker
        self._waiting: deque[tuple[Attempt, Finish]] = deque()
        self._writing: list[tuple[Attempt, Finish]] = []
        self._woken = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def unwritten(self) -> list[UUID]:
        """The tasks whose ends are not known to be written yet."""
        return [attempt.task_id for attempt, _ in (*self._writing, *self._waiting)]

    def put(self, attempt: Attempt, finish: Finish) -> None:
        """Write this end soon."""
        self._waiting.append((attempt, finish))
        self._woken.set()
        self._empty.clear()

    async def flushed(self) -> None:
        """Returns when everything that was put has been written."""
        await self._empty.wait()

    async def run(self) -> None:
        """Write for ever. While the database is away the ends wait; the lease says for how long that makes sense."""
        while True:
            await self._woken.wait()
            if MANY <= len(self._waiting) < BATCH:
                await asyncio.sleep(GATHER_SECONDS)
            self._writing = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            again = False
            while not await self._write(self._writing, again=again):
                again = True
                await asyncio.sleep(0.5)
            self._writing = []
            if not self._waiting:
                self._woken.clear()
                self._empty.set()

    async def _write(self, batch: list[tuple[Attempt, Finish]], *, again: bool) -> bool:
        finishes = _encoder.encode([finish for _, finish in batch]).decode()
        try:
            rows = await self._database.fetch(
                "finish_tasks", worker=self._worker.id, worker_name=self._worker.name, finishes=finishes
            )
        except DatabaseUnavailable as error:
            logger.warning("Ends of attempts wait", extra={"count": len(batch), "error": error})
            return False
        otherwise = {(row["id"], row["attempt"]): row["status"] for row in rows}
        written: Counter[str] = Counter()
        for attempt, finish in batch:
            status = otherwise.get((attempt.task_id, attempt.number), finish.status)
            if status is not None:
                written[status] += 1
            self._report(attempt, finish, status, again=again)
        for status, count in written.items():
            metrics.TASKS_FINISHED.labels(status).inc(count)
        return True

    def _report(self, attempt: Attempt, finish: Finish, status: str | None, *, again: bool) -> None:
        if status == Status.SUCCEEDED and not attempt.recovered and not logger.isEnabledFor(logging.DEBUG):
            return
        fields = {
            "job": attempt.job_id,
            "task": attempt.task_id,
            "attempt": attempt.number,
            "worker": self._worker.name,
        }
        if status is None and again:  # the write before this one may have been committed without an answer
            logger.info("End of an attempt was written already, or is stale", extra=fields)
            return
        if status is None:
            metrics.STALE_FINISHES.inc()
            logger.warning("End of a stale attempt changes nothing", extra=fields)
            return
        if attempt.recovered:
            metrics.RECOVERY_OUTCOMES.labels(status).inc()
        if finish.error is None:
            logger.debug("Task ended", extra={**fields, "status": status})
        else:
            logger.warning("Task ended", extra={**fields, "status": status, "error": finish.error})
