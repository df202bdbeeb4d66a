"""IntervalJobs as the API server shows them: watched for changes, and compared as a whole for what a watch has missed.

The watch begins before the comparison that makes up for the past, so that an edit takes effect while thousands of
others are still looked at. kopf lists everything before it watches anything, keeps a task and a queue for each object
that it lists, and hands them on faster than they can be written, so it does not watch here. What is remembered is the
uids that the comparison under way has seen, and those whose end it may see too late.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing, suppress
from dataclasses import replace
from http import HTTPStatus
from uuid import UUID

from kubernetes.aio.client.exceptions import ApiException

from intervaljob.controller.api import BOOKMARK, UNREACHABLE, Api
from intervaljob.controller.reconciler import Key, Reconciler
from intervaljob.database.connection import Database
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.custom_resource import IntervalJob
from intervaljob.model.scope import Scope

logger = logging.getLogger(__name__)

#: Seconds until another try when the API server or the database does not answer.
RETRY_SECONDS = 1.0
COMPARE_AGAIN_SECONDS = 5.0
ROWS = 5000


class Watch:
    """The IntervalJobs of one namespace, None for all: what is seen of them goes to the reconciler."""

    def __init__(
        self,
        database: Database,
        api: Api,
        reconciler: Reconciler,
        *,
        scope: Scope,
        namespace: str | None,
        resync_seconds: float,
    ) -> None:
        self._database = database
        self._api = api
        self._reconciler = reconciler
        self._scope = replace(scope, namespaces=() if namespace is None else (namespace,))
        self._namespace = namespace
        self._resync_seconds = resync_seconds
        self._version: str | None = None
        self._missed = asyncio.Event()
        self._deleted: set[UUID] = set()

    async def run(self) -> None:
        """Watch, and compare now and then, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="watch")
            group.create_task(self._compare_now_and_then(), name="comparison")

    async def _follow(self) -> None:
        """Watch from where the last watch ended; where that is not known, from now, and have the past compared."""
        while True:
            try:
                if self._version is None:
                    self._version = await self._api.version(namespace=self._namespace)
                    self._missed.set()
                await self._watch(self._version)
            except UNREACHABLE as error:
                if isinstance(error, ApiException):
                    self._version = None
                if not (isinstance(error, ApiException) and error.status == HTTPStatus.GONE):
                    logger.warning("Cannot watch IntervalJobs", extra={"namespace": self._namespace, "error": error})
                await asyncio.sleep(RETRY_SECONDS)

    async def _watch(self, version: str) -> None:
        async with aclosing(self._api.watch(namespace=self._namespace, version=version)) as events:
            async for kind, body in events:
                if kind != BOOKMARK:
                    self._pass_on(IntervalJob.from_body(body), deleted=kind == "DELETED")
                    await self._reconciler.has_room()
                self._version = body["metadata"]["resourceVersion"]

    def _pass_on(self, resource: IntervalJob, *, deleted: bool) -> None:
        if deleted:
            self._deleted.add(resource.uid)
            self._reconciler.miss(Key(resource.uid, resource.namespace, resource.name))
        else:
            self._reconciler.see(resource)

    async def _compare_now_and_then(self) -> None:
        """When something may have been missed, and every `resync_seconds`; sooner again when that failed."""
        await self._missed.wait()
        while True:
            self._missed.clear()
            seconds = self._resync_seconds
            try:
                await self.compare()
            except (DatabaseUnavailable, *UNREACHABLE) as error:
                logger.warning("Cannot compare IntervalJobs with their rows", extra={"error": error})
                seconds = COMPARE_AGAIN_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._missed.wait()

    async def compare(self) -> None:
        """Compare every IntervalJob with its row, and look for those of the rows that have none any more.

        The last page shows what was there when the first one was asked for: what has been deleted since is left out.
        """
        begun = time.monotonic()
        self._deleted.clear()
        seen: set[UUID] = set()
        async with aclosing(self._api.pages(namespace=self._namespace)) as pages:
            async for page in pages:
                seen.update(resource.uid for resource in page)
                await self._reconciler.compare([resource for resource in page if resource.uid not in self._deleted])
        await self._miss_others(seen)
        fields = {"count": len(seen), "seconds": f"{time.monotonic() - begun:.1f}"}
        logger.info("IntervalJobs compared with their rows", extra=fields)

    async def _miss_others(self, seen: set[UUID]) -> None:
        last = UUID(int=0)
        while rows := await self._database.fetch("all_jobs", after=last, limit=ROWS, **self._scope.parameters()):
            for row in rows:
                if row["id"] not in seen:
                    self._reconciler.miss(Key(row["id"], row["namespace"], row["name"]))
                    await self._reconciler.has_room()
            last = rows[-1]["id"]
