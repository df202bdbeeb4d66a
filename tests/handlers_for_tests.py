"""Handlers that behave as users' handlers do, and worse. Payloads are JSON."""

import asyncio
import ctypes
import json
import os
import resource
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from intervaljob import Task, handler
from intervaljob.errors import HandlerError
from intervaljob.worker.executor import CANCEL_SIGNAL


def _payload(task: Task) -> Any:
    return json.loads(task.payload)


@handler("test.sync")
def sync(task: Task) -> Any:
    return {"doubled": 2 * _payload(task), "pid": os.getpid(), "attempt": task.attempt, "recovered": task.recovered}


@handler("test.async")
async def awaits(task: Task) -> Any:
    await asyncio.sleep(0)
    return {"doubled": 2 * _payload(task), "pid": os.getpid()}


@handler("test.raises")
def raises(task: Task) -> Any:
    raise ValueError(_payload(task))


@handler("test.refuses")
async def refuses(task: Task) -> Any:
    raise HandlerError("this payload will never do")


@handler("test.returns")
def returns(task: Task) -> Any:
    outputs: dict[str, Any] = {
        "large": "x" * 65_535,
        "fits": "x" * 65_534,
        "set": {1},
        "nan": float("nan"),
        "nul": ["a\0b", "\ud800", "\\u0000", "😀"],
    }
    return outputs[_payload(task)]


@handler("test.dies")
def dies(task: Task) -> Any:
    """In the way that the payload says."""
    payload = _payload(task)
    match payload["how"]:
        case "exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "cpu_limit":
            resource.setrlimit(resource.RLIMIT_CPU, (1, 2))
            while True:
                pass
        case "close":
            os.closerange(3, 256)
            time.sleep(60)


@handler("test.dies_once")
def dies_once(task: Task) -> Any:
    if task.attempt == 1:
        dies(task)
    return {"attempt": task.attempt, "recovered": task.recovered}


class Unprintable(Exception):  # noqa: N818 - its name is what is looked for
    def __str__(self) -> str:
        raise ValueError("no")


@handler("test.unprintable")
def unprintable(task: Task) -> Any:
    raise Unprintable


@handler("test.checkpoints")
def checkpoints(task: Task) -> Any:
    """Saves what the payload lists, one after the other."""
    for data in _payload(task):
        task.checkpoint(data)
    return {"last": task.last_checkpoint}


@handler("test.checkpoint_fails")
def checkpoint_fails(task: Task) -> Any:
    """Saves what cannot be saved."""
    task.checkpoint({"set": {1}, "nan": float("nan"), "large": "x" * 65_537}[_payload(task)])


@handler("test.interrupted_checkpoint")
def interrupted_checkpoint(task: Task) -> Any:
    """Saves until it is cancelled."""
    while True:
        task.checkpoint("…")


@handler("test.waits")
async def waits(task: Task) -> Any:
    """Says in the file `started` who it is, and waits for the file `go`, at a loop's leisure."""
    payload = _payload(task)
    go = Path(payload["go"])
    _say(payload["started"], os.getpid())
    try:
        while not go.exists():  # noqa: ASYNC240 - a file sends no event
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        if "cancelled" in payload:
            _say(payload["cancelled"], os.getpid())
        raise
    return {"attempt": task.attempt, "recovered": task.recovered}


@handler("test.waits_sync")
def waits_sync(task: Task) -> Any:
    payload = _payload(task)
    _say(payload["started"], os.getpid())
    while not Path(payload["go"]).exists():
        time.sleep(0.01)
    return {"attempt": task.attempt, "recovered": task.recovered}


@handler("test.stubborn")
def stubborn(task: Task) -> Any:
    """Ignores every wish to end."""
    _say(_payload(task)["started"], os.getpid())
    while True:
        with suppress(BaseException):
            time.sleep(60)


@handler("test.ignores_signals")
def ignores_signals(task: Task) -> Any:
    """Leaves the process so that neither a cancellation nor SIGTERM has an effect."""
    for each in (CANCEL_SIGNAL, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


@handler("test.terminates_a_child")
def terminates_a_child(task: Task) -> Any:
    """Returns what a child that it tells to end ends with."""
    child = subprocess.Popen(["sleep", "600"])
    child.terminate()
    try:
        return child.wait(timeout=5)
    finally:
        child.kill()


@handler("test.holds_the_lock")
def holds_the_lock(task: Task) -> Any:
    """Holds the interpreter's lock in a call that lasts."""
    payload = _payload(task)
    _say(payload["started"], os.getpid())
    ctypes.PyDLL(None).usleep(int(payload.get("seconds", 600) * 1e6))
    return {"pid": os.getpid()}


@handler("test.blocks_the_loop")
async def blocks_the_loop(task: Task) -> Any:
    _say(_payload(task)["started"], os.getpid())
    time.sleep(600)  # noqa: ASYNC251 - on purpose


@handler("test.starts_a_process")
def starts_a_process(task: Task) -> Any:
    """A program of its own that outlives it unless somebody ends it."""
    payload = _payload(task)
    child = subprocess.Popen(["sleep", "600"])
    _say(payload["child"], child.pid)
    _say(payload["started"], os.getpid())
    if payload.get("returns"):
        os._exit(0)
    child.wait()


@handler("test.deaf")
def deaf(task: Task) -> Any:
    """Catches or blocks every signal that it can, and so does what it starts."""
    payload = _payload(task)
    for each in (signal.SIGTERM, signal.SIGALRM, signal.SIGCONT, signal.SIGCHLD, signal.SIGTSTP):
        signal.signal(each, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    _say(payload["child"], subprocess.Popen(["sleep", "600"]).pid)
    _say(payload["started"], os.getpid())
    while True:
        with suppress(BaseException):
            time.sleep(60)


@handler("test.cancels_itself")
async def cancels_itself(task: Task) -> Any:
    """A bug of the handler's, not a wish of anybody's."""
    raise asyncio.CancelledError


@handler("test.terminates_itself")
def terminates_itself(task: Task) -> Any:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


@handler("test.exits")
def exits(task: Task) -> Any:
    raise SystemExit(5)


def _say(file: str, pid: int) -> None:
    """Whole or not at all: whoever reads it must not see half a number."""
    path = Path(f"{file}.{pid}")
    path.write_text(str(pid))
    path.rename(file)
