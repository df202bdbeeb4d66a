"""Tasks a second, pick-up latency, CPU and WAL for each no-op task: ours, River, PgQueuer, Procrastinate.

    python benchmarks/throughput.py                              # five rounds of every system
    python benchmarks/throughput.py --rounds 2 --systems ours,river-tuned --latency

One durable Postgres with its default configuration, on this machine, beside the workers. In each round each system has
a new database, filled before its worker starts and then vacuumed, analysed and checkpointed. A query that an index
answers looks every 20 ms whether a task was claimed, then whether one is unfinished. The time is from the last look
that saw none claimed to the first that saw none unfinished, so it is up to two looks too long, for everybody alike; CPU
and WAL are counted between the same looks, those of looking with them.
"""

import argparse
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from statistics import median
from typing import Self

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.peers import INTERPRETERS, PACKAGES, QUEUE, SYSTEMS, Command, Place, System, install

from intervaljob.embedded.postgres import Postgres

ROOT = Path(__file__).parents[1]
LOOK_SECONDS = 0.02
#: Bound on a run: nobody is slower than this many tasks a second.
SLOWEST = 50
FEED_SECONDS = 0.01
PROBES = 200
PROBES_PER_SECOND = 10
#: What speaks to Postgres, and its event loop: worth a line with the results.
DRIVERS = {"asyncpg", "psycopg", "psycopg-binary", "uvloop"}

#: Insert and notify in one statement: what the scheduler's transaction does.
QUEUE_AND_NOTIFY = f"""WITH queued AS ({QUEUE} RETURNING queue)
SELECT pg_notify('intervaljob.river_insert', json_build_object('queue', queue)::text)
FROM (SELECT DISTINCT queue FROM queued) AS queues"""  # noqa: S608 - nothing from outside


@dataclass(frozen=True)
class Usage:
    """Counters at one moment; `-` is what was used between two."""

    at: float
    own_seconds: float
    postgres_seconds: float
    wal_bytes: float

    def __sub__(self, earlier: "Usage") -> "Usage":
        return Usage(
            self.at - earlier.at,
            self.own_seconds - earlier.own_seconds,
            self.postgres_seconds - earlier.postgres_seconds,
            self.wal_bytes - earlier.wal_bytes,
        )


@dataclass(frozen=True)
class Measured:
    """One run."""

    tasks: int
    used: Usage

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return self.tasks / self.used.at


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def boot_time() -> float:
    """The clock that every process on this machine shares."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wait(look: Callable[[], bool], what: str, *, within: float) -> None:
    """Return as soon as `look` is true; SystemExit when that takes too long."""
    deadline = time.monotonic() + within
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {within:.0f} s: {what}")
        time.sleep(LOOK_SECONDS)


def cpu_seconds(root: int) -> float:
    """User and system time of a process and of all below it, also of those that have ended and were waited for."""
    ticks, waiting = 0, [root]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended: its parent has its time
            stat = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            ticks += sum(map(int, stat[11:15]))
            for children in folder.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
    return ticks / os.sysconf("SC_CLK_TCK")


class Server:
    """The Postgres of all runs, and a database for each."""

    def __init__(self, postgres: Postgres) -> None:
        self.postgres = postgres
        self._number = 0

    @contextmanager
    def filled(self, place: Place, system: System, tasks: int) -> Iterator[str]:
        """The URL of a new database with so many queued tasks, settled as one that has been in use for a while."""
        self._number += 1
        name = f"bench_{self._number}"
        self.postgres.create_database(name)
        try:
            url = self.postgres.url(name)
            system.prepare(place, url, tasks)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
                connection.execute("CHECKPOINT")
            yield url
        finally:
            self.postgres.drop_database(name)

    def version(self) -> str:
        """Of the server."""
        with psycopg.connect(self.postgres.url()) as connection:
            return f"{connection.info.server_version // 10_000}.{connection.info.server_version % 10_000}"


@contextmanager
def working(place: Place, system: System, command: Command) -> Iterator[subprocess.Popen[bytes]]:
    """The system's worker, while the body runs."""
    process = command.start(place.log(system.name))
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure(server: Server, place: Place, system: System, tasks: int) -> Measured:
    """One run: from the last look that saw no task claimed to the first that saw none unfinished."""
    tasks = min(tasks, system.most or tasks)
    with server.filled(place, system, tasks) as url, psycopg.connect(url, autocommit=True) as connection:
        # The planner cannot know how rare an unfinished task becomes, and would read the whole table.
        connection.execute("SET enable_seqscan = off")
        connection.execute("SET enable_bitmapscan = off")
        looks: list[float] = []
        with working(place, system, system.worker(place, url)) as process:

            def used() -> Usage:
                row = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8").fetchone()
                assert row is not None
                own, postgres = cpu_seconds(process.pid), cpu_seconds(server.postgres.pid)
                return Usage(time.monotonic(), own, postgres, row[0])

            def sees(condition: str) -> bool:
                if process.poll() is not None:
                    raise SystemExit(f"{system.name} ended: {place.log(system.name).read_text()[-2000:]}")
                began = time.monotonic()
                row = connection.execute(f"SELECT {condition}".encode()).fetchone()
                looks.append(time.monotonic() - began)
                return row is not None and bool(row[0])

            before = used()

            def begun() -> bool:
                nonlocal before
                sample = used()
                if sees(system.begun):
                    return True
                before = sample
                return False

            wait(begun, f"{system.name} claims", within=60)
            wait(lambda: not sees(system.unfinished), f"{system.name} finishes", within=30 + tasks / SLOWEST)
            after = used()
        row = connection.execute(system.succeeded.encode()).fetchone()
        if row is None or row[0] != tasks:
            raise SystemExit(f"{system.name}: {row} of {tasks} tasks succeeded")
    run = Measured(tasks, after - before)
    cost = f"{len(looks)} looks took {sum(looks):.2f} s, the longest {max(looks) * 1000:.0f} ms"
    say(f"{system.name}: {tasks} tasks in {run.used.at:.2f} s, {run.rate:.0f}/s; {cost}")
    return run


