"""The process that runs handlers, one task at a time. It is forked from the zygote, so handlers are loaded already.

The main thread runs the handler. A second thread reads what the manager says: the deadline that a renewed lease
pushes out, a cancellation, the answer to a checkpoint.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import queue
import signal
import socket
import threading
import traceback
from collections.abc import Mapping
from datetime import datetime
from types import FrameType
from uuid import UUID

from intervaljob.errors import HandlerError
from intervaljob.model.task import MAX_OUTPUT_BYTES, Json, Outcome
from intervaljob.worker import wire
from intervaljob.worker.fence import Fence
from intervaljob.worker.handlers import Handler, Task


class TaskCancelled(BaseException):
    """Raised in a handler whose task is to stop, as KeyboardInterrupt would be."""


class Executor:
    """Runs what comes over `connection` until it closes."""

    def __init__(self, connection: socket.socket, handlers: Mapping[str, Handler], *, deadline: float) -> None:
        self._connection = connection
        self._handlers = handlers
        self._fence = Fence(deadline)
        self._runs: queue.SimpleQueue[wire.Message] = queue.SimpleQueue()
        self._saved: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._current: str | None = None
        self._sending = False
        self._interrupted = False
        self._asyncio_task: tuple[asyncio.AbstractEventLoop, asyncio.Task[Json]] | None = None

    def serve(self) -> None:
        """Run tasks for ever; the process ends with its connection."""
        signal.signal(signal.SIGTERM, self._interrupt)
        threading.Thread(target=self._listen, name="manager", daemon=True).start()
        while True:
            message = self._runs.get()
            answer = self._run(message)
            self._interrupted = False  # a cancellation comes too late now
            self._send({"type": "result", "task": message["task_id"], **answer})

    def _listen(self) -> None:
        while (message := wire.receive(self._connection)) is not None:
            match message["type"]:
                case "deadline":
                    self._fence.push_out(message["at"])
                case "run":
                    self._runs.put(message)
                case "saved":
                    self._saved.put(message["ok"])
                case "cancel" if message["task"] == self._current:
                    self._cancel()
        os._exit(0)

    def _cancel(self) -> None:
        if self._asyncio_task is None:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        else:
            loop, task = self._asyncio_task
            loop.call_soon_threadsafe(task.cancel)

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        if self._sending:
            self._interrupted = True  # half a message must not be sent
        elif self._current is not None:
            raise TaskCancelled

    def _run(self, message: wire.Message) -> wire.Message:
        task = self._task(message)
        function = self._handlers.get(message["handler"])
        if function is None:
            return _failed(
                HandlerError(f"this worker has no handler {message['handler']!r}; it has: {', '.join(self._handlers)}")
            )
        try:
            if inspect.iscoroutinefunction(function):
                output = asyncio.run(self._await(function, task))
            else:
                self._current = str(task.id)
                output = function(task)
            self._current = None
            return {"outcome": Outcome.RETURNED, "output": _bounded(output)}
        except (TaskCancelled, asyncio.CancelledError):
            return {"outcome": Outcome.CANCELLED, "error": "the handler was cancelled"}
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever a handler raises is its result
            return _failed(error)
        finally:
            self._current = None
            self._asyncio_task = None

    async def _await(self, function: Handler, task: Task) -> Json:
        current = asyncio.current_task()
        assert current is not None
        self._asyncio_task = (asyncio.get_running_loop(), current)
        self._current = str(task.id)
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
            logger=logging.LoggerAdapter(logging.getLogger(f"handler.{message['handler']}"), fields),
            save=self._save,
        )

    def _save(self, text: str) -> None:
        self._send({"type": "checkpoint", "data": text})
        if not self._saved.get():
            raise TaskCancelled

    def _send(self, message: wire.Message) -> None:
        self._sending = True
        self._connection.sendall(wire.encode(message))
        self._sending = False
        if self._interrupted and self._current is not None:
            raise TaskCancelled


def _bounded(output: Json) -> Json:
    """The output, or its beginning with a mark where it is too large."""
    text = json.dumps(output)
    size = len(text.encode())
    if size <= MAX_OUTPUT_BYTES:
        return output
    return {"truncated": True, "bytes": size, "beginning": text[: MAX_OUTPUT_BYTES // 8]}


def _failed(error: BaseException) -> wire.Message:
    return {
        "outcome": Outcome.RAISED,
        "error": f"{type(error).__name__}: {error}",
        "trace": "" if isinstance(error, HandlerError) else "".join(traceback.format_exception(error)),
        "retry": not isinstance(error, HandlerError),
    }
