"""Whether throughput lasts: with a million tasks waiting, over minutes, and beside a session with an old snapshot.

    python benchmarks/backlog.py --folder out                                        # all phases, about 20 minutes
    python benchmarks/backlog.py --folder out --phases feed --minutes 2 --snapshot-minutes 1

One durable Postgres with its default configuration and one worker with default settings, on this machine; handlers do
nothing. Phases:

backlog   the time for --tasks tasks while at least so many wait behind them, for each of --backlogs
capacity  a backlog drained chunk by chunk, without and with a session that holds a snapshot from before the first one
feed      --rate tasks a second for --minutes, beside what an operator does for them (it deletes, counts and detects),
          and for --snapshot-minutes in the middle beside a session that holds a snapshot; a line each five seconds into
          feed.csv, drawn in feed.svg

Tasks are counted by the worker's metrics: ends that the database has. Pick-up is from the insert to the claim by the
database's clock, of the tasks that were inserted five to ten seconds before; those that nobody has claimed yet count
with their age. Memory is the proportional set size of the worker's processes together.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psycopg
from psycopg.rows import DictRow, dict_row

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.peers import SYSTEMS, Command, Place
from benchmarks.plot import Panel, draw
from benchmarks.throughput import Feed, Server, cpu_seconds, is_ready, say, versions, wait, working

from intervaljob.embedded.postgres import Postgres

OURS = SYSTEMS["ours"]
SAMPLE_SECONDS = 5.0
#: What the feed's cleaner keeps: short, so that as many rows go as come.
RETENTION_SECONDS = 30

#: What an operator does beside scheduling: it deletes what is old, and counts what happened.
HOUSEKEEPER = """
import asyncio, sys
from intervaljob.cleaner import cleaner
from intervaljob.controller.status_writer import FOLD_BATCH
from intervaljob.database.connection import Database
from intervaljob.model.scope import Scope
from intervaljob.recovery.detector import detect
from intervaljob.settings import DatabaseSettings, load

async def count(database, scope):
    while True:
        rows = await database.fetch("fold_transitions", limit=FOLD_BATCH, watched_seconds=60, **scope.parameters())
        if len(rows) < FOLD_BATCH:
            await asyncio.sleep(0.5)

async def main(seconds):
    scope = Scope(cluster="bench")
    retention = cleaner.Retention(succeeded=seconds, cancelled=seconds, failed=seconds)
    async with Database(load(DatabaseSettings), application="housekeeper") as database, asyncio.TaskGroup() as group:
        group.create_task(cleaner.Cleaner(database, scope=scope, retention=retention).run())
        group.create_task(detect(database, scope=scope, by="housekeeper"))
        group.create_task(count(database, scope))

asyncio.run(main(float(sys.argv[1])))
"""

SIZES = """
SELECT n_dead_tup::float8 AS dead, relname AS name, pg_table_size(relid)::float8 / 1e6 AS table_mb,
    pg_indexes_size(relid)::float8 / 1e6 AS indexes_mb,
    coalesce(n_tup_hot_upd::float8 / nullif(n_tup_upd, 0), 0) AS hot
FROM pg_stat_user_tables
WHERE schemaname = 'intervaljob' AND relname IN ('tasks', 'river_job', 'transitions')
"""

#: By the index on queue_job_id, of the ids that were new in the sample before.
PICKUP = """
SELECT percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (
        ORDER BY 1000 * extract(epoch FROM coalesce(task.started_at, clock_timestamp()) - queue_job.created_at)::float8
    ) AS ms,
    count(*) - count(task.id) AS unclaimed
