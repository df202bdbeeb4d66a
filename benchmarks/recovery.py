"""How long after a death a task runs again, by the evidence of the death; and the same for two peers.

    python benchmarks/recovery.py                # ours
    python benchmarks/recovery.py --peers        # and Procrastinate and PgQueuer at their defaults
    python benchmarks/recovery.py --cluster      # worker Pods deleted by force, on the cluster of E2E_KUBECONFIG

Everything runs on this machine, on one durable Postgres. Handlers write the boot clock to a file when they begin, so
the time is from the signal to the begin of the next attempt. Peers are installed from PyPI into a temporary folder.
The cluster is named as for `make e2e`, its nodes are on this machine, too, and nothing of ours is installed in it.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from intervaljob.embedded.programs import find
from intervaljob.embedded.stack import Process, Stack

T = TypeVar("T")

PEERS = ("procrastinate==3.10.0", "pgqueuer[asyncpg]==1.6.0")

#: The first attempt waits to be killed, the next ones return.
HANDLERS = """
import json, os, time
from intervaljob import Task, handler

@handler("bench")
def bench(task: Task) -> None:
    folder = task.payload
    at = time.clock_gettime(time.CLOCK_BOOTTIME)
    line = {"task": str(task.id), "attempt": task.attempt, "pid": os.getpid(), "at": at}
    with open(folder + "/begun", "a") as file:
        file.write(json.dumps(line) + "\\n")
    if task.attempt == 1:
        time.sleep(3600)
"""


def boot_time() -> float:
    """The clock of the handlers."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Bench:
    """One system under test: an operator, workers, and tasks that are begun and lost."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        (folder / "bench_handlers.py").write_text(HANDLERS)
        (folder / "begun").touch()
        job = {
            "apiVersion": "intervaljob.dev/v1alpha1",
            "kind": "IntervalJob",
            "metadata": {"name": "bench", "namespace": "default"},
            "spec": {"interval": "366d", "handler": "bench", "payload": str(folder), "recoveryLimit": 1000},
        }
        stack.kubectl("apply", "--filename", "-", input=json.dumps(job))
        wait(lambda: self.sql("SELECT 1 AS one FROM jobs"), "the row of the IntervalJob")

    def sql(self, text: str, **parameters: object) -> list[dict[str, Any]]:
        """In autocommit."""
        with psycopg.connect(self.stack.database_url, autocommit=True, row_factory=dict_row) as connection:
            connection.execute("SET search_path = intervaljob")
            cursor = connection.execute(text.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def worker(self, name: str, *, lease: float) -> Process:
        """One that is ready."""
        return self.stack.start_worker(
            name,
            INTERVALJOB_HANDLERS="bench_handlers",
            INTERVALJOB_LEASE_SECONDS=str(lease),
            INTERVALJOB_CONCURRENCY="200",
            INTERVALJOB_DRAIN_SECONDS="0",
            PYTHONPATH=os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")]),
        )

    def begun(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Attempts by task and number, as the handlers wrote them."""
        lines = (json.loads(line) for line in (self.folder / "begun").read_text().splitlines())
        return {(line["task"], line["attempt"]): line for line in lines}

    def start(self, count: int) -> list[dict[str, Any]]:
        """Queue so many tasks; their first attempts, once all have begun."""
        known = set(self.begun())
        self.sql(
            """INSERT INTO river_job (kind, args, queue)
            SELECT 'interval_job', jsonb_build_object(
                'job_id', id, 'user_id', user_id, 'workspace_id', workspace_id, 'payload', payload
            ), 'default' FROM jobs, generate_series(1, %(count)s)""",
            count=count,
        )
        self.sql("""SELECT pg_notify('intervaljob.river_insert', '{"queue": "default"}')""")

        def first() -> list[dict[str, Any]]:
            new = [line for key, line in self.begun().items() if key not in known and key[1] == 1]
            return new if len(new) == count else []

        return wait(first, "the tasks have begun")

    def again(self, attempts: list[dict[str, Any]], since: float, *, within: float) -> list[float]:
        """Seconds from `since` until each of these tasks began again."""
        tasks = [line["task"] for line in attempts]

        def found() -> list[float]:
            begun = self.begun()
            times = [begun[task, 2]["at"] - since for task in tasks if (task, 2) in begun]
            return times if len(times) == len(tasks) else []

        return wait(found, "the tasks run again", within=within)


