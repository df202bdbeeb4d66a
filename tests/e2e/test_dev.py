"""`intervaljob dev`, as a user starts it and stops it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from intervaljob.embedded.programs import Programs

DEV = [sys.executable, "-m", "intervaljob", "dev"]


@pytest.mark.timeout(180)
def test_the_demo_shows_a_task_that_outlives_its_worker(programs: Programs) -> None:
    """It ends by itself with 0, and names one task all the way, killed on one worker and ended by the other."""
    done = subprocess.run([*DEV, "--demo"], capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (task,) = set(re.findall(r"Task (\S+) runs on", done.stdout))
    (killed,) = re.findall(r"^  killed +(\S+)$", done.stdout, flags=re.MULTILINE)
    (survivor,) = re.findall(r"^  ended by +(\S+)$", done.stdout, flags=re.MULTILINE)
    assert {killed, survivor} == {"worker-1", "worker-2"}
    assert f"Added recovery job for task {task} (job: " in done.stdout
    assert f"Recovery job: using existing task {task} for job " in done.stdout
    assert f'"status":"succeeded","taskId":"{task}","worker":"{survivor}"' in done.stdout
    assert "TaskRecovered" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.timeout(120)
def test_dev_can_be_used_and_stops_everything(programs: Programs, tmp_path: Path, stop: signal.Signals) -> None:
    """What it prints leads to its servers; nothing is left of it afterwards but the data that was asked for."""
    command = [*DEV, "--workers", "1", "--data", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = ""
        while "Ctrl-C stops everything." not in shown:
            line = process.stdout.readline()
            assert line, shown
            shown += line
        exports = dict(re.findall(r"^export (\w+)=(.+)$", shown, flags=re.MULTILINE))
        environment = {**os.environ, **exports}
        status = [sys.executable, "-m", "intervaljob", "migrate", "status"]
        assert "missing" not in subprocess.check_output(status, env=environment, text=True)
        kubectl = [programs.kubectl, "get", "intervaljobs", "--all-namespaces", "--output=name"]
        assert subprocess.check_output(kubectl, env=environment, text=True) == ""
        pids = [int(pid) for pid in re.findall(r"pid (\d+)", shown)]
        process.send_signal(stop)
        assert process.wait(60) == 0
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert "Drained" in (tmp_path / "logs" / "worker-1-1.log").read_text()


def test_the_demo_refuses_a_single_worker() -> None:
    """One is killed, and another has to take over."""
    done = subprocess.run([*DEV, "--demo", "--workers", "1"], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (2, "intervaljob: --demo needs two workers or more: one is killed\n")
