"""The faults of a campaign. Each is a generator: what it does until `yield`, and how it is healed afterwards."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from chaos.handlers import boot_time, open_gate
from chaos.world import LEASE_SECONDS, Member, Pid, World

Acting = Generator[None]


@dataclass(frozen=True)
class Fault:
    """A kind of fault; `weight` is how often it is drawn, `seconds` how long it lasts, from and to."""

    act: Callable[[World], Acting]
    weight: int
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def kind(self) -> str:
        return self.act.__name__


def kill_manager(world: World) -> Acting:
    """SIGKILL, and the same name again later, or at once."""
    worker = _choose(world, world.workers)
    since = boot_time()
    worker.stop(signal.SIGKILL)
    world.journal.fault("kill_manager", target=worker.name, since=since)
    yield
    worker.start()


def replace_worker(world: World) -> Acting:
    """SIGKILL, and somebody of another name in its place: only the lease tells that it is dead."""
    worker = _choose(world, world.workers)
    since = boot_time()
    worker.stop(signal.SIGKILL)
    world.journal.fault("kill_worker", target=worker.name, since=since)
    del world.members[worker.name]
    new = world.add_worker(f"{worker.name.partition('.')[0]}.{int(since * 1000)}")
    world.members[new.name] = new
    new.start()
    yield


def kill_executors(world: World) -> Acting:
    """SIGKILL to one to three of the processes that run handlers, as the kernel does when memory is short."""
    worker = _choose(world, world.workers)
    for pid in _some(world, worker.executors(), world.random.randint(1, 3)):
        since = boot_time()
        if _send([pid], signal.SIGKILL):
            world.journal.fault("kill_executor", target=worker.name, since=since, pid=pid)
    yield


def kill_zygote(world: World) -> Acting:
    """SIGKILL to the process that executors are forked from."""
    worker = _choose(world, world.workers)
    since = boot_time()
    if _send([worker.zygote()], signal.SIGKILL):
        world.journal.fault("kill_zygote", target=worker.name, since=since)
    yield


def freeze_manager(world: World) -> Acting:
    """SIGSTOP to the manager alone: its executors have to notice by themselves."""
    worker = _choose(world, world.workers)
    yield from _frozen(world, worker, "freeze_manager", [worker.pid])


def freeze_worker(world: World) -> Acting:
    """SIGSTOP to everything of a worker, as when its container is paused."""
    worker = _choose(world, world.workers)
    yield from _frozen(world, worker, "freeze_worker", [worker.pid, worker.zygote(), *worker.executors()])


def kill_operator(world: World) -> Acting:
    operator = _choose(world, world.operators)
    since = boot_time()
    operator.stop(signal.SIGKILL)
    world.journal.fault("kill_operator", target=operator.name, since=since)
    yield
    operator.start()


def freeze_operator(world: World) -> Acting:
    operator = _choose(world, world.operators)
    yield from _frozen(world, operator, "freeze_operator", [operator.pid])


def drain_worker(world: World) -> Acting:
    """SIGTERM, as in a rolling restart."""
    worker = _choose(world, world.workers)
    since = boot_time()
    worker.ask_to_end()
    yield
    worker.stop(signal.SIGTERM)
    world.journal.fault("drain_worker", target=worker.name, since=since)
    worker.start()


def crash_postgres(world: World) -> Acting:
    """SIGQUIT: it recovers from its log when it starts again."""
    since = boot_time()
    world.stack.postgres.stop("immediate")
    yield
    world.stack.postgres.start()
    world.journal.fault("crash_postgres", target="postgres", since=since)


def cut_connections(world: World) -> Acting:
    """pg_terminate_backend, of all of ours or of a random half."""
    since = boot_time()
    share = world.random.choice([0.5, 1.0])
    cut = world.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'intervaljob%%' AND random() < %(share)s",
        share=share,
    )
    world.journal.fault("cut_connections", target="postgres", since=since, count=len(cut))
    yield


def proxy_stalls(world: World) -> Acting:
    """Nothing passes, and no connection ends."""
    yield from _through(world, "proxy_stalls", lambda member: member.proxy.stall())


def proxy_keeps_answers(world: World) -> Acting:
    """What is sent arrives, and no answer comes back: COMMITs happen, and nobody hears of it."""
    yield from _through(world, "proxy_keeps_answers", lambda member: member.proxy.stall_answers())


def proxy_drops(world: World) -> Acting:
    """RST on every connection; new ones are fine."""
    yield from _through(world, "proxy_drops", lambda member: member.proxy.drop())


def proxy_refuses(world: World) -> Acting:
    yield from _through(world, "proxy_refuses", lambda member: member.proxy.refuse())


def proxy_forgets(world: World) -> Acting:
    """The connections that are there never answer again; new ones are fine."""
    yield from _through(world, "proxy_forgets", lambda member: member.proxy.forget())


def late_ends(world: World) -> Acting:
    """Ends of attempts are sent, their worker is killed, and they arrive while the next attempts of their tasks run."""
    worker = _choose(world, world.workers)
    since = boot_time()
    worker.proxy.hold_back(_END_OF_AN_ATTEMPT)
    open_gate(world.folder)
    time.sleep(0.5)
    killed = boot_time()
    worker.stop(signal.SIGKILL)
    world.journal.fault("kill_manager", target=worker.name, since=killed)
    worker.start()
    yield
    worker.proxy.heal()
    world.journal.fault("late_ends", target=worker.name, since=since)


def stop_apiserver(world: World) -> Acting:
    since = boot_time()
    world.stack.control_plane.stop_apiserver()
    yield
    world.stack.control_plane.start_apiserver()
    world.journal.fault("stop_apiserver", target="kube-apiserver", since=since)


def read_only(world: World) -> Acting:
    """As after a failover to a standby."""
    since = boot_time()
    _default_read_only(world, "on")
    yield
    _default_read_only(world, "off")
    world.journal.fault("read_only", target="postgres", since=since)


def disk_full(world: World) -> Acting:
    """SQLSTATE 53100 for whatever is written to the queue and the tasks."""
    since = boot_time()
    world.sql(
        "CREATE OR REPLACE FUNCTION chaos_disk_full() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = '53100'; END $$"
    )
    tables = ("river_job", "tasks")
    for table in tables:
        world.sql(
            f"CREATE TRIGGER chaos_disk_full BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION chaos_disk_full()"
        )
    yield
    for table in tables:
        world.sql(f"DROP TRIGGER chaos_disk_full ON {table}")
    world.journal.fault("disk_full", target="postgres", since=since)


def delete_rows(world: World) -> Acting:
    """A task's row, or queue jobs that run or wait: each is written down before it is committed."""
    what = world.random.choice(list(_VICTIMS))
    table, condition = _VICTIMS[what]
    with world.connect() as connection:
        rows = connection.execute(
            f"""DELETE FROM {table} AS victim WHERE id IN (
                SELECT id FROM {table} WHERE {condition} ORDER BY random() LIMIT 2 FOR UPDATE SKIP LOCKED
            ) RETURNING victim.id, {_OWNERS[table]}""".encode()
        ).fetchall()
        for row in rows:
            world.journal.write("deleted", table=table, at=boot_time(), what=what, **row)
    if rows:
        world.journal.fault("delete_rows", target=what, since=boot_time(), count=len(rows))
    yield


