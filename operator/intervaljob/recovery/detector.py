"""Who is dead: ticks the witness of leases, ends workers whose lease ran out, and recovers what they held.

Any number of operators may run this at once. Each look recovers whatever it finds, whoever ended the worker, so a
claim that slipped in between the end of a worker and the recovery is found by the next one.
"""

from __future__ import annotations

import asyncio
import logging

from intervaljob.database.connection import Database
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.scope import Scope
from intervaljob.recovery.recover import recover_orphans
from intervaljob.recovery.stranded import settle_stranded
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

#: Seconds between looks. A look may add two seconds to witnessed time at most, so one a second loses nothing.
TICK_SECONDS = 1.0


async def recover_at_start(database: Database, *, scope: Scope, by: str) -> int:
    """Recovery over every running task, before anything else is served."""
    await end_expired(database)
    added = await recover_orphans(database, scope=scope, by=by, every_task=True)
    added += await settle_stranded(database, scope=scope)
    await database.fetch("end_lost_queue_jobs")
    logger.info(f"Task recovery completed. Added {added} recovery jobs to queue")  # noqa: G004 - the words are a promise
    return added


async def detect(database: Database, *, scope: Scope, by: str) -> None:
    """Look once a second, for ever. While the database is away nothing is looked at, and no lease time passes."""
    while True:
        try:
            await end_expired(database)
            await recover_orphans(database, scope=scope, by=by)
        except DatabaseUnavailable as error:
            logger.warning("Cannot look for dead workers", extra={"error": error})
        await asyncio.sleep(TICK_SECONDS)


async def end_expired(database: Database) -> None:
    """Tick the witness and end every worker whose lease has run out in witnessed time."""
    for worker in await database.fetch("tick_and_end_expired"):
        metrics.WORKERS_ENDED.labels("lease_expired").inc()
        logger.warning("Worker declared dead: its lease ran out", extra={"worker": worker["name"], "id": worker["id"]})
