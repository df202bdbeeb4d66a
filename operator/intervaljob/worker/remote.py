"""An executor as its manager sees it: given attempts, heard, known to be gone.

It runs one attempt at a time. Where handlers are quick it is given more than that, so that it need not wait for the
manager between two of them; as soon as the first keeps it busy, the rest comes back and goes elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from intervaljob.model.task import Attempt, Outcome, Result
from intervaljob.worker import wire

#: Bound on hearing the end of what an executor said after it has died: somebody may have its end of the connection.
LAST_WORDS_SECONDS = 1.0

#: An executor is given attempts for so many seconds of work, and so many, beyond the one that it runs.
AHEAD_SECONDS = 0.002
MAX_AHEAD = 64
#: Seconds that the first may take before the others are asked back.
PATIENCE_SECONDS = 0.01

#: Stores the checkpoint of this number, of those of an attempt; False when the attempt is not the current one.
Checkpoint = Callable[[Attempt, int, str], Awaitable[bool]]


class ExecutorDied(Exception):  # noqa: N818 - the word says it
    """The process of an attempt ended before the attempt did. Nothing of it runs any more."""

    def __init__(self, status: int) -> None:
        super().__init__(f"killed by signal {-status}" if status < 0 else f"ended with {status}")


class NotBegun(Exception):  # noqa: N818 - the word says it
    """The executor has not begun the attempt, and will not: no handler has seen it."""


@dataclass(eq=False, slots=True)
class _Given:
    """An attempt that an executor has, and what it has said of it. `begun` is called when it is its turn."""

    begun: Callable[[], None]
    messages: deque[wire.Message | Exception] = field(default_factory=deque)
    waiter: asyncio.Future[None] | None = None

    def hear(self, message: wire.Message | Exception) -> None:
        self.messages.append(message)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def next(self) -> wire.Message:
        """The next message, or the exception raised that stands for it."""
        while not self.messages:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        message = self.messages.popleft()
        if isinstance(message, Exception):
            raise message
        return message


class Executor(asyncio.Protocol):
    """One executor process. `gone` is done once the zygote has buried it, with its exit code.

    `load` is how many seconds of work it is expected to have, `users` how many attempts it was taken for.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.load = 0.0
        self.users = 0
        self.is_idle = False
        self.since = 0.0
        self._given: dict[str, _Given] = {}
        self._decoder = wire.Decoder()
        self._unsent = bytearray()
        self._transport: asyncio.Transport | None = None
        self._silent = False
        self._asked_back = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            if message["type"] == "returned":
                for key in message["attempts"]:
                    self._drop(key, NotBegun())
            elif message["type"] == "result":
                self._drop(message["attempt"], message)
            elif message["attempt"] in self._given:
                self._given[message["attempt"]].hear(message)

    def connection_lost(self, _: Exception | None) -> None:
        self._silent = True
        self._tell_of_death()

    def bury(self, status: int) -> None:
        """It is gone. What it said before that is heard first."""
        self.gone.set_result(status)
        self._tell_of_death()
        asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, self.close)

    def _tell_of_death(self) -> None:
        if not self._silent or not self.gone.done():
            return
        died: Exception = ExecutorDied(self.gone.result())
        given, self._given = self._given, {}
        for one in given.values():
            one.hear(died)
            died = NotBegun()

    def _drop(self, key: str, message: wire.Message | Exception) -> None:
        first = next(iter(self._given), None)
        given = self._given.pop(key, None)
        if given is None:
            return
        given.hear(message)
        if key == first:
            self._begin_next()

    def _begin_next(self) -> None:
        self.since = asyncio.get_running_loop().time()
        self._asked_back = False
        for given in self._given.values():
            given.begun()
            break

    def runs(self, attempt: Attempt) -> bool:
        """Whether it is this one's turn."""
        return next(iter(self._given), None) == _key(attempt)

    def send(self, message: wire.Message) -> None:
        """Without waiting, with all that is said in this turn: a process that is gone is noticed by its end."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += wire.encode(message)

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes(self._unsent))
        self._unsent.clear()

    async def run(
        self, attempt: Attempt, *, checkpoint: Checkpoint, begun: Callable[[], None] = lambda: None
    ) -> Result:
        """Run one attempt, after those that it was given before; `begun` is called when that may be.

        Raises ExecutorDied when the process ends in its turn, NotBegun when it ends before or is asked to return it.
        """
        key = _key(attempt)
        given = _Given(begun)
        self._given[key] = given
        if len(self._given) == 1:
            self._begin_next()
        self.send({"type": "run", "attempt": key, **_plain(attempt)})
        if self._silent:
            self._tell_of_death()
        while True:
            message = await given.next()
            if message["type"] == "result":
                return Result(
                    outcome=Outcome(message["outcome"]),
                    output=message.get("output"),
                    error=message.get("error"),
                    trace=message.get("trace", ""),
                    retry=message.get("retry", True),
                    seconds=message["seconds"],
                )
            saved = await checkpoint(attempt, message["number"], message["data"])
            self.send({"type": "saved", "number": message["number"], "ok": saved})

    def cancel(self, attempt: Attempt) -> None:
        """Ask the handler of this attempt to stop; one that has ended meanwhile does not notice."""
        self.send({"type": "cancel", "attempt": _key(attempt)})

    def ask_back(self) -> None:
        """Whatever it has not begun."""
        self._asked_back = True
        self.send({"type": "return"})

    def is_crowded(self) -> bool:
        """Whether others wait for the one that it runs, and have not been asked back."""
        return len(self._given) > 1 and not self._asked_back

    def has_room(self, expected: float) -> bool:
        """Whether one of so many seconds can be given to it without waiting for long."""
        if self.gone.done() or self._asked_back:
            return False
        return self.users < MAX_AHEAD and self.load + expected < AHEAD_SECONDS

    def is_stuck(self, now: float) -> bool:
        """Whether they wait behind one that takes long."""
        return self.is_crowded() and now - self.since > PATIENCE_SECONDS

    def close(self) -> None:
        """Give the connection up."""
        if self._transport is not None:
            self._transport.close()


def _key(attempt: Attempt) -> str:
    return f"{attempt.task_id}/{attempt.number}"


def _plain(attempt: Attempt) -> wire.Message:
    """What the handler is told."""
    return {
        "task_id": str(attempt.task_id),
        "job_id": str(attempt.job_id),
        "user_id": attempt.user_id,
        "workspace_id": attempt.workspace_id,
        "number": attempt.number,
        "handler": attempt.handler,
        "payload": attempt.payload,
        "recovered": attempt.recovered,
        "scheduled_for": attempt.scheduled_for.isoformat(),
        "checkpoint": attempt.checkpoint,
    }
