"""The recovery transaction: a task whose worker is gone becomes a recovery job on the queue.

In one transaction: lock the task, see that it runs and that its holder is gone, end the orphaned queue job, insert
the recovery job, mark the task `recovering`. Whoever does it again finds the task no longer running.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from intervaljob.database.connection import Database, Row, Session, as_records
from intervaljob.model.args import ACTIVE_STATES, QueueArgs, error_entry, recovery_key
from intervaljob.model.policy import DRAINED, verdict
from intervaljob.model.scope import Scope
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

#: Tasks recovered in one transaction.
BATCH = 500


@dataclass(frozen=True)
class Lost:
    """An attempt that its own, living worker gives back, and why: its executor died, or there is no time left."""

    task_id: UUID
    attempt: int
    evidence: str


async def recover_orphans(database: Database, *, scope: Scope, by: str, every_task: bool = False) -> int:
    """Put every running task whose worker is gone back on the queue; returns how many recovery jobs were added.

    `every_task` looks at all running tasks, not only at those of running queue jobs: slower, for start and resync.
    """
    query = "lock_all_orphans" if every_task else "lock_orphans"
    added, full = 0, True
    while full:
        async with database.transaction() as session:
            locked = await session.fetch(query, limit=BATCH, **scope.parameters())
            added += await _recover(session, await _read_orphans(session, locked), by=by)
        full = len(locked) == BATCH
    return added


async def _read_orphans(session: Session, locked: Sequence[Row]) -> list[Row]:
    """What is known of the locked tasks, of those that are orphans still.

    The query that locks them may have begun before a task moved on to a living worker; this one begins after it.
    """
    return await session.fetch("read_orphans", tasks=[row["id"] for row in locked]) if locked else []


async def give_back(database: Database, *, worker: UUID, name: str, lost: Sequence[Lost]) -> int:
    """Put attempts of a worker's own back on the queue; returns how many recovery jobs were added."""
    async with database.transaction() as session:
        orphans = await session.fetch(
            "lock_own_tasks", worker=worker, name=name, tasks=as_records(vars(one) for one in lost)
        )
        return await _recover(session, orphans, by=f"worker {name}")


async def _recover(session: Session, orphans: Sequence[Row], *, by: str) -> int:
    if not orphans:
        return 0
    (clock,) = await session.fetch("database_time")
    verdicts = [
        verdict(job_deleted=row["job_deleted"], recoveries=row["recoveries"], evidence=row["evidence"])
        for row in orphans
    ]
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
        await session.fetch(
            "end_orphans", orphans=as_records({"task_id": row["task_id"], **vars(end)} for row, end in ended)
        )
        for row, end in ended:
            logger.warning("Task not recovered", extra={**_fields(row), "reason": end.error})
    return await _requeue(session, [row for row, end in zip(orphans, verdicts, strict=True) if not end])


async def _requeue(session: Session, orphans: Sequence[Row]) -> int:
    """Insert the recovery jobs, after the old queue jobs have ended: their unique keys are free then."""
    if not orphans:
        return 0
    inserted = await session.fetch(
        "insert_recovery_jobs",
        active_states=ACTIVE_STATES,
        recoveries=as_records(_recovery_job(row) for row in orphans),
    )
    by_task = {row["task_id"]: row for row in orphans}
    await session.fetch(
        "mark_recovering",
        recoveries=as_records(
            {
                "task_id": new["task_id"],
                "queue_job_id": new["queue_job_id"],
                "evidence": by_task[new["task_id"]]["evidence"],
                "counted": by_task[new["task_id"]]["evidence"] != DRAINED,
                "forbid": by_task[new["task_id"]]["concurrency_policy"] == "Forbid",
            }
            for new in inserted
        ),
    )
    await session.fetch("notify_queues", queues=[by_task[new["task_id"]]["queue"] for new in inserted])
    for new in inserted:
        row = by_task[new["task_id"]]
        logger.info(
            f"Added recovery job for task {row['task_id']} (job: {row['job_id']})",  # noqa: G004 - the words are a promise
            extra=_fields(row),
        )
        metrics.RECOVERY_JOBS.labels(row["evidence"]).inc()
    return len(inserted)


def _recovery_job(row: Row) -> dict[str, object]:
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
    return error_entry(
        at=at, attempt=row["attempt"], error=f"worker {row['worker']} is gone ({row['evidence']}); {what}"
    )


def _fields(row: Row) -> dict[str, object]:
    return {
        "job": row["job_id"],
        "task": row["task_id"],
        "attempt": row["attempt"],
        "worker": row["worker"],
        "evidence": row["evidence"],
    }
