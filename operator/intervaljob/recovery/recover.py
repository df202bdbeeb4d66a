"""The recovery transaction: a task whose worker is gone becomes a recovery job on the queue.

In one transaction: lock the task, see that it runs and that its holder is gone, end the orphaned queue job, insert
the recovery job, mark the task `recovering`. Whoever does it again finds the task no longer running.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from intervaljob.database.connection import Database, Row, Session, as_records
from intervaljob.model.args import ACTIVE_STATES, QueueArgs, error_entry, recovery_key
from intervaljob.model.policy import End, is_counted, verdict
from intervaljob.model.scope import Scope
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

#: Tasks recovered in one transaction.
BATCH = 500


@dataclass(frozen=True)
class Lost:
    """An attempt that its own, living worker gives back, and why: its executor died, or there is no time left.

    `evidence` is a metric's label, `detail` goes into the task's story.
    """

    task_id: UUID
    attempt: int
    evidence: str
    detail: str | None = None


async def recover_orphans(database: Database, *, scope: Scope, by: str, every_task: bool = False) -> int:
    """Put every running task whose worker is gone back on the queue; returns how many recovery jobs were added.

    `every_task` looks at all running tasks, not only at those of running queue jobs: slower, for start and resync.
    """
    query = "lock_all_orphans" if every_task else "lock_orphans"
    added, full = 0, True
    while full:
        async with database.transaction() as session:
            locked = await session.fetch(query, limit=BATCH, **scope.parameters())
            added += await _recover(session, locked, by=by)
        full = len(locked) == BATCH
    return added


async def give_back(database: Database, *, worker: UUID, name: str, lost: Sequence[Lost]) -> int:
    """Put attempts of a worker's own back on the queue; returns how many recovery jobs were added."""
    async with database.transaction() as session:
        locked = await session.fetch("lock_own_tasks", worker=worker, lost=as_records(vars(one) for one in lost))
        return await _recover(session, locked, by=f"worker {name}")


async def _recover(session: Session, locked: Sequence[Row], *, by: str) -> int:
    """Recover those of the locked tasks that are orphans still: the query that locked them may have begun before one
    moved on to a living worker, or was cancelled; what is read here is read after the locks."""
    if not locked:
        return 0
    await session.fetch("lock_queue_jobs_of_tasks", tasks=[row["id"] for row in locked])
    orphans = await session.fetch("read_orphans", lost=as_records(locked))
    (clock,) = await session.fetch("database_time")
    verdicts = [_verdict(row) for row in orphans]
    await session.fetch(
        "end_orphaned_queue_jobs",
        orphans=as_records(
            {
                "queue_job_id": row["queue_job_id"],
                "entry": _entry(row, at=clock["now"], by=by, end=end.error if end else None),
            }
            for row, end in zip(orphans, verdicts, strict=True)
        ),
    )
    ended = [(row, end) for row, end in zip(orphans, verdicts, strict=True) if end]
    if ended:
        await session.fetch("end_orphans", orphans=as_records({**_attempt(row), **vars(end)} for row, end in ended))
        for row, end in ended:
            metrics.TASKS_NOT_RECOVERED.labels(row["evidence"], end.status).inc()
            logger.warning("Task not recovered", extra={**_fields(row), "reason": end.error})
    return await _requeue(session, [row for row, end in zip(orphans, verdicts, strict=True) if not end])


async def _requeue(session: Session, orphans: Sequence[Row]) -> int:
    """Insert the recovery jobs, after the old queue jobs have ended: their unique keys are free then."""
    if not orphans:
        return 0
    inserted = await insert_recovery_jobs(session, orphans)
    by_task = {row["task_id"]: row for row in orphans}
    await session.fetch(
        "mark_recovering",
        recoveries=as_records(
            {
                **_attempt(by_task[task]),
                "queue_job_id": queue_job,
                "counted": is_counted(by_task[task]["evidence"]),
            }
            for task, queue_job in inserted.items()
        ),
    )
    for task in inserted:
        row = by_task[task]
        logger.info(
            f"Added recovery job for task {task} (job: {row['job_id']})",  # noqa: G004 - the words are a promise
            extra=_fields(row),
        )
    return len(inserted)


async def insert_recovery_jobs(session: Session, rows: Sequence[Mapping[str, Any]]) -> dict[UUID, int]:
    """One recovery job for each of these tasks, and its queue's workers woken; returns task → queue job.

    Rows have the task's id, job and payload, the job's user, workspace, queue, priority and limit, and the evidence.
    """
    if not rows:
        return {}
    inserted = await session.fetch(
        "insert_recovery_jobs",
        active_states=ACTIVE_STATES,
        recoveries=as_records(_recovery_job(row) for row in rows),
    )
    by_task = {row["task_id"]: row for row in rows}
    await session.fetch("notify_queues", queues=[by_task[new["task_id"]]["queue"] for new in inserted])
    for new in inserted:
        metrics.RECOVERY_JOBS.labels(by_task[new["task_id"]]["evidence"]).inc()
    return {new["task_id"]: new["queue_job_id"] for new in inserted}


def _verdict(row: Row) -> End | None:
    return verdict(
        cancelled=row["cancelled"],
        policy=row["recovery_policy"],
        limit=row["recovery_limit"],
        recoveries=row["recoveries"],
        evidence=row["evidence"],
    )


def _attempt(row: Row) -> dict[str, object]:
    """What goes into the task's story."""
    return {name: row[name] for name in ("task_id", "worker", "evidence", "detail")}


def _recovery_job(row: Mapping[str, Any]) -> dict[str, object]:
    args = QueueArgs(
        job_id=row["job_id"],
        user_id=row["user_id"],
        workspace_id=row["workspace_id"],
        payload=row["payload"],
        task_id=row["task_id"],
    )
    return {
        "args": args.to_json(),
        "queue": row["queue"],
        "priority": row["priority"],
        "max_attempts": row["backoff_limit"] + 1,
        "evidence": row["evidence"],
        "unique_key": recovery_key(row["job_id"], row["task_id"]),
    }


def _entry(row: Row, *, at: datetime, by: str, end: str | None) -> dict[str, object]:
    what = f"{by} ended task {row['task_id']}: {end}" if end else f"{by} recovers task {row['task_id']}"
    why = f"{row['evidence']}: {row['detail']}" if row["detail"] else row["evidence"]
    return error_entry(at=at, attempt=row["attempt"], error=f"worker {row['worker']} is gone ({why}); {what}")


def _fields(row: Row) -> dict[str, object]:
    return {
        "job": row["job_id"],
        "task": row["task_id"],
        "attempt": row["attempt"],
        "worker": row["worker"],
        "evidence": row["evidence"],
    }
