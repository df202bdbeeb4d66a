"""Occurrences become queue jobs here, whoever asks: the scheduler, or a user who wants one now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from intervaljob.database.connection import Session, as_records
from intervaljob.model.args import ACTIVE_STATES, QueueArgs, forbid_key


@dataclass(frozen=True)
class Skip:
    """Occurrences that are not run, for the ledger."""

    job_id: UUID
    reason: str
    first_at: datetime
    last_at: datetime
    count: int = 1


async def enqueue(session: Session, occurrences: Sequence[tuple[Mapping[str, Any], datetime]]) -> tuple[Skip, ...]:
    """Insert a queue job for each (row of `jobs`, time), at most one for a job, and wake the workers.

    Returns those that `concurrencyPolicy: Forbid` did not let in; the caller puts them in the ledger.
    """
    if not occurrences:
        return ()
    inserted = await session.fetch(
        "insert_occurrences",
        active_states=ACTIVE_STATES,
        occurrences=as_records(_queue_job(job, time) for job, time in occurrences),
    )
    withdrawn = await session.fetch("withdraw_held_occurrences", queue_jobs=[row["id"] for row in inserted])
    queued = {row["job_id"] for row in inserted} - {row["job_id"] for row in withdrawn}
    await session.fetch("note_scheduled", jobs=list(queued))
    await session.fetch("notify_queues", queues=[job["queue"] for job, _ in occurrences if job["id"] in queued])
    return tuple(
        Skip(job["id"], "ConcurrencyForbidden", time, time) for job, time in occurrences if job["id"] not in queued
    )


async def record_skips(session: Session, skips: Iterable[Skip]) -> None:
    """Add to the ledger of occurrences not run."""
    merged: dict[tuple[UUID, str], Skip] = {}
    for skip in skips:
        known = merged.get((skip.job_id, skip.reason))
        merged[skip.job_id, skip.reason] = skip if known is None else _merge(known, skip)
    if merged:
        await session.fetch("record_skips", skips=as_records(vars(skip) for skip in merged.values()))


def _merge(one: Skip, other: Skip) -> Skip:
    return Skip(
        job_id=one.job_id,
        reason=one.reason,
        first_at=min(one.first_at, other.first_at),
        last_at=max(one.last_at, other.last_at),
        count=one.count + other.count,
    )


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
