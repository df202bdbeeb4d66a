"""The deadline of a worker's processes: they live while the lease is renewed, and not a moment longer."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pool_process import LONG, ExecutorDied, Placed, attempt_of
from pool_support import LEASE, Started, frozen, manager, renewed, run
from support import eventually, group_of, parent_of, process_gone, state_of

from intervaljob.model.task import Outcome
from intervaljob.worker.fence import boot_time
from intervaljob.worker.pool import Pool
from intervaljob.worker.zygote import AHEAD_SECONDS, MESSAGE_BYTES

pytestmark = pytest.mark.usefixtures("handlers_for_tests")


async def test_executors_end_at_the_newest_deadline_that_their_manager_named(executors: Pool) -> None:
    sleeps = attempt_of("sleep", {"seconds": LONG})
    first = Placed(executors, sleeps, lease=0.4)
    taken = [await first.turn()]
    ends = boot_time() + 1.5
    executors.push_out(ends)
    second = Placed(executors, sleeps, lease=0.4)
    taken.append(await second.turn())
    for each in taken:
        assert await asyncio.wait_for(asyncio.shield(each.gone), 5) == -signal.SIGKILL
    for placed in (first, second):
        with pytest.raises(ExecutorDied):
            await placed.result
    assert ends - AHEAD_SECONDS <= boot_time() < ends + 1
    await asyncio.wait_for(executors.ended.wait(), 5)


async def test_a_handler_that_holds_the_lock_for_longer_than_the_lease_is_left_alone(
    executors: Pool, started: Started
) -> None:
    async with renewed(executors, lease=0.6):
        executor = await started.begin(executors, "test.holds_the_lock", lease=0.6, seconds=1.8)
        result = await asyncio.wait_for(started.result, 10)
        assert result.output == {"pid": executor.pid}
        assert (await run(executors, attempt_of("test.sync", 1))).output["pid"] == executor.pid


async def test_an_executor_that_hears_of_no_renewal_stands_still_until_the_zygote_says_that_the_lease_is_good(
    executors: Pool, started: Started
) -> None:
    executor = await started.begin(executors, "test.holds_the_lock", lease=1.0, seconds=2.0)
    deadline = boot_time() + 1.0
    executors.push_out(boot_time() + LONG)
    await run(executors, attempt_of("test.sync", 1))  # the zygote answers, so it has heard of the renewal
    with frozen(parent_of(executor.pid)):
        await eventually(lambda: state_of(executor.pid) == "T", what="the executor stands still", within=3)
        assert deadline - 0.5 < boot_time() < deadline + 0.5
    assert (await asyncio.wait_for(started.result, 10)).output == {"pid": executor.pid}


async def test_an_executor_that_somebody_stops_goes_on(executors: Pool, started: Started) -> None:
    executor = await started.begin(executors, "test.waits_sync")
    for _ in range(3):
        os.kill(executor.pid, signal.SIGSTOP)
        await eventually(lambda: state_of(executor.pid) in "RS", what="the executor goes on")
    Path(started.files["go"]).touch()  # noqa: ASYNC240 - a file sends no event
    assert (await asyncio.wait_for(started.result, 10)).outcome is Outcome.RETURNED


@pytest.mark.parametrize(
    ("handler", "processes"), [("test.starts_a_process", 2), ("test.deaf", 2), ("test.holds_the_lock", 1)]
)
async def test_with_a_frozen_manager_everything_ends_at_the_deadline_also_what_handlers_started(
    started: Started, handler: str, processes: int
) -> None:
    async with manager(handler, started) as (pid, zygote, executor):
        assert len(group_of(executor)) == processes
        os.kill(pid, signal.SIGSTOP)
        await process_gone(zygote, within=LEASE + 0.5)
        await eventually(lambda: not group_of(executor), what="nothing of the handler is left", within=0.5)
        assert state_of(pid) == "T"


@pytest.mark.parametrize("handler", ["test.waits", "test.deaf", "test.holds_the_lock"])
async def test_with_everything_frozen_the_kernel_ends_zygote_and_executors_at_the_deadline(
    started: Started, handler: str
) -> None:
    async with manager(handler, started) as (pid, zygote, executor):
        for each in (pid, zygote, executor):
            os.kill(each, signal.SIGSTOP)
        for each in (zygote, executor):
            await process_gone(each, within=LEASE + 0.5)
        assert state_of(pid) == "T"


async def test_a_frozen_zygote_ends_at_the_deadline_that_it_heard_and_its_manager_ends_the_rest(
    executors: Pool, started: Started
) -> None:
    async with renewed(executors, lease=1.0):
        executor = await started.begin(executors, "test.deaf", lease=1.0)
        with frozen(parent_of(executor.pid)):
            await asyncio.wait_for(executors.ended.wait(), 5)
        await eventually(lambda: not group_of(executor.pid), what="nothing of the handler is left")
        with pytest.raises(ExecutorDied):
            await started.result


def test_a_newer_deadline_that_waits_to_be_heard_counts() -> None:
    """The zygote gets no CPU until it would begin to kill; by then a renewal has arrived."""
    early = "from intervaljob.worker import zygote; zygote.AHEAD_SECONDS = 2.0; zygote.main()"
    start = {"parent": os.getpid(), "handlers": ["handlers_for_tests"], "log_format": "text", "log_level": "info"}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    arguments = [sys.executable, "-c", early, str(theirs.fileno()), json.dumps(start)]
    with ours, theirs, subprocess.Popen(arguments, pass_fds=[theirs.fileno()]) as zygote:
        theirs.close()
        assert b"test.sync" in ours.recv(MESSAGE_BYTES)
        begun = boot_time()
        ours.send(json.dumps({"fork": begun + 3.0}).encode())
        forked, connections, _, _ = socket.recv_fds(ours, MESSAGE_BYTES, 1)
        assert b"forked" in forked
        while state_of(zygote.pid) != "S":
            time.sleep(0.01)
        zygote.send_signal(signal.SIGSTOP)
        time.sleep(begun + 1.5 - boot_time())
        ours.send(json.dumps({"deadline": begun + LONG}).encode())
        zygote.send_signal(signal.SIGCONT)
        time.sleep(begun + 3.2 - boot_time())
        survived = zygote.poll() is None
        zygote.kill()
        os.close(connections[0])
    assert survived
