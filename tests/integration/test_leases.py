"""Leases: witnessed time, renewal, expiry, newer incarnations, ended containers, and the condemned."""

import asyncio
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from support import Work, eventually, worker_settings

from intervaljob.database.connection import Database, as_records
from intervaljob.recovery.detector import end_expired
from intervaljob.worker.fence import boot_time
from intervaljob.worker.incarnation import Incarnation, Over


async def witnessed(work: Work) -> datetime:
    (row,) = await work.execute("SELECT witnessed_at FROM {schema}.lease_clock")
    moment = row["witnessed_at"]
    assert isinstance(moment, datetime)
    return moment


async def last_tick_was(work: Work, seconds_ago: float) -> datetime:
    """Pretend that the last look was then, ahead of us if negative; returns the witnessed time."""
    await work.execute(
        "UPDATE {schema}.lease_clock SET ticked_at = clock_timestamp() - make_interval(secs => %(ago)s)",
        ago=seconds_ago,
    )
    return await witnessed(work)


async def expires_in(work: Work, worker: Incarnation, seconds: float) -> None:
    await work.execute(
        "UPDATE {schema}.workers SET lease_expires_at = (SELECT witnessed_at FROM {schema}.lease_clock)"
        " + make_interval(secs => %(seconds)s) WHERE id = %(id)s",
        id=worker.id,
        seconds=seconds,
    )


async def end_of(work: Work, worker: UUID) -> str | None:
    (row,) = await work.execute("SELECT ended_at, end_reason FROM {schema}.workers WHERE id = %(id)s", id=worker)
    assert (row["ended_at"] is None) == (row["end_reason"] is None)
    reason = row["end_reason"]
    assert reason is None or isinstance(reason, str)
    return reason


async def renew(work: Work, worker: Incarnation) -> bool:
    return bool(await work.database.fetch("renew_lease", worker=worker.id))


async def test_a_gap_between_looks_counts_as_two_seconds(work: Work) -> None:
    before = await last_tick_was(work, 3600)
    await end_expired(work.database)
    assert await witnessed(work) - before == timedelta(seconds=2)


async def test_time_between_frequent_looks_counts_as_it_passes(work: Work) -> None:
    before = await last_tick_was(work, 1)
    await end_expired(work.database)
    assert timedelta(seconds=1) <= await witnessed(work) - before < timedelta(seconds=2)


async def test_a_clock_that_was_set_back_adds_nothing_and_goes_on_from_there(work: Work) -> None:
    before = await last_tick_was(work, -3600)
    await end_expired(work.database)
    assert await witnessed(work) == before
    await last_tick_was(work, 1)
    await end_expired(work.database)
    assert await witnessed(work) - before >= timedelta(seconds=1)


async def test_witnessed_time_is_never_faster_than_real_time_however_many_look(work: Work) -> None:
    before, begun = await witnessed(work), time.monotonic()
    worker = await work.worker()
    await asyncio.gather(*(end_expired(work.database) for _ in range(100)), *(renew(work, worker) for _ in range(100)))
    passed = await witnessed(work) - before
    assert timedelta(0) < passed
    # What passed between the template's last tick and the first one here counts too, as two seconds at most.
    assert passed <= timedelta(seconds=time.monotonic() - begun + 2)


@pytest.mark.parametrize("act", ["renew", "register"])
async def test_a_renewal_counts_from_a_witness_that_it_advances_itself(work: Work, act: str) -> None:
    worker = await work.worker(lease_seconds=30)
    before = await last_tick_was(work, 1.5)
    if act == "renew":
        assert await renew(work, worker)
    else:
        worker = await work.worker(lease_seconds=30)
    (row,) = await work.execute("SELECT * FROM {schema}.workers WHERE id = %(id)s", id=worker.id)
    assert row["lease_expires_at"] == await witnessed(work) + timedelta(seconds=30)
    assert await witnessed(work) >= before + timedelta(seconds=1.5)


async def test_a_worker_whose_lease_ran_out_is_ended_and_others_are_not(work: Work) -> None:
    late, early = await work.worker(), await work.worker()
    await expires_in(work, late, -0.001)
    await expires_in(work, early, 60)
    await end_expired(work.database)
    assert await end_of(work, late.id) == "lease_expired"
    assert await end_of(work, early.id) is None


async def test_a_worker_that_has_ended_cannot_renew(work: Work) -> None:
    worker = await work.worker()
    assert await renew(work, worker)
    await work.end(worker)
    assert not await renew(work, worker)
    with pytest.raises(Over, match="declared this worker dead"):
        await worker.keep()


