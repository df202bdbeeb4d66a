"""The process that runs handlers, one attempt after the other. It is forked from the zygote with its handlers loaded.

The main thread runs the handler. A second thread reads what the manager says: the deadline that a renewed lease
pushes out, a cancellation, the answer to a checkpoint. A handler that holds the interpreter's lock keeps that thread
from hearing of renewals; so the process only stops at its deadline, and the zygote, which hears of them in any case,
continues it or kills it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import asyncio
import functools
import inspect
import itertools
import json
import logging
import os
import queue
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType
from uuid import UUID

from msgspec import Raw

from intervaljob.errors import HandlerError
from intervaljob.model.task import MAX_OUTPUT_BYTES, NOTHING, Attempt, Json, Outcome, Result, storable_json
from intervaljob.worker import wire
from intervaljob.worker.fence import Fence
from intervaljob.worker.handlers import Handler, Task

#: Users and workspaces whose ids are remembered: most tasks have the one before's.
_USERS = 1000

#: Cancellations that may come late: those of attempts that have ended are never asked for again.
_MOST_UNWANTED = 1000

#: What interrupts the main thread for a cancellation: few libraries take it for themselves, as many do SIGTERM.
CANCEL_SIGNAL = signal.SIGRTMAX - 3


class TaskCancelled(BaseException):
    """Raised in a handler whose task is to stop, as KeyboardInterrupt would be."""


class Executor:
    """Runs what comes over `connection` until it closes."""

    def __init__(self, connection: socket.socket, handlers: Mapping[str, Handler], *, deadline: float) -> None:
        self._connection = connection
        self._handlers = handlers
        self._awaits = functools.cache(inspect.iscoroutinefunction)
        self._logger = functools.cache(lambda handler: logging.getLogger(f"handler.{handler}"))
        self._uuid = functools.lru_cache(maxsize=_USERS)(UUID)
        self._fence = Fence(deadline, signal.SIGSTOP)
        self._runs: queue.SimpleQueue[wire.Given] = queue.SimpleQueue()
        self._saves: dict[int, Future[bool]] = {}
        self._save_numbers = itertools.count()
        self._sending = threading.Lock()
        self._is_sending = False
        self._current: int | None = None
        self._unwanted: set[int] = set()
        self._signalled: int | None = None
        self._asyncio_task: tuple[int, asyncio.AbstractEventLoop, asyncio.Task[Json]] | None = None

    def serve(self) -> None:
        """Run tasks for ever; the process ends with its connection."""
        self._heed_signals()
        threading.Thread(target=self._listen, name="manager", daemon=True).start()
        while True:
            given = self._runs.get()
            begun = time.perf_counter()
            result = self._run(given.attempt, given.ticket)
            self._heed_signals()
            self._unwanted.discard(given.ticket)
            result.seconds = time.perf_counter() - begun
            self._send(wire.Ended(given.ticket, result))

    def _heed_signals(self) -> None:
        """Anew after each attempt, which may have set them. `signal.signal` does the same at ten times the cost."""
        _signal.signal(CANCEL_SIGNAL, self._interrupt)
        _signal.signal(signal.SIGTERM, self._terminate)

    def _listen(self) -> None:
        try:
            stream = wire.reader(self._connection)
            while (message := wire.receive(stream, wire.to_executor)) is not None:
                self._hear(message)
        finally:
            os._exit(0)

    def _hear(self, message: wire.ToExecutor) -> None:
        match message:
            case wire.Deadline():
                self._fence.push_out(message.at)
            case wire.Run():
                for given in message.given:
                    self._runs.put(given)
            case wire.Saved():
                self._saves.pop(message.number).set_result(message.ok)
            case wire.Return():
                self._say(wire.Returned(list(self._take_back())))
            case wire.Cancel():
                if len(self._unwanted) >= _MOST_UNWANTED:
                    self._unwanted.discard(min(self._unwanted))
                self._unwanted.add(message.ticket)
                if self._current == message.ticket:
                    self._cancel(message.ticket)

    def _take_back(self) -> Iterator[int]:
        """What the main thread has not taken yet."""
        with suppress(queue.Empty):
            while True:
                yield self._runs.get_nowait().ticket

    def _cancel(self, ticket: int) -> None:
        """Of this attempt only: the main thread may be at the next one already."""
        running = self._asyncio_task
        if running is None:
            self._signalled = ticket
            with suppress(OSError):  # the user has too many signals pending: it is killed instead
                signal.pthread_kill(threading.main_thread().ident or 0, CANCEL_SIGNAL)
        elif running[0] == ticket:
            _, loop, task = running
            with suppress(RuntimeError):  # the loop has closed: the handler has just ended
                loop.call_soon_threadsafe(task.cancel)

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        """For a cancellation; one that comes during half a message waits until that has been sent."""
        meant, self._signalled = self._signalled, None
        if meant is not None and meant == self._current and not self._is_sending:
            raise TaskCancelled

    def _terminate(self, _signum: int, _frame: FrameType | None) -> None:
        """Nobody of ours sends this: what the handler, or its machine's owner, brings upon it is a failure."""
        if self._current is not None and not self._is_sending:
            raise TaskCancelled

    def _begin(self, ticket: int) -> None:
        self._current = ticket
        self._stop_if_unwanted()

    def _stop_if_unwanted(self) -> None:
        if self._current is not None and self._current in self._unwanted:
            raise TaskCancelled

    def _run(self, attempt: Attempt, ticket: int) -> Result:
        function = self._handlers.get(attempt.handler)
        if function is None:
            return _failed(
                HandlerError(f"this worker has no handler {attempt.handler!r}; it has: {', '.join(self._handlers)}")
            )
        try:
            task = self._task(attempt, ticket)
            if self._awaits(function):
                output = asyncio.run(self._await(function, task, ticket))
            else:
                self._begin(ticket)
                output = function(task)
            self._current = None
            return Result(Outcome.RETURNED, NOTHING if output is None else _bounded(output))
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its result
            self._current = None
            if isinstance(error, TaskCancelled | asyncio.CancelledError) and ticket in self._unwanted:
                return Result(Outcome.CANCELLED, error="the handler was cancelled")
            return _failed(error)
        finally:
            self._current = None
            self._asyncio_task = None

    async def _await(self, function: Handler, task: Task, ticket: int) -> Json:
        current = asyncio.current_task()
        assert current is not None
        self._asyncio_task = (ticket, asyncio.get_running_loop(), current)
        self._begin(ticket)
        return await function(task)

    def _task(self, attempt: Attempt, ticket: int) -> Task:
        fields = {"job": attempt.job_id, "task": attempt.task_id, "attempt": attempt.number}
        return Task(
            id=attempt.task_id,
            job_id=attempt.job_id,
            user_id=self._uuid(attempt.user_id),
            workspace_id=self._uuid(attempt.workspace_id),
            payload=attempt.payload,
            attempt=attempt.number,
            recovered=attempt.recovered,
            scheduled_for=attempt.scheduled_for,
            last_checkpoint=None if attempt.checkpoint is None else json.loads(attempt.checkpoint),
            logger=logging.LoggerAdapter(self._logger(attempt.handler), fields),
            save=functools.partial(self._save, ticket),
        )

    def _save(self, ticket: int, text: str) -> None:
        number = next(self._save_numbers)
        answer: Future[bool] = Future()
        self._saves[number] = answer
        self._send(wire.Checkpoint(ticket, number, text))
        if not answer.result():
            self._unwanted.add(ticket)
            raise TaskCancelled

    def _send(self, message: wire.ToManager) -> None:
        """Of the main thread, which a cancellation interrupts only when it has done so."""
        self._is_sending = True
        self._say(message)
        self._is_sending = False
        self._stop_if_unwanted()

    def _say(self, message: wire.ToManager) -> None:
        with self._sending:
            self._connection.sendall(wire.encode(message))


def _bounded(output: Json) -> Raw:
    """The output, or its beginning with a mark where it is too large.

    Raises HandlerError for what is no JSON.
    """
    try:
        text = storable_json(output)
    except (TypeError, ValueError, RecursionError) as error:
        raise HandlerError(f"what the handler returned is no JSON: {error}") from error
    size = len(text)
    if size > MAX_OUTPUT_BYTES:
        text = json.dumps({"truncated": True, "bytes": size, "beginning": text[: MAX_OUTPUT_BYTES // 8]})
    return Raw(text.encode())


def _said(error: BaseException) -> str:
    """What it says of itself; a user's class may raise when asked."""
    try:
        return str(error)
    except Exception as another:  # noqa: BLE001 - whatever it is, the attempt has failed and no more
        return f"(cannot be printed: {type(another).__name__})"


def _failed(error: BaseException) -> Result:
    return Result(
        Outcome.RAISED,
        error=_encodable(f"{type(error).__name__}: {_said(error)}"),
        trace="" if isinstance(error, HandlerError) else _encodable("".join(traceback.format_exception(error))),
        retry=not isinstance(error, HandlerError),
    )


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which file names and user input may bring."""
    return text.encode(errors="replace").decode()