FROM intervaljob.river_job AS queue_job
LEFT JOIN intervaljob.tasks AS task ON task.queue_job_id = queue_job.id
WHERE queue_job.id > %(after)s AND queue_job.id <= %(last)s
"""

Sample = dict[str, float]


@dataclass(frozen=True)
class Worker:
    """A worker of ours that runs."""

    process: subprocess.Popen[bytes]
    address: str

    def finished(self) -> int:
        """Tasks whose end is recorded, by its own count."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.address}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return sum(
            int(float(count)) for count in re.findall(r"^intervaljob_tasks_finished_total\S* (\S+)", text, re.MULTILINE)
        )

    def memory_mb(self) -> float:
        """Proportional set size of all its processes."""
        kilobytes, waiting = 0, [self.process.pid]
        while waiting:
            folder = Path(f"/proc/{waiting.pop()}")
            with suppress(FileNotFoundError, ProcessLookupError):
                kilobytes += sum(
                    map(int, re.findall(r"^Pss: +(\d+)", (folder / "smaps_rollup").read_text(), re.MULTILINE))
                )
                for children in folder.glob("task/*/children"):
                    waiting += map(int, children.read_text().split())
        return kilobytes / 1000


@contextmanager
def worker(place: Place, url: str) -> Iterator[Worker]:
    """One with default settings, once it has started."""
    command = OURS.worker(place, url)
    with working(place, OURS, command) as process:
        yield Worker(process, command.environment["INTERVALJOB_HTTP_ADDRESS"])


@contextmanager
def snapshot(url: str) -> Iterator[None]:
    """A session that holds what it saw first: nothing that is deleted or changed meanwhile can be vacuumed."""
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM intervaljob.workers")
        yield


def chunks(running: Worker, tasks: int, number: int) -> Iterator[tuple[float, float]]:
    """(tasks a second, MB) of each of so many chunks of so many tasks, one after the other."""
    wait(lambda: is_ready(running.address), "the worker is ready", within=60)
    began, before = time.monotonic(), running.finished()
    for _ in range(number):
        memory = 0.0

        def done() -> bool:
            nonlocal memory
            memory = max(memory, running.memory_mb())
            return running.finished() - before >= tasks  # noqa: B023 - used within the round

        wait(done, f"{tasks} tasks", within=60 + tasks / 50)
        now, finished = time.monotonic(), running.finished()
        yield (finished - before) / (now - began), memory
        began, before = now, finished


@dataclass(frozen=True)
class Drained:
    """A drain of so many tasks; processor times are microseconds for each of them."""

    rate: float
    own: float
    postgres: float
    memory_mb: float


def drained(server: Server, place: Place, *, backlog: int, tasks: int) -> Drained:
    """The first tasks of a queue, with so many behind them."""
    with server.filled(place, OURS, backlog + tasks) as url, worker(place, url) as running:
        pids = (running.process.pid, server.postgres.pid)
        before = [cpu_seconds(pid) for pid in pids]
        ((rate, memory),) = chunks(running, tasks, 1)
        own, postgres = ((cpu_seconds(pid) - spent) / tasks * 1e6 for pid, spent in zip(pids, before, strict=True))
    say(f"{backlog} behind: {rate:.0f}/s")
    return Drained(rate, own, postgres, memory)


def backlog_phase(server: Server, place: Place, *, backlogs: list[int], tasks: int, rounds: int) -> Iterator[str]:
    """A line for each backlog; the ratio is the median of the rounds'."""
    runs: dict[int, list[Drained]] = {backlog: [] for backlog in backlogs}
    for _ in range(rounds):
        for backlog in backlogs:
            runs[backlog].append(drained(server, place, backlog=backlog, tasks=tasks))
    yield "| waiting behind | tasks | n | tasks/s, median | min-max | ÷ first | own CPU | Postgres CPU | memory, peak |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for backlog, measured in runs.items():
        rates = [one.rate for one in measured]
        ratio = median(one.rate / first.rate for one, first in zip(measured, runs[backlogs[0]], strict=True))
        cells = [
            f"{backlog:,}",
            f"{tasks:,}",
            f"{rounds}",
            f"{median(rates):,.0f}",
            f"{min(rates):,.0f}-{max(rates):,.0f}",
        ]
        cells += [
            f"{ratio:.2f}",
            *(f"{median(getattr(one, of) for one in measured):.0f} µs" for of in ("own", "postgres")),
        ]
        yield f"| {' | '.join(cells)} | {max(one.memory_mb for one in measured):.0f} MB |"


