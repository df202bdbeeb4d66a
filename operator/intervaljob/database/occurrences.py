"""Occurrences become queue jobs here, whoever asks: the scheduler, or a user who wants one now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from intervaljob.database.cancellations import cancel
from intervaljob.database.connection import Session, as_records
from intervaljob.database.ledger import Skip, record_skips
from intervaljob.model.args import ACTIVE_STATES, QueueArgs, forbid_key


async def enqueue(
    session: Session, occurrences: Sequence[tuple[Mapping[str, Any], datetime]]
) -> tuple[frozenset[UUID], tuple[Skip, ...]]:
    """Insert a queue job for each (row of `jobs`, time), at most one for a job, and wake the workers.

    Under `concurrencyPolicy: Replace` what the job has waiting or running is cancelled first; under Forbid nothing is
    inserted while there is any. Returns the jobs that got a queue job, and what went into the ledger instead.
    """
    if not occurrences:
        return frozenset(), ()
    replaced = await cancel(
        session,
        [job["id"] for job, _ in occurrences if job["concurrency_policy"] == "Replace"],
        reason="a newer occurrence replaced it",
        skipped_as="Replaced",
    )
    inserted = await session.fetch(
        "insert_occurrences",
        active_states=ACTIVE_STATES,
        occurrences=as_records(_queue_job(job, time) for job, time in occurrences),
    )
    withdrawn = await session.fetch("withdraw_held_occurrences", queue_jobs=[row["id"] for row in inserted])
    queued = frozenset(row["job_id"] for row in inserted) - {row["job_id"] for row in withdrawn}
    await session.fetch("note_scheduled", jobs=list(queued))
    await session.fetch("notify_queues", queues=[job["queue"] for job, _ in occurrences if job["id"] in queued])
    forbidden = (
        Skip(job["id"], "ConcurrencyForbidden", time, time) for job, time in occurrences if job["id"] not in queued
    )
    skips = (*replaced, *forbidden)
    await record_skips(session, skips)
    return queued, skips


def _queue_job(job: Mapping[str, Any], time: datetime) -> dict[str, object]:
    args = QueueArgs(job_id=job["id"], user_id=job["user_id"], workspace_id=job["workspace_id"], payload=job["payload"])
    return {
        "job_id": job["id"],
        "args": args.to_json(),
        "queue": job["queue"],
        "priority": job["priority"],
        "max_attempts": job["backoff_limit"] + 1,
        "scheduled_for": time,
        "unique_key": forbid_key(job["id"]) if job["concurrency_policy"] == "Forbid" else None,
    }
