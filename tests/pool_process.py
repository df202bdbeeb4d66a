"""A manager without a database, as a process that can be frozen: it runs one attempt and renews for ever."""

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from support import worker_settings

from intervaljob.model.task import Attempt
from intervaljob.worker.fence import boot_time
from intervaljob.worker.pool import Pool, pool


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


async def main(handler: str, payload: object, *, lease: float) -> None:
    async with pool(worker_settings("postgresql://nowhere", handlers="handlers_for_tests")) as executors:
        executor = await executors.take(deadline=boot_time() + lease)
        async with asyncio.TaskGroup() as group:
            group.create_task(renew(executors, lease=lease), name="renewals")
            await executor.run(attempt_of(handler, payload), checkpoint=no_checkpoint)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2]), lease=float(sys.argv[3])))
