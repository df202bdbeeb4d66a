"""A campaign: rounds of faults on a system at work, then peace, then the proof."""

from __future__ import annotations

import heapq
import inspect
import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from chaos.checker import Figures, check, report
from chaos.faults import ALWAYS, FAULTS, Acting, Fault
from chaos.handlers import open_gate
from chaos.proxy import Proxy, proxy_loop
from chaos.record import Violation
from chaos.workload import NAMESPACE, draw_jobs
from chaos.world import Member, Verb, World, environment_of

from intervaljob.embedded.programs import find
from intervaljob.embedded.stack import Stack
from intervaljob.errors import EmbeddedError

#: Bounds on the return to work after a round, and to quiet at the end.
_WORKS_SECONDS = 60.0
_QUIET_SECONDS = 180.0

#: What is left to do, in numbers: all are 0 when everything has ended and every IntervalJob is suspended.
UNFINISHED = """
    SELECT
        (SELECT count(*) FROM river_job WHERE kind = 'interval_job'
            AND state NOT IN ('cancelled', 'completed', 'discarded')) AS queue_jobs,
        (SELECT count(*) FROM tasks WHERE status IN ('running', 'recovering', 'retrying')) AS tasks,
        (SELECT count(*) FROM transitions) AS transitions,
        (SELECT count(*) FROM job_status JOIN jobs ON jobs.id = job_id
            WHERE deleted_at IS NULL AND revision > written_revision) AS statuses,
        (SELECT count(*) FROM jobs WHERE deleted_at IS NULL AND NOT suspended) AS unsuspended,
        (SELECT count(*) FROM workers, lease_clock
            WHERE ended_at IS NULL AND lease_expires_at < witnessed_at) AS expired
"""


_SUCCEEDED_SINCE = "SELECT 1 AS one FROM tasks WHERE status = 'succeeded' AND started_at > %(since)s LIMIT 1"


@dataclass(frozen=True)
class Plan:
    """What a campaign is to be."""

    seed: int
    rounds: int
    seconds: float
    jobs: int
    workers: int


@dataclass(frozen=True)
class Outcome:
    """What came of it; `problems` are findings that no file of the run shows."""

    violations: list[Violation]
    figures: Figures
    faults: dict[str, int]
    problems: list[str]


def run(plan: Plan, *, folder: Path) -> Outcome:
    """Everything, from the first server to the proof; what it leaves is in `folder`."""
    source = random.Random(plan.seed)
    (folder / "locks").mkdir(parents=True)
    open_gate(folder)
    with world_of(plan, folder=folder, source=random.Random(plan.seed + 1)) as world:
        world.say(f"campaign of {plan.rounds} rounds, seed {plan.seed}, {plan.jobs} IntervalJobs, run in {folder}")
        world.kubectl("create", "namespace", NAMESPACE)
        for member in world.members.values():
            member.start()
        world.apply(draw_jobs(source, count=plan.jobs, folder=folder))
        _wait_until_it_works(world)
        for number in range(1, plan.rounds + 1):
            _round(world, number, source, seconds=plan.seconds)
        _make_peace(world)
        violations, figures = check(folder, world.stack.database_url)
        print(report(violations, figures), flush=True)
        return Outcome(violations, figures, dict(world.journal.faults), world.problems)


@contextmanager
def world_of(plan: Plan, *, folder: Path, source: random.Random) -> Iterator[World]:
    """Servers, proxies and members that have not started yet; on leaving, all of it ends."""
    with ExitStack() as resources:
        programs = find(report=lambda line: print(line, flush=True))
        stack = resources.enter_context(Stack(programs=programs, data=folder / "data"))
        loop = resources.enter_context(proxy_loop())
        address = psycopg.conninfo.conninfo_to_dict(stack.database_url)
        target = (str(address["host"]), int(str(address["port"])))

        def member(name: str, verb: Verb) -> Member:
            proxy = Proxy(loop, target=target)
            made = Member(
                name,
                verb,
                stack=stack,
                proxy=proxy,
                environment=environment_of(stack, verb, name, port=proxy.port),
            )
            resources.callback(proxy.refuse)
            resources.callback(made.stop, signal.SIGKILL)
            return made

        members = [
            *(member(f"operator-{number}", "operator") for number in (1, 2)),
            *(member(f"worker-{number}", "worker") for number in range(1, plan.workers + 1)),
        ]
        yield World(stack, members=members, folder=folder, source=source, add=lambda name: member(name, "worker"))


