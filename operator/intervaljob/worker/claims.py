"""Claiming: queue jobs become attempts, in one transaction; those that cannot run are cancelled and say why."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from uuid import uuid4

from msgspec.structs import replace

from intervaljob.database.connection import Database, Row, Session, as_records
from intervaljob.database.ledger import Skip, record_skips
from intervaljob.errors import ArgsError
from intervaljob.model.args import QueueArgs, error_entry
from intervaljob.model.task import CANCELLED, Attempt, Refusal, judge
from intervaljob.telemetry import metrics
from intervaljob.worker.head import Head, Key
from intervaljob.worker.incarnation import Incarnation

logger = logging.getLogger(__name__)

#: Seconds until a task of a Replace job is looked at again whose predecessor has not ended yet.
DEFER_SECONDS = 0.5

#: A row of `claim_queue_jobs`: a Key, and the first attempt of the task that was begun; without one, NULL for its id.
_PLACE = len(Key._fields)


async def claim(
    database: Database, *, worker: Incarnation, queue: str, limit: int, head: Head
) -> tuple[list[Attempt], int]:
    """Claim at most `limit` queue jobs; returns the attempts to run, and how many queue jobs there were."""
    start, began = head.start(), time.monotonic()
    rows = await database.fetch_tuples(
        "claim_queue_jobs", queue=queue, worker=worker.id, limit=limit, **start._asdict()
    )
    found = (Key(*row[:_PLACE]) for row in rows)
    head.looked(start, found, count=len(rows), seconds=time.monotonic() - began)
    attempts = [Attempt(*row[_PLACE:]) for row in rows if row[_PLACE] is not None]
    if others := [Key(*row[:_PLACE]).id for row in rows if row[_PLACE] is None]:
        attempts += await _claim_others(database, others, worker=worker)
    metrics.TASKS_CLAIMED.labels(queue).inc(len(attempts))
    return attempts, len(rows)


async def _claim_others(database: Database, queue_jobs: list[int], *, worker: Incarnation) -> list[Attempt]:
    """Queue jobs that are not plain: looked at one by one, in one transaction."""
    async with database.transaction() as session:
        claimed = await session.fetch("claim_other_queue_jobs", queue_jobs=queue_jobs, worker=worker.id)
        readable, refusals = _read(claimed)
        rows = await _look_up(session, readable)
        known = {row["id"]: row for row in claimed}
        for key, args in readable.items():
            if refusal := judge(args, rows[key], queued_at=known[key]["created_at"]):
                refusals[key] = refusal
        deferred = _deferred({key: row for key, row in rows.items() if key not in refusals})
        if deferred:
            await session.fetch("defer_queue_jobs", queue_jobs=deferred, seconds=DEFER_SECONDS)
        attempts = [
            _attempt(args, rows[key], queue_job=known[key])
            for key, args in readable.items()
            if key not in refusals and key not in deferred
        ]
        attempts = await _start(session, attempts, worker=worker, refusals=refusals)
        await _refuse(session, claimed, refusals)
        await record_skips(session, _unrun(refusals, readable, rows, known))
    _report(attempts, refusals, readable, worker=worker)
    return attempts


async def _look_up(session: Session, readable: Mapping[int, QueueArgs]) -> dict[int, Row]:
    """What the database knows of each claim; of Replace jobs under their lock, so that one task of theirs begins."""
    claims = as_records(
        {"queue_job_id": key, "job_id": args.job_id, "task_id": args.task_id} for key, args in readable.items()
    )
    known = await session.fetch("look_up_claims", claims=claims)
    replacing = {row["job_id"] for row in known if row["concurrency_policy"] == "Replace"}
    if replacing:
        await session.fetch("lock_replacing_jobs", jobs=list(replacing))
        known = await session.fetch("look_up_claims", claims=claims)
    return {row["queue_job_id"]: row for row in known}


def _deferred(rows: Mapping[int, Row]) -> list[int]:
    """Queue jobs of Replace jobs that are to wait until another task of theirs has ended, or has begun here."""
    deferred, begins = [], set()
    for key, row in rows.items():
        if row["predecessor_runs"] or row["job_id"] in begins:
            deferred.append(key)
        elif row["concurrency_policy"] == "Replace":
            begins.add(row["job_id"])
    return deferred


def _unrun(
    refusals: Mapping[int, Refusal],
    readable: Mapping[int, QueueArgs],
    rows: Mapping[int, Row],
    queue_jobs: Mapping[int, Row],
) -> list[Skip]:
    """Occurrences that were cancelled while they waited, for the ledger."""
    return [
        Skip(readable[key].job_id, "Cancelled", queue_jobs[key]["due"], queue_jobs[key]["due"])
        for key, refusal in refusals.items()
        if refusal.reason == CANCELLED and rows[key]["task_id"] is None
    ]


def _read(claimed: Sequence[Row]) -> tuple[dict[int, QueueArgs], dict[int, Refusal]]:
    readable, refusals = {}, {}
    for row in claimed:
        try:
            readable[row["id"]] = QueueArgs.parse(row["args"])
        except ArgsError as error:
            refusals[row["id"]] = Refusal("args_unreadable", str(error))
    return readable, refusals


def _attempt(args: QueueArgs, row: Row, *, queue_job: Row) -> Attempt:
    """The attempt; a new task has none in `row`, and gets its id here. The number of a known one is what it was."""
    new = row["task_id"] is None
    return Attempt(
        task_id=uuid4() if new else row["task_id"],
        job_id=args.job_id,
        user_id=str(args.user_id),
        workspace_id=str(args.workspace_id),
        queue_job_id=queue_job["id"],
        number=0 if new else row["attempt"],
        handler=row["handler"],
        payload=args.payload if new else row["task_payload"],
        recovered=args.task_id is not None,
        scheduled_for=(None if new else row["scheduled_for"]) or queue_job["due"],
        created_at=queue_job["created_at"] if new else row["task_created_at"],
        failures=0 if new else row["failures"],
        checkpoint=None if new else row["checkpoint"],
        active_deadline_seconds=row["active_deadline_seconds"],
        backoff_limit=row["backoff_limit"],
        backoff_initial_seconds=row["backoff_initial_seconds"],
        backoff_max_seconds=row["backoff_max_seconds"],
    )


async def _start(
    session: Session, attempts: Sequence[Attempt], *, worker: Incarnation, refusals: dict[int, Refusal]
) -> list[Attempt]:
    """Write the attempts that are new and those that go on; one that somebody else took meanwhile is refused."""
    columns = ("task_id", "job_id", "queue_job_id", "payload", "scheduled_for", "created_at")
    new = as_records(
        {name: getattr(one, name) for name in columns} for one in attempts if one.number == 0 and not one.recovered
    )
    old = as_records(
        {"task_id": one.task_id, "queue_job_id": one.queue_job_id} for one in attempts if one.number or one.recovered
    )
    rows = [
        *await session.fetch("start_tasks", tasks=new, worker=worker.id),
        *await session.fetch("resume_tasks", tasks=old, worker=worker.id),
    ]
    numbers = {row["queue_job_id"]: row["attempt"] for row in rows}
    started = []
    for one in attempts:
        if one.queue_job_id in numbers:
            started.append(replace(one, number=numbers[one.queue_job_id]))
        else:
            refusals[one.queue_job_id] = Refusal("task_held", f"task {one.task_id} was taken meanwhile")
    return started


async def _refuse(session: Session, claimed: Sequence[Row], refusals: Mapping[int, Refusal]) -> None:
    if not refusals:
        return
    await session.fetch(
        "refuse_queue_jobs",
        refusals=as_records(
            {
                "queue_job_id": row["id"],
                "entry": error_entry(at=row["now"], attempt=row["attempt"], error=refusals[row["id"]].message),
            }
            for row in claimed
            if row["id"] in refusals
        ),
    )


def _report(
    attempts: Sequence[Attempt],
    refusals: Mapping[int, Refusal],
    readable: Mapping[int, QueueArgs],
    *,
    worker: Incarnation,
) -> None:
    for one in attempts:
        if one.recovered:
            logger.info(
                f"Recovery job: using existing task {one.task_id} for job {one.job_id}",  # noqa: G004 - a promise
                extra={"job": one.job_id, "task": one.task_id, "attempt": one.number, "worker": worker.name},
            )
    for key, refusal in refusals.items():
        metrics.QUEUE_JOBS_CANCELLED.labels(refusal.reason).inc()
        args = readable.get(key)
        if args is not None and args.task_id is not None:
            metrics.RECOVERIES_REFUSED.labels(refusal.reason).inc()
        logger.warning(
            "Queue job cancelled",
            extra={"queue_job": key, "reason": refusal.reason, "error": refusal.message, "worker": worker.name},
        )
