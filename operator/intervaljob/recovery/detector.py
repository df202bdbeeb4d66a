"""Who is dead: ticks the witness of leases, ends workers whose lease ran out, and recovers what they held.

Any number of operators may run this at once. Each look recovers whatever it finds, whoever ended the worker, so a
claim that slipped in between the end of a worker and the recovery is found by the next one. Whoever ends a worker
notifies on `worker_ended`, which only makes the next look come sooner.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress

from intervaljob.database.connection import Database
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.scope import Scope
from intervaljob.recovery.recover import recover_orphans
from intervaljob.recovery.stranded import settle_stranded
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

#: Seconds between looks. A look may add two seconds to witnessed time at most, so one a second loses nothing.
TICK_SECONDS = 1.0
#: Seconds after the end of a lease at which it is seen to be over.
_JUST_AFTER = 0.01


async def recover_at_start(database: Database, *, scope: Scope, by: str) -> int:
    """Recovery over every running task, before anything else is served."""
    await end_expired(database)
    added = await recover_orphans(database, scope=scope, by=by, every_task=True)
    added += await settle_stranded(database, scope=scope)
    await database.fetch("end_lost_queue_jobs")
    logger.info(f"Task recovery completed. Added {added} recovery jobs to queue")  # noqa: G004 - the words are a promise
    return added


async def detect(database: Database, *, scope: Scope, by: str) -> None:
    """Look once a second, for ever; sooner when a worker's end is heard of, or a lease runs out before that.

    While the database is away nothing is looked at, and no lease time passes.
    """
    look = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(_listen(database, look), name="ended workers")
        while True:
            look.clear()
            seconds = TICK_SECONDS
            try:
                seconds, orphans = await _tick(database)
                if orphans:
                    await recover_orphans(database, scope=scope, by=by)
            except DatabaseUnavailable as error:
                logger.warning("Cannot look for dead workers", extra={"error": error})
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await look.wait()


async def end_expired(database: Database) -> float:
    """Tick the witness and end every worker whose lease has run out in witnessed time.

    Returns the seconds until the next look is due.
    """
    seconds, _ = await _tick(database)
    return seconds


async def _tick(database: Database) -> tuple[float, bool]:
    """The same, and whether there may be something to recover: one statement while there is not."""
    rows = await database.fetch("tick_and_end_expired")
    for row in rows:
        if row["id"] is not None:
            metrics.WORKERS_ENDED.labels("lease_expired").inc()
            logger.warning("Worker declared dead: its lease ran out", extra={"worker": row["name"], "id": row["id"]})
    next_end = rows[0]["seconds"]
    seconds = TICK_SECONDS if next_end is None else min(TICK_SECONDS, next_end + _JUST_AFTER)
    return seconds, any(row["orphans"] for row in rows)


async def _listen(database: Database, look: asyncio.Event) -> None:
    while True:
        try:
            async with aclosing(database.listen("worker_ended")) as heard:
                async for _ in heard:
                    look.set()
        except DatabaseUnavailable as error:
            logger.warning("Cannot listen for ended workers", extra={"error": error})
        await asyncio.sleep(1)
