"""What has ended and is older than it is kept: deleted in small batches, by every operator, without a leader.

River's rule for queue jobs (River §2.11, "Uniqueness ends when …"), by state; a task goes with the queue job that ended
it. The newest tasks of each IntervalJob stay, as its status shows them, until newer ones have come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from intervaljob.database.connection import Database, Row
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.scope import Scope
from intervaljob.model.status import MAX_RECENT
from intervaljob.settings import OperatorSettings
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

#: Seconds between looks at the queue (as River's cleaner), and how many of them go on from where the last one ended.
LOOK_SECONDS = 30.0
LOOKS = 120
#: Rows that a statement reads and deletes at most, and jobs whose tasks it looks at.
BATCH = 1000
PAGE = 500

_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)
_FIRST = UUID(int=0)


@dataclass(frozen=True)
class Retention:
    """Seconds for which tasks are kept after they have ended, with the queue jobs that ended them."""

    succeeded: float
    cancelled: float
    failed: float

    @classmethod
    def of(cls, settings: OperatorSettings) -> Retention:
        """As the settings say."""
        return cls(
            succeeded=settings.succeeded_retention_seconds,
            cancelled=settings.cancelled_retention_seconds,
            failed=settings.failed_retention_seconds,
        )

    def by_state(self) -> dict[str, float]:
        """River's final state → seconds."""
        return {"completed": self.succeeded, "cancelled": self.cancelled, "discarded": self.failed}

    @property
    def longest(self) -> float:
        """After which nothing that ended is left but the newest tasks."""
        return max(self.succeeded, self.cancelled, self.failed)


class Cleaner:
    """Deletes old rows of its scope. Any number may run: what another one has locked is left to it."""

    def __init__(self, database: Database, *, scope: Scope, retention: Retention, batch: int = BATCH) -> None:
        self._database = database
        self._scope = scope
        self._retention = retention
        self._batch = batch
        self._positions: dict[str, datetime] = {}

    async def run(self) -> None:
        """Clean for ever; while the database is away, wait."""
        while True:
            for look in range(LOOKS):
                try:
                    if look == 0:
                        await self.clean()
                    else:
                        await self._clean_queue()
                except DatabaseUnavailable as error:
                    logger.warning("Cannot delete old rows", extra={"error": error})
                await asyncio.sleep(LOOK_SECONDS)

    async def clean(self) -> None:
        """Delete everything that is old enough now."""
        self._positions.clear()
        deleted = Counter[str]()
        deleted += await self._clean_queue()
        tasks, shown = await self._clean_outlived()
        deleted += tasks
        seconds, limit = self._retention.longest, self._batch
        for query, parameters in (
            ("delete_lost_transitions", {}),
            ("delete_retired_jobs", self._scope.parameters()),
            ("delete_ended_workers", {"shown": list(shown)}),
        ):
            full = True
            while full:
                (row,) = await self._fetch(query, seconds=seconds, limit=limit, **parameters)
                deleted += _count(row)
                full = limit in row.values()
        if deleted:
            logger.info("Old rows deleted", extra=dict(deleted))

    async def _clean_queue(self) -> Counter[str]:
        """Queue jobs, oldest first, from where this ended the last time; and the tasks that they ended."""
        deleted = Counter[str]()
        for state, seconds in self._retention.by_state().items():
            read = self._batch
            while read == self._batch:
                position = self._positions.get(state, _BEGINNING)
                (row,) = await self._fetch(
                    "delete_old_queue_jobs",
                    state=state,
                    seconds=seconds,
                    after=position,
                    limit=self._batch,
                    newest=MAX_RECENT,
                    **self._scope.parameters(),
                )
                read = row["read"]
                if read:
                    # A batch of one moment that all stays is passed over.
                    stays = row["last"] == position and not row["river_job"]
                    self._positions[state] = row["last"] + timedelta(microseconds=int(stays))
                deleted += _count(row)
        return deleted

    async def _clean_outlived(self) -> tuple[Counter[str], set[UUID]]:
        """Tasks whose queue jobs are gone, job by job; and the workers that statuses show."""
        deleted, shown = Counter[str](), set[UUID]()
        after, read = _FIRST, PAGE
        while read == PAGE:
            (row,) = await self._fetch(
                "delete_outlived_tasks",
                after=after,
                jobs=PAGE,
                seconds=self._retention.longest,
                limit=self._batch,
                newest=MAX_RECENT,
                **self._scope.parameters(),
            )
            deleted += _count(row)
            shown.update(row["shown"])
            read = row["read"]
            if row["tasks"] < self._batch and read:
                after = row["last"]
            elif read:
                read = PAGE  # the same page again
        return deleted, shown

    async def _fetch(self, query: str, /, **parameters: object) -> list[Row]:
        """The rows, after a pause as long as the statement took: half of the time, others have the database alone."""
        began = time.monotonic()
        rows = await self._database.fetch(query, **parameters)
        await asyncio.sleep(time.monotonic() - began)
        return rows


def _count(row: Row) -> Counter[str]:
    """Table → rows deleted by a statement that returned this, counted in the metric, too."""
    tables = ("tasks", "river_job", "jobs", "workers", "transitions")
    deleted = Counter({table: row[table] for table in tables if row.get(table)})
    for table, count in deleted.items():
        metrics.ROWS_DELETED.labels(table).inc(count)
    return deleted