def capacity_phase(server: Server, place: Place, *, tasks: int, number: int) -> Iterator[str]:
    """A line for each chunk of a drain, without an old snapshot and with one."""
    runs = []
    for held in (False, True):
        say(f"capacity, {'with' if held else 'without'} an old snapshot")
        with server.filled(place, OURS, tasks * (number + 1)) as url, ExitStack() as stack:
            if held:
                stack.enter_context(snapshot(url))
            running = stack.enter_context(worker(place, url))
            runs.append([rate for rate, _ in chunks(running, tasks, number)])
    yield "| tasks claimed since the snapshot | tasks/s without it | with it | ratio |"
    yield "| --- | --- | --- | --- |"
    for chunk, (without, with_it) in enumerate(zip(*runs, strict=True)):
        yield f"| up to {(chunk + 1) * tasks:,} | {without:,.0f} | {with_it:,.0f} | {with_it / without:.2f} |"


class Sampler:
    """A look each five seconds while a feed runs."""

    def __init__(self, connection: psycopg.Connection[DictRow], running: Worker) -> None:
        self._connection = connection
        self._running = running
        self._began = time.monotonic()
        self._last = (self._began, running.finished())
        self._newest = [0, 0]
        self.samples: list[Sample] = []

    def sample_for(self, seconds: float, *, held: bool = False) -> None:
        """Until so much time has passed; `held` says that an old snapshot is there."""
        for _ in range(round(seconds / SAMPLE_SECONDS)):
            due = self._began + (len(self.samples) + 1) * SAMPLE_SECONDS
            time.sleep(max(0.0, due - time.monotonic()))
            self.samples.append(self._sample(held=held))

    def _sample(self, *, held: bool) -> Sample:
        at, finished = time.monotonic(), self._running.finished()
        before, finished_before = self._last
        self._last = at, finished
        (newest,) = self._connection.execute("SELECT max(id) AS id FROM intervaljob.river_job").fetchall()
        after, last = self._newest
        self._newest = [last, newest["id"] or 0]
        (pickup,) = self._connection.execute(PICKUP, {"after": after, "last": last}).fetchall()
        p50, p99 = pickup["ms"] or (0.0, 0.0)
        sample = {
            "seconds": round(at - self._began, 1),
            "old_snapshot": float(held),
            "finished_per_second": round((finished - finished_before) / (at - before), 1),
            "pickup_p50_ms": round(p50, 1),
            "pickup_p99_ms": round(p99, 1),
            "unclaimed": pickup["unclaimed"],
            "memory_mb": round(self._running.memory_mb(), 1),
        }
        for row in self._connection.execute(SIZES).fetchall():
            for column in ("dead", "table_mb", "indexes_mb", "hot"):
                sample[f"{row['name']}_{column}"] = round(row[column], 2)
        return sample


def feed_phase(
    server: Server, place: Place, folder: Path, *, rate: float, minutes: float, held: float
) -> Iterator[str]:
    """Samples into feed.csv and feed.svg; a table that sums them up."""
    beside = (minutes - held) / 2 * 60
    script = place.script("housekeeper.py", HOUSEKEEPER)
    with server.filled(place, OURS, 0) as url, ExitStack() as stack:
        running = stack.enter_context(worker(place, url))
        wait(lambda: is_ready(running.address), "the worker is ready", within=60)
        housekeeper = Command([sys.executable, str(script), str(RETENTION_SECONDS)], {"INTERVALJOB_DATABASE_URL": url})
        stack.enter_context(working(place, OURS, housekeeper))
        connection = stack.enter_context(psycopg.connect(url, autocommit=True, row_factory=dict_row))
        sampler = Sampler(connection, running)
        with Feed(url, rate) as feed:
            sampler.sample_for(beside)
            with snapshot(url):
                sampler.sample_for(held * 60, held=True)
            sampler.sample_for(beside)
        say(f"the feed was {feed.sent / feed.seconds:.0f}/s of {rate:.0f}/s")
    write(folder, sampler.samples)
    return summed_up(sampler.samples)


