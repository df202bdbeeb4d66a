"""`intervaljob worker`: one incarnation after the other, until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable

from intervaljob.database.connection import Database
from intervaljob.database.migrations import check_version
from intervaljob.errors import DatabaseUnavailable
from intervaljob.settings import WorkerSettings
from intervaljob.telemetry import metrics, probes
from intervaljob.worker.incarnation import Incarnation, Over
from intervaljob.worker.manager import Manager, reason
from intervaljob.worker.pool import pool

logger = logging.getLogger(__name__)


class Worker:
    """A worker process; `serve` returns after a drain, or when its Pod is gone."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._name = settings.name()
        self._stopping = asyncio.Event()
        self._incarnation: Incarnation | None = None
        self._over: Incarnation | None = None
        self._database: Database | None = None

    async def serve(self) -> None:
        """Work until SIGTERM or SIGINT, or until an incarnation was condemned.

        Raises SchemaVersionError for a database of another version, HandlerError for handlers that cannot be loaded.
        """
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop)
        async with (
            Database(self._settings, application=f"intervaljob worker {self._name}") as database,
            probes.serve(self._settings.http_address, live=lambda: None, ready=self._not_ready),
        ):
            self._database = database
            metrics.DATABASE_UP.set_function(lambda: database.problem is None)
            await self._reach(lambda: check_version(database))
            while not self._stopping.is_set():
                await self._one_incarnation(database)
            await self._reach(self._bury)

    def _stop(self) -> None:
        self._stopping.set()

    def _not_ready(self) -> str | None:
        if self._stopping.is_set():
            return "draining"
        if self._incarnation is None or not self._incarnation.alive():
            return "no lease: the database cannot be reached"
        return None if self._database is None else self._database.problem

    async def _reach(self, attempt: Callable[[], Awaitable[None]]) -> bool:
        """Do this as soon as the database is there; False when the worker is to stop and one try has failed."""
        while True:
            try:
                await attempt()
            except DatabaseUnavailable as error:
                if self._stopping.is_set():
                    return False
                logger.warning("Waiting for the database", extra={"worker": self._name, "error": error})
                await asyncio.sleep(1)
            else:
                return True

    async def _one_incarnation(self, database: Database) -> None:
        worker = Incarnation(database, self._settings, name=self._name)
        async with pool(self._settings) as executors:
            if self._stopping.is_set() or not await self._reach(lambda: self._register(worker)):
                return
            if self._incarnation is not worker:
                return
            manager = Manager(database, self._settings, worker=worker, pool=executors, stopping=self._stopping)
            try:
                await manager.run()
                return
            except BaseExceptionGroup as group:
                error = reason(group)
                if not isinstance(error, Over):
                    raise error from group
                fields = {"worker": self._name, "id": worker.id, "error": error}
                logger.warning("Incarnation over: every task was stopped", extra=fields)
        self._over = worker

    async def _register(self, worker: Incarnation) -> None:
        await self._bury()
        if not self._stopping.is_set():
            await worker.register()
            self._incarnation = worker

    async def _bury(self) -> None:
        """Nothing of the incarnation that is over runs any more. One that was condemned ends now, and the process with
        it: its Pod is gone. Where the container is started again, that is a new incarnation."""
        if self._over is not None and await self._over.end_if_condemned():
            self._stopping.set()
        self._over = None
