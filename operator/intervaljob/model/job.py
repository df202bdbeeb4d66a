"""Jobs: what a row of `jobs` becomes when its IntervalJob has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from intervaljob.errors import ResourceError
from intervaljob.model.custom_resource import Definition, IntervalJob
from intervaljob.model.schedule import Cron, Interval, Schedule, after, jitter


@dataclass(frozen=True)
class Change:
    """A row to write, and what follows from it; `is_new` when there was none.

    `event` is (type, reason, message) for `kubectl describe`.
    """

    row: dict[str, Any]
    is_new: bool
    run_now: bool = False
    cancel_now: bool = False
    became_forbid: bool = False
    event: tuple[str, str, str] | None = None


def schedule_of(row: Mapping[str, Any]) -> Schedule:
    """The schedule in a row of `jobs`; it was checked before it was written."""
    if row["interval_seconds"] is not None:
        return Interval(row["interval_seconds"])
    return Cron(row["schedule"], row["time_zone"] or "UTC")


def delay_of(row: Mapping[str, Any]) -> timedelta:
    """How much later than its schedule says the job in a row of `jobs` is due."""
    return jitter(row["id"], seconds=row["jitter_seconds"])


def reconcile(
    resource: IntervalJob,
    wanted: Definition | ResourceError,
    known: Mapping[str, Any] | None,
    *,
    cluster: str,
    now: datetime,
) -> Change | None:
    """What an IntervalJob changes about its row (None: it has none yet); None when it changes nothing.

    A definition that cannot be scheduled changes nothing that runs: the row only notes what is wrong with it.
    """
    if known is not None and known["deleted_at"] is None and _seen(resource, known):
        return None
    if isinstance(wanted, ResourceError):
        return _noted(resource, wanted, known, cluster=cluster, now=now)
    row = {
        **_identity(resource, cluster=cluster),
        **{name: value for name, value in asdict(wanted).items() if name != "suspend"},
        "suspended": wanted.suspend,
        "runnable_since": _runnable_since(wanted, known, now=now),
        "next_run_at": _next_run_at(resource, wanted, known, now=now),
        "run_requested_at": resource.run_requested_at,
        "cancel_requested_at": resource.cancel_requested_at,
        "problem_reason": None,
        "problem_message": None,
        "ready_changed_at": now if known is None or known["problem_reason"] else known["ready_changed_at"],
    }
    return Change(
        row=row,
        is_new=known is None,
        run_now=_is_new(resource.run_requested_at, known["run_requested_at"] if known else None),
        cancel_now=known is not None and _is_new(resource.cancel_requested_at, known["cancel_requested_at"]),
        became_forbid=known is not None
        and wanted.concurrency_policy == "Forbid"
        and known["concurrency_policy"] != "Forbid",
        event=_event(wanted, known),
    )


def _seen(resource: IntervalJob, known: Mapping[str, Any]) -> bool:
    mine, theirs = (resource.generation, resource.version()), (known["generation"], known["resource_version"])
    if mine < theirs:
        return True
    return bool(resource.generation == known["generation"] and not asks_anew(resource, known))


def asks_anew(resource: IntervalJob, row: Mapping[str, Any]) -> bool:
    """Whether an annotation asks for something that its row does not know of."""
    return _is_new(resource.run_requested_at, row["run_requested_at"]) or _is_new(
        resource.cancel_requested_at, row["cancel_requested_at"]
    )


def _is_new(request: str | None, known: str | None) -> bool:
    return request is not None and request != known


def _noted(
    resource: IntervalJob, problem: ResourceError, known: Mapping[str, Any] | None, *, cluster: str, now: datetime
) -> Change | None:
    keeps = {name: value for name, value in known.items() if name != "deleted_at"} if known else _nothing(now)
    cancels = known is not None and _is_new(resource.cancel_requested_at, known["cancel_requested_at"])
    row = {
        **keeps,
        "cancel_requested_at": resource.cancel_requested_at if cancels else keeps["cancel_requested_at"],
        **_identity(resource, cluster=cluster),
        "problem_reason": problem.reason,
        "problem_message": problem.message,
        "ready_changed_at": keeps["ready_changed_at"] if known and known["problem_reason"] else now,
    }
    if known and {**row, "resource_version": None} == {**keeps, "resource_version": None}:
        return None
    is_news = known is None or known["generation"] != resource.generation
    event = ("Warning", problem.reason, problem.message) if is_news else None
    return Change(row=row, is_new=known is None, cancel_now=cancels, event=event)


def _identity(resource: IntervalJob, *, cluster: str) -> dict[str, Any]:
    return {
        "id": resource.uid,
        "cluster_id": cluster,
        "namespace": resource.namespace,
        "name": resource.name,
        "generation": resource.generation,
        "resource_version": resource.version(),
        "anchor": resource.created_at,
    }


def _nothing(now: datetime) -> dict[str, Any]:
    """The row of an IntervalJob that was never right: it has no next occurrence, so nothing runs."""
    return {
        "user_id": UUID(int=0),
        "workspace_id": UUID(int=0),
        "payload": "",
        "handler": "",
        "queue": "default",
        "priority": 1,
        "interval_seconds": None,
        "schedule": None,
        "time_zone": None,
        "jitter_seconds": 0,
        "concurrency_policy": "Allow",
        "active_deadline_seconds": None,
        "backoff_limit": 0,
        "backoff_initial_seconds": 10,
        "backoff_max_seconds": 360,
        "suspended": False,
        "runnable_since": None,
        "next_run_at": None,
        "run_requested_at": None,
        "cancel_requested_at": None,
        "recovery_policy": "Rerun",
        "recovery_limit": 0,
        "ready_changed_at": now,
    }


def _runnable_since(wanted: Definition, known: Mapping[str, Any] | None, *, now: datetime) -> datetime | None:
    """Occurrences before this moment fell into a suspension."""
    if known is None:
        return None
    if known["suspended"] and not wanted.suspend:
        return now
    since: datetime | None = known["runnable_since"]
    return since


def _next_run_at(
    resource: IntervalJob, wanted: Definition, known: Mapping[str, Any] | None, *, now: datetime
) -> datetime:
    """When the first occurrence from now on is due.

    One that has come already stays, for the scheduler to run or to count; under another jitter it only becomes due at
    another moment.
    """
    new, delay = schedule_of(asdict(wanted)), jitter(resource.uid, seconds=wanted.jitter_seconds)
    if known is not None and known["next_run_at"] is not None:
        occurrence: datetime = known["next_run_at"] - delay_of(known)
        if occurrence <= now or new == schedule_of(known):
            return occurrence + delay
    return after(new, anchor=resource.created_at, moment=now) + delay


def _event(wanted: Definition, known: Mapping[str, Any] | None) -> tuple[str, str, str] | None:
    if known is None:
        return None
    if known["problem_reason"]:
        return ("Normal", "Accepted", "The spec can be scheduled again")
    if wanted.suspend and not known["suspended"]:
        return ("Normal", "Suspended", "No more tasks are started until spec.suspend is false")
    if known["suspended"] and not wanted.suspend:
        return ("Normal", "Resumed", "Tasks are started again; occurrences since the suspension are not made up for")
    return None
