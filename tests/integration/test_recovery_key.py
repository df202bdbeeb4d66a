"""The unique key of recovery jobs: the queue itself refuses a second one for the same task."""

from uuid import uuid4

from support import Execute

from intervaljob.database.connection import Database, as_records
from intervaljob.model.args import ACTIVE_STATES, QueueArgs, recovery_key


async def test_a_second_recovery_job_of_a_task_is_refused_while_the_first_is_unfinished(
    database: Database, execute: Execute
) -> None:
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
        return len(rows)

    assert await insert() == 1
    for state in ("available", "running", "retryable"):
        await execute("UPDATE {schema}.river_job SET state = %(state)s::intervaljob.river_job_state", state=state)
        assert await insert() == 0
    await execute("UPDATE {schema}.river_job SET state = 'cancelled', finalized_at = now()")
    assert await insert() == 1
