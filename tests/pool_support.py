"""What tests of executors share: an attempt under way, a manager that can be frozen, and renewals."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pool_process
from pool_process import LONG, Heard, Placed, attempt_of, renew
from support import group_of, parent_of, pid_in

from intervaljob.model.task import Attempt
from intervaljob.worker.pool import Pool
from intervaljob.worker.remote import Executor

#: Of a manager that is going to be frozen.
LEASE = 1.5


async def run(executors: Pool, attempt: Attempt) -> Heard:
    """Run an attempt as a manager does."""
    return await Placed(executors, attempt).result


class Started:
    """An attempt under way, and the files by which it and we talk."""

    def __init__(self, folder: Path) -> None:
        self.files = {name: str(folder / name) for name in ("started", "go", "cancelled", "child")}

    async def begin(self, executors: Pool, handler: str, *, lease: float = LONG, **payload: object) -> Executor:
        self.placed = Placed(executors, attempt_of(handler, {**self.files, **payload}), lease=lease)
        self.executor, self.result = await self.placed.turn(), self.placed.result
        assert await pid_in(Path(self.files["started"])) == self.executor.pid
        return self.executor


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def renewed(executors: Pool, *, lease: float) -> AsyncIterator[None]:
    """The lease is renewed all the while."""
    renewals = asyncio.create_task(renew(executors, lease=lease), name="renewals")
    try:
        yield
    finally:
        renewals.cancel()
        await asyncio.gather(renewals, return_exceptions=True)


@asynccontextmanager
async def manager(handler: str, started: Started) -> AsyncIterator[tuple[int, int, int]]:
    """A manager as a process of its own whose handler is under way: its number, the zygote's and the executor's."""
    arguments = [sys.executable, pool_process.__file__, handler, json.dumps(started.files), str(LEASE)]
    process = subprocess.Popen(arguments)  # noqa: ASYNC220 - it is not waited for here
    try:
        executor = await pid_in(Path(started.files["started"]))
        zygote = parent_of(executor)
        yield process.pid, zygote, executor
    finally:
        left = [*group_of(executor), *group_of(zygote)]
        process.kill()
        process.wait()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
