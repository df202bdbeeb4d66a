"""A run that is small and sound: one job of each kind, as handlers, campaign and system would have left it.

All of it lies in the minute after `ANCHOR`; a moment is given in seconds after it, and the jobs are due every ten.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid5

import psycopg
from psycopg.types.json import Jsonb

ANCHOR = datetime(2026, 11, 24, 10, tzinfo=UTC)
INTERVAL = 10

#: CLOCK_BOOTTIME at the anchor.
BOOT = 1000.0

_NAMES = UUID(int=7)


def uid(name: str) -> str:
    """The id of what the tests call by this name."""
    return str(uuid5(_NAMES, name))


def at(seconds: float) -> datetime:
    """The wall clock's time of a moment."""
    return ANCHOR + timedelta(seconds=seconds)


@dataclass
class Try:
    """One attempt: when its handler began and wrote its last line, how it ended, and the evidence where it was lost."""

    begin: float
    last: float
    how: str | None = "returned"
    evidence: str | None = None


@dataclass
class SmallWorld:
    """The run's folder and database; what is in it may be changed before `write` puts the files there.

    The database is migrated; what an earlier world left in it goes.
    """

    folder: Path
    url: str
    ledger: list[dict[str, Any]] = field(default_factory=list)
    injections: list[dict[str, Any]] = field(default_factory=list)
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._connection = psycopg.connect(self.url, autocommit=True, options="-c search_path=intervaljob")
        self._connection.execute("TRUNCATE jobs, tasks, river_job, workers, skipped_occurrences")
        self._pid = 100
        self._counts: dict[str, dict[str, int]] = {}
        self._add_jobs()
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def sql(self, text: str, *parameters: object) -> None:
        """Exactly one row, or a mistake in the test."""
        changed = self._connection.execute(text.encode(), parameters or None).rowcount
        assert changed == 1, f"{changed} rows: {text}"

    def write(self) -> Path:
        """The run's folder, complete."""
        for name, lines in (("ledger", self.ledger), ("injections", self.injections)):
            (self.folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        (self.folder / "resources.json").write_text(json.dumps({"items": list(self.resources.values())}))
        return self.folder

    def inject(self, event: str, **fields: object) -> None:
        """A line of the campaign's."""
        self.injections.append({"event": event, **fields})

    def deleted(
        self, table: str, row: object, *, task: str | None = None, job: str | None = None, moment: float = 0
    ) -> None:
        """The campaign's line that it deleted a row at this moment; tasks and jobs by the names that tests have."""
        self.inject("deleted", table=table, id=row, task=task and uid(task), job=job and uid(job), at=BOOT + moment)

    def lines(self, task: str, attempt: int = 1, event: str | None = None) -> list[dict[str, Any]]:
        """What the handlers wrote of an attempt, to be changed in place."""
        return [
            line
            for line in self.ledger
            if (line["task"], line["attempt"]) == (uid(task), attempt) and event in (None, line["event"])
        ]

    def tell(self, event: str, task: str, attempt: int, moment: float, **fields: object) -> None:
        """A line of a handler's, in the process that has the attempt already, if any."""
        known = self.lines(task, attempt)
        line = {"event": event, "task": uid(task), "attempt": attempt, "at": BOOT + moment}
        self.ledger.append({**line, "pid": known[0]["pid"] if known else self._pid, **fields})

    def counts(self, job: str) -> dict[str, int]:
        """Of the resource, to be changed in place."""
        return self._counts[job]

    def job(self, name: str, *, due: int, **columns: Any) -> None:
        """A job that was due so many times, and its resource; counts are what `task` and `skip` make of them."""
        row = {
            "id": uid(name),
            "user_id": uid("user"),
            "workspace_id": uid("workspace"),
            "interval_seconds": INTERVAL,
            "anchor": ANCHOR,
            "created_at": at(0.4),
            "next_run_at": at((due + 1) * INTERVAL),
            "name": name,
            **columns,
        }
        self._insert("jobs", row)
        self._counts[name] = dict.fromkeys(("succeeded", "failed", "cancelled", "recovered", "skipped"), 0)
        self.resources[name] = {
            "metadata": {"uid": uid(name), "name": name, "namespace": "chaos"},
            "status": {"counts": self._counts[name], "activeCount": 0},
        }

    def task(self, name: str, job: str, due: float, tries: Sequence[Try], *, error: str | None = None) -> None:
        """A task and all that its attempts left: queue jobs, its story, the handlers' lines."""
        last = tries[-1]
        status = {"returned": "succeeded", "cancelled": "cancelled"}.get(last.how or "", "failed")
        story: list[dict[str, Any]] = []
        inserted = due
        recovery: dict[str, str] = {}
        for number, one in enumerate(tries, start=1):
            self._handler(name, job, number, one)
            if one.evidence is None and one is not last:
                story.append({"attempt": number, "outcome": "failed", "error": "RuntimeError: it raises"})
            elif one.evidence is not None:
                again = one is not last
                story.append({"attempt": number, "outcome": "lost", "evidence": one.evidence, "recovered": again})
                ended = one.last + 1
                self.queue_job(
                    f"{name}/{number}", job, due=due, inserted=inserted, ended=ended, state="cancelled", **recovery
                )
                inserted, recovery = one.last + 1, {"task": name, "evidence": one.evidence}
        if last.evidence is None:
            state = {"succeeded": "completed", "cancelled": "cancelled"}.get(status, "discarded")
            self.queue_job(name, job, due=due, inserted=inserted, ended=last.last, state=state, **recovery)
        requeued = sum(entry["outcome"] == "lost" and entry["recovered"] for entry in story)
        row = {
            "id": uid(name),
            "job_id": uid(job),
            "status": status,
            "attempt": len(tries),
            "recoveries": requeued,
            "scheduled_for": at(due),
            "output": Jsonb({"token": f"{uid(name)}/{len(tries)}"}) if status == "succeeded" else None,
            "error": error,
            "earlier_attempts": Jsonb(story),
        }
        self._insert("tasks", row)
        self.counts(job)[status] += 1
        self.counts(job)["recovered"] += requeued

    def skip(self, job: str, reason: str, first: float, last: float, count: int) -> None:
        """Occurrences in the ledger of those that were not run."""
        self.sql(
            """
            INSERT INTO skipped_occurrences AS known (job_id, reason, first_at, last_at, count)
            VALUES (%s, %s, %s, %s, %s)
            ON CONFLICT (job_id, reason) DO UPDATE SET first_at = least(known.first_at, excluded.first_at),
                last_at = greatest(known.last_at, excluded.last_at), count = known.count + excluded.count
            """,
            *(uid(job), reason, at(first), at(last), count),
        )
        self.counts(job)["skipped"] += count

    def queue_job(
        self,
        name: str,
        job: str,
        *,
        due: float,
        inserted: float,
        ended: float | None,
        state: str,
        task: str | None = None,
        evidence: str | None = None,
    ) -> None:
        """A row of `river_job`, tagged with its name; with `task` a recovery job."""
        args = {"job_id": uid(job), "payload": "{}", **({"task_id": uid(task)} if task else {})}
        row = {
            "state": state,
            "created_at": at(inserted),
            "finalized_at": None if ended is None else at(ended),
            "scheduled_at": at(inserted if task else due),
            "args": Jsonb(args),
            "kind": "interval_job",
            "errors": [Jsonb({"error": "why it ended"})] if state == "cancelled" else None,
            "metadata": Jsonb({"intervaljob:evidence": evidence} if evidence else {}),
            "tags": [name],
        }
        self._insert("river_job", row)

    def worker(self, name: str, **columns: Any) -> None:
        """An incarnation that renews its lease in the future."""
        row = {
            "id": uid(name),
            "name": name,
            "version": "1",
            "queues": ["default"],
            "lease_seconds": 5,
            "lease_expires_at": datetime.now(UTC) + timedelta(hours=1),
            **columns,
        }
        self._insert("workers", row)

    def _handler(self, task: str, job: str, number: int, one: Try) -> None:
        self._pid += 1
        self.tell("begin", task, number, one.begin, job=uid(job), recovered=number > 1)
        middle = (one.begin + one.last) / 2
        for moment in (middle, one.last):
            self.tell("tick", task, number, moment)
        if one.how is not None:
            token = f"{uid(task)}/{number}" if one.how == "returned" else ""
            self.tell("end", task, number, one.last, how=one.how, token=token)

    def _insert(self, table: str, row: dict[str, Any]) -> None:
        names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        self.sql(f"INSERT INTO {table} ({names}) VALUES ({marks})", *row.values())

    def _add_jobs(self) -> None:
        """One of each kind; tasks are named after their job and the second at which they were due."""
        self.job("plain", due=4)
        self.task("plain-10", "plain", 10, [Try(10.1, 12)])
        self.task("plain-20", "plain", 20, [Try(20.1, 21, how=None, evidence="executor_exited"), Try(22.5, 24)])
        self.skip("plain", "Missed", 30, 30, 1)
        self.task("plain-40", "plain", 40, [Try(40.1, 41, how="raised"), Try(43, 44)])
        self.inject("run_requested", job=uid("plain"), at=BOOT + 15)
        self.task("plain-now", "plain", 15.25, [Try(15.3, 16)])

        self.job("forbid", due=3, concurrency_policy="Forbid")
        self.task("forbid-10", "forbid", 10, [Try(10.1, 21)])
        self.skip("forbid", "ConcurrencyForbidden", 20, 20, 1)
        self.task("forbid-30", "forbid", 30, [Try(30.1, 31)])

        self.job("replace", due=3, concurrency_policy="Replace")
        self.task("replace-10", "replace", 10, [Try(10.1, 30.1, how="cancelled")])
        self.queue_job("replace-20", "replace", due=20, inserted=20, ended=30, state="cancelled")
        self.skip("replace", "Replaced", 20, 20, 1)
        self.task("replace-30", "replace", 30, [Try(30.6, 31)])

        self.job("careful", due=2, recovery_policy="Fail")
        lost = [Try(10.1, 11, how=None, evidence="lease_expired")]
        self.task("careful-10", "careful", 10, lost, error="RecoveryPolicyFail: its worker was lost")
        self.task("careful-20", "careful", 20, [Try(20.1, 21, how="raised"), Try(23, 24)])

        self.job("limited", due=1, recovery_limit=1)
        lost = [Try(10.1, 11, how=None, evidence="executor_exited"), Try(13, 14, how=None, evidence="executor_exited")]
        self.task("limited-10", "limited", 10, lost, error="RecoveryLimitExceeded: its worker was lost 2 times")

        self.job("gone", due=0, next_run_at=None, deleted_at=at(25))
        self.task("gone-10", "gone", 10, [Try(10.1, 25, how="cancelled")])
        self.queue_job("gone-20", "gone", due=20, inserted=20, ended=25, state="cancelled")
        self.skip("gone", "Deleted", 20, 20, 1)
        self.inject("deleted_resource", job=uid("gone"), at=BOOT + 24)
        del self.resources["gone"]

        self.worker("alive")
        self.worker("drained", ended_at=at(60), end_reason="drained")
