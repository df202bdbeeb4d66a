"""Rows become statuses: folded, computed, compared, and written within a bound.

What happened is folded into the jobs' counts; a job whose status is older than its rows waits in the database until
some operator has written it. A write names the resource version that was read before the rows were, so a status
computed from older rows never replaces a newer one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar
from uuid import UUID

from intervaljob.controller.api import UNREACHABLE, Api, Conflict
from intervaljob.controller.events import Announcer, transition
from intervaljob.controller.limits import RateLimit
from intervaljob.database.connection import Database, Row, as_records
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.custom_resource import IntervalJob
from intervaljob.model.scope import Scope
from intervaljob.model.status import build_status, same_status
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Transitions that are folded together: several of one job cost little more than one.
FOLD_BATCH = 20_000
#: Seconds between two looks at what has happened and what is to be written: while there is something, and at rest.
LOOK_SECONDS = 0.5
REST_SECONDS = 1.0
#: Seconds for which somebody is taken to look at an IntervalJob that has failed, or lost a worker.
WATCHED_SECONDS = 60.0
#: Seconds that a batch takes: what is to be written first waits so long for it to end.
BATCH_SECONDS = 0.5
#: Seconds between two writes for one IntervalJob, and until a claimed one that was not written is free again.
SPACING_SECONDS = 1.0
CLAIM_SECONDS = 30.0
#: Statuses read from the API server and written to it at once.
PARALLEL = 10


class StatusWriter:
    """Keeps every status of the scope as new as the bound on writes allows.

    First come those that somebody looks at: they were edited, told to run, or have failed. Of the others, and of these
    among each other, those come first that were not written for longest.
    """

    def __init__(
        self, database: Database, api: Api, *, scope: Scope, announcer: Announcer, writes_per_second: float
    ) -> None:
        self._database = database
        self._api = api
        self._scope = scope
        self._announcer = announcer
        self._limit = RateLimit(writes_per_second)
        self._batch = max(4, min(200, int(writes_per_second * BATCH_SECONDS)))
        self._unwritten = asyncio.Event()

    def wake(self) -> None:
        """Something was edited: do not wait for the next look."""
        self._unwritten.set()

    async def run(self) -> None:
        """Fold and write for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_for_ever(self._look), name="fold")
            group.create_task(_for_ever(self._write_all), name="statuses")

    async def _look(self) -> None:
        """One statement while nothing happens, whatever there is to fold or to write."""
        (row,) = await self._database.fetch("look_at_statuses")
        metrics.STATUS_PENDING.set(row["waiting"])
        if row["to_fold"]:
            await self._fold()
        if row["to_fold"] or row["waiting"]:
            self._unwritten.set()
            await asyncio.sleep(LOOK_SECONDS)
        else:
            await asyncio.sleep(REST_SECONDS)

    async def _fold(self) -> None:
        rows = await self._database.fetch(
            "fold_transitions", limit=FOLD_BATCH, watched_seconds=WATCHED_SECONDS, **self._scope.parameters()
        )
        for row in rows:
            news = transition(row)
            if news is not None and not row["has_no_resource"]:
                kind, reason, message = news
                self._announcer.announce({**row, "id": row["job_id"]}, kind=kind, reason=reason, message=message)

    async def _write_all(self) -> None:
        """Write batch after batch, until there is nothing left that may be written now."""
        await self._unwritten.wait()
        self._unwritten.clear()
        while await self._write_some():
            pass

    async def _write_some(self) -> bool:
        claimed = await self._database.fetch(
            "claim_unwritten_statuses", limit=self._batch, retry_seconds=CLAIM_SECONDS, **self._scope.parameters()
        )
        # The resources before the rows: a write names the version that was there when the rows were read.
        found = await self._each(claimed, self._read)
        present = {job_id: resource for job_id, resource in found.items() if resource is not None}
        rows = await self._database.fetch("read_statuses", jobs=list(present)) if present else []
        shown = await self._each(rows, lambda row: self._write(present[row["job_id"]], row))
        gone = {row["job_id"]: row["revision"] for row in claimed if found.get(row["job_id"], row) is None}
        await self._note(claimed, {**shown, **gone})
        return bool(claimed)

    async def _note(self, claimed: Sequence[Row], shown: Mapping[UUID, int | None]) -> None:
        """Note the revisions that are shown now. What was overtaken is tried again at once, what failed a bit later."""
        written = [
            {"job_id": job_id, "revision": revision} for job_id, revision in shown.items() if revision is not None
        ]
        if written:
            await self._database.fetch("statuses_written", written=as_records(written), spacing_seconds=SPACING_SECONDS)
        overtaken = [job_id for job_id, revision in shown.items() if revision is None]
        failed = [row["job_id"] for row in claimed if row["job_id"] not in shown]
        for jobs, seconds in ((overtaken, 0.0), (failed, SPACING_SECONDS)):
            if jobs:
                await self._database.fetch("retry_statuses", jobs=jobs, spacing_seconds=seconds)

    async def _each(self, rows: Sequence[Row], ask: Callable[[Row], Awaitable[T]]) -> dict[UUID, T]:
        """What the API server answers for each of them, several at once; those that fail are left out."""
        turn = asyncio.Semaphore(PARALLEL)
        answers: dict[UUID, T] = {}

        async def one(row: Row) -> None:
            async with turn:
                try:
                    answers[row["job_id"]] = await ask(row)
                except UNREACHABLE as error:
                    metrics.STATUS_WRITES.labels("failed").inc()
                    logger.warning("Status not written", extra={"job": row["job_id"], "error": error})

        async with asyncio.TaskGroup() as group:
            for row in rows:
                group.create_task(one(row), name=f"status {row['job_id']}")
        return answers

    async def _read(self, row: Row) -> IntervalJob | None:
        """None where the IntervalJob is gone, or another one has its name."""
        resource = await self._api.get(namespace=row["namespace"], name=row["name"])
        return resource if resource is not None and resource.uid == row["job_id"] else None

    async def _write(self, resource: IntervalJob, row: Row) -> int | None:
        """The revision that it shows then, None when somebody changed it meanwhile."""
        status = build_status(row)
        if not same_status(status, resource.status):
            await self._limit.wait()
            try:
                await self._api.write_status(
                    namespace=resource.namespace,
                    name=resource.name,
                    resource_version=resource.resource_version,
                    status=status,
                )
            except Conflict:
                metrics.STATUS_WRITES.labels("conflict").inc()
                return None
            metrics.STATUS_WRITES.labels("written").inc()
        return int(row["revision"])


async def _for_ever(look: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await look()
        except DatabaseUnavailable as error:
            logger.warning("Statuses wait", extra={"error": error})
            await asyncio.sleep(LOOK_SECONDS)