def wait(look: Callable[[], T], what: str, *, within: float = 60.0) -> T:
    """What `look` returns as soon as that is true."""
    deadline = time.monotonic() + within
    while not (found := look()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {within:.0f} s: {what}")
        time.sleep(0.01)
    return found


def executors(bench: Bench, deaths: int) -> list[float]:
    """SIGKILL to one executor after the other."""
    worker = bench.worker("executors", lease=30)
    times: list[float] = []
    for attempt in bench.start(deaths):
        since = boot_time()
        os.kill(attempt["pid"], signal.SIGKILL)
        times += bench.again([attempt], since, within=30)
        time.sleep(0.2)
    worker.terminate()
    return times


def drains(bench: Bench, deaths: int) -> list[float]:
    """SIGTERM to a worker that waits for none of its tasks, while another one stands by."""
    times: list[float] = []
    for number in range(deaths):
        worker = bench.worker(f"drained-{number}", lease=30)
        attempts = bench.start(2)
        other = bench.worker(f"stands-by-{number}", lease=30)
        since = boot_time()
        os.kill(worker.pid, signal.SIGTERM)
        times += bench.again(attempts, since, within=60)
        other.terminate()
        worker.terminate()
    return times


def successors(bench: Bench, deaths: int) -> tuple[list[float], list[float]]:
    """SIGKILL to a worker that starts again under its name: from the kill, and from its new registration."""
    kills: list[float] = []
    registrations: list[float] = []
    for number in range(deaths):
        name = f"restarted-{number}"
        worker = bench.worker(name, lease=600)
        attempts = bench.start(2)
        since = boot_time()
        worker.kill()
        new = bench.worker(name, lease=600)
        found = bench.again(attempts, since, within=60)
        (row,) = bench.sql(
            "SELECT extract(epoch FROM clock_timestamp() - max(started_at))::float8 AS ago FROM workers"
            " WHERE name = %(name)s",
            name=name,
        )
        registered = boot_time() - row["ago"]
        kills += found
        registrations += [since + seconds - registered for seconds in found]
        new.terminate()
    return kills, registrations


def leases(bench: Bench, deaths: int, *, lease: float, tasks: int) -> list[float]:
    """SIGKILL to a worker that nobody replaces, while another one stands by."""
    times: list[float] = []
    for number in range(deaths):
        worker = bench.worker(f"lost-{lease:.0f}-{number}", lease=lease)
        attempts = bench.start(tasks)
        other = bench.worker(f"waits-{lease:.0f}-{number}", lease=lease)
        time.sleep((number % 10) / 10 * lease / 5)  # the last renewal is up to a fifth of the lease old
        since = boot_time()
        worker.kill()
        times += bench.again(attempts, since, within=3 * lease + 30)
        other.terminate()
    return times


def false_alarms(bench: Bench, *, seconds: float) -> str:
    """Two workers with a lease of 5 s and twenty tasks, while two programs a core take all the time there is."""
    workers = [bench.worker(f"busy-{number}", lease=5) for number in (1, 2)]
    attempts = bench.start(20)
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        time.sleep(seconds)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    (row,) = bench.sql("SELECT count(*) AS lost FROM workers WHERE name LIKE 'busy-%%' AND end_reason IS NOT NULL")
    again = sum((line["task"], 2) in bench.begun() for line in attempts)
    for worker in workers:
        worker.terminate()
    return f"{row['lost']} workers declared dead, {again} attempts lost, in {seconds:.0f} s"


PROCRASTINATE = """
import asyncio, sys, time
import procrastinate
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=sys.argv[1]))

@app.task(name="bench")
async def bench():
    with open(sys.argv[2], "a") as file:
        file.write(f"{time.clock_gettime(time.CLOCK_BOOTTIME)}\\n")
    await asyncio.sleep(3600)

async def main():
    async with app.open_async():
        if sys.argv[3] == "prepare":
            await app.schema_manager.apply_schema_async()
            await bench.defer_async()
        else:
            await app.run_worker_async()
asyncio.run(main())
"""
PGQUEUER = """
import asyncio, sys, time
import asyncpg
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver

async def main():
    connection = await asyncpg.connect(sys.argv[1])
    driver = AsyncpgDriver(connection)
    if sys.argv[3] == "prepare":
        queries = Queries(driver)
        await queries.install()
        await queries.enqueue("bench", None)
        return
    queue = PgQueuer(driver)

    @queue.entrypoint("bench")
    async def bench(job):
        with open(sys.argv[2], "a") as file:
            file.write(f"{time.clock_gettime(time.CLOCK_BOOTTIME)}\\n")
        await asyncio.sleep(3600)

    await queue.run()
asyncio.run(main())
"""


def peer(stack: Stack, folder: Path, name: str, script: str, *, bound: float) -> str:
    """SIGKILL to a worker that has a job, another one alive: until the job runs again."""
    url = stack.database_url.replace("/intervaljob", f"/{name}")
    stack.postgres.create_database(name)
    program, begun = folder / f"{name}_bench.py", folder / f"{name}.begun"
    program.write_text(script)
    begun.touch()
    environment = {**os.environ, "PYTHONPATH": str(folder / "peers")}
    log = (folder / f"{name}.log").open("ab")

    def start(what: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(program), url, str(begun), what]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    if start("prepare").wait(timeout=60) != 0:
        raise SystemExit(f"{name} could not be prepared: {(folder / f'{name}.log').read_text()[-2000:]}")
    first = start("work")
    wait(begun.read_text, f"{name} works")
    second = start("work")
    time.sleep(5)
    since = boot_time()
    first.kill()
    first.wait()
    deadline = time.monotonic() + bound
    try:
        while time.monotonic() < deadline:
            times = [float(line) for line in begun.read_text().splitlines()]
            if len(times) > 1:
                return f"{times[1] - since:.1f}"
            time.sleep(0.1)
        return f"not within {bound:.0f}"
    finally:
        second.kill()
        second.wait()
        log.close()


def pods(deaths: int) -> None:
    """The fault campaign's Pods, its jobs and its checker."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from chaos.pods import run  # noqa: PLC0415 - the only part that needs the tests
    from real_cluster import IMAGE, ROOT, Cluster, Release  # noqa: PLC0415

    cluster = Cluster.named()
    if cluster is None:
        raise SystemExit("E2E_KUBECONFIG: name a cluster, as for make e2e")
    release = Release(cluster, "intervaljob")
    cluster.load(ROOT, f"{IMAGE}:dev")
    release.install()
    try:
        with tempfile.TemporaryDirectory(prefix="intervaljob-bench-") as folder:
            outcome = run(cluster, release, kills=deaths, folder=Path(folder))
    finally:
        release.uninstall()
    print(row("intervaljob", f"Pod deleted by force, {deaths} times: each task that it ran", outcome.gaps))
    if outcome.violations:
        raise SystemExit("\n".join(map(str, outcome.violations)))
    print("\nviolations 0")


def row(system: str, what: str, times: list[float]) -> str:
    """A line of the table."""
    ordered = sorted(times)
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    return f"| {system} | {what} | {len(times)} | {p50:.3f} | {p99:.3f} | {ordered[-1]:.3f} |"


@contextmanager
def bench_of() -> Iterator[Bench]:
    """Servers, an operator, and a folder."""
    with tempfile.TemporaryDirectory(prefix="intervaljob-bench-") as name, Stack(programs=find(report=print)) as stack:
        stack.start_operator()
        yield Bench(stack, Path(name))


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--deaths", type=int, default=30, help="for each evidence")
    parser.add_argument("--peers", action="store_true", help="install and measure the peers, too")
    parser.add_argument("--cluster", action="store_true", help="measure that alone: Pods on a cluster")
    parser.add_argument("--bound", type=float, default=120.0, help="seconds to wait for a peer")
    options = parser.parse_args()
    deaths = options.deaths
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("\n| system | evidence | n | p50 s | p99 s | max s |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    if options.cluster:
        pods(deaths)
        return
    with bench_of() as bench:
        print(row("intervaljob", "executor_exited", executors(bench, deaths)), flush=True)
        print(row("intervaljob", "drained", drains(bench, max(1, deaths // 3))), flush=True)
        kills, registrations = successors(bench, max(1, deaths // 2))
        print(row("intervaljob", "superseded, from the new registration", registrations))
        print(row("intervaljob", "superseded, from the kill", kills), flush=True)
        five = leases(bench, deaths, lease=5, tasks=1)
        print(row("intervaljob", "lease_expired, lease 5 s", five), flush=True)
        thirty = leases(bench, max(1, deaths // 10), lease=30, tasks=5)
        print(row("intervaljob", "lease_expired, lease 30 s (default)", thirty), flush=True)
        alarms = false_alarms(bench, seconds=60)
        if options.peers:
            target = bench.folder / "peers"
            uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", str(target)]
            subprocess.run([*uv, *PEERS], check=True)
            for name, script in (("procrastinate", PROCRASTINATE), ("pgqueuer", PGQUEUER)):
                seconds = peer(bench.stack, bench.folder, name, script, bound=options.bound)
                print(f"| {name}, defaults | worker killed | 1 | {seconds} | | |", flush=True)
    print(f"\nfalse alarms, lease 5 s, two programs a core beside it: {alarms}")
    print(f"command: python benchmarks/recovery.py {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