async def test_a_renewal_that_meets_the_look_that_would_end_it_leaves_one_of_both_right(work: Work) -> None:
    """Either the worker was renewed and lives, or it was ended and is told so."""
    workers = [await work.worker() for _ in range(10)]
    for _ in range(3):
        for worker in workers:
            await expires_in(work, worker, -0.001)
        *renewed, _ = await asyncio.gather(*(renew(work, worker) for worker in workers), end_expired(work.database))
        alive = [await end_of(work, worker.id) is None for worker in workers]
        assert renewed == alive
        workers = [await work.worker() for _ in range(10)]


async def test_an_outage_makes_nobody_look_dead(work: Work) -> None:
    worker = await work.worker(lease_seconds=30)
    for _ in range(5):  # the database was away for an hour, five times
        await last_tick_was(work, 3600)
        await end_expired(work.database)
    assert await end_of(work, worker.id) is None
    assert await renew(work, worker)


async def test_without_an_outage_the_lease_runs_out(work: Work) -> None:
    worker = await work.worker(lease_seconds=3)
    for _ in range(2):
        await last_tick_was(work, 2)
        await end_expired(work.database)
    assert await end_of(work, worker.id) == "lease_expired"


async def test_a_newer_incarnation_of_the_same_name_ends_the_old_one(work: Work) -> None:
    old, other = await work.worker("a"), await work.worker("b")
    new = await work.worker("a")
    assert await end_of(work, old.id) == "superseded"
    assert await end_of(work, other.id) is None
    assert await end_of(work, new.id) is None


async def test_a_newer_incarnation_in_the_same_pod_ends_the_old_one(work: Work) -> None:
    old, other = await work.worker(pod_uid="pod-1"), await work.worker(pod_uid="pod-2")
    nameless = await work.worker()
    await work.worker(pod_uid="pod-1")
    assert await end_of(work, old.id) == "superseded"
    assert await end_of(work, other.id) is None
    assert await end_of(work, nameless.id) is None


async def test_a_worker_that_is_unsure_whether_it_registered_registers_again(work: Work) -> None:
    worker = await work.worker()
    first = worker.id
    await worker.register()
    assert worker.id != first
    assert await end_of(work, first) == "superseded"
    assert await end_of(work, worker.id) is None


async def test_a_worker_says_it_is_over_when_its_own_time_is_up(work: Work) -> None:
    worker = await work.worker(lease_seconds=3)
    assert worker.alive()
    worker.deadline = boot_time() + 0.05
    with pytest.raises(Over, match="could not be renewed in time"):
        await worker.watch_deadline()
    with pytest.raises(Over, match="came too late"):
        await worker.keep()
    assert not worker.alive()


async def test_a_deadline_counts_from_before_the_renewal_was_sent(work: Work) -> None:
    before = boot_time()
    worker = await work.worker(lease_seconds=30)
    assert before + 28 <= worker.deadline <= boot_time() + 28


async def test_renewals_are_sent_a_period_apart_however_long_the_answers_take(work: Work) -> None:
    worker = await work.worker(lease_seconds=10)
    async with work.database.transaction() as session:
        await session.connection.execute(f"SELECT FROM {work.database.schema}.lease_clock FOR UPDATE".encode())
        keeping = asyncio.create_task(worker.keep(), name="lease")
        await asyncio.sleep(1.3)  # how long the first answer takes
        worker.renewed.clear()
    try:
        await asyncio.wait_for(worker.renewed.wait(), 10)
        first = worker.deadline
        worker.renewed.clear()
        await asyncio.wait_for(worker.renewed.wait(), 10)
        assert 2.0 <= worker.deadline - first < 3.0
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def condemn(work: Work, *pod_uids: str) -> int:
    """What an operator does to the workers of Pods that are gone; how many that were."""
    return len(await work.database.fetch("condemn_workers_of_pods", pod_uids=list(pod_uids), reason="pod_gone"))


async def test_a_condemned_worker_renews_nothing_and_claims_nothing(work: Work) -> None:
    worker, other = await work.worker(pod_uid="pod-1"), await work.worker(pod_uid="pod-2")
    assert await condemn(work, "pod-1") == 1
    assert await condemn(work, "pod-1") == 0
    assert not await renew(work, worker)
    assert await renew(work, other)
    with pytest.raises(Over, match="condemned"):
        await worker.keep()
    await work.enqueue(await work.add_job())
    assert await work.claim(worker) == []
    assert len(await work.claim(other)) == 1


