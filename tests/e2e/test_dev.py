"""`intervaljob dev`, as a user starts it and stops it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from intervaljob.embedded.programs import Programs

ROOT = Path(__file__).parents[2]
INVOICE = """
apiVersion: intervaljob.dev/v1alpha1
kind: IntervalJob
metadata: {name: invoice, namespace: default}
spec: {interval: 1s, handler: invoice, payload: '{"customer": "Ada"}'}
"""
INTERVALJOB = [sys.executable, "-m", "intervaljob"]


@pytest.mark.timeout(180)
def test_the_demo_shows_a_task_that_outlives_its_worker(programs: Programs) -> None:
    """It ends by itself with 0, and names one task all the way, killed on one worker and ended by the other."""
    done = subprocess.run([*INTERVALJOB, "dev", "--demo"], capture_output=True, text=True, timeout=170, check=False)
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
def test_dev_runs_my_handlers_and_stops_everything(programs: Programs, tmp_path: Path, stop: signal.Signals) -> None:
    """What it prints leads to its servers; nothing is left of it afterwards but the data that was asked for."""
    with _dev(tmp_path) as process:
        shown = _introduction(process)
        environment = os.environ | _exports(shown)
        migrations = subprocess.check_output([*INTERVALJOB, "migrate", "status"], env=environment, text=True)
        assert "missing" not in migrations
        kubectl = [str(programs.kubectl), "--namespace=default"]
        subprocess.run([*kubectl, "apply", "--filename=-"], env=environment, input=INVOICE, text=True, check=True)
        succeeded = "--for=jsonpath={.status.lastResult}=Succeeded"
        subprocess.run([*kubectl, "wait", succeeded, "ivj/invoice", "--timeout=30s"], env=environment, check=True)
        _stop(process, stop)
    pids = [int(pid) for pid in re.findall(r"pid (\d+)", shown)]
    assert len(pids) == 2
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert "Drained" in (tmp_path / "logs" / "worker-1-1.log").read_text()


@pytest.mark.timeout(120)
def test_dev_keeps_its_data_for_the_next_time(programs: Programs, tmp_path: Path) -> None:
    """A second start with the same folder finds the IntervalJobs of the first."""
    with _dev(tmp_path) as process:
        environment = os.environ | _exports(_introduction(process))
        kubectl = [str(programs.kubectl), "--namespace=default"]
        subprocess.run([*kubectl, "apply", "--filename=-"], env=environment, input=INVOICE, text=True, check=True)
        _stop(process, signal.SIGINT)
    with _dev(tmp_path) as process:
        environment = os.environ | _exports(_introduction(process))
        names = subprocess.check_output([*kubectl, "get", "ivj", "--output=name"], env=environment, text=True)
        assert names == "intervaljob.intervaljob.dev/invoice\n"
        _stop(process, signal.SIGINT)


def _dev(data: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "examples" / "worker-image"), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [*INTERVALJOB, "dev", "--workers", "1", "--data", str(data)],
        env={**os.environ, "PYTHONPATH": path, "INTERVALJOB_HANDLERS": "handlers"},
        stdout=subprocess.PIPE,
        text=True,
    )


def _introduction(process: subprocess.Popen[str]) -> str:
    """All that it prints before it waits for Ctrl-C."""
    assert process.stdout is not None
    shown = ""
    while "Ctrl-C stops everything." not in shown:
        line = process.stdout.readline()
        assert line, shown
        shown += line
    return shown


def _exports(shown: str) -> dict[str, str]:
    return dict(re.findall(r"^export (\w+)=(.+)$", shown, flags=re.MULTILINE))


def _stop(process: subprocess.Popen[str], stop: signal.Signals) -> None:
    process.send_signal(stop)
    assert process.wait(60) == 0


def test_the_demo_refuses_a_single_worker() -> None:
    """One is killed, and another has to take over."""
    done = subprocess.run(
        [*INTERVALJOB, "dev", "--demo", "--workers", "1"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (2, "intervaljob: --demo needs two workers or more: one is killed\n")
