"""Kubernetes events: about transitions that a person wants to know of, within a bound, best effort."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intervaljob.controller.api import UNREACHABLE, Api
from intervaljob.controller.limits import RateLimit
from intervaljob.telemetry import metrics

logger = logging.getLogger(__name__)

EVENTS_PER_SECOND = 10.0
#: Events that wait; more are dropped, for the status says it too.
WAITING = 1000


@dataclass(frozen=True)
class Event:
    """About one IntervalJob; `kind` is Normal or Warning."""

    uid: str
    namespace: str
    name: str
    kind: str
    reason: str
    message: str


class Announcer:
    """Writes events one after the other."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._limit = RateLimit(EVENTS_PER_SECOND)
        self._waiting: asyncio.Queue[Event] = asyncio.Queue(WAITING)

    def announce(self, job: Mapping[str, Any], *, kind: str, reason: str, message: str) -> None:
        """Write an event about the IntervalJob of this row soon."""
        event = Event(str(job["id"]), job["namespace"], job["name"], kind, reason, message)
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            metrics.EVENTS.labels("dropped").inc()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            event = await self._waiting.get()
            await self._limit.wait()
            try:
                await self._api.write_event(**vars(event))
                metrics.EVENTS.labels(event.kind).inc()
            except UNREACHABLE as error:
                metrics.EVENTS.labels("failed").inc()
                logger.warning("Event not written", extra={"job": event.uid, "reason": event.reason, "error": error})


def transition(row: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """(kind, reason, message) for a row of `fold_transitions`, None for what happens all the time.

    Success is news only when it comes first or after something else; the status shows it each time.
    """
    task, detail = row["task_id"], row["detail"]
    match row["kind"]:
        case "succeeded" if row["last_result"] != "succeeded":
            return "Normal", "TaskSucceeded", f"Task {task} succeeded"
        case "failed":
            return "Warning", "TaskFailed", f"Task {task} failed: {detail}"
        case "cancelled":
            return "Normal", "TaskCancelled", f"Task {task} was cancelled: {detail}"
        case "recovered":
            return "Warning", "TaskRecovered", f"Task {task} is run again: its worker is gone ({detail})"
        case "skipped":
            return "Warning", "OccurrencesSkipped", f"{row['count']} not run: {detail}"
        case _:
            return None
