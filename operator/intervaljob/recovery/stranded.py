"""Tasks that wait for a queue job which is gone: somebody deleted it, or ended it, with another tool."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from intervaljob.database.connection import Database, Row, Session, as_records
from intervaljob.model.scope import Scope
from intervaljob.recovery.recover import BATCH, insert_recovery_jobs
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

#: The evidence in metrics and metadata: not that a worker died, but that the queue job did.
MISSING = "queue_job_missing"


async def settle_stranded(database: Database, *, scope: Scope) -> int:
    """Queue again what lost its queue job, cancel what somebody cancelled there; returns how many were queued."""
    queued, full = 0, True
    while full:
        async with database.transaction() as session:
            locked = await session.fetch("lock_stranded_tasks", limit=BATCH, **scope.parameters())
            if not locked:
                break
            stranded = await session.fetch("read_stranded_tasks", tasks=[row["id"] for row in locked])
            await _cancel(session, [row for row in stranded if row["state"] is not None])
            queued += await _queue(session, [row for row in stranded if row["state"] is None])
        full = len(locked) == BATCH
    return queued


async def _cancel(session: Session, rows: Sequence[Row]) -> None:
    if not rows:
        return
    await session.fetch(
        "cancel_stranded_tasks", tasks=[row["task_id"] for row in rows], error="its queue job was ended by other means"
    )
    for row in rows:
        metrics.TASKS_NOT_RECOVERED.labels("queue_job_ended", "cancelled").inc()
        logger.warning("Task cancelled: its queue job was ended by other means", extra=_fields(row))


async def _queue(session: Session, rows: Sequence[Row]) -> int:
    inserted = await insert_recovery_jobs(session, [{**row, "evidence": MISSING} for row in rows])
    recoveries = ({"task_id": task, "queue_job_id": queue_job} for task, queue_job in inserted.items())
    await session.fetch("queue_stranded_tasks", recoveries=as_records(recoveries))
    for row in rows:
        logger.warning("Task queued again: its queue job was deleted", extra=_fields(row))
    return len(inserted)


def _fields(row: Row) -> dict[str, object]:
    return {"job": row["job_id"], "task": row["task_id"], "attempt": row["attempt"]}
