"""Many IntervalJobs on one machine: how late their occurrences are queued, and whether one is lost or doubled.

    python benchmarks/schedule.py --jobs 1000 --interval 10 --minutes 5

Starts everything on this machine (a durable Postgres, a control plane, one operator, two workers), creates the
IntervalJobs, lets them run, and reads the answers from the rows and from the API server's own count of requests.
"""

import argparse
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator

import psycopg
from psycopg.rows import dict_row

from intervaljob.embedded.programs import find
from intervaljob.embedded.stack import Stack

STATUS_WRITES = 20.0


def manifests(count: int, interval: int) -> str:
    """A List of IntervalJobs whose creation, and so whose anchor, is spread by the time that creating takes."""
    items = [
        {
            "apiVersion": "intervaljob.dev/v1alpha1",
            "kind": "IntervalJob",
            "metadata": {"name": f"bench-{number:05d}", "namespace": "default"},
            "spec": {"interval": f"{interval}s", "handler": "echo", "payload": "{}", "workspaceId": str(uuid.uuid4())},
        }
        for number in range(count)
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def status_writes(stack: Stack) -> float:
    """Status patches that the API server has answered."""
    text = stack.kubectl("get", "--raw", "/metrics")
    line = re.compile(
        r'^apiserver_request_total\{[^}]*"intervaljobs"[^}]*subresource="status"[^}]*verb="PATCH"[^}]*\} (\S+)$',
        re.MULTILINE,
    )
    return sum(float(value) for value in line.findall(text))


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))]


def cpu_seconds(pid: int) -> Iterator[float]:
    """User and system time of a process and the children it has waited for."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()  # noqa: PTH123, SIM115
    yield from (int(value) / os.sysconf("SC_CLK_TCK") for value in fields[11:15])


LATENESS = """
    SELECT extract(epoch FROM queue_job.created_at - queue_job.scheduled_at)::float8 AS queued,
        extract(epoch FROM task.started_at - queue_job.scheduled_at)::float8 AS started
    FROM intervaljob.river_job AS queue_job
    LEFT JOIN intervaljob.tasks AS task ON task.queue_job_id = queue_job.id
    WHERE queue_job.scheduled_at > %(since)s AND queue_job.scheduled_at <= %(until)s
"""
# Every occurrence that was due in the window, by arithmetic, beside the tasks that were run for it.
AUDIT = """
    SELECT count(*) FILTER (WHERE runs = 0) AS lost, count(*) FILTER (WHERE runs > 1) AS doubled, count(*) AS due
    FROM (
        SELECT count(task.id) AS runs
        FROM intervaljob.jobs AS job
        CROSS JOIN LATERAL generate_series(
            job.anchor + ceil(extract(epoch FROM %(since)s - job.anchor) / job.interval_seconds)
                * make_interval(secs => job.interval_seconds),
            %(until)s, make_interval(secs => job.interval_seconds)
        ) AS due
        LEFT JOIN intervaljob.tasks AS task ON task.job_id = job.id AND task.scheduled_for = due
            AND task.status = 'succeeded'
        GROUP BY job.id, due
    ) AS occurrence
"""


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--interval", type=int, default=10, help="seconds")
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    with Stack(programs=find(report=print)) as stack:
        operator = stack.start_operator(INTERVALJOB_STATUS_WRITES_PER_SECOND=str(STATUS_WRITES))
        for number in (1, 2):
            stack.start_worker(f"worker-{number}")
        begun = time.monotonic()
        stack.kubectl("create", "-f", "-", input=manifests(options.jobs, options.interval))
        print(f"{options.jobs} IntervalJobs created in {time.monotonic() - begun:.1f} s", flush=True)
        with psycopg.connect(stack.database_url, autocommit=True, row_factory=dict_row) as database:
            wait_for_rows(database, options.jobs)
            time.sleep(options.interval)
            measure(stack, database, operator.pid, minutes=options.minutes)


def wait_for_rows(database: psycopg.Connection[dict[str, object]], count: int) -> None:
    """Until every IntervalJob has its row."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        (row,) = database.execute("SELECT count(*) AS rows FROM intervaljob.jobs").fetchall()
        if row["rows"] == count:
            return
        time.sleep(0.2)
    raise SystemExit(f"not all of {count} rows were there after 120 s")


def measure(stack: Stack, database: psycopg.Connection[dict[str, object]], operator: int, *, minutes: float) -> None:
    """Let it run for a while, then ask the rows."""
    (clock,) = database.execute("SELECT now() AS since").fetchall()
    writes, cpu, begun = status_writes(stack), sum(cpu_seconds(operator)), time.monotonic()
    time.sleep(minutes * 60)
    seconds = time.monotonic() - begun
    writes, cpu = status_writes(stack) - writes, sum(cpu_seconds(operator)) - cpu
    (end,) = database.execute("SELECT now() - interval '5 seconds' AS until").fetchall()
    window = {"since": clock["since"], "until": end["until"]}
    time.sleep(5)
    rows = database.execute(LATENESS, window).fetchall()
    (audit,) = database.execute(AUDIT, window).fetchall()
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"occurrences due: {audit['due']}, lost: {audit['lost']}, doubled: {audit['doubled']}")
    for name, what in (("queued", "due → queue job"), ("started", "due → task started")):
        values = sorted(float(str(row[name])) for row in rows if row[name] is not None)
        figures = ", ".join(f"p{int(share * 100)} {percentile(values, share):.3f} s" for share in (0.5, 0.99))
        print(f"{what}: {figures}, max {values[-1]:.3f} s (n = {len(values)})")
    print(f"status writes: {writes / seconds:.1f}/s (bound {STATUS_WRITES:.0f}/s); operator: {cpu / seconds:.2f} cores")


if __name__ == "__main__":
    main()