def _round(world: World, number: int, source: random.Random, *, seconds: float) -> None:
    """Faults begin and are healed at the times that the seed says, as far as they let each other."""
    drawn = _draw(source, seconds=seconds)
    world.say(f"round {number}: " + ", ".join(f"{at:.0f} s {fault.kind} ({lasts:.1f} s)" for at, fault, lasts in drawn))
    begun = time.monotonic()
    agenda: list[tuple[float, int, Fault, Acting | None, float]] = [
        (at, index, fault, None, lasts) for index, (at, fault, lasts) in enumerate(drawn)
    ]
    heapq.heapify(agenda)
    while agenda:
        at, index, fault, acting, lasts = heapq.heappop(agenda)
        time.sleep(max(0.0, begun + at - time.monotonic()))
        if acting is None:
            acting = fault.act(world)
            if _step(world, fault, acting):
                heapq.heappush(agenda, (time.monotonic() - begun + lasts, index, fault, acting, 0.0))
        elif not heal(world, fault, acting):
            heapq.heappush(agenda, (at + 2.0, index, fault, acting, 0.0))
    _wait_until_it_works(world)
    acting = ALWAYS.act(world)
    if _step(world, ALWAYS, acting):
        time.sleep(world.random.uniform(*ALWAYS.seconds))
        heal(world, ALWAYS, acting)
    _wait_until_it_works(world)


def _draw(source: random.Random, *, seconds: float) -> list[tuple[float, Fault, float]]:
    """(when, what, for how long) of a round, in the order of time; of the long ones no two of a kind at once."""
    chosen = source.choices(FAULTS, weights=[fault.weight for fault in FAULTS], k=source.randint(6, 10))
    once = {fault.kind: fault for fault in chosen if fault.seconds[1] > 0}
    often = [fault for fault in chosen if fault.seconds[1] == 0]
    drawn = []
    for fault in [*once.values(), *often]:
        lasts = source.uniform(*fault.seconds)
        drawn.append((source.uniform(0, max(0.0, 0.9 * seconds - lasts)), fault, lasts))
    return sorted(drawn, key=lambda one: one[0])


#: What a fault may meet because another one is at work.
_IN_THE_WAY = (psycopg.Error, EmbeddedError, OSError)


def _step(world: World, fault: Fault, acting: Acting) -> bool:
    """Begin; False when another fault makes it impossible."""
    try:
        next(acting)
    except _IN_THE_WAY as error:
        world.say(f"  {fault.kind} did not take place: {' '.join(str(error).split())[:200]}")
        return False
    return True


def heal(world: World, fault: Fault, acting: Acting) -> bool:
    """Whether it is healed. What stands in the way of that is healed first: whoever failed is asked to begin anew."""
    by_hand = _HEALED_BY_HAND.get(fault.kind)
    try:
        if by_hand is not None and inspect.getgeneratorstate(acting) == inspect.GEN_CLOSED:
            by_hand(world)
        else:
            next(acting, None)
    except _IN_THE_WAY as error:
        world.say(f"  {fault.kind} is not healed yet: {' '.join(str(error).split())[:200]}")
        return by_hand is None
    return True


def _undo_read_only(world: World) -> None:
    world.sql("ALTER DATABASE intervaljob SET default_transaction_read_only = off")
    world.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'intervaljob%%'")


def _undo_disk_full(world: World) -> None:
    for table in ("river_job", "tasks"):
        world.sql(f"DROP TRIGGER IF EXISTS chaos_disk_full ON {table}")


#: A generator that has raised is over; these are healed again by what they amount to.
_HEALED_BY_HAND = {"read_only": _undo_read_only, "disk_full": _undo_disk_full}


def _wait_until_it_works(world: World) -> None:
    """Every member is ready, and tasks succeed that began after that."""
    for member in world.members.values():
        member.proxy.heal()
        if not member.expected:
            member.start()
    deadline = time.monotonic() + _WORKS_SECONDS
    since: object = None
    while True:
        world.watch_members()
        with suppress(psycopg.Error):
            if all(member.is_ready() for member in world.members.values()):
                if since is None:
                    since = world.sql("SELECT now() AS now")[0]["now"]
                elif world.sql(_SUCCEEDED_SINCE, since=since):
                    return
        if time.monotonic() > deadline:
            waiting = [member.name for member in world.members.values() if not member.is_ready()]
            world.problem(f"does not work {_WORKS_SECONDS:.0f} s after the last fault; not ready: {waiting}")
            return
        time.sleep(0.3)


def _make_peace(world: World) -> None:
    """Suspend everything, wait until nothing is unfinished, keep what the resources say, and let everybody go."""
    world.apply(list(world.jobs.values()), suspend=True)
    deadline = time.monotonic() + _QUIET_SECONDS
    while any(left := world.sql(UNFINISHED)[0].values()) and time.monotonic() < deadline:
        world.watch_members()
        open_gate(world.folder)
        time.sleep(0.5)
    if any(left):
        world.problem(f"not quiet after {_QUIET_SECONDS:.0f} s: {world.sql(UNFINISHED)[0]}")
    time.sleep(2.0)  # a status that is written now was written before
    items = world.kubectl("get", "intervaljobs", "--output", "json")
    (world.folder / "resources.json").write_text(json.dumps(json.loads(items)))
    for member in world.members.values():
        member.ask_to_end()
    for member in world.members.values():
        member.stop(signal.SIGTERM)
