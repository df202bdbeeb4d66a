"""The process that runs handlers, one attempt after the other. It is forked from the zygote with its handlers loaded.

The main thread runs the handler. A second thread reads what the manager says: the deadline that a renewed lease
pushes out, a cancellation, the answer to a checkpoint. A handler that holds the interpreter's lock keeps that thread
from hearing of renewals; so the process only stops at its deadline, and the zygote, which hears of them in any case,
continues it or kills it.
"""

from __future__ import annotations

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
from datetime import datetime
from types import FrameType
from uuid import UUID

from intervaljob.errors import HandlerError
from intervaljob.model.task import MAX_OUTPUT_BYTES, Json, Outcome, storable_json
from intervaljob.worker import wire
from intervaljob.worker.fence import Fence
from intervaljob.worker.handlers import Handler, Task

#: Cancellations that may come late: those of attempts that have ended are never asked for again.
_MOST_UNWANTED = 1000


class TaskCancelled(BaseException):
    """Raised in a handler whose task is to stop, as KeyboardInterrupt would be."""


class Executor:
    """Runs what comes over `connection` until it closes."""

    def __init__(self, connection: socket.socket, handlers: Mapping[str, Handler], *, deadline: float) -> None:
        self._connection = connection
        self._handlers = handlers
        self._awaits = functools.cache(inspect.iscoroutinefunction)
        self._logger = functools.cache(lambda handler: logging.getLogger(f"handler.{handler}"))
        self._fence = Fence(deadline, signal.SIGSTOP)
        self._runs: queue.SimpleQueue[wire.Message] = queue.SimpleQueue()
        self._saves: dict[int, Future[bool]] = {}
        self._save_numbers = itertools.count()
        self._sending = threading.Lock()
        self._is_sending = False
        self._current: str | None = None
        self._unwanted: set[str] = set()
        self._asyncio_task: tuple[asyncio.AbstractEventLoop, asyncio.Task[Json]] | None = None

    def serve(self) -> None:
        """Run tasks for ever; the process ends with its connection."""
        threading.Thread(target=self._listen, name="manager", daemon=True).start()
        while True:
            signal.signal(signal.SIGTERM, self._interrupt)  # whatever the last handler made of it
            message = self._runs.get()
            begun = time.perf_counter()
            result = self._run(message)
            self._unwanted.discard(message["attempt"])
            seconds = time.perf_counter() - begun
            self._send({"type": "result", "attempt": message["attempt"], "seconds": seconds, **result})

    def _listen(self) -> None:
        try:
            stream = wire.reader(self._connection)
            while (message := wire.receive(stream)) is not None:
                self._hear(message)
        finally:
            os._exit(0)

    def _hear(self, message: wire.Message) -> None:
        match message["type"]:
            case "deadline":
                self._fence.push_out(message["at"])
            case "run":
                self._runs.put(message)
            case "saved":
                self._saves.pop(message["number"]).set_result(message["ok"])
            case "return":
                self._say({"type": "returned", "attempts": list(self._take_back())})
            case "cancel":
                if len(self._unwanted) >= _MOST_UNWANTED:
                    self._unwanted.pop()
                self._unwanted.add(message["attempt"])
                if self._current == message["attempt"]:
                    self._cancel()

    def _take_back(self) -> Iterator[str]:
        """What the main thread has not taken yet."""
        with suppress(queue.Empty):
            while True:
                yield self._runs.get_nowait()["attempt"]

    def _cancel(self) -> None:
        running = self._asyncio_task
        if running is None:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        else:
            loop, task = running
            with suppress(RuntimeError):  # the loop has closed: the handler has just ended
                loop.call_soon_threadsafe(task.cancel)

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        if self._current is not None and not self._is_sending:  # half a message must not be sent
            raise TaskCancelled

    def _begin(self, attempt: str) -> None:
        self._current = attempt
        self._stop_if_unwanted()

    def _stop_if_unwanted(self) -> None:
        if self._current is not None and self._current in self._unwanted:
            raise TaskCancelled

    def _run(self, message: wire.Message) -> wire.Message:
        task = self._task(message)
        function = self._handlers.get(message["handler"])
        if function is None:
            return _failed(
                HandlerError(f"this worker has no handler {message['handler']!r}; it has: {', '.join(self._handlers)}")
            )
        try:
            if self._awaits(function):
                output = asyncio.run(self._await(function, task, message["attempt"]))
            else:
                self._begin(message["attempt"])
                output = function(task)
            self._current = None
            return {"outcome": Outcome.RETURNED, "output": _bounded(output)}
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its result
            self._current = None
            if isinstance(error, TaskCancelled | asyncio.CancelledError) and message["attempt"] in self._unwanted:
                return {"outcome": Outcome.CANCELLED, "error": "the handler was cancelled"}
            return _failed(error)
        finally:
            self._current = None
            self._asyncio_task = None

    async def _await(self, function: Handler, task: Task, attempt: str) -> Json:
        current = asyncio.current_task()
        assert current is not None
        self._asyncio_task = (asyncio.get_running_loop(), current)
        self._begin(attempt)
        return await function(task)

    def _task(self, message: wire.Message) -> Task:
        fields = {"job": message["job_id"], "task": message["task_id"], "attempt": message["number"]}
        return Task(
            id=UUID(message["task_id"]),
            job_id=UUID(message["job_id"]),
            user_id=UUID(message["user_id"]),
            workspace_id=UUID(message["workspace_id"]),
            payload=message["payload"],
            attempt=message["number"],
            recovered=message["recovered"],
            scheduled_for=datetime.fromisoformat(message["scheduled_for"]),
            last_checkpoint=message["checkpoint"],
            logger=logging.LoggerAdapter(self._logger(message["handler"]), fields),
            save=functools.partial(self._save, message["attempt"]),
        )

    def _save(self, attempt: str, text: str) -> None:
        number = next(self._save_numbers)
        answer: Future[bool] = Future()
        self._saves[number] = answer
        self._send({"type": "checkpoint", "attempt": attempt, "number": number, "data": text})
        if not answer.result():
            self._unwanted.add(attempt)
            raise TaskCancelled

    def _send(self, message: wire.Message) -> None:
        """Of the main thread, which a cancellation interrupts only when it has done so."""
        self._is_sending = True
        self._say(message)
        self._is_sending = False
        self._stop_if_unwanted()

    def _say(self, message: wire.Message) -> None:
        with self._sending:
            self._connection.sendall(wire.encode(message))


def _bounded(output: Json) -> Json:
    """The output, or its beginning with a mark where it is too large.

    Raises HandlerError for what is no JSON.
    """
    try:
        text = storable_json(output)
    except (TypeError, ValueError, RecursionError) as error:
        raise HandlerError(f"what the handler returned is no JSON: {error}") from error
    size = len(text)
    if size <= MAX_OUTPUT_BYTES:
        return json.loads(text)
    return {"truncated": True, "bytes": size, "beginning": text[: MAX_OUTPUT_BYTES // 8]}


def _said(error: BaseException) -> str:
    """What it says of itself; a user's class may raise when asked."""
    try:
        return str(error)
    except Exception as another:  # noqa: BLE001 - whatever it is, the attempt has failed and no more
        return f"(cannot be printed: {type(another).__name__})"


def _failed(error: BaseException) -> wire.Message:
    return {
        "outcome": Outcome.RAISED,
        "error": f"{type(error).__name__}: {_said(error)}",
        "trace": "" if isinstance(error, HandlerError) else "".join(traceback.format_exception(error)),
        "retry": not isinstance(error, HandlerError),
    }
