"""The statements that run all the time find their rows by an index, with tables as large as they get in use."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from support import RETURNED, Execute, Work

from intervaljob.database.connection import Database, as_records
from intervaljob.model.args import ACTIVE_STATES
from intervaljob.model.task import conclude
from intervaljob.worker.head import BEGINNING

Plan = Callable[..., Awaitable[str]]
WORKER = uuid4()
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
SCOPE: dict[str, object] = {"cluster": "test-cluster", "namespaces": []}

FILL = """
INSERT INTO {schema}.jobs (id, user_id, workspace_id, cluster_id, namespace, name, interval_seconds, next_run_at)
SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'test-cluster', 'default', 'job-' || n, 60,
    now() + n * interval '1 second'
FROM generate_series(1, 10000) AS n;
INSERT INTO {schema}.job_status (job_id, written_revision) SELECT id, 1 FROM {schema}.jobs;
INSERT INTO {schema}.workers (id, name, version, queues, lease_seconds, lease_expires_at)
SELECT gen_random_uuid(), 'worker-' || n, '1', '{default}', 30, now() + interval '1 hour'
FROM generate_series(1, 20) AS n;
INSERT INTO {schema}.river_job (state, kind, args, finalized_at, attempted_by)
SELECT
    CASE WHEN n % 1000 = 0 THEN 'running' WHEN n % 5 = 0 THEN 'available' ELSE 'completed' END
        ::{schema}.river_job_state,
    'interval_job', '{}', CASE WHEN n % 5 <> 0 THEN now() END, '{worker}'
FROM generate_series(1, 50000) AS n;
INSERT INTO {schema}.tasks (id, job_id, queue_job_id, status, worker_id)
SELECT gen_random_uuid(), job.id, queue_job.id, CASE queue_job.state WHEN 'running' THEN 'running' ELSE 'succeeded' END,
    (SELECT id FROM {schema}.workers LIMIT 1)
