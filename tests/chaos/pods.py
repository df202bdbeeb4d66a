"""A campaign on a cluster: one worker Pod after the other is deleted by force, with its tasks; then the proof."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from chaos.campaign import UNFINISHED
from chaos.checker import check
from chaos.handlers import boot_time
from chaos.ledger_reader import read_ledger
from chaos.record import Violation
from chaos.workload import NAMESPACE, Job, Kind, draw, manifests
from cluster_support import eventually
from psycopg.rows import dict_row
from real_cluster import IMAGE, Cluster, Release

WORKERS = 3

#: Where workers write what really ran: a volume that they share.
_LEDGER = "/chaos"
_IMAGE = f"{IMAGE}-chaos:dev"
_DOCKERFILE = """
ARG INTERVALJOB_IMAGE
FROM ${INTERVALJOB_IMAGE}
COPY handlers.py chaos_handlers.py
"""
_VOLUME = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "chaos"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}
_POOL = {
    "image": {"repository": _IMAGE.rpartition(":")[0], "tag": "dev"},
    "handlers": ["chaos_handlers"],
    "replicas": WORKERS,
    "concurrency": 16,
    "drainSeconds": 2,
    "cancelSeconds": 1,
    "volumes": [{"name": "chaos", "persistentVolumeClaim": {"claimName": "chaos"}}],
    "volumeMounts": [{"name": "chaos", "mountPath": _LEDGER}],
}
_KINDS = (
    Kind("short", 30, "return", (0.05, 0.5), (5, 10)),
    Kind("async", 10, "return", (0.05, 1.0), (5, 10), handler="chaos.async"),
    Kind("long", 30, "return", (6, 12), (5, 10)),
    Kind("forbid", 10, "return", (2, 6), (5, 10), spec={"concurrencyPolicy": "Forbid"}),
    Kind("replace", 10, "return", (2, 6), (5, 10), spec={"concurrencyPolicy": "Replace"}),
    Kind("careful", 10, "return", (1, 3), (5, 10), spec={"recoveryPolicy": "Fail"}),
)
#: Attempts of one worker whose handlers may be run again, begun long enough ago to be in the ledger.
_RUNNING = """
    SELECT task.id::text, task.attempt
    FROM intervaljob.tasks AS task
    JOIN intervaljob.workers AS worker ON worker.id = task.worker_id
    JOIN intervaljob.jobs AS job ON job.id = task.job_id
    WHERE task.status = 'running' AND worker.name = %(worker)s AND worker.ended_at IS NULL
        AND job.recovery_policy = 'Rerun' AND task.started_at < now() - interval '0.3 seconds'
"""


@dataclass(frozen=True)
class Kill:
    """A Pod that was deleted by force at a boot time, and the attempts that it ran just before."""

    worker: str
    at: float
    attempts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Outcome:
    """`gaps` are the seconds from each kill until a task that the Pod ran began again."""

    kills: list[Kill]
    gaps: list[float]
    violations: list[Violation]


def run(cluster: Cluster, release: Release, *, kills: int, folder: Path, seed: int = 1) -> Outcome:
    """On a release that is installed; what it leaves is in `folder`."""
    source = random.Random(seed)
    jobs = draw(source, _KINDS, count=24, ledger=_LEDGER)
    _prepare(cluster, release, folder)
    with release.database() as url, _connected(url) as database:
        apply(cluster, jobs)
        done = [_kill(release, database, source) for _ in range(kills)]
        release.ready("worker", count=WORKERS)
        apply(cluster, jobs, suspend=True)
        eventually(lambda: not any(_row(database, UNFINISHED).values()), what="everything has ended", within=120)
        _collect(cluster, release, folder, done)
        violations, _ = check(folder, url)
    return Outcome(kills=done, gaps=_gaps(folder, done), violations=violations)


def apply(cluster: Cluster, jobs: list[Job], *, suspend: bool = False) -> None:
    cluster.kubectl("apply", "--server-side", "--filename=-", input=manifests(jobs, suspend=suspend))


def _prepare(cluster: Cluster, release: Release, folder: Path) -> None:
    context = folder / "image"
    context.mkdir(parents=True)
    (context / "Dockerfile").write_text(_DOCKERFILE)
    (context / "handlers.py").write_text(Path(__file__).with_name("handlers.py").read_text())
    cluster.load(context, _IMAGE, f"INTERVALJOB_IMAGE={IMAGE}:dev")
    cluster.make_namespace(NAMESPACE)
    cluster.kubectl("--namespace", release.namespace, "apply", "--filename=-", input=json.dumps(_VOLUME))
    release.upgrade(workers={"default": _POOL})
    release.kubectl("rollout", "status", f"deployment/{release.name}-worker-default", "--timeout=120s")
    (worker, *_) = release.ready("worker", count=WORKERS)
    release.execute(worker, f"import os; os.mkdir('{_LEDGER}/locks')")


@contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("SET search_path = intervaljob")
        yield connection


def _row(database: psycopg.Connection[dict[str, Any]], query: str) -> dict[str, Any]:
    (row,) = database.execute(query.encode()).fetchall()
    return row


def _kill(release: Release, database: psycopg.Connection[dict[str, Any]], source: random.Random) -> Kill:
    """One Pod, as soon as it runs something; the next kill waits until all of them are ready again."""
    worker = source.choice(release.ready("worker", count=WORKERS))

    def running() -> tuple[tuple[str, int], ...]:
        rows = database.execute(_RUNNING.encode(), {"worker": worker}).fetchall()
        return tuple((row["id"], row["attempt"]) for row in rows)

    attempts = eventually(running, what=f"{worker} runs something", within=60)
    at = boot_time()
    release.kubectl("delete", "pod", worker, "--force", "--grace-period=0")
    return Kill(worker, at, attempts)


def _collect(cluster: Cluster, release: Release, folder: Path, kills: list[Kill]) -> None:
    """What the checker reads: the ledger, the resources, and what was done."""
    time.sleep(2)  # a status that is written now was written before
    (worker, *_) = release.ready("worker", count=WORKERS)
    ledger = release.execute(worker, f"print(open('{_LEDGER}/ledger.jsonl').read(), end='')")
    (folder / "ledger.jsonl").write_text(ledger)
    resources = cluster.kubectl("--namespace", NAMESPACE, "get", "intervaljobs", "--output=json")
    (folder / "resources.json").write_text(resources)
    faults = ({"event": "fault", "kind": "kill_worker", "target": kill.worker, "from": kill.at} for kill in kills)
    (folder / "injections.jsonl").write_text("".join(json.dumps(fault) + "\n" for fault in faults))


def _gaps(folder: Path, kills: list[Kill]) -> list[float]:
    """Attempts that had ended before the kill reached them have no successor."""
    traces = read_ledger(folder / "ledger.jsonl").traces
    return [
        traces[task][number + 1].begin - kill.at
        for kill in kills
        for task, number in kill.attempts
        if number + 1 in traces.get(task, {})
    ]
