"""What many IntervalJobs cost an operator: memory, processor, statements, and how soon what is edited takes effect.

    python benchmarks/many.py --jobs 100000

Starts everything on this machine (a durable Postgres, a control plane, one operator at a time, one worker) and makes
the IntervalJobs before there is an operator. They are due in a year, so nothing of theirs runs; what ends in the last
part is written into `tasks` and `transitions` as a worker would write it. Statements are those that Postgres logs
(`log_statement=all`), BEGIN and COMMIT among them.
"""

import argparse
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.cluster import Cluster

from intervaljob.embedded.programs import find
from intervaljob.embedded.stack import Process, Stack

MB = 1_000_000
REST_SECONDS = 30
FINISHED_PER_SECOND = 100
FINISHING_SECONDS = 60
EDITED = 100
KIND = {"apiVersion": "intervaljob.dev/v1alpha1", "kind": "IntervalJob"}
PAYLOAD = '{"report": "monthly", "format": "pdf", "recipients": ["one@example.com", "two@example.com"]}'
SPEC = {"interval": "366d", "handler": "echo", "payload": PAYLOAD}
RIGHT = "SELECT count(*) AS rows FROM intervaljob.jobs WHERE deleted_at IS NULL AND payload = %(payload)s"
UNWRITTEN = "SELECT count(*) AS rows FROM intervaljob.job_status WHERE revision > written_revision"
FINISH = """
    WITH task AS (
        INSERT INTO intervaljob.tasks (id, job_id, status, attempt, scheduled_for, started_at, finished_at, error)
        SELECT gen_random_uuid(), job_id, status, 1, now(), now(), now(), CASE status WHEN 'failed' THEN 'it broke' END
        FROM unnest(%(jobs)s::uuid[], %(kinds)s::text[]) AS ended(job_id, status)
        RETURNING id, job_id, status, error
    )
    INSERT INTO intervaljob.transitions (job_id, task_id, kind, detail) SELECT job_id, id, status, error FROM task
"""

Database = psycopg.Connection[dict[str, Any]]
lines: list[str] = []


def report(what: str, value: str) -> None:
    """One line of the table, printed at once, too."""
    lines.append(f"| {what} | {value} |")
    print(f"[{time.strftime('%H:%M:%S')}] {what}: {value}", flush=True)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(value) for value in fields[11:13]) / float(os.sysconf("SC_CLK_TCK"))