async def test_a_condemned_worker_keeps_its_tasks_until_it_has_said_goodbye(work: Work) -> None:
    worker, attempt = await work.start(await work.worker(pod_uid="pod-1"))
    assert not await worker.end_if_condemned()
    await condemn(work, "pod-1")
    await end_expired(work.database)
    assert await end_of(work, worker.id) is None
    assert await work.recover(every_task=True) == 0
    assert await worker.end_if_condemned()
    assert await end_of(work, worker.id) == "pod_gone"
    assert await work.recover() == 1
    (new,) = await work.recovery_jobs()
    assert new["metadata"] == {"intervaljob:evidence": "pod_gone"}
    assert not await work.finish(worker, attempt)


async def test_what_a_condemned_worker_still_finishes_counts(work: Work) -> None:
    worker, attempt = await work.start(await work.worker(pod_uid="pod-1"))
    await condemn(work, "pod-1")
    assert await work.finish(worker, attempt)
    assert (await work.task(attempt.task_id))["status"] == "succeeded"


async def test_a_condemned_worker_that_says_nothing_is_ended_by_its_lease(work: Work) -> None:
    worker = await work.worker(pod_uid="pod-1")
    await condemn(work, "pod-1")
    await expires_in(work, worker, -0.001)
    await end_expired(work.database)
    assert await end_of(work, worker.id) == "lease_expired"
    assert not await worker.end_if_condemned()


async def test_a_terminated_container_ends_the_incarnations_that_started_before_its_end(work: Work) -> None:
    finished = datetime(2026, 11, 24, 10, 0, 7, tzinfo=UTC)
    started = {
        "before": finished - timedelta(microseconds=1),
        "in that second": finished,
        "after": finished + timedelta(seconds=2),
        "unknown": None,
    }
    workers = {name: await work.worker() for name in (*started, "elsewhere", "long gone")}
    for name, worker in workers.items():
        await work.execute(
            "UPDATE {schema}.workers SET pod_uid = %(pod)s, process_started_at = %(at)s WHERE id = %(id)s",
            pod="pod-2" if name == "elsewhere" else "pod-1",
            at=started.get(name, started["before"]),
            id=worker.id,
        )
    await work.end(workers["long gone"], "drained")
    containers = as_records([{"pod_uid": "pod-1", "finished_at": finished, "reason": "container_terminated"}])
    rows = await work.database.fetch("end_workers_of_containers", containers=containers)
    assert [row["id"] for row in rows] == [workers["before"].id]
    reasons = {name: await end_of(work, worker.id) for name, worker in workers.items()}
    assert reasons == dict.fromkeys(workers) | {"before": "container_terminated", "long gone": "drained"}


async def test_a_worker_registers_when_its_process_started(work: Work) -> None:
    worker = await work.worker()
    (row,) = await work.execute("SELECT process_started_at FROM {schema}.workers WHERE id = %(id)s", id=worker.id)
    (clock,) = await work.execute("SELECT now() AS now")
    assert clock["now"] - timedelta(hours=1) < row["process_started_at"] < clock["now"]


@pytest.mark.parametrize("hangs", [1, 2])
async def test_renewals_that_hang_do_not_cost_the_lease(database_url: str, work: Work, hangs: int) -> None:
    """The server process of the connection stands still, and so does the one of the next."""
    settings = worker_settings(database_url, lease_seconds=10)
    stopped: list[int] = []
    async with Database(settings, application="frozen") as database:
        worker = Incarnation(database, settings, name="w")
        await worker.register()
        keeping = asyncio.create_task(worker.keep(), name="lease")

        async def renewing() -> list[int]:
            rows = await work.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'frozen' AND query ~ 'SET lease_expires_at'"
            )
            return [row["pid"] for row in rows if row["pid"] not in stopped]

        try:
            for _ in range(hangs):
                (pid,) = await eventually(renewing, what="a connection that renews")
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
            before = worker.deadline
            await eventually(lambda: keeping.done() or worker.deadline > before + 8, what="renewed again", within=20)
            assert worker.alive()
            assert not keeping.done()
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


async def test_a_registration_that_comes_late_ends_no_newer_incarnation(work: Work) -> None:
    """It hung in the network while its sender was started again, registered, and took work."""
    (clock,) = await work.database.fetch("database_time")
    newer, attempt = await work.start(await work.worker("w"))
    late = {"worker": uuid4(), "name": "w", "pod_uid": None, "version": "1", "queues": ["default"]}
    others = {"lease_seconds": 30, "process_started_at": datetime.now(UTC), "asked_at": clock["now"]}
    assert await work.database.fetch("register_worker", **late, **others) == []
    assert await work.recover() == 0
    assert await work.finish(newer, attempt)
