"""Recovery's policies and cancellation, as a user sets them and sees them."""

import os
import signal

import pytest
from cluster_support import Namespace, eventually, numbers
from support import children_of

from intervaljob.embedded.stack import Process

pytestmark = pytest.mark.usefixtures("operator")

LONG = {"handler": "sleep", "payload": '{"seconds": 60}'}


def executors(worker: Process) -> list[int]:
    """The processes that run a worker's handlers."""
    (zygote,) = children_of(worker.pid)
    return children_of(zygote)


def kill_the_process_of(namespace: Namespace, name: str, workers: dict[str, Process]) -> str:
    """SIGKILL to whatever runs the task, as the kernel does when memory is short; the task's id."""
    task = namespace.running(name)
    (executor,) = executors(workers[task["worker"]])
    os.kill(executor, signal.SIGKILL)
    return str(task["taskId"])


def test_an_annotation_cancels_what_runs_and_what_waits(namespace: Namespace, workers: dict[str, Process]) -> None:
    namespace.apply("unwanted", **LONG)
    namespace.run_now("unwanted")
    task = namespace.running("unwanted")
    namespace.kubectl("annotate", "ivj", "unwanted", f"intervaljob.dev/cancel-requested-at={next(numbers)}")
    ended = namespace.ended("unwanted", "cancelled", within=5)
    assert ended["taskId"] == task["taskId"]
    eventually(lambda: "TaskCancelled" in namespace.events("unwanted"), what="an event")
    namespace.run_now("unwanted")
    eventually(lambda: namespace.running("unwanted")["taskId"] != task["taskId"], what="what is asked for later runs")


def test_a_new_occurrence_replaces_the_one_that_runs(namespace: Namespace, workers: dict[str, Process]) -> None:
    namespace.apply("newest", concurrencyPolicy="Replace", **LONG)
    namespace.run_now("newest")
    old = namespace.running("newest")["taskId"]
    namespace.run_now("newest")
    eventually(lambda: namespace.running("newest")["taskId"] != old, what="the new one runs")
    status = namespace.status("newest")
    assert status["activeCount"] == 1
    assert [(task["taskId"] == old, task["status"]) for task in status["recentTasks"]] == [
        (False, "running"),
        (True, "cancelled"),
    ]


def test_a_task_that_must_not_run_twice_fails_with_its_process(
    namespace: Namespace, workers: dict[str, Process]
) -> None:
    namespace.apply("once", recoveryPolicy="Fail", **LONG)
    namespace.run_now("once")
    task = kill_the_process_of(namespace, "once", workers)
    ended = namespace.ended("once", "failed")
    assert (ended["taskId"], ended["attempt"]) == (task, 1)
    assert ended["message"].startswith("RecoveryPolicyFail: its worker was lost (executor_exited)")
    recent = namespace.status("once")["recentTasks"][0]
    assert recent["lastEvidence"] == "executor_exited"


def test_a_task_that_keeps_losing_its_process_is_given_up(namespace: Namespace, workers: dict[str, Process]) -> None:
    namespace.apply("poison", recoveryLimit=1, **LONG)
    namespace.run_now("poison")
    kill_the_process_of(namespace, "poison", workers)
    eventually(lambda: namespace.running("poison")["attempt"] == 2, what="run again")
    kill_the_process_of(namespace, "poison", workers)
    ended = namespace.ended("poison", "failed")
    assert (ended["attempt"], ended["recoveries"]) == (2, 1)
    assert ended["message"] == "RecoveryLimitExceeded: its worker was lost 2 times"
    assert namespace.status("poison")["counts"]["recovered"] == 1
