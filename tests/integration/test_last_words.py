"""What an executor said before it died is heard, and nothing is given to one that has died."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from pool_process import attempt_of
from support import eventually

from intervaljob.model.task import Outcome, Result
from intervaljob.worker import wire
from intervaljob.worker.remote import Executor
from intervaljob.worker.running import Running


class Told:
    """A listener that keeps what it heard, with the attempt's ticket."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def begun(self, running: Running) -> None:
        self.heard.append(("begun", running.ticket))

    def checkpointed(self, running: Running, _number: int, _data: str) -> None:
        self.heard.append(("checkpointed", running.ticket))

    def ended(self, running: Running, _: Result) -> None:
        self.heard.append(("ended", running.ticket))

    def died(self, running: Running, _: str) -> None:
        self.heard.append(("died", running.ticket))

    def returned(self, running: Running) -> None:
        self.heard.append(("returned", running.ticket))


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Executor, socket.socket]]:
    """An executor as its manager sees it, and the other end of the connection: what the process would say."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    executor = Executor(1, ours, eased=lambda _: None)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: executor, ours)
    yield executor, theirs
    theirs.close()
    executor.close()


@pytest.mark.parametrize("writes", [False, True])
async def test_last_words_are_heard_also_where_the_manager_writes_to_the_dead(
    ends: tuple[Executor, socket.socket], writes: bool
) -> None:
    """The second attempt had begun: nobody may take it for one that no handler has seen."""
    executor, process = ends
    told = Told()
    for _ in range(2):
        executor.give(Running(attempt_of("noop"), told, datetime.now(UTC), 0.0001))
    await eventually(lambda: not executor._unsent and not executor._to_run, what="both are sent")
    if writes:
        executor.send(wire.Deadline(1.0))
    process.sendall(wire.encode(wire.Ended(1, Result(Outcome.RETURNED))))
    process.close()
    await eventually(lambda: executor._silent, what="the connection ends")
    executor.bury(-signal.SIGKILL)
    assert told.heard == [("begun", 1), ("begun", 2), ("ended", 1), ("died", 2)]


async def test_one_whose_connection_has_ended_is_given_nothing(ends: tuple[Executor, socket.socket]) -> None:
    executor, process = ends
    assert executor.is_free()
    assert executor.has_room(0.0)
    process.close()
    await eventually(lambda: executor._silent, what="the connection ends")
    assert not executor.is_free()
    assert not executor.has_room(0.0)
