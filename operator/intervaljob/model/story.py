"""The story of one task, as a person reads it at three in the morning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

_ENDED = ("succeeded", "failed", "cancelled")


def tell(row: Mapping[str, Any]) -> Iterator[str]:
    """Lines about a row of `read_story`. The payload and the output are not shown, only how large the output is."""
    name = f"{row['namespace']}/{row['name']}" if row["name"] else "-"
    deleted = ", deleted" if row["job_deleted"] else ""
    yield f"task        {row['id']}"
    yield f"job         {name} ({row['job_id']}{deleted})"
    yield f"handler     {row['handler'] or '-'}"
    yield f"status      {row['status']}"
    yield f"due         {_time(row['scheduled_for'])}"
    yield f"queued      {_time(row['created_at'])}"
    yield f"recoveries  {row['recoveries']} of {row['recovery_limit']} (recoveryPolicy {row['recovery_policy']})"
    yield f"failures    {row['failures']}"
    if row["checkpoint_bytes"] is not None:
        yield f"checkpoint  {row['checkpoint_bytes']} bytes"
    if row["output_bytes"] is not None:
        yield f"output      {row['output_bytes']} bytes"
    yield from _queue_jobs(row)
    yield ""
    yield "attempts:"
    yield from _attempts(row)
    if row["error"]:
        yield ""
        yield f"error: {row['error']}"


def _queue_jobs(row: Mapping[str, Any]) -> Iterator[str]:
    recoveries = {job["id"]: job["state"] for job in row["recovery_jobs"]}
    for number, state in recoveries.items():
        yield f"recovery    queue job {number}, {state}"
    if row["queue_job_id"] is not None and row["queue_job_id"] not in recoveries:
        yield f"queue job   {row['queue_job_id']}"


def _attempts(row: Mapping[str, Any]) -> Iterator[str]:
    earlier = row["earlier_attempts"]
    first = earlier[0]["attempt"] if earlier else row["attempt"]
    if first > 1:
        yield f"  … {first - 1} before these"
    for one in earlier:
        yield _attempt(one["attempt"], one.get("worker"), one.get("startedAt"), one.get("endedAt"), _ending(one))
    if not earlier or earlier[-1]["attempt"] < row["attempt"]:
        ending = row["status"] if row["status"] in (*_ENDED, "running") else "-"
        yield _attempt(row["attempt"], row["worker"], row["started_at"], row["finished_at"], ending)


def _attempt(number: int, worker: str | None, started: Any, ended: Any, ending: str) -> str:
    return f"  {number:<3} {_time(started)} to {_time(ended)}  {worker or '-'}  {ending}"


def _ending(attempt: Mapping[str, Any]) -> str:
    parts = [attempt["outcome"]]
    if "evidence" in attempt:
        parts.append(f"({attempt['evidence']})")
    if "recovered" in attempt:
        parts.append("and recovered" if attempt["recovered"] else "and not recovered")
    text = " ".join(parts)
    return f"{text}: {attempt['error']}" if "error" in attempt else text


def _time(value: datetime | str | None) -> str:
    if value is None:
        return "-"
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
