"""The executors of a worker: forked on demand, kept warm, taken for attempts, known to be gone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from intervaljob.errors import HandlerError
from intervaljob.settings import WorkerSettings
from intervaljob.telemetry import metrics
from intervaljob.worker import wire
from intervaljob.worker.remote import AHEAD_SECONDS, PATIENCE_SECONDS, Executor
from intervaljob.worker.running import Running
from intervaljob.worker.zygote import MESSAGE_BYTES

logger = logging.getLogger(__name__)

#: Bound on loading the handlers.
START_SECONDS = 120.0
#: Bound on its end: then it is killed, and its executors with it.
STOP_SECONDS = 5.0
#: Seconds until another try when there are no processes or no memory to be had.
FORK_AGAIN_SECONDS = 1.0


class Pool:
    """The zygote and at most `limit` executors forked from it. `pool()` makes one."""

    def __init__(self, control: socket.socket, *, limit: int) -> None:
        self._control = control
        self._limit = limit
        self._deadline = 0.0
        self._executors: dict[int, Executor] = {}
        self._idle: list[Executor] = []
        self._filling: Executor | None = None
        self._forking = 0
        self._waiting: deque[tuple[float, Running]] = deque()
        self._orders: asyncio.Queue[dict[str, float]] = asyncio.Queue()
        self._crowded = asyncio.Event()
        self.ended = asyncio.Event()

    def place(self, running: Running, *, deadline: float) -> None:
        """Give an attempt to an executor that has little to do, or to the next one that has.

        That may be a new one, which lives until `deadline` unless that is pushed out.
        """
        self._deadline = max(self._deadline, deadline)
        executor = self._with_room(running.expected)
        if executor is not None:
            executor.give(running)
            return
        self._waiting.append((time.monotonic(), running))
        self._fork_for_waiting()

    def _fork_for_waiting(self) -> None:
        while self._forking < len(self._waiting) and len(self._executors) + self._forking < self._limit:
            self._forking += 1
            self._orders.put_nowait({"fork": self._deadline})

    def withdraw(self, running: Running) -> bool:
        """Whether it waited for an executor; it waits no longer."""
        for waiting in self._waiting:
            if waiting[1] is running:
                self._waiting.remove(waiting)
                return True
        return False

    def withdraw_older(self, seconds: float) -> list[Running]:
        """Those that have waited for an executor for longer; they wait no longer."""
        before = time.monotonic() - seconds
        older = []
        while self._waiting and self._waiting[0][0] < before:
            older.append(self._waiting.popleft()[1])
        return older

    def _with_room(self, expected: float) -> Executor | None:
        if self._filling is not None and self._filling.has_room(expected):
            self._crowded.set()
            return self._filling
        while self._idle:
            executor = self._idle.pop()
            executor.is_idle = False
            if executor.is_free():
                if expected < AHEAD_SECONDS:
                    self._filling = executor
                return executor
        return None

    def _eased(self, executor: Executor) -> None:
        """It has less to do than before."""
        if executor.is_free():
            if not executor.is_idle:
                executor.is_idle = True
                self._idle.append(executor)
        elif executor.load < AHEAD_SECONDS / 2:
            self._filling = executor
        self._place_waiting()

    def _place_waiting(self) -> None:
        while self._waiting:
            executor = self._with_room(self._waiting[0][1].expected)
            if executor is None:
                return
            executor.give(self._waiting.popleft()[1])

    async def ask_back_what_waits(self) -> None:
        """For ever: what waits behind an attempt that takes long is run elsewhere."""
        while True:
            await self._crowded.wait()
            self._crowded.clear()
            await asyncio.sleep(PATIENCE_SECONDS)
            for executor in self._executors.values():
                if executor.is_stuck(time.monotonic()):
                    if self._filling is executor:
                        self._filling = None
                    executor.ask_back()
                elif executor.is_crowded():
                    self._crowded.set()

    def push_out(self, deadline: float) -> None:
        """The lease was renewed: the zygote and every executor may live until `deadline`, a boot time."""
        self._deadline = max(self._deadline, deadline)
        self._orders.put_nowait({"deadline": deadline})
        for executor in self._executors.values():
            executor.send(wire.Deadline(deadline))

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
                loop.call_later(FORK_AGAIN_SECONDS, self._fork_failed)
            else:
                self._bury(message["exited"], message["status"])
        for pid in tuple(self._executors):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what an executor started does not end with the zygote
            self._bury(pid, -signal.SIGKILL)
        self.ended.set()

    def _fork_failed(self) -> None:
        self._forking -= 1
        self._fork_for_waiting()

    async def _welcome(self, pid: int, descriptor: int) -> None:
        connection = socket.socket(fileno=descriptor)
        connection.setblocking(False)
        executor = Executor(pid, connection, eased=self._eased)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: executor, connection)
        self._executors[pid] = executor
        self._forking -= 1
        metrics.EXECUTORS.set(len(self._executors))
        self._eased(executor)

    def _bury(self, pid: int, status: int) -> None:
        executor = self._executors.pop(pid)
        metrics.EXECUTORS.set(len(self._executors))
        executor.bury(status)
        self._fork_for_waiting()


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
        made = Pool(ours, limit=settings.concurrency)
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
