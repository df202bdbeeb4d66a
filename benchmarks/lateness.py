"""How late handlers begin of many IntervalJobs that are due every minute, and whether one is dropped or doubled.

    python benchmarks/lateness.py --minutes 10             # all are due in the same second
    python benchmarks/lateness.py --minutes 10 --spread    # spread over the minute, by jitter

Starts everything on this machine: a durable Postgres with its default configuration, a control plane, an operator, and
workers. The minutes that are looked at begin with the second one after every IntervalJob has its row. What was begun,
and when, is what the handlers themselves write down: one line each, first thing. What is due is told by arithmetic.
Handlers and Postgres have the same clock. A queue job's `created_at` is the moment of its insertion; others see it
when that batch is committed.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.cluster import Cluster
from benchmarks.throughput import cpu_seconds

from intervaljob.embedded.programs import find
from intervaljob.embedded.stack import Stack
from intervaljob.model.schedule import jitter

MINUTE = 60
#: After its due time at which an occurrence counts as dropped.
GRACE_SECONDS = 20
HANDLERS = """
import os, time
from intervaljob import Task, handler

lines = None

@handler("bench")
def bench(task: Task) -> None:
    at = time.time()
    global lines
    if lines is None:
        lines = os.open(f"{task.payload}/begun-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(lines, f"{task.job_id} {task.scheduled_for.timestamp():.0f} {at:.6f}\\n".encode())
"""
QUEUED = """
    SELECT (args ->> 'job_id')::uuid,
        extract(epoch FROM intervaljob.occurrence_of(metadata, scheduled_at))::float8,
        extract(epoch FROM created_at)::float8
    FROM intervaljob.river_job
"""

#: A job and one of its times, in seconds since the epoch.
Occurrence = tuple[UUID, int]


@dataclass(frozen=True)
class Jobs:
    """What is due: every one of `uids` each minute, `jitter_seconds` spread."""

    uids: frozenset[UUID]
    jitter_seconds: int

    def due(self, occurrence: Occurrence) -> float:
        """When it is due."""
        job, minute = occurrence
        return minute + jitter(job, seconds=self.jitter_seconds).total_seconds()


def say(text: str) -> None:
    """At once."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def percentiles(values: Sequence[float]) -> str:
    """Median, 99th percentile and maximum of seconds."""
    if not values:
        return "-"
    ordered = sorted(values)
    shares = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99, 1.0))
    return " / ".join(f"{value:.3f}" for value in shares)


def begun(folder: Path) -> Iterator[tuple[Occurrence, float]]:
    """Each begin of a handler, as it wrote it down."""
    for file in folder.glob("begun-*"):
        for line in file.read_text().splitlines():
            job, minute, at = line.split()
            yield (UUID(job), int(minute)), float(at)


def wait_for_rows(database: psycopg.Connection, count: int) -> None:
    """Until every IntervalJob has its row."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        row = database.execute("SELECT count(*) FROM intervaljob.jobs").fetchone()
        if row == (count,):
            return
        time.sleep(0.2)
    raise SystemExit(f"not all of {count} rows were there after 300 s")


class Record:
    """What was queued and what was begun, by occurrence."""

    def __init__(self, jobs: Jobs, folder: Path, database: psycopg.Connection) -> None:
        self._jobs = jobs
        begins = list(begun(folder))
        self._times = Counter(occurrence for occurrence, _ in begins)
        self._first = dict(sorted(begins, key=lambda one: -one[1]))
        self._queued = {(job, round(occurrence)): created for job, occurrence, created in database.execute(QUEUED)}

    def report(self, minutes: range) -> Iterator[str]:
        """A table with a line for each minute, and one for all."""
        yield "| minute | due | queued | begun | dropped | doubled | due → queued, s: p50 / p99 / max | due → handler |"
        yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
        for minute in minutes:
            yield self._line(time.strftime("%H:%M", time.gmtime(minute)), [minute])
        yield self._line("all", minutes)

    def _line(self, name: str, minutes: Sequence[int]) -> str:
        occurrences = [(job, minute) for minute in minutes for job in self._jobs.uids]
        counts = [
            len(occurrences),
            sum(one in self._queued for one in occurrences),
            sum(one in self._first for one in occurrences),
            sum(self._times[one] == 0 for one in occurrences),
            sum(self._times[one] > 1 for one in occurrences),
        ]
        lateness = [
            percentiles([at[one] - self._jobs.due(one) for one in occurrences if one in at])
            for at in (self._queued, self._first)
        ]
        return f"| {' | '.join([name, *(f'{count:,}' for count in counts), *lateness])} |"


def run(stack: Stack, folder: Path, options: argparse.Namespace) -> None:
    """Create the IntervalJobs, let them run, and report."""
    (folder / "bench_handlers.py").write_text(HANDLERS)
    operators = [stack.start_operator(f"operator-{number}") for number in range(options.operators)]
    environment = {
        "PYTHONPATH": str(folder),
        "INTERVALJOB_HANDLERS": "bench_handlers",
        "INTERVALJOB_CONCURRENCY": str(options.concurrency),
    }
    workers = [stack.start_worker(f"worker-{number}", **environment) for number in range(options.workers)]
    spec = {"schedule": "* * * * *", "handler": "bench", "payload": str(folder)}
    jitter_seconds = MINUTE if options.spread else 0
    cluster = Cluster(stack.control_plane)
    kind = {"apiVersion": "intervaljob.dev/v1alpha1", "kind": "IntervalJob"}
    cluster.create(options.jobs, {**kind, "spec": {**spec, "jitterSeconds": jitter_seconds}})
    jobs = Jobs(frozenset(map(UUID, cluster.uids.values())), jitter_seconds)
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        wait_for_rows(database, options.jobs)
        start = (int(time.time() + 10) // MINUTE + 2) * MINUTE
        minutes = range(start, start + options.minutes * MINUTE, MINUTE)
        say(f"{options.jobs} IntervalJobs have their rows")
        time.sleep(max(0.0, start - 1 - time.time()))
        roots = {
            "operators": [one.pid for one in operators],
            "workers": [one.pid for one in workers],
            "Postgres": [stack.postgres.pid],
        }
        before, begin = {name: sum(map(cpu_seconds, pids)) for name, pids in roots.items()}, time.monotonic()
        time.sleep(max(0.0, minutes.stop - time.time()))
        seconds = time.monotonic() - begin
        used = {name: (sum(map(cpu_seconds, pids)) - before[name]) / seconds for name, pids in roots.items()}
        time.sleep(jitter_seconds + GRACE_SECONDS)
        print(*Record(jobs, folder, database).report(minutes), sep="\n")
    print(f"cores used: {', '.join(f'{name} {cores:.2f}' for name, cores in used.items())}")


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--spread", action="store_true", help="over the minute, by jitterSeconds")
    parser.add_argument("--operators", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=10, help="INTERVALJOB_CONCURRENCY of each worker")
    options = parser.parse_args()
    load = os.getloadavg()[1]
    with tempfile.TemporaryDirectory(prefix="intervaljob-lateness-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with Stack(programs=find(report=say), data=folder / "stack") as stack:
            run(stack, folder, options)
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"load of the machine in the five minutes before: {load:.2f}")
    print(f"command: python benchmarks/lateness.py {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
