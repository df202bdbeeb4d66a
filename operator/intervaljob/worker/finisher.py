"""Ends of attempts, written in batches: while one batch is under way, the next gathers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from uuid import UUID

from intervaljob.database.connection import Database, as_records
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.task import Attempt, Finish, Status
from intervaljob.telemetry import metrics
from intervaljob.worker.incarnation import Incarnation

logger = logging.getLogger(__name__)

BATCH = 500


class Finisher:
    """Writes how attempts ended, behind the fence: a stale attempt's end changes nothing.

    `unwritten` are the tasks whose ends are not known to be written yet.
    """

    def __init__(self, database: Database, worker: Incarnation) -> None:
        self._database = database
        self._worker = worker
        self._waiting: asyncio.Queue[tuple[Attempt, Finish]] = asyncio.Queue()
        self.unwritten: set[UUID] = set()

    def put(self, attempt: Attempt, finish: Finish) -> None:
        """Write this end soon."""
        self.unwritten.add(attempt.task_id)
        self._waiting.put_nowait((attempt, finish))

    async def flushed(self) -> None:
        """Returns when everything that was put has been written."""
        await self._waiting.join()

    async def run(self) -> None:
        """Write for ever. While the database is away the ends wait; the lease says for how long that makes sense."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            again = False
            while not await self._write(batch, again=again):
                again = True
                await asyncio.sleep(0.5)
            for attempt, _ in batch:
                self.unwritten.discard(attempt.task_id)
                self._waiting.task_done()

    async def _write(self, batch: list[tuple[Attempt, Finish]], *, again: bool) -> bool:
        try:
            rows = await self._database.fetch(
                "finish_tasks",
                worker=self._worker.id,
                worker_name=self._worker.name,
                finishes=as_records(_said(finish) for _, finish in batch),
            )
        except DatabaseUnavailable as error:
            logger.warning("Ends of attempts wait", extra={"count": len(batch), "error": error})
            return False
        written = {row["id"]: row["status"] for row in rows}
        for status, count in Counter(written.values()).items():
            metrics.TASKS_FINISHED.labels(status).inc(count)
        for attempt, finish in batch:
            self._report(attempt, finish, written.get(attempt.task_id), again=again)
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


def _said(finish: Finish) -> dict[str, object]:
    """What there is to say: of most tasks that they have succeeded."""
    said: dict[str, object] = {"task_id": str(finish.task_id), "attempt": finish.attempt, "status": finish.status}
    if finish.output is not None:
        said["output"] = finish.output
    if finish.error is not None:
        said |= {"error": finish.error, "entry": finish.entry, "delay_seconds": finish.delay_seconds}
    return said
