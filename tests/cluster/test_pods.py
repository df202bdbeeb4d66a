"""Workers in Pods, on a real API server: what becomes of a Pod decides about its worker's tasks.

There is no kubelet: the test reports in its place. Leases are so long that nothing here is found by them.
"""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cluster_support import Namespace, eventually, numbers
from support import runs

from intervaljob.embedded.stack import Process, Stack

WAITS = {"handler": "sleep", "payload": '{"seconds": 600}'}
ENDED = "SELECT end_reason FROM workers WHERE pod_uid = %(pod)s AND ended_at IS NOT NULL"

#: What an operator needs that watches worker Pods: `pods` in their namespace, the rest in the cluster.
POD_RULES = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
RULES = [
    {"apiGroups": ["intervaljob.dev"], "resources": ["intervaljobs"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["intervaljob.dev"], "resources": ["intervaljobs/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["namespaces"], "resourceNames": ["kube-system"], "verbs": ["get"]},
]


class Pod:
    """A worker Pod of one container, and the worker process that is in it."""

    def __init__(self, namespace: Namespace, worker: Callable[..., Process]) -> None:
        self.name = f"worker-{next(numbers)}"
        self._namespace = namespace
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "labels": {"intervaljob.dev/component": "worker"}},
            "spec": {"containers": [{"name": "worker", "image": "worker"}]},
        }
        made = namespace.stack.kubectl(
            "--namespace", namespace.name, "create", "--filename", "-", "--output", "json", input=json.dumps(body)
        )
        self.uid = json.loads(made)["metadata"]["uid"]
        self.process = worker(self.name, INTERVALJOB_POD_UID=self.uid)
        self.report({"running": {"startedAt": _time(datetime.now(UTC))}})

    def report(self, state: dict[str, Any], last: dict[str, Any] | None = None) -> None:
        """The state of its container, and the one before."""
        container = {
            "name": "worker",
            "image": "worker",
            "imageID": "worker",
            "ready": False,
            "restartCount": 0,
            "state": state,
            "lastState": last or {},
        }
        patch = json.dumps({"status": {"containerStatuses": [container]}})
        self._namespace.kubectl("patch", "pod", self.name, "--subresource=status", "--type=merge", f"--patch={patch}")

    def delete_by_force(self) -> None:
        """The object goes at once, whatever its containers do."""
        self._namespace.kubectl("delete", "pod", self.name, "--grace-period=0", "--force")

    def end_reason(self) -> str | None:
        rows = self._namespace.sql(ENDED, pod=self.uid)
        return rows[0]["end_reason"] if rows else None


def terminated(at: datetime) -> dict[str, Any]:
    return {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": _time(at)}}


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def soon() -> datetime:
    """Now, rounded up: a process that has just started started before."""
    return datetime.now(UTC) + timedelta(seconds=1)


@pytest.fixture
def new_pod(namespace: Namespace, stack: Stack) -> Iterator[Callable[[], Pod]]:
    """Makes worker Pods."""
    processes = []

    def worker(name: str, **environment: str) -> Process:
        processes.append(stack.start_worker(name, INTERVALJOB_LEASE_SECONDS="3600", **environment))
        return processes[-1]

    yield lambda: Pod(namespace, worker)
    for process in processes:
        process.kill()


@pytest.fixture(autouse=True)
def operator(namespace: Namespace, stack: Stack) -> Iterator[Process]:
    """An operator that watches the Pods of the test's namespace, and may do no more than it needs."""
    user = f"operator-{namespace.name}"
    for kind, rules in (("Role", POD_RULES), ("ClusterRole", RULES)):
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": user}, "rules": rules}
        namespace.stack.kubectl("--namespace", namespace.name, "create", "--filename", "-", input=json.dumps(role))
        binding = f"{kind.lower()}binding"
        namespace.kubectl("create", binding, user, f"--{kind.lower()}={user}", f"--user={user}")
    for resource in ("pods", "intervaljobs"):
        asked = ("auth", "can-i", "list", resource, f"--as={user}")
        eventually(lambda asked=asked: "yes" in namespace.kubectl(*asked, check=False), what=" ".join(asked))  # type: ignore[misc]
    process = stack.start_operator(
        INTERVALJOB_WORKER_NAMESPACE=namespace.name, KUBECONFIG=str(stack.control_plane.kubeconfig_for(user))
    )
    yield process
    process.kill()


def test_the_tasks_of_a_terminated_container_are_recovered_at_once(
    namespace: Namespace, new_pod: Callable[[], Pod]
) -> None:
    """Out of memory, say: the kubelet reports it, and the task runs again elsewhere, an hour before the lease ends."""
    first = new_pod()
    namespace.apply("survivor", **WAITS)
    namespace.run_now("survivor")
    task = namespace.running("survivor")
    second = new_pod()
    first.process.kill()
    first.report(terminated(soon()))
    eventually(lambda: namespace.running("survivor")["worker"] == second.name, what="the other has it", within=5)
    again = namespace.running("survivor")
    assert (again["taskId"], again["attempt"]) == (task["taskId"], 2)
    assert first.end_reason() == "container_terminated"
    (evidence,) = namespace.sql(
        "SELECT metadata ->> 'intervaljob:evidence' AS word FROM river_job WHERE args ->> 'task_id' = %(task)s",
        task=task["taskId"],
    )
    assert evidence["word"] == "container_terminated"


def test_a_pod_that_was_deleted_by_force_makes_its_living_worker_stop(
    namespace: Namespace, new_pod: Callable[[], Pod]
) -> None:
    """The worker is alive, as on a node that is cut off: it stops its task before anybody else gets it, and exits."""
    first = new_pod()
    namespace.apply("moved", **WAITS)
    namespace.run_now("moved")
    task = namespace.running("moved")
    second = new_pod()
    first.delete_by_force()
    eventually(lambda: namespace.running("moved")["worker"] == second.name, what="the other has it", within=10)
    assert namespace.running("moved")["taskId"] == task["taskId"]
    assert first.end_reason() == "pod_gone"
    log = first.process.log.read_text()
    assert log.index("Incarnation over: every task was stopped") < log.index("Worker ended: condemned")
    eventually(lambda: not runs(first.process.pid), what="the process has ended")


def test_a_pod_that_was_deleted_by_force_proves_nothing_about_a_worker_that_does_not_answer(
    namespace: Namespace, new_pod: Callable[[], Pod]
) -> None:
    """Killed, or cut off from the database: nobody can tell, so its task waits for the lease."""
    silent, witness = new_pod(), new_pod()
    silent.process.kill()
    silent.delete_by_force()
    witness.process.kill()
    witness.report(terminated(soon()))
    eventually(lambda: witness.end_reason() == "container_terminated", what="what came later was seen")
    assert silent.end_reason() is None
    (row,) = namespace.sql("SELECT condemned_reason FROM workers WHERE pod_uid = %(pod)s", pod=silent.uid)
    assert row["condemned_reason"] == "pod_gone"


def test_a_late_report_about_the_container_before_harms_nobody(
    namespace: Namespace, new_pod: Callable[[], Pod]
) -> None:
    """The worker of the restarted container has registered when its predecessor's end is reported."""
    restarted, witness = new_pod(), new_pod()
    before = terminated(datetime.now(UTC) - timedelta(minutes=1))
    restarted.report(before)
    restarted.report({"waiting": {"reason": "CrashLoopBackOff"}}, last=before)
    witness.process.kill()
    witness.report(terminated(soon()))
    eventually(lambda: witness.end_reason() == "container_terminated", what="what came later was seen")
    assert restarted.end_reason() is None


def test_pods_are_watched_again_after_the_api_server_was_away(
    namespace: Namespace, stack: Stack, new_pod: Callable[[], Pod]
) -> None:
    """Watches break with it; the next list says what has changed."""
    pod, well = new_pod(), new_pod()
    stack.control_plane.stop_apiserver()
    stack.control_plane.start_apiserver()
    pod.process.kill()
    pod.report(terminated(soon()))
    eventually(lambda: pod.end_reason() == "container_terminated", what="seen", within=30)
    assert well.end_reason() is None