def write(folder: Path, samples: list[Sample]) -> None:
    """feed.csv, and feed.svg of it."""
    with (folder / "feed.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=samples[0])
        table.writeheader()
        table.writerows(samples)

    def lines(*columns: str) -> dict[str, list[float]]:
        return {column: [sample[column] for sample in samples] for column in columns}

    tables = ("tasks", "river_job", "transitions")
    panels = [
        Panel("tasks finished, 1/s", lines("finished_per_second")),
        Panel("pick-up, ms", lines("pickup_p50_ms", "pickup_p99_ms")),
        Panel("dead rows", lines(*(f"{name}_dead" for name in tables))),
        Panel("tables, MB", lines(*(f"{name}_table_mb" for name in tables))),
        Panel("indexes, MB", lines(*(f"{name}_indexes_mb" for name in tables))),
        Panel("worker's memory, MB", lines("memory_mb")),
    ]
    held = [sample["seconds"] for sample in samples if sample["old_snapshot"]]
    spans = {"old snapshot": (held[0] - SAMPLE_SECONDS, held[-1])} if held else {}
    draw(folder / "feed.svg", [sample["seconds"] for sample in samples], panels, spans=spans)


def summed_up(samples: list[Sample]) -> Iterator[str]:
    """A line for the time before, during and after the old snapshot; the first ten seconds are left out."""
    yield "| | finished/s, median | min | pick-up p50, median | pick-up p99, median | max |"
    yield "| --- | --- | --- | --- | --- | --- |"
    first = next((number for number, sample in enumerate(samples) if sample["old_snapshot"]), len(samples))
    last = first + sum(1 for sample in samples if sample["old_snapshot"])
    for name, part in (
        ("before", samples[2:first]),
        ("old snapshot", samples[first:last]),
        ("after", samples[last:]),
    ):
        if not part:
            continue
        rates, p50, p99 = (
            [sample[column] for sample in part] for column in ("finished_per_second", "pickup_p50_ms", "pickup_p99_ms")
        )
        times = " | ".join(f"{value:.1f} ms" for value in (median(p50), median(p99), max(p99)))
        yield f"| {name} | {median(rates):,.0f} | {min(rates):,.0f} | {times} |"


def main() -> None:
    """Run it and print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for feed.csv and feed.svg")
    parser.add_argument("--phases", default="backlog,capacity,feed", help="comma-separated, of the default")
    parser.add_argument("--backlogs", default="10000,1000000", help="tasks that wait behind those that are measured")
    parser.add_argument("--rounds", type=int, default=3, help="of the backlogs, one after the other")
    parser.add_argument("--tasks", type=int, default=40_000, help="measured of each backlog, and for each chunk")
    parser.add_argument("--chunks", type=int, default=9, help="of the drain beside an old snapshot")
    parser.add_argument("--rate", type=float, default=2000, help="tasks a second that are fed")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--snapshot-minutes", type=float, default=3, help="in the middle of them")
    options = parser.parse_args()
    phases = options.phases.split(",")
    if unknown := set(phases) - {"backlog", "capacity", "feed"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.snapshot_minutes > options.minutes:
        parser.error("--snapshot-minutes are some of --minutes")
    load = os.getloadavg()[1]
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="intervaljob-bench-") as folder, Postgres(durable=True) as postgres:
        place, server = Place(Path(folder)), Server(postgres)
        if "backlog" in phases:
            backlogs = [int(backlog) for backlog in options.backlogs.split(",")]
            lines = backlog_phase(server, place, backlogs=backlogs, tasks=options.tasks, rounds=options.rounds)
            print(*lines, "", sep="\n", flush=True)
        if "capacity" in phases:
            print(*capacity_phase(server, place, tasks=options.tasks, number=options.chunks), "", sep="\n", flush=True)
        if "feed" in phases:
            rate, minutes, held = options.rate, options.minutes, options.snapshot_minutes
            print(*feed_phase(server, place, options.folder, rate=rate, minutes=minutes, held=held), "", sep="\n")
        print(*versions(server, place), sep="\n")
    print(f"load of the machine in the five minutes before: {load:.2f}")
    print(f"command: python benchmarks/backlog.py {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
