"""The kernel's part in self-fencing, on real processes: each script says `ready`, then does what it is fenced for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import state_of

FENCE = (
    "import signal, time; from intervaljob.worker.fence import Fence, boot_time;"
    "fence = Fence(boot_time() + {seconds}, signal.{signum});"
)
READY = "print('ready', flush=True);"
HOLD_THE_LOCK = "import ctypes; ctypes.PyDLL(None).usleep(600_000_000)"


@contextmanager
def script(text: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs this and has said that it is ready."""
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def stopped(pid: int) -> None:
    """Wait until the process stands still."""
    deadline = time.monotonic() + 10
    while state_of(pid) != "T":
        assert time.monotonic() < deadline, "it does not stop"
        time.sleep(0.01)


WHATEVER_IT_DOES = pytest.mark.parametrize(
    "does",
    [
        HOLD_THE_LOCK,
        "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(600)",
        "[signal.signal(each, lambda *_: None) for each in (14, 15, 17, 18, 20)]; [time.sleep(1) for _ in range(600)]",
        "import subprocess; subprocess.run(['sleep', '5'])",
        "signal.alarm(0); signal.setitimer(signal.ITIMER_REAL, 0); time.sleep(600)",
        "import asyncio; asyncio.run(asyncio.sleep(600))",
    ],
)


@WHATEVER_IT_DOES
def test_the_deadline_ends_a_process_whatever_it_does(does: str) -> None:
    begun = time.monotonic()
    with script(FENCE.format(seconds=0.4, signum="SIGKILL") + READY + does) as process:
        assert process.wait(10) == -signal.SIGKILL
        assert time.monotonic() - begun >= 0.4


def test_the_deadline_ends_a_stopped_process_before_its_next_instruction(tmp_path: Path) -> None:
    file = tmp_path / "woken"
    loop = f"[open({str(file)!r}, 'w').close() for _ in iter(int, 1) if time.monotonic() > fence_ends]"
    fence = FENCE.format(seconds=0.5, signum="SIGKILL") + "fence_ends = time.monotonic() + 0.5;"
    with script(fence + READY + loop) as process:
        process.send_signal(signal.SIGSTOP)
        assert process.wait(10) == -signal.SIGKILL
    assert not file.exists()


@WHATEVER_IT_DOES
def test_the_deadline_stops_a_process_whatever_it_does_and_stops_it_again(does: str) -> None:
    begun = time.monotonic()
    with script(FENCE.format(seconds=0.4, signum="SIGSTOP") + READY + does) as process:
        stopped(process.pid)
        assert time.monotonic() - begun >= 0.4
        process.send_signal(signal.SIGCONT)
        stopped(process.pid)


def test_a_deadline_in_the_past_ends_the_process_at_once() -> None:
    with script(READY + FENCE.format(seconds=-5, signum="SIGKILL") + "time.sleep(600)") as process:
        assert process.wait(10) == -signal.SIGKILL


def test_a_deadline_that_is_pushed_out_ends_the_process_later() -> None:
    with script(
        FENCE.format(seconds=0.3, signum="SIGKILL")
        + "fence.push_out(boot_time() + 1.0); began = time.monotonic();"
        + READY
        # The first deadline passes while the lock is held, the second while it is held again.
        + HOLD_THE_LOCK.replace("600_000_000", "600_000")
        + "; print('alive', flush=True);"
        + HOLD_THE_LOCK
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
        assert process.wait(10) == -signal.SIGKILL


def test_a_child_of_the_process_has_no_deadline_of_its_own() -> None:
    """What an executor starts ends with its group, which the zygote kills; not by a timer."""
    text = (
        FENCE.format(seconds=0.3, signum="SIGKILL") + "import os, sys; pid = os.fork();"
        "(time.sleep(0.6), print('child', flush=True), os._exit(0)) if pid == 0 else None;" + READY + "time.sleep(600)"
    )
    with script(text) as process:
        assert process.stdout is not None
        assert process.wait(10) == -signal.SIGKILL
        assert process.stdout.readline() == "child\n"


@pytest.mark.parametrize("does", ["time.sleep(600)", HOLD_THE_LOCK])
def test_a_process_dies_with_its_parent(does: str) -> None:
    text = (
        "import os, signal, time; from intervaljob.worker.fence import die_with_parent; parent = os.getpid();"
        "reading, writing = os.pipe(); child = os.fork();"
        "(die_with_parent(parent, signal.SIGKILL), os.write(writing, b'x'), exec({does!r})) if child == 0 else None;"
        "os.read(reading, 1); print('ready', flush=True); print(child, flush=True); time.sleep(600)"
    ).replace("{does!r}", repr(does))
    with script(text) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert state_of(child) in "SR"
        process.kill()
        # The pipe ends when the child, which has it too, has ended.
        assert process.stdout.read() == ""


def test_a_process_whose_parent_ended_first_dies_at_once() -> None:
    text = (
        "import os, signal, time; from intervaljob.worker.fence import die_with_parent; print('ready', flush=True);"
        f"die_with_parent({os.getpid()} + 1_000_000, signal.SIGKILL); time.sleep(600)"
    )
    with script(text) as process:
        assert process.wait(10) == -signal.SIGKILL
