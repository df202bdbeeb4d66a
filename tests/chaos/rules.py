"""The rules: each looks at the record of a run and yields what breaks it. No rule knows how the system works inside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from chaos.ledger_reader import Resource, Trace
from chaos.occurrences import occurrences
from chaos.record import Record, Violation
from chaos.rows import QueueJob, Task

FINAL_QUEUE_STATES = frozenset({"cancelled", "completed", "discarded"})
FINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})

#: Losses before a handler had begun; and those that say nothing about the task, as its worker drained.
NEVER_BEGAN = frozenset({"claim_lost", "not_started"})
UNCOUNTED_EVIDENCE = NEVER_BEGAN | {"drained", "pod_gone"}


def overlap(record: Record) -> Iterator[Violation]:
    """No line of an attempt is later than the begin of a later one, and one attempt is run once, by one process."""
    for task, attempts in record.ledger.traces.items():
        latest, latest_number = float("-inf"), 0
        for number, trace in sorted(attempts.items()):
            if latest > trace.begin:
                by = latest - trace.begin
                detail = f"attempt {number} began {by:.3f} s before the last line of attempt {latest_number}"
                yield Violation("overlap", task, detail)
            if trace.last > latest:
                latest, latest_number = trace.last, number
            if len(trace.pids) > 1 or trace.begins > 1:
                detail = f"attempt {number} began {trace.begins} times, in the processes {trace.pids}"
                yield Violation("overlap", task, detail)
    for one in record.ledger.overlaps:
        detail = f"attempt {one.attempt} in process {one.pid} found the lock held by process {one.holder}"
        yield Violation("overlap", one.task, detail)


class _Stretch(NamedTuple):
    """When an attempt of a task ran."""

    begin: float
    last: float
    task: str


def policy(record: Record) -> Iterator[Violation]:
    """Two tasks of one Forbid or Replace job never run at once.

    Who deletes a task's row or its queue job takes away what the policy goes by: for that task, from then on.
    """
    stretches: defaultdict[str, list[_Stretch]] = defaultdict(list)
    for task, attempts in record.ledger.traces.items():
        job = record.job_of(task)
        if job is not None and job.concurrency_policy in {"Forbid", "Replace"}:
            stretches[job.id] += [_Stretch(trace.begin, trace.last, task) for trace in attempts.values()]
    for job_id, found in stretches.items():
        deleted_at: dict[str, float] = {}
        for one in record.deletions_of(job_id):
            if one.task is not None:
                deleted_at[one.task] = min(one.at, deleted_at.get(one.task, one.at))
        for earlier, later in _together(sorted(found)):
            if min(deleted_at.get(one.task, float("inf")) for one in (earlier, later)) > later.begin:
                detail = f"{later.task} began {earlier.last - later.begin:.3f} s before the last of {earlier.task}"
                yield Violation("policy", job_id, detail)


def _together(stretches: list[_Stretch]) -> Iterator[tuple[_Stretch, _Stretch]]:
    """Every two of different tasks that share a moment; the stretches are ordered by their begin."""
    running: list[_Stretch] = []
    for stretch in stretches:
        running = [one for one in running if one.last > stretch.begin]
        for one in running:
            if one.task != stretch.task:
                yield one, stretch
        running.append(stretch)


def stale(record: Record) -> Iterator[Violation]:
    """The output of a succeeded task is what exactly its current attempt returned."""
    for task in record.rows.tasks.values():
        if task.status != "succeeded":
            continue
        attempts = record.ledger.traces.get(task.id, {})
        if task.token is None:
            yield Violation("stale", task.id, "succeeded without the token that every handler returns")
        elif task.attempt not in attempts or task.token not in attempts[task.attempt].tokens:
            owners = [number for number, trace in attempts.items() if task.token in trace.tokens]
            whose = f"attempt {owners[0]}" if owners else "no attempt"
            yield Violation("stale", task.id, f"attempt {task.attempt} succeeded with the token of {whose}")


def left_behind(record: Record) -> Iterator[Violation]:
    """Nothing is unfinished: no queue job, no task, no lease of a dead worker, no row of a resource that is gone."""
    for queue_job in record.rows.queue_jobs:
        if queue_job.state not in FINAL_QUEUE_STATES:
            yield Violation("left_behind", str(queue_job.id), f"queue job of {queue_job.job} is {queue_job.state}")
    for task in record.rows.tasks.values():
        if task.status not in FINAL_STATUSES:
            yield Violation("left_behind", task.id, f"task is {task.status}, attempt {task.attempt}")
    for worker in record.rows.unended_workers:
        killed = any(one.worker == worker.name and one.at > worker.started_at for one in record.injections.killed)
        if worker.expired or killed:
            why = "its process was killed" if killed else "its lease has run out"
            yield Violation("left_behind", worker.id, f"worker {worker.name} has not ended: {why}")
    present = {resource.job for resource in record.resources}
    for job in record.rows.jobs.values():
        if job.deleted_at is None and job.id not in present:
            yield Violation("left_behind", job.id, "its IntervalJob is gone, and its row is not retired")


def recovery_job(record: Record) -> Iterator[Violation]:
    """There is one recovery job of a task at a time; one transaction may end it and insert the next."""
    by_task: defaultdict[str, list[QueueJob]] = defaultdict(list)
    for queue_job in record.rows.queue_jobs:
        if queue_job.task is not None:
            by_task[queue_job.task].append(queue_job)
    endless = datetime.max.replace(tzinfo=UTC)
    for task, found in by_task.items():
        for one, other in pairwise(sorted(found, key=lambda job: (job.created_at, job.finalized_at or endless))):
            if other.created_at < (one.finalized_at or endless):
                detail = f"queue job {other.id} was inserted at {other.created_at}, before {one.id} ended"
                yield Violation("recovery_job", task, f"{detail} ({one.finalized_at or 'never'})")


def limits(record: Record) -> Iterator[Violation]:
    """`recoveryLimit` and `recoveryPolicy: Fail` are kept, by the rows' account and by what the handlers saw."""
    for task in record.rows.tasks.values():
        job = record.rows.jobs.get(task.job)
        if job is None:
            continue
        traces = record.ledger.traces.get(task.id, {})
        if job.recovery_policy == "Fail":
            yield from _run_again(task, traces)
        counted = [entry for entry in task.requeued if entry["evidence"] not in UNCOUNTED_EVIDENCE]
        recovered = max(task.recoveries, len(counted), _vanished(task, traces))
        if recovered > job.recovery_limit:
            yield Violation("limits", task.id, f"recovered {recovered} times, recoveryLimit is {job.recovery_limit}")
        if (task.error or "").startswith("RecoveryLimitExceeded") and task.recoveries < job.recovery_limit:
            detail = f"given up after {task.recoveries} recoveries, recoveryLimit is {job.recovery_limit}"
            yield Violation("limits", task.id, detail)


