"""When the detector looks: at once when a worker's end is heard of, when a lease runs out, and each second anyway."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY
from support import SCOPE, Work, eventually

from intervaljob.database.connection import Row, as_records
from intervaljob.recovery import detector
from intervaljob.worker.incarnation import Incarnation

LISTENERS = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%worker_ended%' AND datname = current_database()"
MINUTE = 60.0


@pytest.fixture
async def _detector(work: Work) -> AsyncIterator[None]:
    """An operator's detector that listens, and has looked."""
    task = asyncio.create_task(detector.detect(work.database, scope=SCOPE, by="operator test"), name="detector")
    await eventually(lambda: work.execute(LISTENERS), what="the detector listens")
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def _no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks that nothing asks for come so seldom that no test sees one."""
    monkeypatch.setattr(detector, "TICK_SECONDS", MINUTE)


async def lasting(work: Work) -> Incarnation:
    return await work.worker("a-worker", lease_seconds=3600, pod_uid="pod-1")


async def recovered(work: Work, count: int) -> list[Row]:
    """The recovery jobs once there are so many, long before a look that nothing asks for."""

    async def look() -> list[Row]:
        rows = await work.recovery_jobs()
        return rows if len(rows) == count else []

    return await eventually(look, what=f"{count} recovery jobs", within=10)


async def say_goodbye(work: Work, worker: Incarnation) -> None:
    await worker.end("drained")


async def supersede(work: Work, worker: Incarnation) -> None:
    await lasting(work)


async def terminate(work: Work, worker: Incarnation) -> None:
    containers = [
        {
            "pod_uid": "pod-1",
            "finished_at": datetime.now(UTC) + timedelta(seconds=1),
            "reason": "container_terminated",
        }
    ]
    await work.database.fetch("end_workers_of_containers", containers=as_records(containers))


async def part(work: Work, worker: Incarnation) -> None:
    await work.database.fetch("condemn_workers_of_pods", pod_uids=["pod-1"], reason="pod_gone")
    assert await worker.end_if_condemned()


@pytest.mark.usefixtures("_no_polls", "_detector")
@pytest.mark.parametrize(
    ("act", "evidence"),
    [
        (say_goodbye, "drained"),
        (supersede, "superseded"),
        (terminate, "container_terminated"),
        (part, "pod_gone"),
    ],
)
async def test_whatever_ends_a_worker_its_tasks_are_recovered_without_waiting_for_the_next_look(
    work: Work, act: Callable[[Work, Incarnation], Awaitable[None]], evidence: str
) -> None:
    for count in (1, 2):  # the first may be found by the look that follows LISTEN
        worker, _ = await work.start(await lasting(work))
        await act(work, worker)
        rows = await recovered(work, count)
        assert rows[-1]["metadata"] == {"intervaljob:evidence": evidence}
        await work.execute("UPDATE {schema}.river_job SET queue = 'elsewhere' WHERE args ? 'task_id'")


@pytest.mark.usefixtures("_no_polls")
async def test_a_lease_that_runs_out_is_seen_when_it_does(work: Work) -> None:
    await work.start(await work.worker(lease_seconds=3))
    await detector.end_expired(work.database)
    seconds = await detector.end_expired(work.database)
    assert 0 < seconds <= 3.01
    task = asyncio.create_task(detector.detect(work.database, scope=SCOPE, by="operator test"), name="detector")
    try:
        (new,) = await recovered(work, 1)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert new["metadata"] == {"intervaljob:evidence": "lease_expired"}


async def test_a_look_is_due_in_a_second_unless_a_lease_runs_out_before(work: Work) -> None:
    assert await detector.end_expired(work.database) == 1.0
    worker = await work.worker(lease_seconds=30)
    assert await detector.end_expired(work.database) == 1.0
    await work.execute(
        "UPDATE {schema}.workers SET lease_expires_at = witnessed_at + interval '0.5 s' FROM {schema}.lease_clock"
    )
    assert 0 < await detector.end_expired(work.database) < 0.6
    await worker.end("drained")
    assert await detector.end_expired(work.database) == 1.0


@pytest.mark.usefixtures("_detector")
async def test_an_end_that_nobody_is_told_of_is_found_by_the_next_look(work: Work) -> None:
    for count in (1, 2):
        await work.start(await work.worker(lease_seconds=3600))
        await work.execute("UPDATE {schema}.workers SET ended_at = now(), end_reason = 'test'")
        await recovered(work, count)
        await work.execute("UPDATE {schema}.river_job SET queue = 'elsewhere' WHERE args ? 'task_id'")


@pytest.mark.usefixtures("_no_polls", "_detector")
async def test_a_lost_connection_is_listened_on_again(work: Work) -> None:
    (old,) = await work.execute(LISTENERS)
    await work.execute("SELECT pg_terminate_backend(%(pid)s)", pid=old["pid"])

    async def another() -> bool:
        return any(row["pid"] != old["pid"] for row in await work.execute(LISTENERS))

    await eventually(another, what="the detector listens again")
    for count in (1, 2):
        worker, _ = await work.start(await lasting(work))
        await worker.end("drained")
        await recovered(work, count)
        await work.execute("UPDATE {schema}.river_job SET queue = 'elsewhere' WHERE args ? 'task_id'")


def ends(reason: str) -> float:
    return REGISTRY.get_sample_value("intervaljob_workers_ended_total", {"reason": reason}) or 0.0


async def test_each_end_is_counted_once_by_its_reason(work: Work) -> None:
    reasons = ("drained", "superseded", "lease_expired", "pod_gone")
    before = {reason: ends(reason) for reason in reasons}
    drained = await work.worker()
    for _ in range(2):
        await drained.end("drained")
    await work.worker("same")
    last = await work.worker("same")
    await work.worker("another")
    await work.execute(
        "UPDATE {schema}.workers SET lease_expires_at = '-infinity' WHERE ended_at IS NULL AND id <> %(id)s", id=last.id
    )
    for _ in range(2):
        await detector.end_expired(work.database)
    condemned = await work.worker(pod_uid="pod-1")
    assert not await condemned.end_if_condemned()
    await work.database.fetch("condemn_workers_of_pods", pod_uids=["pod-1"], reason="pod_gone")
    assert [await condemned.end_if_condemned() for _ in range(2)] == [True, False]
    assert {reason: ends(reason) - before[reason] for reason in reasons} == dict.fromkeys(reasons, 1.0)
