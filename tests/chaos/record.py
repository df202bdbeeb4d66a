"""The whole record of a run, and what a rule says about it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from chaos.ledger_reader import (
    Deleted,
    Injections,
    Ledger,
    Resource,
    read_injections,
    read_ledger,
    read_resources,
)
from chaos.rows import Job, Rows, Task, read_rows


@dataclass(frozen=True)
class Violation:
    """A promise that was broken: which, about what (an id), and what shows it."""

    rule: str
    subject: str
    detail: str


@dataclass(frozen=True)
class Record:
    """What ran (ledger), what was done to the system (injections), and what the system says (rows, resources)."""

    ledger: Ledger
    injections: Injections
    resources: list[Resource]
    rows: Rows

    @cached_property
    def tasks_of_job(self) -> dict[str, list[Task]]:
        """The rows of `tasks` by job."""
        found: defaultdict[str, list[Task]] = defaultdict(list)
        for task in self.rows.tasks.values():
            found[task.job].append(task)
        return dict(found)

    @cached_property
    def deleted_tasks(self) -> frozenset[str]:
        """Tasks whose row the campaign deleted, and that are gone."""
        deleted = {one.id for one in self.injections.deleted if one.table == "tasks"}
        return frozenset(deleted - self.rows.tasks.keys())

    def job_of(self, task: str) -> Job | None:
        """The job of a task, by its row or, where that was deleted, by what the handler was told."""
        row = self.rows.tasks.get(task)
        return self.rows.jobs.get(row.job if row else self.ledger.jobs.get(task, ""))

    def deletions_of(self, job: str) -> Iterator[Deleted]:
        """Task rows and queue jobs of this job that the campaign deleted."""
        for one in self.injections.deleted:
            if one.table in {"tasks", "river_job"} and (one.job or self.ledger.jobs.get(one.task or "")) == job:
                yield one


def read_record(run: Path, database_url: str) -> Record:
    """Of a run on this machine, since it booted. Raises FileNotFoundError or ValueError for a folder that is broken."""
    booted_at = datetime.now(UTC) - timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))
    return Record(
        ledger=read_ledger(run / "ledger.jsonl"),
        injections=read_injections(run / "injections.jsonl", booted_at=booted_at),
        resources=read_resources(run / "resources.json"),
        rows=read_rows(database_url),
    )