FROM {schema}.river_job AS queue_job
JOIN (SELECT id, row_number() OVER () AS n FROM {schema}.jobs) AS job ON job.n = queue_job.id % 10000 + 1
WHERE queue_job.state <> 'available';
INSERT INTO {schema}.transitions (job_id, kind) SELECT job_id, 'succeeded' FROM {schema}.tasks;
ANALYZE;
"""


@pytest.fixture
async def plan(database: Database, execute: Execute) -> Plan:
    """The plan of a named query on full tables, as text."""
    for statement in FILL.split(";\n"):
        if statement.strip():
            await execute(statement)

    async def explain(query: str, **parameters: Any) -> str:
        async with database.transaction() as session:
            text = b"EXPLAIN " + session._queries[query]
            cursor = await session.connection.execute(text, parameters)
            return "\n".join(str(row["QUERY PLAN"]) for row in await cursor.fetchall())

    return explain


def scans(plan: str) -> list[str]:
    """The tables that grow with use and are read from end to end in this plan."""
    growing = ("jobs", "tasks", "river_job", "job_status")
    return [table for table in growing if f"Seq Scan on {table} " in plan]


async def test_the_hot_statements_read_no_table_from_end_to_end(plan: Plan, execute: Execute) -> None:
    (task,) = await execute("SELECT id, job_id, queue_job_id FROM {schema}.tasks WHERE status = 'running' LIMIT 1")
    finish = {
        "task_id": task["id"],
        "attempt": 0,
        "status": "succeeded",
        "output": None,
        "error": None,
        "entry": None,
        "delay_seconds": 0,
    }
    claim = {"queue_job_id": task["queue_job_id"], "job_id": task["job_id"], "task_id": None}
    occurrence = {"job_id": task["job_id"], "due": "now", "occurrence": "now", "unique_key": None}
    plans = {
        "claim_queue_jobs": await plan(
            "claim_queue_jobs", queue="default", worker=WORKER, limit=10, **BEGINNING._asdict()
        ),
        "claim_other_queue_jobs": await plan("claim_other_queue_jobs", queue_jobs=[1], worker=WORKER),
        "look_up_claims": await plan("look_up_claims", claims=as_records([claim])),
        "finish_tasks": await plan("finish_tasks", worker=WORKER, worker_name="w", finishes=as_records([finish])),
        "held_tasks": await plan("held_tasks", tasks=[task["id"]], worker=WORKER),
        "lock_due_jobs": await plan("lock_due_jobs", limit=500, **SCOPE),
        "insert_occurrences": await plan(
            "insert_occurrences", active_states=ACTIVE_STATES, occurrences=as_records([occurrence])
        ),
        "advance_jobs": await plan("advance_jobs", advances=as_records([{"job_id": task["job_id"]}])),
        "fold_transitions": await plan("fold_transitions", limit=20_000, watched_seconds=60, **SCOPE),
        "seconds_to_next_due": await plan("seconds_to_next_due", **SCOPE),
        "read_orphans": await plan("read_orphans", lost=as_records([{"id": task["id"]}])),
        "lock_queue_jobs_of_tasks": await plan("lock_queue_jobs_of_tasks", tasks=[task["id"]]),
        "lock_orphans": await plan("lock_orphans", limit=500, **SCOPE),
        "tick_and_end_expired": await plan("tick_and_end_expired"),
        "known_jobs": await plan("known_jobs", jobs=[task["job_id"]], cluster="test-cluster"),
        "look_at_statuses": await plan("look_at_statuses"),
        "claim_unwritten_statuses": await plan("claim_unwritten_statuses", limit=10, retry_seconds=30, **SCOPE),
        "read_statuses": await plan("read_statuses", jobs=[task["job_id"]]),
        "delete_old_queue_jobs": await plan(
            "delete_old_queue_jobs", state="completed", after=LONG_AGO, seconds=0, limit=1000, newest=5, **SCOPE
        ),
        "delete_outlived_tasks": await plan(
            "delete_outlived_tasks", after=UUID(int=0), jobs=500, seconds=0, limit=1000, newest=5, **SCOPE
        ),
        "delete_retired_jobs": await plan("delete_retired_jobs", seconds=0, limit=1000, **SCOPE),
        "delete_ended_workers": await plan("delete_ended_workers", seconds=0, limit=1000, shown=[WORKER]),
        "delete_lost_transitions": await plan("delete_lost_transitions", seconds=0, limit=1000),
    }
    assert {name: scans(text) for name, text in plans.items() if scans(text)} == {}
    assert "river_job_prioritized_fetching_index" in plans["claim_queue_jobs"]
    assert "jobs_due" in plans["lock_due_jobs"]
    assert "jobs_due" in plans["seconds_to_next_due"]
    assert "tasks_of_job" in plans["read_statuses"]
    assert "river_job_state_and_finalized_at_index" in plans["delete_old_queue_jobs"]
    assert "jobs_retired" in plans["delete_retired_jobs"]
    assert "transitions_pkey" in plans["delete_lost_transitions"]


async def test_what_waits_is_found_by_its_state_while_statistics_are_older_than_most_queue_jobs(
    database: Database, execute: Execute
) -> None:
    await execute("ANALYZE {schema}.river_job")
    await execute(
        "INSERT INTO {schema}.river_job (state, kind, args, finalized_at)"
        " SELECT 'completed', 'interval_job', '{}', now() FROM generate_series(1, 30000)"
    )
    async with database.transaction() as session:
        cursor = await session.connection.execute(
            b"EXPLAIN " + session._queries["promote_queue_jobs"], {"ahead_seconds": 5, "limit": 1000}
        )
        plan = "\n".join(str(row["QUERY PLAN"]) for row in await cursor.fetchall())
    assert "river_job_prioritized_fetching_index" in plan
    assert "river_job_kind" not in plan


async def test_ending_a_task_is_a_heap_only_update(execute: Execute) -> None:
    """No index names a column that changes when a task ends, which would cost a new entry in each of them."""
    rows = await execute(
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'intervaljob' AND tablename = 'tasks' ORDER BY indexname"
    )
    changed = ("status", "output", "error", "failures", "finished_at")
    assert len(rows) == 3
    assert [row["indexdef"] for row in rows if any(column in row["indexdef"] for column in changed)] == []


async def test_there_is_room_for_a_batch_of_them(work: Work, execute: Execute) -> None:
    """A batch of ends updates whole pages, and none of what it replaces can be pruned before it is committed."""
    job, worker = await work.add_job(), await work.worker()
    for _ in range(200):
        await work.enqueue(job)
    attempts = await work.claim(worker, limit=200)
    ends = [conclude(one, RETURNED, started_at=LONG_AGO) for one in attempts]
    finishes = msgspec.json.encode(ends).decode()
    async with work.database.transaction() as session:
        await session.fetch("finish_tasks", worker=worker.id, worker_name=worker.name, finishes=finishes)
        cursor = await session.connection.execute(
            "SELECT pg_stat_get_xact_tuples_hot_updated(oid) AS heap_only, pg_stat_get_xact_tuples_updated(oid) AS all"
            " FROM pg_class WHERE relname = 'tasks'"
        )
        (updated,) = await cursor.fetchall()
    assert updated["all"] == 200
    assert updated["heap_only"] >= 150
