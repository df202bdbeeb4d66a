"""The status of an IntervalJob: computed from its rows alone, each time anew."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

#: Entries of `status.active`; `activeCount` counts on, over the job's newest 50 tasks.
MAX_ACTIVE = 10

#: Entries of `status.recentTasks`, and the length of a message there.
MAX_RECENT = 5
MAX_RECENT_MESSAGE = 256

_ACTIVE = ("running", "recovering", "retrying")
_RESULTS = {"succeeded": "Succeeded", "failed": "Failed", "cancelled": "Cancelled"}


def build_status(row: Mapping[str, Any]) -> dict[str, Any]:
    """`status` from a row of `read_statuses`; what is not known yet is None, which removes it in a merge patch."""
    tasks: list[dict[str, Any]] = row["tasks"]
    active = [task for task in tasks if task["status"] in _ACTIVE]
    return {
        "observedGeneration": row["generation"],
        "conditions": [_ready(row)],
        "jobId": str(row["job_id"]),
        "schedule": _schedule(row),
        "nextScheduleTime": None if row["suspended"] else _time(row["next_run_at"]),
        "lastScheduleTime": _time(row["last_run_at"]),
        "lastSuccessfulTime": _time(row["last_success_at"]),
        "lastFailureTime": _time(row["last_failure_at"]),
        "lastResult": _RESULTS.get(row["last_result"]),
        "active": [_active(task) for task in active[:MAX_ACTIVE]],
        "activeCount": len(active),
        "lastTask": _last_task(tasks[0]) if tasks else None,
        "recentTasks": [_recent(task) for task in tasks[:MAX_RECENT]],
        "counts": {name: row[name] for name in ("succeeded", "failed", "cancelled", "recovered", "skipped")},
    }


def same_status(wanted: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether a status that is there already says all that the wanted one does."""
    return all(_same(value, current.get(name)) for name, value in wanted.items())


def _same(wanted: Any, current: Any) -> bool:
    if isinstance(wanted, Mapping) and isinstance(current, Mapping):
        return same_status(wanted, current)
    if isinstance(wanted, list) and isinstance(current, list):
        return len(wanted) == len(current) and all(map(_same, wanted, current))
    return bool(wanted == current)


def _ready(row: Mapping[str, Any]) -> dict[str, Any]:
    if row["problem_reason"]:
        status, reason, message = "False", row["problem_reason"], row["problem_message"]
    elif row["suspended"]:
        status, reason, message = "True", "Suspended", "spec.suspend is true: no tasks are started"
    else:
        status, reason, message = "True", "Scheduled", "tasks are started as scheduled"
    return {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": row["generation"],
        "lastTransitionTime": _time(row["ready_changed_at"]),
    }


def _schedule(row: Mapping[str, Any]) -> str | None:
    """One text for the SCHEDULE column, whichever way it was written."""
    if row["interval_seconds"] is None:
        text: str | None = row["schedule"]
        return text
    parts, seconds = [], row["interval_seconds"]
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return f"every {''.join(parts)}"


def _active(task: Mapping[str, Any]) -> dict[str, Any]:
    return _known(
        taskId=task["id"],
        attempt=task["attempt"],
        worker=task["worker"],
        recovered=task["recoveries"] > 0,
        startedAt=_time(task["started_at"]),
    )


def _last_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """Every field, also those without a value: a merge patch keeps what it does not name."""
    return {
        "taskId": task["id"],
        "status": task["status"],
        "attempt": task["attempt"],
        "recoveries": task["recoveries"],
        "worker": task["worker"],
        "scheduledFor": _time(task["scheduled_for"]),
        "startedAt": _time(task["started_at"]),
        "finishedAt": _time(task["finished_at"]),
        "message": task["error"],
    }


def _recent(task: Mapping[str, Any]) -> dict[str, Any]:
    return _known(
        taskId=task["id"],
        status=task["status"],
        attempt=task["attempt"],
        recoveries=task["recoveries"],
        lastEvidence=task["evidence"],
        startedAt=_time(task["started_at"]),
        finishedAt=_time(task["finished_at"]),
        message=task["error"] and task["error"][:MAX_RECENT_MESSAGE],
    )


def _known(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _time(value: datetime | str | None) -> str | None:
    """RFC 3339 in whole seconds, as Kubernetes writes times (metav1.Time)."""
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