def memory(pid: int) -> str:
    """Resident now and at most, in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    now, peak = (int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) * 1024 / MB for name in ("VmRSS", "VmHWM"))
    return f"{now:.0f} MB (peak {peak:.0f} MB)"


def spread(values: Sequence[float]) -> str:
    """Median and maximum, in seconds."""
    ordered = sorted(values)
    return f"p50 {ordered[len(ordered) // 2]:.3f} s, max {ordered[-1]:.3f} s (n = {len(ordered)})"


def until(look: Callable[[], bool], *, within: float, pause: float = 0.02) -> float:
    """Seconds until this is so, and no longer than `within`."""
    begun = time.monotonic()
    while not look() and time.monotonic() - begun < within:
        time.sleep(pause)
    return time.monotonic() - begun


class Bench:
    """The parts of the measurement, in the order in which they are called."""

    def __init__(self, stack: Stack, database: Database, postgres_log: Path) -> None:
        self.stack = stack
        self.database = database
        self.cluster = Cluster(stack.control_plane)
        self._postgres_log = postgres_log
        self._random = random.Random(6)
        self._payloads = 0

    def count(self, query: str, **parameters: Any) -> int:
        """What a query counts."""
        (row,) = self.database.execute(query.encode(), parameters or None).fetchall()
        return int(row["rows"])

    def some(self, count: int) -> list[str]:
        """Names of IntervalJobs, any."""
        return self._random.sample(sorted(self.cluster.uids), count)

    def edit(self, name: str) -> float:
        """Seconds from the answer to an edit until the row has it."""
        self._payloads += 1
        payload = f"edit {self._payloads}"
        self.cluster.patch([name], {"spec": {"payload": payload}})
        query = "SELECT count(*) AS rows FROM intervaljob.jobs WHERE id = %(id)s AND payload = %(payload)s"
        found = until(
            lambda: self.count(query, id=self.cluster.uids[name], payload=payload) == 1, within=300, pause=0.005
        )
        self.cluster.patch([name], {"spec": {"payload": PAYLOAD}})
        return found

    @contextmanager
    def operator(self, what: str, **environment: str) -> Iterator[Process]:
        """An operator that is ready; reports what it had grown to."""
        process = self.stack.start_operator(what, **environment)
        try:
            yield process
            report(f"operator, {what}: memory", memory(process.pid))
        finally:
            process.terminate()

    def until_right(self, begun: float) -> float:
        """Seconds since then when every row is as its IntervalJob, and no other is there."""
        wanted = len(self.cluster.uids)
        until(lambda: self.count(RIGHT, payload=PAYLOAD) == wanted, within=900, pause=0.2)
        return time.monotonic() - begun

    def first_start(self) -> None:
        """No rows yet; one is edited each second or so while they come."""
        begun = time.monotonic()
        with self.operator("first start") as operator:
            edits = []
            while self.count(RIGHT, payload=PAYLOAD) < 0.95 * len(self.cluster.uids):
                edits.append(self.edit(self.some(1)[0]))
                time.sleep(1)
            report("first start: all rows right after", f"{self.until_right(begun):.1f} s")
            report("first start: processor until then", f"{cpu_seconds(operator.pid):.1f} s")
            report("first start: an edit meanwhile takes effect after", spread(edits or [0.0]))
            shown = self.some(1)[0]
            self.cluster.patch([shown], {"spec": {"timeZone": None, "priority": 2}})
            waiting = self.count(UNWRITTEN)
            seconds = until(lambda: self.cluster.status(shown).get("observedGeneration", 0) > 1, within=60)
            report(f"first start: an edit is shown, while {waiting} statuses wait, after", f"{seconds:.1f} s")

    def write_statuses(self) -> None:
        """As fast as an operator may, so that the rest begins with nothing to write."""
        with self.operator("writes all statuses", INTERVALJOB_STATUS_WRITES_PER_SECOND="1000") as operator:
            begun, waiting = time.monotonic(), self.count(UNWRITTEN)
            until(lambda: self.count(UNWRITTEN) == 0, within=3600, pause=0.5)
            seconds = time.monotonic() - begun
            cost = cpu_seconds(operator.pid) / max(1, waiting) * 1000
            report("status writes at most", f"{waiting / seconds:.0f}/s, {cost:.1f} ms of processor each")

    def restart(self) -> None:
        """Some were edited and some deleted while there was no operator; then the parts that need one at rest."""
        names = self.some(EDITED + 10)
        self.cluster.patch(names[:EDITED], {"spec": {"payload": PAYLOAD + " "}})
        self.cluster.patch(names[:EDITED], {"spec": {"payload": PAYLOAD}, "metadata": {"labels": {"edited": "yes"}}})
        self.cluster.delete(names[EDITED:])
        self.database.execute(
            "UPDATE intervaljob.jobs SET payload = 'stale' WHERE name = ANY(%(names)s)", {"names": names[:EDITED]}
        )
        begun = time.monotonic()
        with self.operator("restart") as operator:
            report(f"restart, {EDITED} edited and 10 deleted: all right after", f"{self.until_right(begun):.1f} s")
            report("restart: processor until then", f"{cpu_seconds(operator.pid):.1f} s")
            self.stack.start_worker("worker")
            self._until_rest(operator.pid)
            report("restart: quiet after", f"{time.monotonic() - begun:.1f} s")
            self._at_rest(operator.pid)
            report("at rest: an edit takes effect after", spread([self.edit(name) for name in self.some(20)]))
            self._finish(operator.pid)

    def relist(self) -> None:
        """Comparisons a minute apart, against a minute of rest."""
        with self.operator("comparing", INTERVALJOB_RESYNC_SECONDS="60") as operator:
            self._until_rest(operator.pid)
            used = []
            for _ in range(240):
                before = cpu_seconds(operator.pid)
                time.sleep(0.5)
                used.append(cpu_seconds(operator.pid) - before)
            cost = sum(used) - len(used) * sorted(used)[len(used) // 3]
            report("comparison of all: processor", f"{cost / 2:.1f} s ({cost / 2 / 300:.1%} of a core every 300 s)")

    def _until_rest(self, pid: int) -> None:
        """Until an operator has done little for a few seconds."""

        def quiet() -> bool:
            before = cpu_seconds(pid)
            time.sleep(4)
            return cpu_seconds(pid) - before < 0.4 and self.count(UNWRITTEN) == 0

        until(quiet, within=300)

    def _at_rest(self, pid: int) -> None:
        self.database.execute("ALTER SYSTEM SET log_statement = 'all'")
        self.database.execute("ALTER SYSTEM SET log_line_prefix = '%a|'")
        self.database.execute("SELECT pg_reload_conf()")
        time.sleep(2)
        start, cpu = self._postgres_log.stat().st_size, cpu_seconds(pid)
        time.sleep(REST_SECONDS)
        cpu = cpu_seconds(pid) - cpu
        with self._postgres_log.open() as file:
            file.seek(start)
            asked = re.findall(
                r"^(intervaljob \w+)[^|]*\|LOG:  (?:statement|execute [^:]*): *(\S*)", file.read(), re.MULTILINE
            )
        self.database.execute("ALTER SYSTEM RESET ALL")
        self.database.execute("SELECT pg_reload_conf()")
        report("at rest: operator's processor", f"{cpu / REST_SECONDS:.1%} of a core")
        report("at rest: operator's memory", memory(pid))
        for name in ("operator", "worker"):
            words = [word.upper() for program, word in asked if program == f"intervaljob {name}"]
            around = sum(word.rstrip(";") in ("BEGIN", "COMMIT", "") for word in words)
            value = f"{len(words) / REST_SECONDS:.1f}/s, of them {around / REST_SECONDS:.1f}/s BEGIN, COMMIT and pings"
            report(f"at rest: {name}'s statements", value)
        report("at rest: statements of both", f"{len(asked) / REST_SECONDS:.1f}/s")

    def _finish(self, pid: int) -> None:
        """Tasks end, 100 a second, one in a hundred failed; some IntervalJobs are edited, and some told to run."""
        with ThreadPoolExecutor(1) as pool:
            before, cpu, begun = self.cluster.writes(), cpu_seconds(pid), time.monotonic()
            finishing = pool.submit(self._keep_finishing, begun)
            time.sleep(FINISHING_SECONDS / 3)
            shown: dict[str, list[float]] = {"edited": [], "triggered": [], "failed": []}
            while not finishing.done():
                for what, delays in shown.items():
                    delays.append(self._shown_after(what))
            failures = finishing.result()
            seconds, after = time.monotonic() - begun, self.cluster.writes()
        cpu = cpu_seconds(pid) - cpu
        report(
            f"{FINISHED_PER_SECOND} tasks end a second, {failures} failed: operator", f"{cpu / seconds:.1%} of a core"
        )
        for key in sorted(after):
            rate = (after[key] - before.get(key, 0.0)) / seconds
            if rate > 0.2:
                report(f"meanwhile: {key}", f"{rate:.1f}/s")
        for what, values in shown.items():
            report(f"meanwhile: a status of one that was {what} is shown after", spread(values))
        report("meanwhile: statuses left to write", str(self.count(UNWRITTEN)))

    def _shown_after(self, what: str) -> float:
        (name,) = self.some(1)
        before = self.cluster.status(name)
        if what == "edited":
            self.cluster.patch([name], {"spec": {"priority": 3 if self._random.random() < 0.5 else 4, "suspend": True}})
            return until(
                lambda: self.cluster.status(name)["observedGeneration"] != before["observedGeneration"], within=90
            )
        if what == "triggered":
            stamp = {"intervaljob.dev/run-requested-at": str(time.time())}
            self.cluster.patch([name], {"metadata": {"annotations": stamp}})
            return until(lambda: self.cluster.status(name).get("lastScheduleTime") is not None, within=90)
        with psycopg.connect(self.stack.database_url, autocommit=True) as database:
            database.execute(FINISH, {"jobs": [self.cluster.uids[name]], "kinds": ["failed"]})
        return until(lambda: self.cluster.status(name)["counts"]["failed"] > before["counts"]["failed"], within=90)

    def _keep_finishing(self, begun: float) -> int:
        uids, failures = list(self.cluster.uids.values()), 0
        with psycopg.connect(self.stack.database_url, autocommit=True) as database:
            for number in range(FINISHING_SECONDS * 10):
                kinds = ["failed" if random.random() < 0.01 else "succeeded" for _ in range(FINISHED_PER_SECOND // 10)]
                failures += kinds.count("failed")
                database.execute(FINISH, {"jobs": random.sample(uids, len(kinds)), "kinds": kinds})
                time.sleep(max(0.0, begun + (number + 1) / 10 - time.monotonic()))
        return failures


def main() -> None:
    """Run every part and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="intervaljob-many-") as folder:
        Path(folder).chmod(0o755)
        with Stack(programs=find(report=print), data=Path(folder)) as stack:
            connect = psycopg.connect(stack.database_url, autocommit=True, row_factory=dict_row)
            with connect as database:
                bench = Bench(stack, database, Path(folder) / "postgres" / "postgres.log")
                report("machine", f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
                begun = time.monotonic()
                bench.cluster.create(options.jobs, {**KIND, "spec": SPEC})
                report("IntervalJobs", f"{options.jobs}, made in {time.monotonic() - begun:.0f} s")
                bench.first_start()
                bench.write_statuses()
                bench.restart()
                bench.relist()
    print("\n| what | figure |\n| --- | --- |", *lines, sep="\n")


if __name__ == "__main__":
    main()
