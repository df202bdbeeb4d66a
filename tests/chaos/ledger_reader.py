"""What a run left in its folder: what the handlers wrote, what the campaign did, and the resources at the end.

Nothing here knows the system. Times are seconds of CLOCK_BOOTTIME, ids are lower-case texts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

#: Faults that end the process of the worker which they name as their target.
KILLS = frozenset({"kill_manager", "kill_worker"})


@dataclass(slots=True)
class Trace:
    """All that is kept of the lines of one attempt: the first and the last, whose they are, and how it ended."""

    begin: float
    last: float
    pids: tuple[int, ...] = ()
    begins: int = 0
    ended: bool = False
    raised: bool = False
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overlap:
    """An attempt that began while another living process had its task's lock."""

    task: str
    attempt: int
    pid: int
    holder: int


@dataclass(frozen=True)
class Ledger:
    """What ran: traces by task and number of attempt, and the job that each task named."""

    traces: dict[str, dict[int, Trace]] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    overlaps: list[Overlap] = field(default_factory=list)


@dataclass(frozen=True)
class Deleted:
    """A row that the campaign deleted; `task` and `job` are those it belonged to, where it had any."""

    table: str
    id: str
    task: str | None
    job: str | None
    at: float


@dataclass(frozen=True)
class Killed:
    """A worker's process that the campaign killed; `at` is the wall clock's time."""

    worker: str
    at: datetime


@dataclass(frozen=True)
class Injections:
    """What the campaign did that may explain something; requests are counted by job."""

    deleted: tuple[Deleted, ...]
    killed: tuple[Killed, ...]
    run_requests: Counter[str]
    cancel_requests: frozenset[str]
    deleted_resources: frozenset[str]


@dataclass(frozen=True)
class Resource:
    """An IntervalJob at the end of the run."""

    job: str
    name: str
    counts: dict[str, int]
    active_count: int | None


def read_ledger(file: Path) -> Ledger:
    """In one pass over the file, keeping a `Trace` for each attempt. Raises ValueError for a line that is none."""
    ledger = Ledger()
    for line in _lines(file):
        task, attempt, pid, at = str(line["task"]), int(line["attempt"]), int(line["pid"]), float(line["at"])
        attempts = ledger.traces.setdefault(task, {})
        trace = attempts.get(attempt)
        if trace is None:
            trace = attempts[attempt] = Trace(begin=at, last=at)
        trace.begin = min(trace.begin, at)
        trace.last = max(trace.last, at)
        if pid not in trace.pids:
            trace.pids += (pid,)
        match line["event"]:
            case "begin":
                trace.begins += 1
                ledger.jobs[task] = str(line["job"])
            case "end":
                trace.ended = True
                trace.raised = trace.raised or line["how"] == "raised"
                if line["how"] == "returned":
                    trace.tokens += (str(line["token"]),)
            case "overlap":
                ledger.overlaps.append(Overlap(task, attempt, pid, int(line["holder"])))
    return ledger


def read_injections(file: Path, *, booted_at: datetime) -> Injections:
    """`booted_at` is when CLOCK_BOOTTIME was 0. Raises ValueError for a line that is none."""
    deleted, killed = [], []
    requests: dict[str, list[str]] = {"run_requested": [], "cancel_requested": [], "deleted_resource": []}
    for line in _lines(file):
        event = line["event"]
        if event == "deleted":
            deleted.append(_deleted(line))
        elif event == "fault" and line["kind"] in KILLS:
            killed.append(Killed(str(line["target"]), booted_at + timedelta(seconds=line["from"])))
        elif event in requests:
            requests[event].append(str(line["job"]))
    return Injections(
        deleted=tuple(deleted),
        killed=tuple(killed),
        run_requests=Counter(requests["run_requested"]),
        cancel_requests=frozenset(requests["cancel_requested"]),
        deleted_resources=frozenset(requests["deleted_resource"]),
    )


def read_resources(file: Path) -> list[Resource]:
    """From the list that kubectl printed; one without a status has no counts."""
    found = []
    for item in json.loads(file.read_text())["items"]:
        metadata, status = item["metadata"], item.get("status", {})
        found.append(
            Resource(
                job=metadata["uid"],
                name=f"{metadata.get('namespace', '')}/{metadata['name']}",
                counts=status.get("counts", {}),
                active_count=status.get("activeCount"),
            )
        )
    return found


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file.name}, line {number}: {error}") from error


def _deleted(line: dict[str, Any]) -> Deleted:
    is_task = line["table"] == "tasks"
    return Deleted(
        table=line["table"],
        id=str(line["id"]),
        task=line["id"] if is_task else line["task"],
        job=line["job"],
        at=float(line["at"]),
    )
