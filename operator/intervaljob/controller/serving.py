"""`intervaljob operator`: kopf starts and ends the process, our own tasks do the work."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Iterator
from typing import Any

import kopf

from intervaljob.cleaner.cleaner import Cleaner, Retention
from intervaljob.controller.api import UNREACHABLE, Api, connect
from intervaljob.controller.events import Announcer
from intervaljob.controller.pods import PodWatch
from intervaljob.controller.reconciler import Reconciler
from intervaljob.controller.status_writer import StatusWriter
from intervaljob.controller.watch import Watch
from intervaljob.database.connection import Database
from intervaljob.database.migrations import check_version
from intervaljob.errors import DatabaseUnavailable, IntervalJobError, sole_error
from intervaljob.model.scope import Scope
from intervaljob.recovery.detector import detect, recover_at_start
from intervaljob.scheduler.scheduler import Scheduler
from intervaljob.settings import OperatorSettings
from intervaljob.telemetry import metrics, probes

logger = logging.getLogger(__name__)


class Operator:
    """An operator process. Any number of them may run: every duty is a claimed row or a guarded upsert."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._settings = settings
        self._name = f"operator {socket.gethostname()}"
        self._waiting_for: str | None = "not yet started"
        self._database: Database | None = None

    async def serve(self) -> None:
        """Serve until SIGTERM.

        Raises SettingsError without a cluster, SchemaVersionError for a database of another version.
        """
        async with (
            connect() as api,
            Database(self._settings, application="intervaljob operator") as database,
            probes.serve(self._settings.http_address, live=lambda: None, ready=self._not_ready),
        ):
            self._database = database
            metrics.DATABASE_UP.set_function(lambda: database.problem is None)
            cluster = self._settings.cluster_id or await self._cluster_id(api)
            scope = Scope(cluster=cluster, namespaces=self._settings.watch_namespaces)
            try:
                await self._serve(api, database, scope)
            except BaseExceptionGroup as group:
                raise sole_error(group) from group

    def _not_ready(self) -> str | None:
        if self._waiting_for is not None or self._database is None:
            return self._waiting_for
        return self._database.problem

    async def _cluster_id(self, api: Api) -> str:
        """As the API server says, as soon as it answers."""
        while True:
            try:
                return await api.cluster_id()
            except UNREACHABLE as error:
                self._waiting_for = f"waiting for the API server: {error}"
                logger.warning("Waiting for the API server", extra={"error": error})
                await asyncio.sleep(1)

    async def _serve(self, api: Api, database: Database, scope: Scope) -> None:
        announcer = Announcer(api)
        scheduler = Scheduler(database, scope=scope, batch_size=self._settings.schedule_batch_size)
        writer = StatusWriter(
            database,
            api,
            scope=scope,
            announcer=announcer,
            writes_per_second=self._settings.status_writes_per_second,
        )

        def changed() -> None:
            scheduler.wake()
            writer.wake()

        cleaner = Cleaner(database, scope=scope, retention=Retention.of(self._settings))
        reconciler = Reconciler(database, api, scope=scope, announcer=announcer, changed=changed)
        started = asyncio.Event()
        failure: list[IntervalJobError] = []

        async def start(**_: Any) -> None:
            try:
                await self._start(database, scope)
            except IntervalJobError as error:
                failure.append(error)
                raise kopf.PermanentError(str(error)) from error
            started.set()

        duties = {
            "scheduler": scheduler.run,
            "reconciler": reconciler.run,
            "statuses": writer.run,
            "events": announcer.run,
            "detector": lambda: detect(database, scope=scope, by=self._name),
            "recovery": lambda: self._recover_all(database, scope),
            "cleaner": cleaner.run,
        }
        for namespace in scope.namespaces or (None,):
            watch = Watch(
                *(database, api, reconciler),
                scope=scope,
                namespace=namespace,
                resync_seconds=self._settings.resync_seconds,
            )
            duties[f"watch {namespace or 'everywhere'}"] = watch.run
        if self._settings.worker_namespace is not None:
            duties["pods"] = PodWatch(database, api, namespace=self._settings.worker_namespace).run

        async def after_start(duty: Any) -> None:
            await started.wait()
            await duty()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(after_start(duty), name=name) for name, duty in duties.items()]
            try:
                await kopf.operator(
                    registry=_registry(start),
                    settings=_kopf_settings(),
                    standalone=True,
                    # Its own guess needs a name for the user's id, which a container's user has not.
                    identity=self._name,  # type: ignore[arg-type]
                    clusterwide=not scope.namespaces,
                    namespaces=list(scope.namespaces),
                )
            except Exception:
                if failure:
                    raise failure[0] from None
                raise
            finally:
                self._waiting_for = "stopping"
                for task in tasks:
                    task.cancel()

    async def _start(self, database: Database, scope: Scope) -> None:
        """Check the schema and recover what a crash left, before anything is served; wait for the database."""
        while True:
            try:
                await check_version(database)
                await recover_at_start(database, scope=scope, by=self._name)
            except DatabaseUnavailable as error:
                self._waiting_for = f"waiting for the database: {error}"
                logger.warning("Waiting for the database", extra={"error": error})
                await asyncio.sleep(1)
            else:
                self._waiting_for = None
                return

    async def _recover_all(self, database: Database, scope: Scope) -> None:
        """What the detector's quick look cannot see, now and then."""
        while True:
            await asyncio.sleep(self._settings.resync_seconds)
            try:
                await recover_at_start(database, scope=scope, by=self._name)
                await database.fetch("forget_forbid_holds")
            except DatabaseUnavailable as error:
                logger.warning("Cannot look for lost tasks", extra={"error": error})


def _registry(start: Any) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.startup(registry=registry)(start)

    @kopf.on.login(registry=registry)
    async def login(**arguments: Any) -> Any:
        """In a Pod by its account, as the client that reads kubeconfigs of every kind needs 60 MB."""
        return kopf.login_with_service_account(**arguments) or kopf.login_via_client(**arguments)

    return registry


class _UnendingBackoffs:
    """Seconds between attempts at a request: for ever, because an operator has nothing better to do than to wait.

    kopf's own end after 54 s, and then end the operator, however soon the API server comes back.
    """

    def __iter__(self) -> Iterator[float]:
        yield from (1.0, 1.0, 2.0, 3.0)
        yield from itertools.repeat(5.0)


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    # It has nothing to watch: see `watch.py`.
    settings.scanning.disabled = True
    settings.networking.error_backoffs = _UnendingBackoffs()
    return settings
