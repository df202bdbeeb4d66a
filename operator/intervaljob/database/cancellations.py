"""Cancelling what a job has waiting and running, whoever asks: a deletion, a user, or a task that replaces it."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from intervaljob.database.connection import Session
from intervaljob.database.ledger import Skip


async def cancel(session: Session, jobs: Sequence[UUID], *, reason: str, skipped_as: str) -> tuple[Skip, ...]:
    """End what these jobs have waiting, and ask the workers to stop what they have running.

    The wish is a time in the row of the job, which claims, ends, recoveries and renewals look at: what is under way
    while this runs is cancelled by them. Returns the occurrences that never began, as the ledger is to have them.
    Call it with the jobs' rows locked.
    """
    if not jobs:
        return ()
    await session.fetch("request_cancel", jobs=jobs)
    await session.fetch("cancel_waiting_tasks", jobs=jobs, reason=reason)
    waiting = await session.fetch("cancel_waiting_queue_jobs", jobs=jobs, reason=reason)
    # Whose recovery did not see the wish, and put on the queue between these two what has just been taken away.
    await session.fetch("cancel_waiting_tasks", jobs=jobs, reason=reason)
    await session.fetch("cancel_running_queue_jobs", jobs=jobs)
    return tuple(Skip(row["job_id"], skipped_as, row["due"], row["due"]) for row in waiting if not row["has_task"])
