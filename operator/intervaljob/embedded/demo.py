"""The main job as a story for a reader at a terminal: a task that outlives its worker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from intervaljob.embedded.stack import Process, Stack, packaged
from intervaljob.errors import EmbeddedError

T = TypeVar("T")
Say = Callable[[str], None]

#: The sample whose task is interrupted; it takes 20 seconds.
SAMPLE = "sleep"

_MIDDLE_SECONDS = 3.0
_POLL_SECONDS = 0.1
_WAIT_SECONDS = 30.0
_LOG_LINES = 10


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What the story came to: the task, who lost it, who ended it, seconds from the kill to the next attempt."""

    task_id: str
    killed: str
    finished_by: str
    seconds: float


def tell(stack: Stack, *, operator: Process, workers: Mapping[str, Process], say: Say) -> Recovery:
    """Apply the samples, kill the worker of a running task, and watch another one run the same task to its end.

    `workers` are by the names that they registered with. Raises EmbeddedError, which says what was missing and
    ends with the processes' last log lines, when the task does not end as it shall.
    """
    try:
        return _Story(stack, operator=operator, workers=workers, say=say).tell()
    except EmbeddedError as error:
        ends = [f"--- {process.name}\n{_end(process)}" for process in (operator, *workers.values())]
        raise EmbeddedError("\n".join([str(error), *ends])) from error


class _Story:
    def __init__(self, stack: Stack, *, operator: Process, workers: Mapping[str, Process], say: Say) -> None:
        self._stack = stack
        self._operator = operator
        self._workers = workers
        self._say = say

    def tell(self) -> Recovery:
        self._apply_samples()
        task = self._start_task()
        killed = task["worker"]
        since = self._kill(task)
        survivor = self._see_recovery(task)
        seconds = time.monotonic() - since
        self._see_end(task, killed=killed)
        return Recovery(task_id=task["taskId"], killed=killed, finished_by=survivor, seconds=seconds)

    def _apply_samples(self) -> None:
        self._title("Apply the samples")
        self._kubectl("apply", "-f", str(packaged("manifests/samples")))
        _eventually(self._all_ready, what="every sample is scheduled")
        self._kubectl("get", "intervaljobs")

    def _start_task(self) -> dict[str, Any]:
        """The entry of `status.active` of a task that is in its middle."""
        self._title(f"Run {SAMPLE} now, not only when it is due")
        request = f"intervaljob.dev/run-requested-at={datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        self._kubectl("annotate", "--overwrite", "intervaljob", SAMPLE, request)
        task = _eventually(self._running, what=f"a task of {SAMPLE} runs")
        self._kubectl("get", "intervaljobs")
        self._say(f"Task {task['taskId']} runs on {task['worker']}.")
        started = datetime.fromisoformat(task["startedAt"])
        _eventually(
            lambda: (datetime.now(UTC) - started).total_seconds() > _MIDDLE_SECONDS, what="the task is in its middle"
        )
        return task

    def _kill(self, task: Mapping[str, Any]) -> float:
        process = self._workers[task["worker"]]
        self._title("Kill its worker in the middle of the task")
        self._say(f"$ kill -KILL {process.pid}    # {process.name}, which runs task {task['taskId']}")
        process.kill()
        return time.monotonic()

    def _see_recovery(self, task: Mapping[str, Any]) -> str:
        """The name of the worker that took the task over."""
        self._title("Its lease runs out: the operator puts the task back, another worker takes it over")
        self._say(_line(self._operator, f"Added recovery job for task {task['taskId']} "))
        others = [process for name, process in self._workers.items() if name != task["worker"]]
        sought = f"Recovery job: using existing task {task['taskId']} "
        survivor = _eventually(
            lambda: next((process for process in others if _find(process, sought)), None),
            what=f"a worker takes task {task['taskId']} over",
        )
        self._say(_line(survivor, sought))
        _eventually(lambda: (self._running() or {}).get("attempt") == 2, what="the status shows attempt 2")  # noqa: PLR2004
        self._kubectl("get", "intervaljobs")
        return survivor.name

    def _see_end(self, task: Mapping[str, Any], *, killed: str) -> None:
        self._title("The same task ends, on another worker")
        wanted = {"taskId": task["taskId"], "status": "succeeded", "attempt": 2, "recoveries": 1}
        last = _eventually(
            lambda: self._last_task() if wanted.items() <= self._last_task().items() else None,
            what=f"status.lastTask has {wanted}",
        )
        if last["worker"] == killed:
            raise EmbeddedError(f"task {task['taskId']} ended on {killed}, which was killed")
        self._kubectl("get", "intervaljobs")
        self._kubectl("get", "intervaljob", SAMPLE, "-o", "jsonpath={.status.lastTask}")
        _eventually(lambda: "TaskRecovered" in self._events(), what="an event TaskRecovered")
        self._say(f"$ kubectl describe intervaljob {SAMPLE}")
        self._say(f"…\n{self._events()}")

    def _title(self, text: str) -> None:
        self._say(f"\n== {text}\n")

    def _kubectl(self, *arguments: str) -> None:
        """Run it before the reader's eyes."""
        self._say(f"$ kubectl {' '.join(arguments)}")
        self._say(f"{self._stack.kubectl(*arguments).rstrip()}\n")

    def _get(self, *arguments: str) -> dict[str, Any]:
        body = json.loads(self._stack.kubectl("get", *arguments, "-o", "json"))
        assert isinstance(body, dict)
        return body

    def _all_ready(self) -> bool:
        conditions = [item.get("status", {}).get("conditions", []) for item in self._get("intervaljobs")["items"]]
        return all(any(c["type"] == "Ready" and c["status"] == "True" for c in found) for found in conditions)

    def _status(self) -> dict[str, Any]:
        status = self._get("intervaljob", SAMPLE).get("status", {})
        assert isinstance(status, dict)
        return status

    def _running(self) -> dict[str, Any] | None:
        return next((task for task in self._status().get("active", []) if task.get("worker")), None)

    def _last_task(self) -> dict[str, Any]:
        return self._status().get("lastTask") or {}

    def _events(self) -> str:
        _before, events, after = self._stack.kubectl("describe", "intervaljob", SAMPLE).partition("Events:")
        return (events + after).rstrip()


def _eventually(look: Callable[[], T | None], *, what: str) -> T:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not (found := look()):
        if time.monotonic() > deadline:
            raise EmbeddedError(f"not within {_WAIT_SECONDS:g} s: {what}")
        time.sleep(_POLL_SECONDS)
    return found


def _find(process: Process, text: str) -> str | None:
    return next((line for line in process.log.read_text().splitlines() if text in line), None)


def _line(process: Process, text: str) -> str:
    """The line of its log with this text, once it is there, as the story shows it."""
    line = _eventually(lambda: _find(process, text), what=f"{process.name} logs {text.strip()!r}")
    return f"[{process.name}] {line}"


def _end(process: Process) -> str:
    return "\n".join(process.log.read_text().splitlines()[-_LOG_LINES:])
