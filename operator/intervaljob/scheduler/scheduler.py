"""Due jobs become queue jobs: a batch in one transaction, in which they also advance to their next occurrence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from intervaljob.database.connection import Database, Row, Session, as_records
from intervaljob.database.ledger import Skip, record_skips
from intervaljob.database.occurrences import Occurrence, enqueue
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.job import delay_of, schedule_of
from intervaljob.model.schedule import Plan, plan
from intervaljob.model.scope import Scope
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

#: Longest sleep: another operator may have added a job that is due earlier than anything this one knew.
LONGEST_SLEEP_SECONDS = 5.0
#: Shortest sleep: what is due may be in another operator's hands for the moment.
SHORTEST_SLEEP_SECONDS = 0.05

#: River §2.9: what waits for its time is made available up to this early; fetching looks at the time again.
PROMOTE_AHEAD_SECONDS = 5.0
PROMOTE_BATCH = 1000
PROMOTE_SECONDS = 1.0


class Scheduler:
    """Sleeps until the next job is due, or until `wake` says that this may have changed."""

    def __init__(self, database: Database, *, scope: Scope, batch_size: int) -> None:
        self._database = database
        self._scope = scope
        self._batch_size = batch_size
        self._woken = asyncio.Event()
        self._promotes_at = 0.0

    def wake(self) -> None:
        """A job was added or changed: look again when the next one is due."""
        self._woken.set()

    async def run(self) -> None:
        """Schedule for ever; while the database is away, wait."""
        seconds = LONGEST_SLEEP_SECONDS
        while True:
            self._woken.clear()
            try:
                if seconds < LONGEST_SLEEP_SECONDS:  # this is the moment for which it was waited
                    await self.schedule_due()
                seconds = await self._seconds_to_next()
                await self._promote()
            except DatabaseUnavailable as error:
                logger.warning("Cannot schedule", extra={"error": error})
                seconds = 1.0
            if await self._sleep(seconds):
                seconds = 0.0

    async def _sleep(self, seconds: float) -> bool:
        """So long within the bounds, or until it is woken, and then True."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(SHORTEST_SLEEP_SECONDS, seconds), LONGEST_SLEEP_SECONDS)):
                return await self._woken.wait()
        return False

    async def schedule_due(self) -> int:
        """Handle every job that is due now; returns how many queue jobs were added."""
        added, full = 0, True
        while full:
            handled, queued = await self._batch()
            added += queued
            full = handled == self._batch_size
        return added

    async def _batch(self) -> tuple[int, int]:
        async with self._database.transaction() as session:
            jobs = await session.fetch("lock_due_jobs", limit=self._batch_size, **self._scope.parameters())
            if not jobs:
                return 0, 0
            plans = [(job, _plan(job)) for job in jobs]
            await _set_aside(session, [(job, p) for job, p in plans if isinstance(p, Exception)])
            planned = [(job, p) for job, p in plans if isinstance(p, Plan)]
            due = [Occurrence(job, p.run, p.run + delay_of(job)) for job, p in planned if p.run is not None]
            queued, unrun = await enqueue(session, due)
            ran = {one.job["id"]: one.due for one in due if one.job["id"] in queued}
            skips = _skips(planned)
            await record_skips(session, skips)
            await session.fetch(
                "advance_jobs",
                advances=as_records(
                    {"job_id": job["id"], "next_run_at": p.next, "last_run_at": ran.get(job["id"])}
                    for job, p in planned
                ),
            )
        _measure(due, [*unrun, *skips], queued=len(queued))
        return len(jobs), len(queued)

    async def _promote(self) -> None:
        """Early enough to do so now and then, however often jobs are due."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._promotes_at:
            return
        self._promotes_at = loop.time() + PROMOTE_SECONDS
        full = True
        while full:
            (row,) = await self._database.fetch(
                "promote_queue_jobs", ahead_seconds=PROMOTE_AHEAD_SECONDS, limit=PROMOTE_BATCH
            )
            full = row["promoted"] == PROMOTE_BATCH

    async def _seconds_to_next(self) -> float:
        rows = await self._database.fetch("seconds_to_next_due", **self._scope.parameters())
        return float(rows[0]["seconds"]) if rows else LONGEST_SLEEP_SECONDS


def _plan(job: Row) -> Plan | Exception:
    """What is due, or why that cannot be told: a row may hold a zone that the machine's data no longer has."""
    try:
        return plan(
            schedule_of(job),
            anchor=job["anchor"],
            due=job["next_run_at"],
            now=job["now"],
            runnable_since=job["runnable_since"],
            delay=delay_of(job),
        )
    except (ValueError, LookupError, OverflowError, StopIteration) as error:
        return error


async def _set_aside(session: Session, broken: Sequence[tuple[Row, Exception]]) -> None:
    """One job that cannot be scheduled holds up no other; its status says what is wrong until it is edited."""
    if not broken:
        return
    problems = [{"job_id": job["id"], "message": f"the schedule cannot be read: {error!r}"} for job, error in broken]
    await session.fetch("set_jobs_aside", problems=as_records(problems))
    await session.fetch("touch_statuses", jobs=[job["id"] for job, _ in broken])
    for problem in problems:
        logger.error("Job set aside", extra={"job": problem["job_id"], "error": problem["message"]})


def _skips(planned: Sequence[tuple[Row, Plan]]) -> list[Skip]:
    return [
        Skip(job["id"], skipped.reason, skipped.first, skipped.last, skipped.count)
        for job, p in planned
        for skipped in p.skipped
    ]


def _measure(due: Sequence[Occurrence], skips: Sequence[Skip], *, queued: int) -> None:
    for one in due:
        metrics.SCHEDULE_LATENESS.observe((one.job["now"] - one.due).total_seconds())
    metrics.OCCURRENCES.labels("queued", "").inc(queued)
    for skip in skips:
        metrics.OCCURRENCES.labels("skipped", skip.reason).inc(skip.count)
