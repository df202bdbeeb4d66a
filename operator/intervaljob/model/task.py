"""Tasks: whether a claimed queue job may run one, what an attempt is, and how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from msgspec import Raw, Struct

from intervaljob.model.args import QueueArgs, error_entry
from intervaljob.model.retry import backoff_seconds

Json = Any

#: What a handler returned that returned None.
NOTHING = Raw(b"null")

MAX_OUTPUT_BYTES = 64 * 1024
MAX_CHECKPOINT_BYTES = 64 * 1024
#: Of lists and objects in each other: what is deeper, some reader of it may refuse, or run out of stack at.
MAX_DEPTH = 200

#: The reason of a refusal by which an occurrence goes unrun because somebody wanted that.
CANCELLED = "cancelled"


class Status(StrEnum):
    """The status of a task."""

    RUNNING = "running"
    RECOVERING = "recovering"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Refusal:
    """Why a queue job runs nothing: `reason` is a metric's label, `message` goes to the queue job's errors."""

    reason: str
    message: str


class Attempt(Struct, frozen=True, array_like=True, gc=False):
    """One try of a task by one worker: all that the worker and its executor know of it. `checkpoint` is JSON.

    Those without a default are in the order in which `claim_queue_jobs` returns them.
    """

    task_id: UUID
    job_id: UUID
    user_id: str
    workspace_id: str
    queue_job_id: int
    handler: str
    payload: str
    scheduled_for: datetime
    created_at: datetime
    active_deadline_seconds: int | None
    backoff_limit: int
    backoff_initial_seconds: int
    backoff_max_seconds: int
    number: int = 1
    recovered: bool = False
    failures: int = 0
    checkpoint: str | None = None


class Outcome(StrEnum):
    """How an executor left an attempt."""

    RETURNED = "returned"
    RAISED = "raised"
    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline_exceeded"


class Result(Struct, array_like=True, gc=False):
    """What came of an attempt; `retry` is false for errors that no repetition mends. `seconds` the handler took.

    `output` is JSON that the database takes.
    """

    outcome: Outcome
    output: Raw = NOTHING
    error: str | None = None
    trace: str = ""
    retry: bool = True
    seconds: float = 0.0


class Finish(Struct, frozen=True, omit_defaults=True):
    """How an attempt is recorded; `delay_seconds` is a retry's, `entry` is River's (§2.5)."""

    task_id: UUID
    attempt: int
    status: Status
    output: Raw | None = None
    error: str | None = None
    entry: dict[str, object] | None = None
    delay_seconds: float | None = None


#: In the text of a JSON value: what jsonb refuses (NUL, half a surrogate pair) as group 1, else what it looks like.
_ESCAPE = re.compile(r"\\(?:\\|ud[89ab]..\\ud[c-f]..|(u0000|ud[89a-f]..))")


#: In the text of a JSON value: a string, an opening bracket as group 1, a closing one as group 2.
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])')


def storable_json(value: Json) -> str:
    """A value as JSON text in ASCII that jsonb takes: characters that it refuses are replaced with U+FFFD.

    Raises TypeError, ValueError (NaN and the infinities, or deeper than MAX_DEPTH) or RecursionError for what is none.
    """
    text = json.dumps(value, allow_nan=False)
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
    return _ESCAPE.sub(lambda escape: "\\ufffd" if escape[1] else escape[0], text)


def _depth(text: str) -> int:
    """How many lists and objects of a JSON text are in each other at most."""
    depth = deepest = 0
    for bracket in _BRACKET.finditer(text):
        if bracket[1]:
            depth += 1
            deepest = max(depth, deepest)
        elif bracket[2]:
            depth -= 1
    return deepest


def judge(args: QueueArgs, row: Mapping[str, Any], *, queued_at: datetime) -> Refusal | None:
    """Whether a claimed queue job may run: None, or why not (DESIGN: the worker verifies before it runs).

    `row` is what the database knows: of the job, and of the task that the queue job names or has begun already.
    `queued_at` is when the queue job was inserted.
    """
    refused = _judge_job(args, row, queued_at=queued_at)
    if refused or (row["task_id"] is None and args.task_id is None):
        return refused
    if row["task_id"] is None:
        return Refusal("task_missing", f"task {args.task_id} does not exist")
    if row["task_job_id"] != args.job_id:
        return Refusal("task_of_another_job", f"task {row['task_id']} belongs to job {row['task_job_id']}")
    if row["status"] == Status.RUNNING:
        return Refusal("task_held", f"task {row['task_id']} is running, held by a worker")
    if row["status"] not in (Status.RECOVERING, Status.RETRYING):
        return Refusal("task_finished", f"task {row['task_id']} has already ended: {row['status']}")
    return None


def _judge_job(args: QueueArgs, row: Mapping[str, Any], *, queued_at: datetime) -> Refusal | None:
    if row["job_id"] is None:
        return Refusal("job_missing", f"job {args.job_id} does not exist")
    if row["deleted_at"] is not None:
        return Refusal("job_deleted", f"job {args.job_id} was deleted")
    asked_at = row["task_created_at"] or queued_at
    if row["cancel_before"] is not None and asked_at < row["cancel_before"]:
        return Refusal(CANCELLED, f"what job {args.job_id} had asked for was cancelled")
    return None


def conclude(attempt: Attempt, result: Result, *, started_at: datetime) -> Finish:
    """How the end of an attempt is recorded: done, tried again after a delay, or given up."""
    if result.outcome is Outcome.RETURNED:
        output = None if result.output == NOTHING else result.output
        return Finish(attempt.task_id, attempt.number, Status.SUCCEEDED, output=output)
    status, delay = Status.FAILED, None
    if result.outcome is Outcome.CANCELLED:
        status = Status.CANCELLED
    elif result.outcome is Outcome.RAISED and result.retry and attempt.failures < attempt.backoff_limit:
        status = Status.RETRYING
        delay = backoff_seconds(
            failures=attempt.failures + 1,
            initial=attempt.backoff_initial_seconds,
            maximum=attempt.backoff_max_seconds,
            key=f"{attempt.task_id}/{attempt.number}",
        )
    entry = error_entry(at=started_at, attempt=attempt.number, error=result.error or "", trace=result.trace)
    return Finish(
        attempt.task_id,
        attempt.number,
        status,
        error=str(entry["error"]),
        entry=entry,
        delay_seconds=delay,
    )
