"""Metrics: every one there is, in Prometheus' default registry.

Operators and workers serve the same list; what a process does not do stays at zero. No label takes values
that users make up: a queue's name, which a worker's settings bound, is the only one that is not from a list
in the code.
"""

from __future__ import annotations

import platform
from importlib.metadata import version

from prometheus_client import Counter, Gauge, Histogram, Info

_DELAYS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_DURATIONS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)

# --- operator and worker

BUILD = Info("intervaljob_build", "Version of this process.")
BUILD.info({"version": version("intervaljob"), "python": platform.python_version()})
DATABASE_UP = Gauge("intervaljob_database_up", "1 while this process reaches the database, else 0.")

# --- operator and worker, the ends of workers: each counted once, by the process that wrote it

WORKERS_ENDED = Counter(
    "intervaljob_workers_ended_total",
    "Ends of workers: drained, superseded, lease_expired, container_terminated, pod_gone.",
    ["reason"],
)

# --- operator, scheduling

OCCURRENCES = Counter(
    "intervaljob_occurrences_total",
    "Occurrences handled: queued, or skipped and why.",
    ["outcome", "reason"],
)
SCHEDULE_LATENESS = Histogram(
    "intervaljob_schedule_lateness_seconds",
    "Time from when an occurrence was due to when its queue job was inserted.",
    buckets=_DELAYS,
)

# --- operator, recovery

RECOVERY_JOBS = Counter(
    "intervaljob_recovery_jobs_total",
    "Recovery jobs added, by the evidence that the worker is dead.",
    ["evidence"],
)
TASKS_NOT_RECOVERED = Counter(
    "intervaljob_tasks_not_recovered_total",
    "Tasks whose worker was lost and that are not run again, by the evidence and how they ended.",
    ["evidence", "outcome"],
)
WORKER_PODS = Gauge("intervaljob_worker_pods", "Worker Pods that this operator watches.")
WORKERS_CONDEMNED = Counter(
    "intervaljob_workers_condemned_total",
    "Workers told to end because their Pod is gone, while their processes may run.",
)

# --- operator, retention

ROWS_DELETED = Counter("intervaljob_rows_deleted_total", "Rows deleted since they were old, by table.", ["table"])

# --- operator, resources

STATUS_WRITES = Counter("intervaljob_status_writes_total", "Status writes sent to the API server.", ["result"])
STATUS_PENDING = Gauge("intervaljob_status_pending", "IntervalJobs whose status waits to be written.")
RECONCILES = Counter("intervaljob_reconcile_total", "IntervalJobs compared with their rows.", ["result"])
RECONCILE_PENDING = Gauge("intervaljob_reconcile_pending", "IntervalJobs waiting to be compared with their rows.")
EVENTS = Counter("intervaljob_events_total", "Kubernetes events written.", ["type"])

# --- worker, tasks

TASKS_CLAIMED = Counter("intervaljob_tasks_claimed_total", "Tasks claimed from the queue.", ["queue"])
TASKS_FINISHED = Counter("intervaljob_tasks_finished_total", "Attempts finished, by outcome.", ["outcome"])
TASK_SECONDS = Histogram("intervaljob_task_seconds", "Run time of attempts.", buckets=_DURATIONS)
PICKUP_SECONDS = Histogram(
    "intervaljob_pickup_seconds",
    "Time from when a queue job could be claimed to when its first attempt was handed to an executor.",
    buckets=_DELAYS,
)
TASKS_RUNNING = Gauge("intervaljob_tasks_running", "Tasks that run now.")
EXECUTORS = Gauge("intervaljob_executors", "Executor processes, running a task or waiting for one.")
STALE_FINISHES = Counter(
    "intervaljob_stale_finishes_total",
    "Results thrown away because the task had moved on to another attempt.",
)
QUEUE_JOBS_CANCELLED = Counter(
    "intervaljob_queue_jobs_cancelled_total",
    "Queue jobs cancelled without running anything, and why.",
    ["reason"],
)

# --- worker, lease

LEASE_RENEWALS = Counter("intervaljob_lease_renewals_total", "Renewals of the lease.", ["result"])
LEASE_REMAINING = Gauge("intervaljob_lease_remaining_seconds", "Time until executors end without a renewal.")

# --- worker, recovery jobs

RECOVERIES_REFUSED = Counter(
    "intervaljob_recoveries_refused_total",
    "Recovery jobs that were not run because the task was not to be recovered, and why.",
    ["reason"],
)
RECOVERY_OUTCOMES = Counter("intervaljob_recovery_outcomes_total", "Recovered attempts, by outcome.", ["outcome"])
RECOVERED_EXECUTION_SECONDS = Histogram(
    "intervaljob_recovered_execution_seconds",
    "Run time of recovered attempts.",
    buckets=_DURATIONS,
)