def delete_workers(world: World) -> Acting:
    """Rows of workers that have ended may go; of one that lives the database refuses it."""
    with world.connect() as connection:
        rows = connection.execute(
            b"DELETE FROM workers WHERE ended_at IS NOT NULL RETURNING id, NULL AS task, NULL AS job"
        ).fetchall()
        for row in rows:
            world.journal.write("deleted", table="workers", at=boot_time(), **row)
    world.journal.fault("delete_workers", target="ended", since=boot_time(), count=len(rows))
    try:
        if world.sql("DELETE FROM workers WHERE ended_at IS NULL RETURNING id"):
            world.problem("the database let rows of living workers be deleted")
    except psycopg.errors.RaiseException:
        world.journal.fault("delete_living_worker_refused", target="workers", since=boot_time())
    yield


def run_now(world: World) -> Acting:
    for name in _some(world, sorted(world.jobs), 3):
        world.journal.write("run_requested", job=world.uids[name], at=boot_time())
        world.kubectl("annotate", "ivj", name, "--overwrite", f"intervaljob.dev/run-requested-at={boot_time()}")
        world.journal.fault("run_now", target=name, since=boot_time())
    yield


def cancel(world: World) -> Acting:
    for name in _some(world, sorted(world.jobs), 5):
        world.journal.write("cancel_requested", job=world.uids[name], at=boot_time())
        world.kubectl("annotate", "ivj", name, "--overwrite", f"intervaljob.dev/cancel-requested-at={boot_time()}")
        world.journal.fault("cancel", target=name, since=boot_time())
    yield


