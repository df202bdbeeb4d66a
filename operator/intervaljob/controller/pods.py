"""Worker Pods: what the API server says about them becomes the end of workers, or their condemnation.

kopf cannot watch one resource in one namespace while it watches another in all of them, nor with a label selector,
so this lists and watches by itself. What is remembered is one small entry for each Pod that exists. An entry changes
only after what it says was acted upon, so whatever interrupts, the next list finds what is left to do. Only Pods that
this process has seen in its own API server are acted upon: other clusters' workers may be in the same database.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing

from intervaljob.controller.api import UNREACHABLE, Api
from intervaljob.database.connection import Database, as_records
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.pod import CONTAINER_TERMINATED, Pod
from intervaljob.model.policy import POD_GONE
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

#: Seconds until another try when the API server or the database does not answer.
RETRY_SECONDS = 1.0


class PodWatch:
    """The worker Pods of one namespace. See `model/pod.py` for what they prove."""

    def __init__(self, database: Database, api: Api, *, namespace: str) -> None:
        self._database = database
        self._api = api
        self._namespace = namespace
        self._seen: dict[str, Pod] = {}

    async def run(self) -> None:
        """List, watch until that ends, and list again, for ever."""
        while True:
            try:
                await self._follow()
            except (DatabaseUnavailable, *UNREACHABLE) as error:
                logger.warning("Cannot watch worker Pods", extra={"namespace": self._namespace, "error": error})
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        pods, version = await self._api.worker_pods(namespace=self._namespace)
        await self._compare({pod.uid: pod for pod in pods})
        async with aclosing(self._api.watch_worker_pods(namespace=self._namespace, version=version)) as events:
            async for kind, pod in events:
                if kind == "DELETED":
                    await self._miss([pod])
                else:
                    await self._look_at([pod])

    async def _compare(self, pods: dict[str, Pod]) -> None:
        await self._look_at(list(pods.values()))
        await self._miss([pod for uid, pod in self._seen.items() if uid not in pods])

    async def _look_at(self, pods: Sequence[Pod]) -> None:
        """End the incarnations of containers that have terminated since the last look."""
        changed = [pod for pod in pods if pod != self._seen.get(pod.uid)]
        await self._end(changed, reason=CONTAINER_TERMINATED)
        self._seen.update((pod.uid, pod) for pod in changed)
        metrics.WORKER_PODS.set(len(self._seen))

    async def _miss(self, pods: Sequence[Pod]) -> None:
        """Pods that are gone, or have lost their label, which a watch does not tell apart."""
        gone = [pod for pod in pods if not await self._api.pod_exists(pod, namespace=self._namespace)]
        await self._end(gone, reason=POD_GONE)
        await self._condemn(gone)
        for pod in pods:
            self._seen.pop(pod.uid, None)
        metrics.WORKER_PODS.set(len(self._seen))

    async def _end(self, pods: Sequence[Pod], *, reason: str) -> None:
        containers = [
            {"pod_uid": pod.uid, "finished_at": pod.finished_at, "reason": reason} for pod in pods if pod.finished_at
        ]
        if not containers:
            return
        for row in await self._database.fetch("end_workers_of_containers", containers=as_records(containers)):
            metrics.WORKERS_ENDED.labels(reason).inc()
            fields = {"worker": row["name"], "id": row["id"], "reason": reason}
            logger.warning("Worker declared dead: its container has terminated", extra=fields)

    async def _condemn(self, pods: Sequence[Pod]) -> None:
        """Tell what is left of these Pods to end: also a container's successor that was not seen yet."""
        if not pods:
            return
        rows = await self._database.fetch(
            "condemn_workers_of_pods", pod_uids=[pod.uid for pod in pods], reason=POD_GONE
        )
        for row in rows:
            metrics.WORKERS_CONDEMNED.inc()
            fields = {"worker": row["name"], "id": row["id"], "reason": POD_GONE}
            logger.warning("Worker condemned: its Pod is gone, its processes may not be", extra=fields)
