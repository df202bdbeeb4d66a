"""A TCP proxy between a process and its Postgres that can be told to misbehave.

Every proxy of a run lives in one event loop in one thread; the methods are called from another thread and return
when what they ask for has happened.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self, TypeVar

T = TypeVar("T")

_BUFFER = 65_536
_RESET = struct.pack("ii", 1, 0)
_ANSWER_SECONDS = 10.0


class _Link:
    """One connection through a proxy. `open` is cleared for a link that never passes anything again."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.ends = (client, server)
        self.passes = asyncio.Event()
        self.passes.set()

    def reset(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.transport.abort()


class Proxy:
    """Listens on `port` of 127.0.0.1 and passes everything to `target`, as long as nothing else was asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, target: tuple[str, int]) -> None:
        self._loop = loop
        self._target = target
        self._questions = asyncio.Event()
        self._answers = asyncio.Event()
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def stall(self) -> None:
        """Accept connections, and pass nothing either way."""
        self._do(self._gates(questions=False, answers=False))

    def stall_answers(self) -> None:
        """Pass what the client sends, and keep the answers: a COMMIT happens, and nobody hears of it."""
        self._do(self._gates(questions=True, answers=False))

    def drop(self) -> None:
        """Reset every connection there is; new ones are passed."""
        self._do(self._drop())

    def refuse(self) -> None:
        """Reset every connection there is, and refuse new ones."""
        self._do(self._refuse())

    def forget(self) -> None:
        """Connections there are pass nothing any more and stay open, as behind a middlebox that lost their state."""
        self._do(self._forget())

    def heal(self) -> None:
        """Pass everything again, what was held back first. Connections that were forgotten are reset."""
        self._do(self._heal())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_SECONDS)

    async def _gates(self, *, questions: bool, answers: bool) -> None:
        for gate, is_open in ((self._questions, questions), (self._answers, answers)):
            if is_open:
                gate.set()
            else:
                gate.clear()

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
        await self._gates(questions=True, answers=True)
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, server = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, server)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, server, link, self._questions), name="questions")
                group.create_task(self._pump(upstream, writer, link, self._answers), name="answers")
        except* OSError:
            link.reset()
        finally:
            self._links.discard(link)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link, gate: asyncio.Event
    ) -> None:
        while True:
            data = await reader.read(_BUFFER)
            await gate.wait()
            await link.passes.wait()
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()


class Proxies:
    """The thread that proxies live in; leaving ends it and every connection."""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self._all: list[Proxy] = []
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._all:
            proxy.refuse()
        asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop).result(_ANSWER_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_ANSWER_SECONDS)
        self._loop.close()

    def add(self, target: tuple[str, int]) -> Proxy:
        """A proxy that serves."""
        proxy = Proxy(self._loop, target=target)
        proxy.heal()
        self._all.append(proxy)
        return proxy


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