class Feed:
    """Queues no-op tasks at a steady rate, in a thread of its own, while the body of `with` runs."""

    def __init__(self, url: str, rate: float) -> None:
        self._url = url
        self._rate = rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed")
        self.sent = 0
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        """As many rows at a time as are due, so that a slow statement is followed by a larger one."""
        if not self._rate:
            return
        with psycopg.connect(self._url, autocommit=True) as connection:
            began = time.monotonic()
            while not self._over.wait(FEED_SECONDS):
                self.seconds = time.monotonic() - began
                due = int(self.seconds * self._rate) - self.sent
                if due:
                    connection.execute(QUEUE_AND_NOTIFY, {"payload": "", "count": due})
                    self.sent += due


def pickups(server: Server, place: Place, system: System, *, rate: float, seed: int) -> list[float]:
    """Milliseconds from before the insert to the handler's first line, while `rate` other tasks a second are queued."""
    lines = place.folder / f"pickups-{time.monotonic_ns()}"
    lines.touch()

    def found() -> list[float]:
        return [1000 * float(line) for line in lines.read_text().splitlines()]

    with server.filled(place, system, 0) as url, psycopg.connect(url, autocommit=True) as connection:

        def probe() -> None:
            connection.execute(QUEUE_AND_NOTIFY, {"payload": f"{boot_time()} {lines}", "count": 1})

        command = system.worker(place, url)
        with working(place, system, command):
            address = command.environment["INTERVALJOB_HTTP_ADDRESS"]
            wait(lambda: is_ready(address), "the worker is ready", within=60)
            probe()  # the first one waits for an executor to be forked
            wait(lambda: len(found()) == 1, "the first task", within=30)
            gaps = random.Random(seed)
            with Feed(url, rate) as feed:
                due = time.monotonic() + 1  # the feed has settled by then
                for _ in range(PROBES):
                    due += gaps.expovariate(PROBES_PER_SECOND)
                    time.sleep(max(0.0, due - time.monotonic()))
                    probe()
                wait(lambda: len(found()) == PROBES + 1, "the probes", within=60)
            if rate:
                say(f"{system.name}: the feed was {feed.sent / feed.seconds:.0f}/s of {rate:.0f}/s")
    return found()[1:]


