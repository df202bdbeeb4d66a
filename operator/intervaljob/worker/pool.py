"""Executors as their manager sees them: forked on demand, kept warm, given one attempt at a time, known to be gone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from uuid import UUID

from intervaljob.errors import HandlerError
from intervaljob.model.task import Attempt, Outcome, Result
from intervaljob.settings import WorkerSettings
from intervaljob.telemetry import metrics
from intervaljob.worker import wire
from intervaljob.worker.zygote import MESSAGE_BYTES

logger = logging.getLogger(__name__)

#: Bound on loading the handlers.
START_SECONDS = 120.0
#: Bound on its end: then it is killed, and its executors with it.
STOP_SECONDS = 5.0
#: Seconds until another try when there are no processes or no memory to be had.
FORK_AGAIN_SECONDS = 1.0

#: Stores the checkpoint of this number, of those of an attempt; False when the attempt is not the current one.
Checkpoint = Callable[[Attempt, int, str], Awaitable[bool]]


class ExecutorDied(Exception):  # noqa: N818 - the word says it
    """The process of an attempt ended before the attempt did. Nothing of it runs any more."""

    def __init__(self, status: int) -> None:
        super().__init__(f"killed by signal {-status}" if status < 0 else f"ended with {status}")


class Executor:
    """One executor process. `gone` is done once the zygote has buried it, with its exit code."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reader = reader
        self._writer = writer

    def send(self, message: wire.Message) -> None:
        """Without waiting: a process that is gone is noticed by its end."""
        if not self._writer.is_closing():
            self._writer.write(wire.encode(message))

    async def run(self, attempt: Attempt, *, checkpoint: Checkpoint) -> Result:
        """Run one attempt.

        Raises ExecutorDied when the process ends first.
        """
        self.send({"type": "run", "attempt": _key(attempt), **_plain(attempt)})
        while (message := await wire.read(self._reader)) is not None:
            current = message["attempt"] == _key(attempt)
            if message["type"] == "checkpoint":
                saved = current and await checkpoint(attempt, message["number"], message["data"])
                self.send({"type": "saved", "number": message["number"], "ok": saved})
            elif current:
                return Result(
                    outcome=Outcome(message["outcome"]),
                    output=message.get("output"),
                    error=message.get("error"),
                    trace=message.get("trace", ""),
                    retry=message.get("retry", True),
                )
        raise ExecutorDied(await asyncio.shield(self.gone))

    def cancel(self, attempt: Attempt) -> None:
        """Ask the handler of this attempt to stop; one that has ended meanwhile does not notice."""
        self.send({"type": "cancel", "attempt": _key(attempt)})

    def close(self) -> None:
        """Give the connection up."""
        self._writer.close()


