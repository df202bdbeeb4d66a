"""Handlers of the campaign: they keep a ledger of their own, outside the system, of what really ran when.

The payload is JSON: {"seconds": float, "behaviour": str, "ledger": folder of the run}.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from intervaljob import Task, handler

#: The name under which a handler's own program is found in /proc, followed by the run's folder.
CHILD_NAME = "chaos-child"

_TICK_SECONDS = 0.05
_CHILD_SECONDS = "900"


def boot_time() -> float:
    """The clock of every file of a run."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def _ledger(folder: str) -> int:
    return os.open(f"{folder}/ledger.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


class _Story:
    """One attempt's lines in the ledger."""

    def __init__(self, task: Task, folder: str) -> None:
        self._task = task
        self._folder = folder

    def write(self, event: str, **fields: object) -> None:
        line = {"event": event, "task": str(self._task.id), "attempt": self._task.attempt, "pid": os.getpid()}
        os.write(_ledger(self._folder), json.dumps({**line, **fields, "at": boot_time()}).encode() + b"\n")

    @contextmanager
    def told(self) -> Iterator[None]:
        """From "begin" on, with the lock that no two processes may have at once; an "end" unless it returns."""
        descriptor = os.open(f"{self._folder}/locks/{self._task.id}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self.write("begin", job=str(self._task.job_id), recovered=self._task.recovered)
            self._lock(descriptor)
            yield
        except BaseException as error:
            self.write("end", how="raised" if isinstance(error, Exception) else "cancelled", token="")
            raise
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode() or "0"
            self.write("overlap", holder=int(holder))
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def returned(self) -> dict[str, str]:
        token = uuid4().hex
        self.write("end", how="returned", token=token)
        return {"token": token}

    def tick_for(self, seconds: float) -> None:
        end = boot_time() + seconds
        while boot_time() < end:
            self.write("tick")
            time.sleep(_TICK_SECONDS)


@handler("chaos")
def chaos(task: Task) -> Any:
    """Does what its payload says, and writes down that it did."""
    payload = json.loads(task.payload)
    story = _Story(task, payload["ledger"])
    with story.told():
        _behave(payload["behaviour"], payload["seconds"], task, story, payload["ledger"])
        return story.returned()


@handler("chaos.async")
async def chaos_async(task: Task) -> Any:
    """The same for a handler that awaits: it only ever returns."""
    payload = json.loads(task.payload)
    story = _Story(task, payload["ledger"])
    with story.told():
        end = boot_time() + payload["seconds"]
        while boot_time() < end:
            story.write("tick")
            await asyncio.sleep(_TICK_SECONDS)
        return story.returned()


def _behave(behaviour: str, seconds: float, task: Task, story: _Story, folder: str) -> None:
    if behaviour == "ignores_cancel":
        _tick_stubbornly(story, seconds)
    elif behaviour == "gated":
        _tick_until_the_gate_opens(story, seconds, folder)
    elif behaviour == "child":
        _tick_with_child(story, seconds, folder)
    elif behaviour == "blocks_gil":
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    else:
        story.tick_for(seconds)
    if behaviour == "raise" or (behaviour == "raise_once" and task.attempt == 1):
        raise RuntimeError(f"attempt {task.attempt} raises")
    if behaviour == "exit":
        os._exit(3)
    if behaviour == "segfault":
        ctypes.string_at(0)
    if behaviour == "kill_once" and task.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def open_gate(folder: Path) -> None:
    """Every attempt that waits at the gate ends now; those that begin later wait for the next opening."""
    gate = folder / "gate.new"
    gate.write_text(uuid4().hex)
    gate.rename(folder / "gate")


def _tick_until_the_gate_opens(story: _Story, seconds: float, folder: str) -> None:
    gate = Path(folder, "gate")
    before = gate.read_text()
    end = boot_time() + seconds
    while boot_time() < end and gate.read_text() == before:
        story.tick_for(_TICK_SECONDS)


def _tick_stubbornly(story: _Story, seconds: float) -> None:
    end = boot_time() + seconds
    while (left := end - boot_time()) > 0:
        with suppress(BaseException):
            story.tick_for(left)


def _tick_with_child(story: _Story, seconds: float, folder: str) -> None:
    """A program of the handler's own, which has to end with it however it ends."""
    child = subprocess.Popen([f"{CHILD_NAME} {folder}", _CHILD_SECONDS], executable="/bin/sleep")
    try:
        story.tick_for(seconds)
    finally:
        child.kill()
        child.wait()


def children_left(folder: Path) -> list[int]:
    """Programs that handlers of this run started and that run still."""
    name = f"{CHILD_NAME} {folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if (entry / "cmdline").read_bytes().split(b"\0")[0] == name:
                found.append(int(entry.name))
    return found
