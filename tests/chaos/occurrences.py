"""The rule that no occurrence is lost or doubled: every time that was due is a task, or counted, or explained.

An interval job is due at its anchor plus one interval, two, and so on: these steps are the numbers here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from chaos.record import Record, Violation
from chaos.rows import Job, QueueJob, Skip

RULE = "occurrences"

#: Reasons in the ledger of occurrences that had a queue job already; under any other reason none was inserted.
_WITHDRAWN = frozenset({"Cancelled", "Deleted", "Replaced"})

_SHOWN = 5


@dataclass(frozen=True)
class Accounts:
    """What is known of one interval job, in steps of its grid.

    `due` are the steps that had to be handled; `tasks` and `queue_jobs` say who stands for a step; `cancelled` are
    steps whose queue job was cancelled before it began, because somebody wanted that; `off_grid` are tasks of no step.
    `requests` and `deletions` are how many runs were asked for, and how many of the job's rows were deleted that may
    have stood for a step.
    """

    job: Job
    due: range
    tasks: dict[int, list[str]]
    queue_jobs: dict[int, list[int]]
    cancelled: frozenset[int]
    off_grid: tuple[str, ...]
    skips: tuple[Skip, ...]
    requests: int
    deletions: int

    @property
    def never_queued(self) -> list[Skip]:
        return [skip for skip in self.skips if skip.reason not in _WITHDRAWN]


def occurrences(record: Record) -> Iterator[Violation]:
    """Each step that was due is exactly one task, or counted as skipped, or cancelled before it began, or deleted."""
    queue_jobs: defaultdict[str, list[QueueJob]] = defaultdict(list)
    for queue_job in record.rows.queue_jobs:
        if queue_job.task is None:
            queue_jobs[queue_job.job].append(queue_job)
    skips: defaultdict[str, list[Skip]] = defaultdict(list)
    for skip in record.rows.skips:
        skips[skip.job].append(skip)
    for job in record.rows.jobs.values():
        if job.interval_seconds is not None:
            accounts = _accounts(record, job, queue_jobs[job.id], skips[job.id])
            yield from _doubled(accounts)
            yield from _undue(accounts)
            yield from _lost(accounts)
            yield from _miscounted(accounts)


def _accounts(record: Record, job: Job, queue_jobs: Iterable[QueueJob], skips: Iterable[Skip]) -> Accounts:
    tasks: defaultdict[int, list[str]] = defaultdict(list)
    off_grid = []
    for task in record.tasks_of_job.get(job.id, ()):
        step = _step(job, task.scheduled_for)
        if step is None:
            off_grid.append(task.id)
        else:
            tasks[step].append(task.id)
    queued: defaultdict[int, list[int]] = defaultdict(list)
    cancelled = set()
    for queue_job in queue_jobs:
        step = _step(job, queue_job.due)
        if step is not None:
            queued[step].append(queue_job.id)
            if queue_job.state == "cancelled" and queue_job.has_error and _may_be_cancelled(record, job):
                cancelled.add(step)
    cancelled -= tasks.keys()
    return Accounts(
        job=job,
        due=_due(job, seen=[*tasks, *cancelled, *(step for skip in skips if (step := _step(job, skip.last_at)))]),
        tasks=dict(tasks),
        queue_jobs=dict(queued),
        cancelled=frozenset(cancelled),
        off_grid=tuple(off_grid),
        skips=tuple(skips),
        requests=record.injections.run_requests[job.id],
        deletions=len({one.task or one.id for one in record.deletions_of(job.id) if one.task not in record.rows.tasks}),
    )


def _may_be_cancelled(record: Record, job: Job) -> bool:
    return (
        job.concurrency_policy == "Replace"
        or job.id in record.injections.cancel_requests
        or job.id in record.injections.deleted_resources
    )


def _due(job: Job, *, seen: Iterable[int]) -> range:
    """From the first step after the row was written to `next_run_at`; where the job was deleted, to the last seen."""
    first = max(1, (job.created_at - job.anchor) // _interval(job) + 1)
    if job.next_run_at is None:
        return range(first, max(seen, default=first - 1) + 1)
    return range(first, -((job.anchor - job.next_run_at) // _interval(job)))


def _doubled(accounts: Accounts) -> Iterator[Violation]:
    for step in sorted({*accounts.tasks, *accounts.queue_jobs}):
        tasks, queue_jobs = accounts.tasks.get(step, []), accounts.queue_jobs.get(step, [])
        if len(tasks) > 1 or len(queue_jobs) > 1:
            detail = f"{_times(accounts.job, [step])} has the tasks {tasks} and the queue jobs {queue_jobs}"
            yield Violation(RULE, accounts.job.id, detail)


def _undue(accounts: Accounts) -> Iterator[Violation]:
    """Tasks that nobody asked for: off the grid there may be one for each request.

    A queue job that is retried after its task's row was deleted begins a task at the time of the retry.
    """
    job = accounts.job
    if early_or_late := sorted(step for step in accounts.tasks if step not in accounts.due):
        yield Violation(RULE, job.id, f"not due, and tasks all the same: {_times(job, early_or_late)}")
    if len(accounts.off_grid) > accounts.requests + accounts.deletions:
        detail = f"{len(accounts.off_grid)} tasks off the grid for {accounts.requests} requests: {accounts.off_grid}"
        yield Violation(RULE, job.id, detail)


def _lost(accounts: Accounts) -> Iterator[Violation]:
    """Requests that were refused are among the skipped, so there may be that many more of these."""
    job = accounts.job
    unseen = [step for step in accounts.due if step not in accounts.tasks and step not in accounts.cancelled]
    skipped = sum(skip.count for skip in accounts.never_queued)
    refused_requests = max(0, accounts.requests - len(accounts.off_grid))
    uncovered = [step for step in unseen if not _is_within(_time(job, step), accounts.never_queued)]
    if len(unseen) > skipped + accounts.deletions or len(uncovered) > accounts.deletions:
        detail = (
            f"{len(unseen)} of {len(accounts.due)} occurrences are no tasks, {skipped} are counted as skipped, "
            f"{accounts.deletions} were deleted: {_times(job, uncovered or unseen)}"
        )
        yield Violation(RULE, job.id, detail)
    if skipped > len(unseen) + refused_requests:
        detail = f"{skipped} are counted as skipped, but {len(unseen)} of {len(accounts.due)} occurrences are no tasks"
        yield Violation(RULE, job.id, detail)


def _miscounted(accounts: Accounts) -> Iterator[Violation]:
    """What was cancelled before it began is counted, too; the last of a deleted job may be refused without."""
    counted = sum(skip.count for skip in accounts.skips if skip.reason in _WITHDRAWN)
    found, slack = len(accounts.cancelled), accounts.deletions
    uncounted = found > counted + slack and accounts.job.deleted_at is None
    if uncounted or counted > found + slack + accounts.requests:
        detail = f"{found} queue jobs were cancelled before they began, {counted} are counted"
        yield Violation(RULE, accounts.job.id, detail)


def _interval(job: Job) -> timedelta:
    assert job.interval_seconds is not None
    return timedelta(seconds=job.interval_seconds)


def _step(job: Job, time: datetime | None) -> int | None:
    """Which step a time is; None where it is none."""
    if time is None:
        return None
    step, rest = divmod(time - job.anchor, _interval(job))
    return None if rest else step


def _time(job: Job, step: int) -> datetime:
    return job.anchor + step * _interval(job)


def _times(job: Job, steps: list[int]) -> str:
    shown = ", ".join(f"{_time(job, step):%H:%M:%S}" for step in steps[:_SHOWN])
    return shown if len(steps) <= _SHOWN else f"{shown} and {len(steps) - _SHOWN} more"


def _is_within(time: datetime, skips: Iterable[Skip]) -> bool:
    return any(skip.first_at <= time <= skip.last_at for skip in skips)
