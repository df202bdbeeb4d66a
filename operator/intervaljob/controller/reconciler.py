"""IntervalJobs become rows: level-triggered, in batches, retried until it is so.

What a watch sees is queued, and never waits for the pages of a comparison, which are written beside it. A row is
retired only after the API server said that its resource is gone.
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
from intervaljob.database.occurrences import Occurrence, enqueue
from intervaljob.errors import DatabaseError, DatabaseUnavailable, ResourceError
from intervaljob.model.custom_resource import Definition, IntervalJob, definition
from intervaljob.model.job import Change, asks_anew, reconcile
from intervaljob.model.scope import Scope
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

BATCH = 500
#: Missed ones that are asked for in one step, which those that were seen wait for, and how many at once.
ASK_BATCH = 50
ASK_PARALLEL = 10
#: IntervalJobs that wait; whoever sees more of them waits for room.
WAITING = 2000
#: Seconds for which somebody is taken to look at an IntervalJob that was created, edited or told to run.
WATCHED_SECONDS = 60.0
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
        self._room = asyncio.Event()
        self._room.set()

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

    async def has_room(self) -> None:
        """Returns when more may be seen or missed: what waits is in memory."""
        await self._room.wait()

    async def run(self) -> None:
        """Work the queue for ever."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._present or self._gone:
                await self._step()

    async def compare(self, resources: Sequence[IntervalJob]) -> None:
        """Write those of them that differ from their rows; one that cannot be written is tried again later.

        Raises DatabaseUnavailable.
        """
        await self._write(await self._differing(resources))

    async def _differing(self, resources: Sequence[IntervalJob]) -> list[IntervalJob]:
        """Those whose rows, or statuses, have to be written: one statement, as most have not changed."""
        if not resources:
            return []
        rows = await self._database.fetch(
            "known_jobs", jobs=[one.uid for one in resources], cluster=self._scope.cluster
        )
        known = {row["id"]: row for row in rows}
        differing = [one for one in resources if _differs(one, known.get(one.uid)) or _lost_status(one)]
        metrics.RECONCILES.labels("unchanged").inc(len(resources) - len(differing))
        return differing

    async def _step(self) -> None:
        present = [self._present.pop(uid) for uid in list(self._present)[:BATCH]]
        gone = [self._gone.pop(uid) for uid in list(self._gone)[:ASK_BATCH]]
        self._count()
        try:
            await self._write(await self._differing(present), watched=True)
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
        self._count()

    def _count(self) -> None:
        waiting = len(self._present) + len(self._gone)
        metrics.RECONCILE_PENDING.set(waiting)
        if waiting < WAITING:
            self._room.set()
        else:
            self._room.clear()

    async def _write(self, resources: Sequence[IntervalJob], *, watched: bool = False) -> None:
        """Write what differs; one that the database refuses is retried alone, and never holds up the others.

        The statuses of those that are `watched` are written before others.
        """
        if not resources:
            return
        try:
            async with self._database.transaction() as session:
                changes = await self._changes(session, resources)
                written = await _apply(session, changes)
                lost = [one.uid for one in resources if _lost_status(one)]
                touched = [*{*(change.row["id"] for change in changes), *lost}]
                await session.fetch("touch_statuses", jobs=touched)
                if watched:
                    await session.fetch("watch_statuses", jobs=touched, watched_seconds=WATCHED_SECONDS)
        except DatabaseUnavailable:
            raise
        except DatabaseError as error:
            if len(resources) > 1:
                for resource in resources:
                    await self._write([resource], watched=watched)
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
        turn = asyncio.Semaphore(ASK_PARALLEL)

        async def ask(key: Key) -> bool:
            async with turn:
                return await self._is_gone(key)

        answers = await asyncio.gather(*(ask(key) for key in keys))
        gone = [key for key, is_gone in zip(keys, answers, strict=True) if is_gone]
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


def _differs(resource: IntervalJob, row: Row | None) -> bool:
    return row is None or row["generation"] != resource.generation or asks_anew(resource, row)


def _lost_status(resource: IntervalJob) -> bool:
    """It has none yet, or somebody has removed it."""
    return resource.status.get("jobId") != str(resource.uid)


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
        queued, _ = await enqueue(session, [Occurrence(row, clock["now"], clock["now"]) for row in requested])
        await session.fetch(
            "advance_jobs",
            advances=as_records(
                {"job_id": row["id"], "next_run_at": row["next_run_at"], "last_run_at": clock["now"]}
                for row in requested
                if row["id"] in queued
            ),
        )
    return ids
