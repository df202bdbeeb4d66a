"""What a run left in the database: the rows that the rules look at, read in one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import psycopg
from psycopg.rows import class_row

T = TypeVar("T")

#: The story of a task keeps this many earlier attempts, the newest.
STORY_LENGTH = 10


@dataclass(frozen=True, slots=True)
class Job:
    """A row of `jobs`; without `interval_seconds` it follows a cron expression."""

    id: str
    interval_seconds: int | None
    anchor: datetime
    created_at: datetime
    next_run_at: datetime | None
    deleted_at: datetime | None
    concurrency_policy: str
    recovery_policy: str
    recovery_limit: int


@dataclass(frozen=True, slots=True)
class Task:
    """A row of `tasks`; `story` is its earlier attempts, oldest first."""

    id: str
    job: str
    status: str
    attempt: int
    recoveries: int
    scheduled_for: datetime | None
    token: str | None
    error: str | None
    story: list[dict[str, Any]]

    @property
    def lost(self) -> list[dict[str, Any]]:
        """Earlier attempts that had no end."""
        return [entry for entry in self.story if entry["outcome"] == "lost"]

    @property
    def requeued(self) -> list[dict[str, Any]]:
        """Those of them that a recovery job followed."""
        return [entry for entry in self.lost if entry["recovered"]]

    @property
    def has_whole_story(self) -> bool:
        """Whether no earlier attempt was forgotten."""
        return len(self.story) < STORY_LENGTH


@dataclass(frozen=True, slots=True)
class QueueJob:
    """A row of `river_job` of our kind; with `task` it is a recovery job. `due` is its occurrence's time."""

    id: int
    state: str
    job: str
    task: str | None
    due: datetime
    created_at: datetime
    finalized_at: datetime | None
    has_error: bool
    evidence: str | None


@dataclass(frozen=True, slots=True)
class Worker:
    """A row of `workers` that has not ended; `expired` by the database's own lease clock."""

    id: str
    name: str
    started_at: datetime
    expired: bool


@dataclass(frozen=True, slots=True)
class Skip:
    """A row of `skipped_occurrences`."""

    job: str
    reason: str
    first_at: datetime
    last_at: datetime
    count: int


@dataclass(frozen=True)
class Rows:
    """The database at the end of a run, by id where there is one."""

    jobs: dict[str, Job]
    tasks: dict[str, Task]
    queue_jobs: list[QueueJob]
    unended_workers: list[Worker]
    skips: list[Skip]


_JOBS = """
    SELECT id::text, interval_seconds, anchor, created_at, next_run_at, deleted_at, concurrency_policy,
        recovery_policy, recovery_limit
    FROM intervaljob.jobs
"""
_TASKS = """
    SELECT id::text, job_id::text AS job, status, attempt, recoveries, scheduled_for, output ->> 'token' AS token,
        error, earlier_attempts AS story
    FROM intervaljob.tasks
"""
_QUEUE_JOBS = """
    SELECT id, state::text, args ->> 'job_id' AS job, args ->> 'task_id' AS task,
        intervaljob.occurrence_of(metadata, scheduled_at) AS due, created_at, finalized_at,
        coalesce(array_length(errors, 1), 0) > 0 AS has_error, metadata ->> 'intervaljob:evidence' AS evidence
    FROM intervaljob.river_job
    WHERE kind = 'interval_job'
    ORDER BY id
"""
_UNENDED_WORKERS = """
    SELECT id::text, name, started_at,
        lease_expires_at < (SELECT witnessed_at FROM intervaljob.lease_clock) AS expired
    FROM intervaljob.workers
    WHERE ended_at IS NULL
"""
_SKIPS = "SELECT job_id::text AS job, reason, first_at, last_at, count FROM intervaljob.skipped_occurrences"


def read_rows(database_url: str) -> Rows:
    """Everything at one moment; changes nothing."""
    with psycopg.connect(database_url, connect_timeout=10) as connection:
        connection.read_only = True
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        def fetch(make: type[T], query: bytes) -> list[T]:
            with connection.cursor(row_factory=class_row(make)) as cursor:
                return cursor.execute(query).fetchall()

        return Rows(
            jobs={row.id: row for row in fetch(Job, _JOBS.encode())},
            tasks={row.id: row for row in fetch(Task, _TASKS.encode())},
            queue_jobs=fetch(QueueJob, _QUEUE_JOBS.encode()),
            unended_workers=fetch(Worker, _UNENDED_WORKERS.encode()),
            skips=fetch(Skip, _SKIPS.encode()),
        )
