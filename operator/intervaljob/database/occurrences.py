"""Occurrences become queue jobs here, whoever asks: the scheduler, or a user who wants one now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from intervaljob.database.cancellations import cancel
from intervaljob.database.connection import Session, as_records
from intervaljob.database.ledger import Skip, record_skips
from intervaljob.model.args import ACTIVE_STATES, forbid_key


@dataclass(frozen=True)
class Occurrence:
    """One to queue of the job in a row of `jobs`: its `time`, and when it is `due`, which jitter puts off."""

    job: Mapping[str, Any]
    time: datetime
    due: datetime


async def enqueue(session: Session, occurrences: Sequence[Occurrence]) -> tuple[frozenset[UUID], tuple[Skip, ...]]:
    """Insert a queue job for each occurrence, at most one for a job, and wake the workers.

    Under `concurrencyPolicy: Replace` what the job has waiting or running is cancelled first; under Forbid nothing is
    inserted while there is any. Returns the jobs that got a queue job, and what went into the ledger instead.
    """
    if not occurrences:
        return frozenset(), ()
    replaced = await cancel(
        session,
        [one.job["id"] for one in occurrences if one.job["concurrency_policy"] == "Replace"],
        reason="a newer occurrence replaced it",
        skipped_as="Replaced",
    )
    inserted = await session.fetch(
        "insert_occurrences",
        active_states=ACTIVE_STATES,
        occurrences=as_records(map(_queue_job, occurrences)),
    )
    queued = frozenset(row["job_id"] for row in inserted)
    if any(one.job["concurrency_policy"] == "Forbid" for one in occurrences):
        withdrawn = await session.fetch("withdraw_held_occurrences", queue_jobs=[row["id"] for row in inserted])
        queued -= {row["job_id"] for row in withdrawn}
    await session.fetch("note_scheduled", jobs=list(queued))
    await session.fetch("notify_queues", queues=[one.job["queue"] for one in occurrences if one.job["id"] in queued])
    forbidden = (
        Skip(one.job["id"], "ConcurrencyForbidden", one.time, one.time)
        for one in occurrences
        if one.job["id"] not in queued
    )
    skips = (*replaced, *forbidden)
    await record_skips(session, skips)
    return queued, skips


def _queue_job(occurrence: Occurrence) -> dict[str, object]:
    """What the row of the job does not tell of its queue job."""
    job = occurrence.job["id"]
    forbids = occurrence.job["concurrency_policy"] == "Forbid"
    return {
        "job_id": job,
        "due": occurrence.due,
        "occurrence": occurrence.time,
        "unique_key": forbid_key(job) if forbids else None,
    }
