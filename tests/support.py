"""What tests share: the cluster they are in, how they wait, and workers and their work in a test's database."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, overload
from uuid import UUID, uuid4

import msgspec
from msgspec import Raw

from intervaljob.database.connection import Database, Row
from intervaljob.model.scope import Scope
from intervaljob.model.task import Attempt, Outcome, Result, conclude
from intervaljob.recovery.recover import recover_orphans
from intervaljob.settings import WorkerSettings, load
from intervaljob.worker.claims import claim
from intervaljob.worker.head import Head
from intervaljob.worker.incarnation import Incarnation

CLUSTER = "test-cluster"
SCOPE = Scope(cluster=CLUSTER)
RETURNED = Result(Outcome.RETURNED, Raw(b'{"ok": true}'))

Execute = Callable[..., Awaitable[list[Row]]]
AddJob = Callable[..., Awaitable[UUID]]
T = TypeVar("T")


@overload
async def eventually(look: Callable[[], Awaitable[T]], *, what: str, within: float = 10.0) -> T: ...
@overload
async def eventually(look: Callable[[], T], *, what: str, within: float = 10.0) -> T: ...
async def eventually(look: Callable[[], Any], *, what: str, within: float = 10.0) -> Any:
    """What `look` returns as soon as that is true; fails with `what` when it never is."""
    deadline = time.monotonic() + within
    while True:
        found = look()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.02)


def parent_of(pid: int) -> int:
    """The process that started this one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(pid: int) -> list[int]:
    """The processes that any thread of this one started."""
    files = [thread / "children" for thread in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for file in files for child in file.read_text().split()]


def state_of(pid: int) -> str:
    """Its letter in proc_pid_stat(5): R and S run, T stands still, Z and X are gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def group_of(pid: int) -> list[int]:
    """The living processes of the group that this one leads, or led."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(group) == pid and state not in "ZX":
                found.append(int(folder.name))
    return found


def runs(pid: int) -> bool:
    """Whether this process is there and no zombie."""
    return state_of(pid) not in "ZX"


async def process_gone(pid: int, *, within: float = 5.0) -> None:
    """Wait until nothing of this process runs any more."""
    await eventually(lambda: not runs(pid), what=f"process {pid} is gone", within=within)


async def pid_in(file: Path, *, within: float = 10.0) -> int:
    """The process id that somebody is going to write into this file."""
    found = await eventually(
        lambda: file.read_text() if file.exists() else "", what=f"a process id in {file.name}", within=within
    )
    return int(found)


def worker_settings(url: str, **others: Any) -> WorkerSettings:
    """Settings of a worker that listens on any free port."""
    return load(WorkerSettings, database_url=url, **{"http_address": "127.0.0.1:0", **others})


class Work:
    """Workers, queue jobs and tasks in a test's database."""

    def __init__(self, database: Database, *, url: str, execute: Execute, add_job: AddJob) -> None:
        self.database = database
        self.execute = execute
        self.add_job = add_job
        self._url = url

    async def worker(self, name: str | None = None, **settings: Any) -> Incarnation:
        """A worker that has registered; nothing renews its lease."""
        worker = Incarnation(
            self.database, worker_settings(self._url, **settings), name=name or f"worker-{uuid4().hex[:8]}"
        )
        await worker.register()
        return worker

    async def enqueue(
        self,
        job: UUID | None = None,
        *,
        task: UUID | None = None,
        args: object = None,
        kind: str = "interval_job",
        queue: str = "default",
        priority: int = 1,
        delay: float = 0.0,
    ) -> int:
        """Insert a queue job for this job (and task), or with these args; returns its id."""
        if args is None:
            (row,) = await self.execute(
                "SELECT user_id, workspace_id, payload FROM {schema}.jobs WHERE id = %(id)s", id=job
            )
            args = {"job_id": job, **row, **({"task_id": task} if task else {})}
        (new,) = await self.execute(
            "INSERT INTO {schema}.river_job (kind, args, queue, priority, scheduled_at)"
            " VALUES (%(kind)s, %(args)s, %(queue)s, %(priority)s, now() + make_interval(secs => %(delay)s))"
            " RETURNING id",
            kind=kind,
            args=json.dumps(args, default=str),
            queue=queue,
            priority=priority,
            delay=delay,
        )
        return int(new["id"])

    async def claim(self, worker: Incarnation, *, queue: str = "default", limit: int = 100) -> list[Attempt]:
        """What the worker gets to run."""
        return (await claim(self.database, worker=worker, queue=queue, limit=limit, head=Head()))[0]

    async def start(self, worker: Incarnation | None = None, **job: Any) -> tuple[Incarnation, Attempt]:
        """A task of a new job that this worker, or a new one, runs."""
        worker = worker or await self.worker()
        await self.enqueue(await self.add_job(**job))
        (attempt,) = await self.claim(worker)
        return worker, attempt

    async def finish(self, worker: Incarnation, attempt: Attempt, result: Result = RETURNED) -> bool:
        """Record how an attempt ended; whether that changed anything."""
        finish = conclude(attempt, result, started_at=datetime.now(UTC))
        finishes = msgspec.json.encode([finish]).decode()
        rows = await self.database.fetch("finish_tasks", worker=worker.id, worker_name=worker.name, finishes=finishes)
        return not any(row["status"] is None for row in rows)

    async def end(self, worker: Incarnation, reason: str = "lease_expired") -> None:
        """What a detector does to a worker that is dead."""
        await self.database.fetch("end_worker", worker=worker.id, reason=reason)

    async def recover(self, *, every_task: bool = False, scope: Scope = SCOPE) -> int:
        """What an operator does for the tasks of dead workers; how many recovery jobs that added."""
        return await recover_orphans(self.database, scope=scope, by="operator test", every_task=every_task)

    async def task(self, task: UUID) -> Row:
        (row,) = await self.execute("SELECT * FROM {schema}.tasks WHERE id = %(id)s", id=task)
        return row

    async def tasks(self) -> list[Row]:
        return await self.execute("SELECT * FROM {schema}.tasks ORDER BY created_at, id")

    async def queue_job(self, queue_job: int) -> Row:
        (row,) = await self.execute("SELECT * FROM {schema}.river_job WHERE id = %(id)s", id=queue_job)
        return row

    async def recovery_jobs(self) -> list[Row]:
        return await self.execute("SELECT * FROM {schema}.river_job WHERE args ? 'task_id' ORDER BY id")