class Pool:
    """The zygote and the executors forked from it. `pool()` makes one."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._executors: dict[int, Executor] = {}
        self._idle: list[Executor] = []
        self._forked: asyncio.Queue[Executor | None] = asyncio.Queue()
        self._orders: asyncio.Queue[dict[str, float]] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def take(self, *, deadline: float) -> Executor:
        """A warm executor, or a new one that lives until `deadline` unless that is pushed out."""
        while True:
            while self._idle:
                executor = self._idle.pop()
                if not executor.gone.done():
                    return executor
            self._orders.put_nowait({"fork": deadline})
            forked = await self._forked.get()
            if forked is not None:
                return forked
            await asyncio.sleep(FORK_AGAIN_SECONDS)

    def put_back(self, executor: Executor) -> None:
        """The executor has ended its attempt and takes another."""
        if not executor.gone.done():
            self._idle.append(executor)

    def push_out(self, deadline: float) -> None:
        """The lease was renewed: the zygote and every executor may live until `deadline`, a boot time."""
        self._orders.put_nowait({"deadline": deadline})
        for executor in self._executors.values():
            executor.send({"type": "deadline", "at": deadline})

    async def kill(self, executor: Executor) -> None:
        """Returns when nothing of the executor runs any more."""
        if not executor.gone.done():
            self._orders.put_nowait({"kill": executor.pid})
            await asyncio.shield(executor.gone)

    async def kill_all(self) -> None:
        """Returns when nothing of any executor runs any more."""
        for executor in tuple(self._executors.values()):
            await self.kill(executor)

    async def talk(self) -> None:
        """Tell the zygote what there is to tell, in order and without loss, until it ends."""
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):  # the zygote has ended, which `listen` notices
            while True:
                order = await self._orders.get()
                await loop.sock_sendall(self._control, json.dumps(order).encode())

    async def listen(self) -> None:
        """Hear from the zygote, until it ends; with it every executor ends."""
        loop = asyncio.get_running_loop()
        while True:
            data, fds = await _receive(loop, self._control)
            if not data:
                break
            message = json.loads(data)
            if "forked" in message:
                await self._welcome(message["forked"], fds[0])
            elif "not_forked" in message:
                logger.warning("Cannot fork an executor", extra={"error": message["not_forked"]})
                self._forked.put_nowait(None)
            else:
                self._bury(message["exited"], message["status"])
        for pid in tuple(self._executors):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what an executor started does not end with the zygote
            self._bury(pid, -signal.SIGKILL)
        self.ended.set()

    async def _welcome(self, pid: int, descriptor: int) -> None:
        connection = socket.socket(fileno=descriptor)
        connection.setblocking(False)
        executor = Executor(pid, *await asyncio.open_connection(sock=connection))
        self._executors[pid] = executor
        metrics.EXECUTORS.set(len(self._executors))
        self._forked.put_nowait(executor)

    def _bury(self, pid: int, status: int) -> None:
        executor = self._executors.pop(pid)
        metrics.EXECUTORS.set(len(self._executors))
        executor.gone.set_result(status)
        executor.close()


@asynccontextmanager
async def pool(settings: WorkerSettings) -> AsyncIterator[Pool]:
    """A pool whose handlers are loaded; on leaving, every process of it is gone.

    Raises HandlerError when the handlers cannot be loaded.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    start = {
        "parent": os.getpid(),
        "handlers": settings.handlers,
        "log_format": settings.log_format,
        "log_level": settings.log_level,
    }
    allowed = {
        "INTERVALJOB_HTTP_ALLOW": ",".join(settings.http_allow),
        "INTERVALJOB_COMMAND_ALLOW": ",".join(settings.command_allow),
    }
    with ours, theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "intervaljob.worker.zygote", str(theirs.fileno()), json.dumps(start)),
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            env=_environment(allowed),
            start_new_session=True,
        )
        theirs.close()
        made = Pool(ours)
        talking: asyncio.Task[None] | None = None
        listening: asyncio.Task[None] | None = None
        try:
            await _handlers_loaded(ours)
            talking = asyncio.create_task(made.talk(), name="orders")
            listening = asyncio.create_task(made.listen(), name="pool")
            yield made
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:  # stopped, or stuck in what a module started
                process.kill()
                await process.wait()
            if talking is not None and listening is not None:
                await listening
                talking.cancel()
                await asyncio.gather(talking, return_exceptions=True)


def _environment(allowed: dict[str, str]) -> dict[str, str]:
    """What handlers see: no setting that holds the way to the database."""
    hidden = ("INTERVALJOB_DATABASE_URL", "INTERVALJOB_DATABASE_URL_FILE")
    return {name: value for name, value in os.environ.items() if name not in hidden} | allowed


async def _handlers_loaded(control: socket.socket) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            data = await asyncio.get_running_loop().sock_recv(control, MESSAGE_BYTES)
    except TimeoutError:
        raise HandlerError(f"the handlers were not loaded within {START_SECONDS:.0f} s") from None
    answer = json.loads(data or b'{"error": "the process that loads the handlers ended"}')
    if "error" in answer:
        raise HandlerError(answer["error"])
    logger.info("Handlers loaded", extra={"handlers": ",".join(answer["handlers"])})


async def _receive(loop: asyncio.AbstractEventLoop, control: socket.socket) -> tuple[bytes, list[int]]:
    """One datagram and the descriptors that came with it; asyncio has no call for those."""
    readable: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        loop.remove_reader(control)
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(control, wake)
    await readable
    try:
        data, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 1)
    except ConnectionError:
        return b"", []
    return data, fds


def _key(attempt: Attempt) -> str:
    return f"{attempt.task_id}/{attempt.number}"


def _plain(attempt: Attempt) -> wire.Message:
    plain = {name: str(value) if isinstance(value, UUID) else value for name, value in asdict(attempt).items()}
    return plain | {"scheduled_for": attempt.scheduled_for.isoformat(), "created_at": attempt.created_at.isoformat()}
