"""Rows become statuses: folded, computed, compared, and written within a bound.

What happened is folded into the jobs' counts; a job whose status is older than its rows waits in the database until
some operator has written it. A write names the resource version that was read before the rows were, so a status
computed from older rows never replaces a newer one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from intervaljob.controller.api import UNREACHABLE, Api, Conflict
from intervaljob.controller.events import Announcer, transition
from intervaljob.controller.limits import RateLimit
from intervaljob.database.connection import Database, as_records
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.custom_resource import IntervalJob
from intervaljob.model.scope import Scope
from intervaljob.model.status import build_status, same_status
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

FOLD_BATCH = 2000
LOOK_SECONDS = 0.5
#: Seconds between two writes for one IntervalJob, and until a claimed one that was not written is free again.
SPACING_SECONDS = 1.0
CLAIM_SECONDS = 30.0
#: Statuses read from the API server and written to it at once.
PARALLEL = 10


class StatusWriter:
    """Keeps every status of the scope as new as the bound on writes allows, oldest first."""

    def __init__(
        self, database: Database, api: Api, *, scope: Scope, announcer: Announcer, writes_per_second: float
    ) -> None:
        self._database = database
        self._api = api
        self._scope = scope
        self._announcer = announcer
        self._limit = RateLimit(writes_per_second)
        self._batch = max(1, min(200, int(writes_per_second * 2)))
        self._edited = asyncio.Event()

    def wake(self) -> None:
        """Something was edited: do not wait for the next look."""
        self._edited.set()

    async def run(self) -> None:
        """Fold and write for ever."""
        never = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(_for_ever(self._fold, sooner=never), name="fold")
            group.create_task(_for_ever(self._write_some, sooner=self._edited), name="statuses")

    async def _fold(self) -> bool:
        rows = await self._database.fetch("fold_transitions", limit=FOLD_BATCH, **self._scope.parameters())
        for row in rows:
            news = transition(row)
            if news is not None and not row["has_no_resource"]:
                kind, reason, message = news
                self._announcer.announce({**row, "id": row["job_id"]}, kind=kind, reason=reason, message=message)
        return len(rows) == FOLD_BATCH

    async def _write_some(self) -> bool:
        claimed = await self._database.fetch(
            "claim_unwritten_statuses", limit=self._batch, retry_seconds=CLAIM_SECONDS, **self._scope.parameters()
        )
        metrics.STATUS_PENDING.set(claimed[0]["waiting"] if claimed else 0)
        if not claimed:
            return False
        turn = asyncio.Semaphore(PARALLEL)
        written: list[dict[str, object]] = []
        again: list[object] = []

        async def one(job_id: object) -> None:
            async with turn:
                revision = await self._write(job_id)
                if revision is None:
                    again.append(job_id)
                else:
                    written.append({"job_id": job_id, "revision": revision})

        async with asyncio.TaskGroup() as group:
            for row in claimed:
                group.create_task(one(row["job_id"]), name=f"status {row['job_id']}")
        if written:
            await self._database.fetch("statuses_written", written=as_records(written), spacing_seconds=SPACING_SECONDS)
        if again:
            await self._database.fetch("retry_statuses", jobs=again, spacing_seconds=SPACING_SECONDS)
        return len(claimed) == self._batch

    async def _write(self, job_id: object) -> int | None:
        """The revision that the IntervalJob shows now, None when it has to be tried again."""
        try:
            rows = await self._database.fetch("read_statuses", jobs=[job_id])
            if not rows:
                return 0
            resource = await self._api.get(namespace=rows[0]["namespace"], name=rows[0]["name"])
            if resource is None or resource.uid != rows[0]["job_id"]:
                return int(rows[0]["revision"])
            (row,) = await self._database.fetch("read_statuses", jobs=[job_id])
            await self._write_one(resource, row)
        except Conflict:
            metrics.STATUS_WRITES.labels("conflict").inc()
            return None
        except (DatabaseUnavailable, *UNREACHABLE) as error:
            metrics.STATUS_WRITES.labels("failed").inc()
            logger.warning("Status not written", extra={"job": job_id, "error": error})
            return None
        return int(row["revision"])

    async def _write_one(self, resource: IntervalJob, row: Mapping[str, Any]) -> None:
        status = build_status(row)
        if same_status(status, resource.status):
            return
        await self._limit.wait()
        await self._api.write_status(
            namespace=resource.namespace,
            name=resource.name,
            resource_version=resource.resource_version,
            status=status,
        )
        metrics.STATUS_WRITES.labels("written").inc()


async def _for_ever(look: Callable[[], Awaitable[bool]], *, sooner: asyncio.Event) -> None:
    """Look again at once while there is more, else after a while or when `sooner` is set."""
    while True:
        sooner.clear()
        try:
            more = await look()
        except (DatabaseUnavailable, *UNREACHABLE) as error:
            logger.warning("Statuses wait", extra={"error": error})
            more = False
        if not more:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await sooner.wait()