def delete_resources(world: World) -> Acting:
    for name in _some(world, sorted(world.jobs), 2):
        world.journal.write("deleted_resource", job=world.uids[name], at=boot_time())
        del world.jobs[name]
        world.kubectl("delete", "ivj", name, "--wait=false")
        world.journal.fault("delete_resource", target=name, since=boot_time())
    yield


FAULTS: Sequence[Fault] = (
    Fault(kill_manager, 10, (0.0, 8.0)),
    Fault(replace_worker, 4),
    Fault(kill_executors, 12),
    Fault(kill_zygote, 4),
    Fault(freeze_manager, 6, (0.3 * LEASE_SECONDS, 2.5 * LEASE_SECONDS)),
    Fault(freeze_worker, 6, (0.3 * LEASE_SECONDS, 2.5 * LEASE_SECONDS)),
    Fault(kill_operator, 5, (0.0, 5.0)),
    Fault(freeze_operator, 4, (1.0, 12.0)),
    Fault(drain_worker, 5, (0.0, 3.0)),
    Fault(crash_postgres, 5, (0.5, 12.0)),
    Fault(cut_connections, 6),
    Fault(proxy_stalls, 5, (1.0, 12.0)),
    Fault(proxy_keeps_answers, 6, (0.5, 10.0)),
    Fault(proxy_drops, 4),
    Fault(proxy_refuses, 4, (1.0, 10.0)),
    Fault(proxy_forgets, 4, (1.0, 10.0)),
    Fault(stop_apiserver, 2, (10.0, 60.0)),
    Fault(read_only, 3, (1.0, 6.0)),
    Fault(disk_full, 3, (1.0, 6.0)),
    Fault(delete_rows, 8),
    Fault(delete_workers, 3),
    Fault(run_now, 5),
    Fault(cancel, 5),
    Fault(delete_resources, 1),
)

#: Part of each round, whatever else is drawn: by chance, what only the attempt's number keeps from harm is too rare.
ALWAYS = Fault(late_ends, 0, (5.0, 8.0))

#: What a message has that tells Postgres how attempts ended.
_END_OF_AN_ATTEMPT = b'"delay_seconds"'

_VICTIMS = {
    "a running task": ("tasks", "status = 'running'"),
    "a waiting task": ("tasks", "status IN ('recovering', 'retrying')"),
    "a running queue job": ("river_job", "state = 'running'"),
    "a waiting queue job": ("river_job", "state IN ('available', 'retryable', 'scheduled')"),
    "a recovery job": ("river_job", "state = 'available' AND args ? 'task_id'"),
}
_OWNERS = {
    "tasks": "victim.id::text AS task, victim.job_id::text AS job",
    "river_job": """coalesce(
            victim.args ->> 'task_id', (SELECT id::text FROM tasks WHERE queue_job_id = victim.id)
        ) AS task, victim.args ->> 'job_id' AS job""",
}


def _choose(world: World, members: Sequence[Member]) -> Member:
    """One that runs, where there is one."""
    running = [member for member in members if member.pid is not None]
    return world.random.choice(running or list(members))


def _some(world: World, things: Sequence[Any], most: int) -> list[Any]:
    return world.random.sample(things, min(most, len(things)))


def _send(pids: Sequence[int | None], signum: signal.Signals) -> list[Pid]:
    """Who got it."""
    found = [Pid.of(pid) for pid in pids if pid is not None]
    return [pid for pid in found if pid is not None and pid.send(signum)]


def _frozen(world: World, member: Member, kind: str, pids: Sequence[int | None]) -> Acting:
    since = boot_time()
    stopped = _send(pids, signal.SIGSTOP)
    yield
    for pid in stopped:
        pid.send(signal.SIGCONT)
    world.journal.fault(kind, target=member.name, since=since)


def _through(world: World, kind: str, act: Callable[[Member], None]) -> Acting:
    member = world.random.choice([*world.workers, *world.workers, *world.operators])
    since = boot_time()
    act(member)
    yield
    member.proxy.heal()
    world.journal.fault(kind, target=member.name, since=since)


def _default_read_only(world: World, value: str) -> None:
    world.sql(f"ALTER DATABASE intervaljob SET default_transaction_read_only = {value}")
    with suppress(psycopg.OperationalError):
        world.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'intervaljob%%'")
