"""IntervalJobs become rows: level-triggered, in batches, retried until it is so.

Events only say which IntervalJob to look at. What was missed is found by a comparison of all IntervalJobs with their
rows, at start and from time to time; a row is retired only after the API server said that its resource is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from intervaljob.controller.api import UNREACHABLE, Api
from intervaljob.controller.events import Announcer
from intervaljob.database.cancellations import cancel
from intervaljob.database.connection import Database, Row, Session, as_records
from intervaljob.database.ledger import record_skips
from intervaljob.database.occurrences import enqueue
from intervaljob.errors import DatabaseError, DatabaseUnavailable, ResourceError
from intervaljob.model.custom_resource import Definition, IntervalJob, definition
from intervaljob.model.job import Change, asks_anew, reconcile
from intervaljob.model.scope import Scope
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

BATCH = 500
RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class Key:
    """Which IntervalJob: its name may be taken by another one later, its uid never."""

    uid: UUID
    namespace: str
    name: str


class Reconciler:
    """A de-duplicating, retrying queue of IntervalJobs to compare with their rows."""

    def __init__(
        self, database: Database, api: Api, *, scope: Scope, announcer: Announcer, changed: Callable[[], None]
    ) -> None:
        self._database = database
        self._api = api
        self._scope = scope
        self._announcer = announcer
        self._changed = changed
        self._present: dict[UUID, IntervalJob] = {}
        self._gone: dict[UUID, Key] = {}
        self._failures: dict[UUID, int] = {}
        self._woken = asyncio.Event()

    def see(self, resource: IntervalJob) -> None:
        """This IntervalJob was seen: compare it with its row soon. Only the newest sight of it counts."""
        known = self._present.get(resource.uid)
        if known is None or known.generation <= resource.generation:
            self._present[resource.uid] = resource
        self._wake()

    def miss(self, key: Key) -> None:
        """This IntervalJob seems to be gone: ask, and retire its row if it is."""
        self._present.pop(key.uid, None)
        self._gone[key.uid] = key
        self._wake()

    async def run(self) -> None:
        """Work the queue for ever."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._present or self._gone:
                await self._step()

    async def compare_all(self) -> None:
        """Compare every IntervalJob with its row, by a list of them all."""
        rows = await self._rows()
        async for resource in self._api.all(namespaces=self._scope.namespaces):
            row = rows.pop(resource.uid, None)
            if row is None or _differs(resource, row) or resource.status.get("jobId") != str(resource.uid):
                self.see(resource)
        for row in rows.values():
            self.miss(Key(uid=row["id"], namespace=row["namespace"], name=row["name"]))

    async def _rows(self) -> dict[UUID, Row]:
        found: dict[UUID, Row] = {}
        last = UUID(int=0)
        while True:
            page = await self._database.fetch("known_jobs", after=last, limit=5000, **self._scope.parameters())
            if not page:
                return found
            found |= {row["id"]: row for row in page}
            last = page[-1]["id"]

    async def _step(self) -> None:
        present = [self._present.pop(uid) for uid in list(self._present)[:BATCH]]
        gone = [self._gone.pop(uid) for uid in list(self._gone)[:BATCH]]
        metrics.RECONCILE_PENDING.set(len(self._present) + len(self._gone))
        try:
            await self._write(present)
            await self._retire(gone)
        except DatabaseUnavailable as error:
            logger.warning("IntervalJobs wait", extra={"count": len(present) + len(gone), "error": error})
            metrics.RECONCILES.labels("retried").inc(len(present) + len(gone))
            await asyncio.sleep(RETRY_SECONDS)
            self._put_back(present, gone)

    def _put_back(self, present: Iterable[IntervalJob], gone: Iterable[Key]) -> None:
        """Unless something newer is known of them meanwhile."""
        for resource in present:
            if resource.uid not in self._gone:
                self._present.setdefault(resource.uid, resource)
        for key in gone:
            if key.uid not in self._present:
                self._gone.setdefault(key.uid, key)
        self._wake()

    def _wake(self) -> None:
        self._woken.set()

    async def _write(self, resources: Sequence[IntervalJob]) -> None:
        """Write what differs; one that the database refuses is retried alone, and never holds up the others."""
        if not resources:
            return
        try:
            async with self._database.transaction() as session:
                changes = await self._changes(session, resources)
                written = await _apply(session, changes)
                repaired = [one.uid for one in resources if one.status.get("jobId") != str(one.uid)]
                await session.fetch("touch_statuses", jobs=[*{*(c.row["id"] for c in changes), *repaired}])
        except DatabaseUnavailable:
            raise
        except DatabaseError as error:
            if len(resources) > 1:
                for resource in resources:
                    await self._write([resource])
            else:
                self._retry_later(resources[0], error)
            return
        for resource in resources:
            self._failures.pop(resource.uid, None)
        overtaken = {change.row["id"] for change in changes if change.is_new} - written
        for resource in resources:
            if resource.uid in overtaken:
                self.see(resource)
        self._announce(change for change in changes if change.row["id"] in written)
        metrics.RECONCILES.labels("written").inc(len(written))
        metrics.RECONCILES.labels("unchanged").inc(len(resources) - len(changes))
        self._changed()

    async def _changes(self, session: Session, resources: Sequence[IntervalJob]) -> list[Change]:
        (clock,) = await session.fetch("database_time")
        known = {row["id"]: row for row in await session.fetch("lock_jobs", jobs=[one.uid for one in resources])}
        found = (
            _reconcile(resource, known.get(resource.uid), cluster=self._scope.cluster, now=clock["now"])
            for resource in resources
        )
        return [change for change in found if change is not None]

    def _retry_later(self, resource: IntervalJob, error: DatabaseError) -> None:
        failures = self._failures[resource.uid] = self._failures.get(resource.uid, 0) + 1
        delay = min(RETRY_SECONDS * 2**failures, LONGEST_RETRY_SECONDS)
        logger.error(
            "IntervalJob cannot be written",
            extra={"namespace": resource.namespace, "job": resource.uid, "error": error},
        )
        metrics.RECONCILES.labels("failed").inc()
        asyncio.get_running_loop().call_later(delay, self._put_back, [resource], [])

    async def _retire(self, keys: Sequence[Key]) -> None:
        """Retire the rows of those that the API server says are gone, and cancel what they left."""
        gone = [key for key in keys if await self._is_gone(key)]
        if not gone:
            return
        async with self._database.transaction() as session:
            rows = await session.fetch("retire_jobs", jobs=[key.uid for key in gone], cluster=self._scope.cluster)
            retired = [row["id"] for row in rows]
            unrun = await cancel(session, retired, reason="the IntervalJob was deleted", skipped_as="Deleted")
            await record_skips(session, unrun)
        for key in gone:
            logger.info("IntervalJob deleted", extra={"namespace": key.namespace, "name_": key.name, "job": key.uid})
        metrics.RECONCILES.labels("retired").inc(len(retired))

    async def _is_gone(self, key: Key) -> bool:
        try:
            found = await self._api.get(namespace=key.namespace, name=key.name)
        except UNREACHABLE as error:
            logger.warning("Cannot ask for an IntervalJob", extra={"job": key.uid, "error": error})
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._put_back, [], [key])
            return False
        if found is not None and found.uid == key.uid:
            self.see(found)
            return False
        return True

    def _announce(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.event is not None:
                kind, reason, message = change.event
                self._announcer.announce(change.row, kind=kind, reason=reason, message=message)


def _reconcile(resource: IntervalJob, known: Row | None, *, cluster: str, now: datetime) -> Change | None:
    """What it changes; one whose schedule cannot be reckoned changes nothing that runs and says so."""
    try:
        return reconcile(resource, _definition(resource), known, cluster=cluster, now=now)
    except (ValueError, LookupError, OverflowError, StopIteration) as error:
        message = f"spec.schedule: no time of it can be found ({error!r}): write one that occurs in spec.timeZone"
        problem = ResourceError("InvalidSchedule", message)
        return reconcile(resource, problem, known, cluster=cluster, now=now)


def _definition(resource: IntervalJob) -> Definition | ResourceError:
    try:
        return definition(resource)
    except ResourceError as problem:
        return problem


def _differs(resource: IntervalJob, row: Row) -> bool:
    return row["generation"] != resource.generation or asks_anew(resource, row)


async def _apply(session: Session, changes: Sequence[Change]) -> set[UUID]:
    """Write the rows and do what follows from them; returns which were written, the others were changed meanwhile."""
    if not changes:
        return set()
    known = [change.row["id"] for change in changes if not change.is_new]
    written = await session.fetch("upsert_jobs", jobs=as_records(change.row for change in changes), known=known)
    ids = {row["id"] for row in written}
    forbid = [change.row["id"] for change in changes if change.became_forbid and change.row["id"] in ids]
    if forbid:
        await session.fetch("hold_unkeyed_queue_jobs", jobs=forbid)
    unwanted = [change.row["id"] for change in changes if change.cancel_now and change.row["id"] in ids]
    await record_skips(session, await cancel(session, unwanted, reason="a user cancelled it", skipped_as="Cancelled"))
    requested = [change.row for change in changes if change.run_now and change.row["id"] in ids]
    if requested:
        (clock,) = await session.fetch("database_time")
        queued, _ = await enqueue(session, [(row, clock["now"]) for row in requested])
        await session.fetch(
            "advance_jobs",
            advances=as_records(
                {"job_id": row["id"], "next_run_at": row["next_run_at"], "last_run_at": clock["now"]}
                for row in requested
                if row["id"] in queued
            ),
        )
    return ids
