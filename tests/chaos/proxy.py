"""A TCP proxy between a process and its Postgres that can be told to misbehave.

The proxies of a run share an event loop in a thread of its own; their methods are called from other threads and
return when what they ask for has happened.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress

from intervaljob.embedded.processes import free_port

_BUFFER = 65_536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER, no time to linger: close() sends RST
_SECONDS = 10.0


class _Link:
    """One connection through a proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.ends = (client, server)
        self.passes = asyncio.Event()
        self.passes.set()

    def reset(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.transport.abort()
        self.passes.set()


class Proxy:
    """Listens on `port` of 127.0.0.1 and passes everything to `target`, as long as nothing else was asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, target: tuple[str, int]) -> None:
        self.port = free_port()
        self._loop = loop
        self._target = target
        self._questions = asyncio.Event()
        self._answers = asyncio.Event()
        self._unwanted: bytes | None = None
        self._lets_through = asyncio.Event()
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.heal()

    def stall(self) -> None:
        """Accept connections, and pass nothing either way."""
        self._do(self._close_gates(self._questions, self._answers))

    def stall_answers(self) -> None:
        """Pass what the client sends and keep the answers: a COMMIT happens, and nobody hears of it."""
        self._do(self._close_gates(self._answers))

    def hold_back(self, words: bytes) -> None:
        """Keep a message with these words, and whatever follows it, also when its client is gone."""
        self._do(self._hold_back(words))

    def drop(self) -> None:
        """Reset every connection there is; new ones are passed."""
        self._do(self._drop())

    def refuse(self) -> None:
        """Reset every connection there is, and refuse new ones."""
        self._do(self._refuse())

    def forget(self) -> None:
        """Connections there are stay open and never pass anything again; new ones are passed."""
        self._do(self._forget())

    def heal(self) -> None:
        """Pass everything, first what was held back. Connections that were forgotten are reset."""
        self._do(self._heal())

    def _do(self, work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_SECONDS)

    async def _close_gates(self, *gates: asyncio.Event) -> None:
        for gate in gates:
            gate.clear()

    async def _hold_back(self, words: bytes) -> None:
        self._unwanted = words
        self._lets_through.clear()

    async def _drop(self) -> None:
        for link in tuple(self._links):
            link.reset()

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._drop()

    async def _forget(self) -> None:
        for link in self._links:
            link.passes.clear()

    async def _heal(self) -> None:
        for link in tuple(self._links):
            if not link.passes.is_set():
                link.reset()
        self._unwanted = None
        self._lets_through.set()
        self._questions.set()
        self._answers.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, server = await asyncio.open_connection(*self._target)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        link = _Link(writer, server)
        self._links.add(link)
        questions = self._pump(reader, server, gates=(self._questions, link.passes))
        answers = self._pump(upstream, writer, gates=(self._answers, link.passes))
        try:
            await asyncio.gather(questions, answers)
        except asyncio.CancelledError:  # the loop ends
            link.reset()
        self._links.discard(link)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, gates: tuple[asyncio.Event, ...]
    ) -> None:
        data = b"begin"
        while data:
            data = b""
            with suppress(OSError):
                data = await reader.read(_BUFFER)
            for gate in gates:
                await gate.wait()
            if self._unwanted is not None and self._unwanted in data:
                await self._lets_through.wait()
            if data and not writer.is_closing():
                with suppress(OSError):
                    writer.write(data)
                    await writer.drain()
        writer.close()


@contextmanager
def proxy_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop of proxies, running in its thread; on leaving, every connection ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxies", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result(_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_SECONDS)
        loop.close()


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
