"""An executor as its manager sees it: given attempts, heard, known to be gone.

It runs one attempt at a time. Where handlers are quick it is given more than that, so that it need not wait for the
manager between two of them; as soon as the first keeps it busy, the rest comes back and goes elsewhere.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from intervaljob.worker import wire
from intervaljob.worker.running import Running

#: Bound on hearing the end of what an executor said after it has died: somebody may have its end of the connection.
LAST_WORDS_SECONDS = 1.0
LAST_WORDS_BYTES = 65_536

#: An executor is given attempts for so many seconds of work, and so many, beyond the one that it runs.
AHEAD_SECONDS = 0.002
MAX_AHEAD = 64
#: Seconds that the first may take before the others are asked back.
PATIENCE_SECONDS = 0.01


class Executor(asyncio.Protocol):
    """One executor process. `gone` is done once the zygote has buried it, with its exit code.

    `load` is how many seconds of work it is expected to have. `eased` is called when it has less of it than before.
    """

    def __init__(self, pid: int, connection: socket.socket, *, eased: Callable[[Executor], None]) -> None:
        self.pid = pid
        self._connection = connection
        self.gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.load = 0.0
        self.is_idle = False
        self._eased = eased
        self._given: OrderedDict[int, Running] = OrderedDict()  # a dict looks at what was taken from its front, too
        self._tickets = 0
        self._since = 0.0
        self._stream = wire.Stream(wire.to_manager)
        self._unsent = bytearray()
        self._to_run: list[wire.Given] = []
        self._flushes = False
        self._transport: asyncio.Transport | None = None
        self._silent = False
        self._asked_back = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for message in self._stream.feed(data):
            match message:
                case wire.Ended():
                    if running := self._drop(message.ticket):
                        running.listener.ended(running, message.result)
                case wire.Checkpoint():
                    if running := self._given.get(message.ticket):
                        running.listener.checkpointed(running, message.number, message.data)
                case wire.Returned():
                    for ticket in message.tickets:
                        if running := self._drop(ticket):
                            running.handed_over = False
                            running.listener.returned(running)
        self._eased(self)

    def connection_lost(self, _: Exception | None) -> None:
        """A failed write makes asyncio deaf: what the executor said before that is still to be read."""
        self._silent = True
        try:
            with suppress(OSError):
                while data := self._connection.recv(LAST_WORDS_BYTES):
                    self.data_received(data)
        finally:
            self._tell_of_death()

    def bury(self, status: int) -> None:
        """It is gone. What it said before that is heard first."""
        self.gone.set_result(status)
        self._tell_of_death()
        asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, self.close)

    def _tell_of_death(self) -> None:
        """To the one whose turn it was, and to those that waited behind it."""
        if not self._silent or not self.gone.done():
            return
        for ticket in tuple(self._given):
            running = self._given.pop(ticket)
            running.executor = None
            if running.handed_over:
                running.listener.died(running, _why(self.gone.result()))
            else:
                running.listener.returned(running)

    def give(self, running: Running) -> None:
        """Have it run, after those that it was given before."""
        self._tickets += 1
        running.executor, running.ticket = self, self._tickets
        self._given[running.ticket] = running
        self.load += running.expected
        if len(self._given) == 1:
            self._begin_next()
        self._to_run.append(wire.Given(running.ticket, running.attempt))
        self._flush_soon()
        if self._silent:
            self._tell_of_death()

    def _drop(self, ticket: int) -> Running | None:
        first = next(iter(self._given), None)
        running = self._given.pop(ticket, None)
        if running is not None:
            running.executor = None
            self.load = self.load - running.expected if self._given else 0.0
            if ticket == first:
                self._begin_next()
        return running

    def _begin_next(self) -> None:
        self._since = time.monotonic()
        self._asked_back = False
        for running in self._given.values():
            running.handed_over = True
            running.listener.begun(running)
            break

    def runs(self, running: Running) -> bool:
        """Whether it is this one's turn."""
        return next(iter(self._given.values()), None) is running

    def send(self, message: wire.ToExecutor) -> None:
        """Without waiting, with all that is said in this turn: a process that is gone is noticed by its end."""
        self._encode_runs()
        self._unsent += wire.encode(message)
        self._flush_soon()

    def _encode_runs(self) -> None:
        if self._to_run:
            self._unsent += wire.encode(wire.Run(self._to_run))
            self._to_run = []

    def _flush_soon(self) -> None:
        if not self._flushes:
            self._flushes = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushes = False
        self._encode_runs()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes(self._unsent))
        self._unsent.clear()

    def cancel(self, running: Running) -> None:
        """Ask the handler of this attempt to stop; one that has ended meanwhile does not notice."""
        self.send(wire.Cancel(running.ticket))

    def ask_back(self) -> None:
        """Whatever it has not begun."""
        self._asked_back = True
        self.send(wire.Return())

    def is_crowded(self) -> bool:
        """Whether others wait for the one that it runs, and have not been asked back."""
        return len(self._given) > 1 and not self._asked_back

    def is_free(self) -> bool:
        """Whether it lives and has nothing to do."""
        return not self._given and not self._silent and not self.gone.done()

    def has_room(self, expected: float) -> bool:
        """Whether one of so many seconds can be given to it without waiting for long."""
        if self._silent or self.gone.done() or self._asked_back:
            return False
        return len(self._given) < MAX_AHEAD and self.load + expected < AHEAD_SECONDS

    def is_stuck(self, now: float) -> bool:
        """Whether they wait behind one that takes long."""
        return self.is_crowded() and now - self._since > PATIENCE_SECONDS

    def close(self) -> None:
        """Give the connection up."""
        if self._transport is not None:
            self._transport.close()


def _why(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"ended with {status}"
