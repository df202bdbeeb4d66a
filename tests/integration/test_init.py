"""PID 1 of a worker's container, in a PID namespace as a container has one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support import children_of

BEGIN = """
import os, signal, subprocess, sys, time
from pathlib import Path
from intervaljob.worker.init import leave_pid_1
leave_pid_1()
"""

#: The orphan ends when its parent is long gone; whoever has inherited it is to reap it.
ORPHAN = """
subprocess.run(["sh", "-c", "sleep 0.2 & exit 0"], check=True)
deadline = time.monotonic() + 10
def others():
    return [pid.name for pid in Path("/proc").iterdir() if pid.name.isdigit() and int(pid.name) not in (1, os.getpid())]
while others() and time.monotonic() < deadline:
    time.sleep(0.05)
print("left:", *others())
"""

AWAITS_TERM = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
signal.pause()
"""


@contextmanager
def contained(script: str) -> Iterator[subprocess.Popen[str]]:
    """A script that begins as PID 1."""
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", BEGIN + script],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_orphans_are_reaped() -> None:
    with contained(ORPHAN) as process:
        out, _ = process.communicate(timeout=30)
    assert out.split() == ["left:"]


def test_a_signal_reaches_the_child_and_its_end_is_the_containers() -> None:
    with contained(AWAITS_TERM) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (pid_1,) = children_of(process.pid)
        os.kill(pid_1, signal.SIGTERM)
        assert process.wait(timeout=30) == 7


@pytest.mark.parametrize(("end", "code"), [("os.kill(os.getpid(), 9)", 137), ("sys.exit(3)", 3), ("pass", 0)])
def test_the_container_ends_as_its_manager_did(end: str, code: int) -> None:
    with contained(end) as process:
        assert process.wait(timeout=30) == code


def test_any_other_process_stays_what_it_is() -> None:
    script = "import os\nbefore = os.getpid()\n" + BEGIN + "print(before == os.getpid())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "True"