def is_ready(address: str) -> bool:
    """Whether a worker of ours says so."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError), opener.open(f"http://{address}/readyz", timeout=1) as answer:
        return bool(answer.status == 200)
    return False


def throughput_table(runs: dict[str, list[Measured]]) -> Iterator[str]:
    """A line for each system; ratios are medians of the rounds' ratios, since neighbours in time share their noise."""
    yield "| system | settings | tasks | n | tasks/s, median | min-max | ÷ ours | own CPU | Postgres CPU | WAL |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, measured in runs.items():
        rates = [run.rate for run in measured]
        pairs = zip(measured, runs.get("ours", []), strict=False)
        ratios = [run.rate / ours.rate for run, ours in pairs]
        tasks = measured[0].tasks
        own, postgres = (
            f"{median(getattr(run.used, what) for run in measured) / tasks * 1e6:.0f} µs"
            for what in ("own_seconds", "postgres_seconds")
        )
        wal = f"{median(run.used.wal_bytes for run in measured) / tasks:.0f} B"
        cells = [name, SYSTEMS[name].settings, f"{tasks:,}", str(len(rates)), f"{median(rates):,.0f}"]
        cells += [f"{min(rates):,.0f}-{max(rates):,.0f}", f"{median(ratios):.2f}" if ratios else "", own, postgres, wal]
        yield f"| {' | '.join(cells)} |"


def pickup_table(pickups_by_load: dict[tuple[str, str], list[float]]) -> Iterator[str]:
    """A line for each system and load, in milliseconds."""
    yield "| pick-up, ms | load | n | p50 | p95 | p99 | max |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for (name, load), times in pickups_by_load.items():
        ordered = sorted(times)
        shares = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95, 0.99)]
        yield f"| {name} | {load} | {len(times)} | {' | '.join(f'{at:.1f}' for at in [*shares, ordered[-1]])} |"


def versions(server: Server, place: Place) -> Iterator[str]:
    """What was measured, and on what."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    yield f"machine: {os.cpu_count()} cores, {model[1] if model else platform.machine()}"
    yield f"Postgres {server.version()}, Python {platform.python_version()}, psycopg {version('psycopg')}"
    for folder in sorted((place.folder / "packages").glob("*")):
        interpreter = INTERPRETERS.get(folder.name, sys.executable)
        python = subprocess.run([interpreter, "--version"], check=True, capture_output=True, text=True).stdout.strip()
        found = sorted(f"{one.name} {one.version}" for one in distributions(path=[str(folder)]) if one.name in DRIVERS)
        yield f"{PACKAGES[folder.name][0]} with {', '.join(found)}, {python}"
    if place.river.exists():
        go = subprocess.run(["go", "version"], check=True, capture_output=True, text=True).stdout.split()[2]
        river = re.search(r"riverqueue/river (\S+)", (ROOT / "benchmarks" / "river" / "go.mod").read_text())
        yield f"{go}, River {river[1] if river else '?'}"


def main() -> None:
    """Run it and print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=60_000, help="for each run; slow systems get fewer")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="comma-separated, of the default")
    parser.add_argument(
        "--latency", action="store_true", help="measure the pick-up of ours, too, idle and at half load"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the gaps between the tasks that are picked up")
    options = parser.parse_args()
    chosen = options.systems.split(",")
    if unknown := set(chosen) - set(SYSTEMS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.rounds < 1 or options.tasks < 1:
        parser.error("--rounds and --tasks are at least 1")
    load = os.getloadavg()[1]
    runs: dict[str, list[Measured]] = {name: [] for name in chosen}
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="intervaljob-bench-") as folder, Postgres(durable=True) as postgres:
        place, server = Place(Path(folder)), Server(postgres)
        for name, why in install(place, [SYSTEMS[name] for name in chosen]).items():
            say(f"{name} is left out: {why}")
            del runs[name]
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            for name, measured in runs.items():
                measured.append(measure(server, place, SYSTEMS[name], options.tasks))
        for name in runs if options.latency else ():
            if name.startswith("ours"):
                half = median(run.rate for run in runs[name]) / 2
                times[name, "idle"] = pickups(server, place, SYSTEMS[name], rate=0, seed=options.seed)
                times[name, f"{half:.0f}/s"] = pickups(server, place, SYSTEMS[name], rate=half, seed=options.seed)
        print(*throughput_table(runs), sep="\n")
        if times:
            print("", *pickup_table(times), sep="\n")
        print("", *versions(server, place), sep="\n")
    print(f"load of the machine in the five minutes before: {load:.2f}")
    print(f"command: python benchmarks/throughput.py {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