def _run_again(task: Task, traces: dict[int, Trace]) -> Iterator[Violation]:
    for (number, trace), (following, _) in pairwise(sorted(traces.items())):
        if not trace.raised:
            detail = f"attempt {number} began and did not raise, attempt {following} began all the same"
            yield Violation("limits", task.id, f"recoveryPolicy is Fail: {detail}")
    for entry in task.requeued:
        if entry["evidence"] not in NEVER_BEGAN:
            detail = f"attempt {entry['attempt']} was lost ({entry['evidence']}) and queued again"
            yield Violation("limits", task.id, f"recoveryPolicy is Fail: {detail}")


def _vanished(task: Task, traces: dict[int, Trace]) -> int:
    """Attempts that began, never ended, and were followed by another, for no reason that does not count."""
    if not task.has_whole_story:
        return 0
    excused = {entry["attempt"] for entry in task.lost if entry["evidence"] in UNCOUNTED_EVIDENCE}
    return sum(not trace.ended and number < max(traces) and number not in excused for number, trace in traces.items())


def counts(record: Record) -> Iterator[Violation]:
    """The status of each IntervalJob is what the rows say, and nothing of it is active.

    A task whose row was deleted may have been counted before.
    """
    skipped: defaultdict[str, int] = defaultdict(int)
    for skip in record.rows.skips:
        skipped[skip.job] += skip.count
    for resource in record.resources:
        if resource.job not in record.rows.jobs:
            yield Violation("counts", resource.job, f"{resource.name} has no row")
            continue
        if resource.active_count != 0:
            yield Violation("counts", resource.job, f"{resource.name}: activeCount is {resource.active_count}")
        yield from _compare(record, resource, skipped=skipped[resource.job])


def _compare(record: Record, resource: Resource, *, skipped: int) -> Iterator[Violation]:
    tasks = record.tasks_of_job.get(resource.job, [])
    deleted = len({one.task for one in record.deletions_of(resource.job) if one.task in record.deleted_tasks})
    least = {status: sum(task.status == status for task in tasks) for status in sorted(FINAL_STATUSES)}
    most = {status: count + deleted for status, count in least.items()}
    least["skipped"] = most["skipped"] = skipped
    least["recovered"] = sum(len(task.requeued) for task in tasks)
    is_exact = not deleted and all(task.has_whole_story for task in tasks)
    most["recovered"] = least["recovered"] if is_exact else 2**63
    shown = resource.counts
    wrong = [name for name in least if not least[name] <= shown.get(name, -1) <= most[name]]
    unexplained = sum(shown.get(status, 0) - least[status] for status in FINAL_STATUSES) - deleted
    if wrong or unexplained > 0:
        detail = f"{resource.name}: the status says {shown}, the rows say {least}, {deleted} tasks were deleted"
        yield Violation("counts", resource.job, detail)


def truth(record: Record) -> Iterator[Violation]:
    """What the ledger saw begin is known to the rows: the task, its job, and an attempt of that number."""
    for task_id, attempts in record.ledger.traces.items():
        task = record.rows.tasks.get(task_id)
        if task is None:
            if task_id not in record.deleted_tasks:
                yield Violation("truth", task_id, f"attempts {sorted(attempts)} ran, and there is no row")
        elif task.job != record.ledger.jobs.get(task_id):
            yield Violation("truth", task_id, f"ran for job {record.ledger.jobs.get(task_id)}, its row has {task.job}")
        elif max(attempts) > task.attempt:
            yield Violation("truth", task_id, f"attempt {max(attempts)} ran, its row knows {task.attempt} attempts")


RULES: tuple[Callable[[Record], Iterator[Violation]], ...] = (
    occurrences,
    overlap,
    policy,
    stale,
    left_behind,
    recovery_job,
    limits,
    counts,
    truth,
)
