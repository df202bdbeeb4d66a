"""The bookkeeping of statuses: everything that happened counts once, and waits until it has been written."""

import asyncio
from uuid import UUID, uuid4

from support import AddJob, Execute

from intervaljob.database.connection import Database, Row, as_records

SCOPE: dict[str, object] = {"cluster": "test-cluster", "namespaces": []}


async def note(execute: Execute, job: UUID, kind: str, *, times: int = 1) -> None:
    await execute(
        "INSERT INTO {schema}.transitions (job_id, task_id, kind) SELECT %(job)s, %(task)s, %(kind)s"
        " FROM generate_series(1, %(times)s)",
        job=job,
        task=uuid4(),
        kind=kind,
        times=times,
    )


async def test_folding_at_once_from_two_operators_counts_everything_once(
    database: Database, execute: Execute, add_job: AddJob
) -> None:
    jobs = [await add_job(name=f"job-{number}") for number in range(3)]
    for job in jobs:
        await note(execute, job, "succeeded", times=40)
        await note(execute, job, "failed", times=2)
        await note(execute, job, "recovered")

    async def fold() -> list[Row]:
        news = []
        while await execute("SELECT 1 FROM {schema}.transitions LIMIT 1"):
            news += await database.fetch("fold_transitions", limit=7, watched_seconds=60, **SCOPE)
        return news

    news = [row["kind"] for rows in await asyncio.gather(fold(), fold(), fold()) for row in rows]
    assert (news.count("failed"), news.count("recovered")) == (6, 3)
    assert news.count("succeeded") < 3 * 40, "only what comes first, or after something else"
    counts = await execute("SELECT succeeded, failed, recovered, skipped, last_result FROM {schema}.job_status")
    expected = {"succeeded": 40, "failed": 2, "recovered": 1, "skipped": 0, "last_result": "failed"}
    assert counts == [expected] * 3
    assert await execute("SELECT 1 FROM {schema}.transitions") == []


async def test_what_happens_while_a_status_is_written_is_written_afterwards(
    database: Database, execute: Execute, add_job: AddJob
) -> None:
    job = await add_job()
    await note(execute, job, "succeeded")
    await database.fetch("fold_transitions", limit=10, watched_seconds=60, **SCOPE)
    assert await claimed(database) == [job]
    (row,) = await database.fetch("read_statuses", jobs=[job])
    await note(execute, job, "failed")
    await database.fetch("fold_transitions", limit=10, watched_seconds=60, **SCOPE)
    await written(database, job, row["revision"])
    assert await claimed(database) == [job]
    (row,) = await database.fetch("read_statuses", jobs=[job])
    assert row["failed"] == 1
    await written(database, job, row["revision"])
    assert await claimed(database) == []


async def test_a_status_is_claimed_by_one_operator_at_a_time(
    database: Database, execute: Execute, add_job: AddJob
) -> None:
    jobs = {await add_job(name=f"job-{number}") for number in range(20)}
    await database.fetch("touch_statuses", jobs=list(jobs))
    first, second = await asyncio.gather(claimed(database), claimed(database))
    assert sorted(first + second) == sorted(jobs)
    assert await claimed(database) == []
    # The claim of an operator that died ends, and so does nobody wait for it for ever.
    await execute("UPDATE {schema}.job_status SET write_after = write_after - interval '31 seconds'")
    assert sorted(await claimed(database)) == sorted(jobs)


async def test_those_that_somebody_looks_at_come_first_and_leave_a_quarter_to_the_others(
    database: Database, execute: Execute, add_job: AddJob
) -> None:
    """A hundred wait for longer; of these ten were edited, and one has just failed."""
    jobs = [await add_job(name=f"job-{number}") for number in range(100)]
    await database.fetch("touch_statuses", jobs=jobs)
    await execute("UPDATE {schema}.job_status SET write_after = now() - interval '1 hour'")
    edited, failed = jobs[40:50], jobs[70]
    await database.fetch("touch_statuses", jobs=edited)
    await database.fetch("watch_statuses", jobs=edited, watched_seconds=60)
    await note(execute, failed, "failed")
    await note(execute, jobs[71], "succeeded")
    await database.fetch("fold_transitions", limit=10, watched_seconds=60, **SCOPE)
    first, second = await claimed(database, limit=12), await claimed(database, limit=12)
    assert len(first) == len(second) == 12
    assert failed in first
    assert len({*first} & {*edited, failed}) == 9
    assert len({*second} & {*edited, failed}) == 2
    # Nobody looks any more: it waits its turn, and that comes.
    await execute("UPDATE {schema}.job_status SET watched_until = now(), write_after = now()")
    assert sorted(await claimed(database)) == sorted(jobs)


async def test_other_clusters_and_namespaces_are_left_to_their_operators(
    database: Database, execute: Execute, add_job: AddJob
) -> None:
    mine = await add_job(namespace="mine")
    theirs = [await add_job(cluster_id="other", namespace="mine"), await add_job(namespace="theirs")]
    for job in (mine, *theirs):
        await note(execute, job, "succeeded")
    scope: dict[str, object] = {"cluster": "test-cluster", "namespaces": ["mine"]}
    assert [
        row["job_id"] for row in await database.fetch("fold_transitions", limit=10, watched_seconds=60, **scope)
    ] == [mine]
    await database.fetch("touch_statuses", jobs=[mine, *theirs])
    rows = await database.fetch("claim_unwritten_statuses", limit=10, retry_seconds=30, **scope)
    assert [row["job_id"] for row in rows] == [mine]
    assert sorted(row["job_id"] for row in await execute("SELECT job_id FROM {schema}.transitions")) == sorted(theirs)


async def claimed(database: Database, *, limit: int = 100) -> list[UUID]:
    rows = await database.fetch("claim_unwritten_statuses", limit=limit, retry_seconds=30, **SCOPE)
    return [row["job_id"] for row in rows]


async def written(database: Database, job: UUID, revision: int) -> None:
    await database.fetch(
        "statuses_written", written=as_records([{"job_id": job, "revision": revision}]), spacing_seconds=0
    )
