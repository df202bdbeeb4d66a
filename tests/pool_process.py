"""A manager without a database, as a process that can be frozen: it runs one attempt and renews for ever."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from support import worker_settings

from intervaljob.model.task import Attempt, Outcome, Result
from intervaljob.worker import wire
from intervaljob.worker.fence import boot_time
from intervaljob.worker.pool import Pool, pool
from intervaljob.worker.remote import AHEAD_SECONDS, Executor
from intervaljob.worker.running import Running

LONG = 3600.0


def attempt_of(handler: str, payload: object = None, **others: Any) -> Attempt:
    """What a claim would have brought."""
    fields: dict[str, Any] = {
        "task_id": uuid4(),
        "job_id": UUID(int=2),
        "user_id": str(UUID(int=3)),
        "workspace_id": str(UUID(int=4)),
        "queue_job_id": 1,
        "number": 1,
        "handler": handler,
        "payload": json.dumps(payload),
        "recovered": False,
        "scheduled_for": datetime(2026, 11, 23, tzinfo=UTC),
        "failures": 0,
        "checkpoint": None,
        "created_at": datetime(2026, 11, 23, tzinfo=UTC),
        "active_deadline_seconds": None,
        "backoff_limit": 0,
        "backoff_initial_seconds": 1,
        "backoff_max_seconds": 1,
        **others,
    }
    return Attempt(**fields)


async def renew(executors: Pool, *, lease: float) -> None:
    """What a manager does with every answer of the database."""
    while True:
        executors.push_out(boot_time() + lease)
        await asyncio.sleep(lease / 5)


async def no_checkpoint(_: Attempt, number: int, data: str) -> bool:
    raise AssertionError(f"a checkpoint nobody expects: {data}")


class ExecutorDied(Exception):  # noqa: N818 - the word says it
    """The process ended in the attempt's turn."""


class NotBegun(Exception):  # noqa: N818 - the word says it
    """The attempt came back before its turn."""


@dataclass(frozen=True)
class Heard:
    """A result with its output read."""

    outcome: Outcome
    output: Any
    error: str | None
    trace: str
    retry: bool


class Placed:
    """An attempt that a pool was given, and what became of it."""

    def __init__(
        self,
        executors: Pool,
        attempt: Attempt,
        *,
        expected: float = AHEAD_SECONDS,
        lease: float = LONG,
        save: Callable[[Attempt, int, str], Awaitable[bool]] = no_checkpoint,
    ) -> None:
        self._save = save
        self._saving: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Event()
        self.result: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        self.result.add_done_callback(lambda result: result.cancelled() or result.exception())  # it may interest nobody
        self.running = Running(attempt, self, datetime.now(UTC), expected)
        executors.place(self.running, deadline=boot_time() + lease)

    async def turn(self) -> Executor:
        """The executor, in its turn."""
        await self._turn.wait()
        assert self.running.executor is not None
        return self.running.executor

    def cancel(self) -> None:
        """Have its handler stop."""
        assert self.running.executor is not None
        self.running.executor.cancel(self.running)

    def begun(self, _: Running) -> None:
        self._turn.set()

    def checkpointed(self, running: Running, number: int, data: str) -> None:
        assert running.executor is not None
        task = asyncio.create_task(self._checkpoint(running.executor, number, data), name="checkpoint")
        self._saving.add(task)

    async def _checkpoint(self, executor: Executor, number: int, data: str) -> None:
        executor.send(wire.Saved(number, ok=await self._save(self.running.attempt, number, data)))

    def ended(self, _: Running, result: Result) -> None:
        self.result.set_result(
            Heard(result.outcome, json.loads(bytes(result.output)), result.error, result.trace, result.retry)
        )

    def died(self, _: Running, why: str) -> None:
        self.result.set_exception(ExecutorDied(why))

    def returned(self, _: Running) -> None:
        self.result.set_exception(NotBegun())


async def main(handler: str, payload: object, *, lease: float) -> None:
    async with pool(worker_settings("postgresql://nowhere", handlers="handlers_for_tests")) as executors:
        placed = Placed(executors, attempt_of(handler, payload), lease=lease)
        async with asyncio.TaskGroup() as group:
            group.create_task(renew(executors, lease=lease), name="renewals")
            await placed.result


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2]), lease=float(sys.argv[3])))
