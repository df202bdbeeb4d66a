"""The unique key of recovery jobs: the queue itself holds one for a task."""

from uuid import uuid4

from support import Execute

from intervaljob.database.connection import Database, as_records
from intervaljob.model.args import ACTIVE_STATES, QueueArgs, recovery_key


async def test_an_unfinished_recovery_job_of_a_task_is_the_only_one(database: Database, execute: Execute) -> None:
    args = QueueArgs(job_id=uuid4(), user_id=uuid4(), workspace_id=uuid4(), payload="", task_id=uuid4())
    assert args.task_id is not None
    recovery = {
        "args": args.to_json(),
        "queue": "default",
        "priority": 1,
        "max_attempts": 4,
        "evidence": "lease_expired",
        "unique_key": recovery_key(args.job_id, args.task_id),
    }

    async def insert() -> int:
        rows = await database.fetch(
            "insert_recovery_jobs", active_states=ACTIVE_STATES, recoveries=as_records([recovery])
        )
        return int(rows[0]["queue_job_id"])

    first = await insert()
    for state in ("available", "running", "retryable"):
        await execute("UPDATE {schema}.river_job SET state = %(state)s::intervaljob.river_job_state", state=state)
        assert await insert() == first
    await execute("UPDATE {schema}.river_job SET state = 'cancelled', finalized_at = now()")
    assert await insert() > first
