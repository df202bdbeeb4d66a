"""A manager in the test's own process, with real executors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support import eventually, worker_settings

from intervaljob.database.connection import Database
from intervaljob.worker.incarnation import Incarnation
from intervaljob.worker.manager import Manager
from intervaljob.worker.pool import Pool, pool


@asynccontextmanager
async def managed(url: str, **settings: Any) -> AsyncIterator[tuple[Manager, Pool, Incarnation]]:
    """A manager at work."""
    chosen = worker_settings(url, **{"handlers": "handlers_for_tests", "poll_seconds": 0.1, **settings})
    async with Database(chosen, application="manager") as database, pool(chosen) as executors:
        worker = Incarnation(database, chosen, name="w")
        await worker.register()
        manager = Manager(database, chosen, worker=worker, pool=executors, stopping=asyncio.Event())
        running = asyncio.create_task(manager.run(), name="manager")
        try:
            yield manager, executors, worker
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def payload(folder: Path) -> str:
    return f'{{"started": "{folder / "started"}", "go": "{folder / "go"}"}}'


async def begun(manager: Manager, executors: Pool) -> int:
    """The process of the one attempt, once the handler has it."""
    await eventually(
        lambda: any(one.handed_over for one in manager._attempts.running.values()) and executors._executors,
        what="an attempt",
    )
    return next(iter(executors._executors))
