"""An installed release keeps its promises, whatever is done to its Pods. Each test begins with all of them ready."""

import itertools
import time

import pytest
from cluster_support import Namespace, eventually
from real_cluster import IMAGE, KILL_MANAGER, ROOT, Cluster, Release

pytestmark = pytest.mark.timeout(300)

#: Longer than anything here takes, so that what is seen is not the task's end.
LONG = {"handler": "sleep", "payload": '{"seconds": 120}'}
SHORT = {"handler": "sleep", "payload": '{"seconds": 4}'}

#: Every occurrence of a job, in order: when it was due, how its task stands, its attempts, its recoveries.
OCCURRENCES = """
    SELECT extract(epoch FROM task.scheduled_for)::numeric(20, 3), task.status, task.attempt, task.recoveries
    FROM tasks AS task JOIN jobs AS job ON job.id = task.job_id
    WHERE job.name = '{name}' AND job.namespace = '{namespace}' ORDER BY 1
"""


@pytest.fixture(autouse=True)
def everybody(release: Release) -> None:
    release.ready("operator", count=2)
    release.ready("worker", count=2)


def test_a_task_has_finished_soon_after_the_install(cluster: Cluster, since: float) -> None:
    """Nothing is typed but `helm install` and `kubectl apply` of a sample: within 90 seconds."""
    cluster.kubectl("apply", f"--filename={ROOT / 'manifests' / 'samples' / 'hello.yaml'}")
    hello = Namespace(cluster, "default")
    assert hello.ended("hello", within=60)["attempt"] == 1
    assert "Succeeded" in cluster.kubectl("get", "intervaljobs")
    assert time.monotonic() - since < 90
    cluster.kubectl("delete", "intervaljob", "hello")


def test_the_accounts_may_do_no_more_than_they_need(cluster: Cluster, release: Release) -> None:
    def may(account: str, *what: str) -> bool:
        user = f"--as=system:serviceaccount:{release.namespace}:{release.name}-{account}"
        return cluster.kubectl("auth", "can-i", *what, user, check=False).strip() == "yes"

    needed = [
        ("list", "intervaljobs", "-A"),
        ("patch", "intervaljobs", "--subresource=status", "-A"),
        ("create", "events", "-A"),
    ]
    needed += [("list", "pods", f"--namespace={release.namespace}")]
    refused = [
        ("get", "secrets", "-A"),
        ("create", "pods", "-A"),
        ("list", "pods", "-A"),
        ("delete", "pods", f"--namespace={release.namespace}"),
        ("update", "intervaljobs", "-A"),
        ("patch", "intervaljobs", "-A"),
        ("delete", "intervaljobs", "-A"),
        ("create", "clusterrolebindings"),
        ("impersonate", "users"),
    ]
    here = f"--namespace={release.namespace}"
    refused += [(*what[:-1], here) for what in refused if what[-1] == "-A" and what[1] != "pods"]
    refused += [("create", "pods", here)]
    assert [what for what in needed if not may("operator", *what)] == []
    assert [what for what in refused if may("operator", *what)] == []
    assert [what for what in [*needed, *refused] if may("worker", *what)] == []


def test_a_worker_has_no_token_and_its_files_cannot_be_changed(release: Release) -> None:
    worker, *_ = release.ready("worker", count=2)
    look = "import os; print(os.path.exists('/var/run/secrets/kubernetes.io'), os.access('/opt', os.W_OK), os.getuid())"
    assert release.execute(worker, look).split() == ["False", "False", "65532"]


def test_a_task_whose_pod_is_deleted_by_force_runs_again(release: Release, namespace: Namespace) -> None:
    task = start(namespace, "forced")
    release.kubectl("delete", "pod", task["worker"], "--force", "--grace-period=0")
    assert_runs_elsewhere(namespace, "forced", task)


def test_a_task_whose_manager_is_killed_runs_again(release: Release, namespace: Namespace) -> None:
    """PID 1 cannot be killed from inside its container; with the manager it ends by itself."""
    task = start(namespace, "killed")
    release.execute(task["worker"], KILL_MANAGER)
    assert_runs_again(namespace, "killed", task)
    ended = eventually(
        lambda: pod_status(release, task["worker"])["lastState"].get("terminated"), what="the container ended"
    )
    assert ended["exitCode"] == 137


def test_a_rolling_restart_of_workers_fails_nothing(release: Release, namespace: Namespace) -> None:
    namespace.apply("rolled", interval="5s", **SHORT)
    namespace.running("rolled")
    release.roll_out("worker-default")
    assert_no_attempt_lost(assert_nothing_lost(release, namespace, "rolled", every=5))


def test_a_drained_node_fails_nothing(cluster: Cluster, release: Release, namespace: Namespace) -> None:
    namespace.apply("drained", interval="5s", **SHORT)
    node = release.pods("worker")[0]["spec"]["nodeName"]
    namespace.running("drained")
    before = set(release.ready("worker", count=2))
    try:
        selector = "--pod-selector=app.kubernetes.io/component=worker"
        cluster.kubectl(
            "drain", node, selector, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=10s", check=False
        )
    finally:
        cluster.kubectl("uncordon", node)
    assert set(release.ready("worker", count=2)) != before, "a Pod was evicted"
    assert_no_attempt_lost(assert_nothing_lost(release, namespace, "drained", every=5))


def test_operators_killed_in_turn_lose_no_occurrence(release: Release, namespace: Namespace) -> None:
    namespace.apply("in-turn", interval="2s")
    namespace.ended("in-turn")
    for pod in release.ready("operator", count=2):
        release.kubectl("delete", "pod", pod, "--force", "--grace-period=0")
        release.ready("operator", count=2)
    assert_nothing_lost(release, namespace, "in-turn", every=2)


def test_a_postgres_that_is_restarted_loses_nothing(release: Release, namespace: Namespace) -> None:
    namespace.apply("restarted", interval="5s", **SHORT)
    namespace.running("restarted")
    release.kubectl("delete", "pod", f"{release.name}-postgres-0")
    release.ready("postgres", count=1)
    assert_nothing_lost(release, namespace, "restarted", every=5)


def test_work_goes_on_without_the_api_server(cluster: Cluster, release: Release, namespace: Namespace) -> None:
    namespace.apply("alone", interval="2s")
    namespace.ended("alone")
    stopped = time.monotonic()
    with cluster.without_api_server():
        time.sleep(60)  # it is the outage itself that is tested
    away = time.monotonic() - stopped
    namespace.apply("heard")
    namespace.run_now("heard")
    namespace.ended("heard")
    occurrences = assert_nothing_lost(release, namespace, "alone", every=2)
    assert len(occurrences) > away / 2
    (late,) = release.sql(
        "SELECT max(extract(epoch FROM started_at - scheduled_for)) FROM tasks"
        f" JOIN jobs ON jobs.id = job_id WHERE jobs.namespace = '{namespace.name}'"
    )
    assert float(late[0]) < 5


def test_an_upgrade_and_a_rollback_lose_nothing(cluster: Cluster, release: Release, namespace: Namespace) -> None:
    cluster.load(ROOT, f"{IMAGE}:next")
    namespace.apply("upgraded", interval="5s", **SHORT)
    namespace.running("upgraded")
    release.upgrade(image={"repository": IMAGE, "tag": "next", "pullPolicy": "Never"})
    release.kubectl("rollout", "status", f"deployment/{release.name}-worker-default", "--timeout=180s")
    assert images(release) == {f"{IMAGE}:next"}
    assert_no_attempt_lost(assert_nothing_lost(release, namespace, "upgraded", every=5))
    release.rollback()
    assert images(release) == {f"{IMAGE}:dev"}
    assert_no_attempt_lost(assert_nothing_lost(release, namespace, "upgraded", every=5))


def test_a_namespace_with_running_jobs_goes_at_once(cluster: Cluster, release: Release) -> None:
    cluster.make_namespace("e2e-gone")
    gone = Namespace(cluster, "e2e-gone")
    gone.apply("running", **LONG)
    gone.run_now("running")
    gone.running("running")
    cluster.kubectl("delete", "namespace", "e2e-gone", "--timeout=20s")
    eventually(
        lambda: release.sql(
            "SELECT 1 FROM tasks JOIN jobs ON jobs.id = job_id WHERE namespace = 'e2e-gone'"
            " AND tasks.status = 'cancelled'"
        ),
        what="its task is cancelled",
    )


def test_what_is_uninstalled_leaves_the_resources_and_finds_its_data_again(
    cluster: Cluster, release: Release, namespace: Namespace
) -> None:
    namespace.apply("kept")
    namespace.run_now("kept")
    task = namespace.ended("kept")
    release.uninstall()
    eventually(lambda: not release.pods("operator") and not release.pods("worker"), what="no Pod is left", within=90)
    assert namespace.get("kept")["spec"]["handler"] == "echo"
    release.install()
    release.ready("operator", count=2)
    release.ready("worker", count=2)
    assert namespace.last_task("kept")["taskId"] == task["taskId"]
    assert release.sql(f"SELECT status FROM tasks WHERE id = '{task['taskId']}'") == [["succeeded"]]


def images(release: Release) -> set[str]:
    """Those of operators and workers, once all of them are ready."""
    names = {*release.ready("operator", count=2), *release.ready("worker", count=2)}
    pods = [*release.pods("operator"), *release.pods("worker")]
    return {pod["spec"]["containers"][0]["image"] for pod in pods if pod["metadata"]["name"] in names}


def pod_status(release: Release, name: str) -> dict[str, dict[str, dict[str, int]]]:
    (pod,) = (pod for pod in release.pods("worker") if pod["metadata"]["name"] == name)
    (status,) = pod["status"]["containerStatuses"]
    assert isinstance(status, dict)
    return status


def start(namespace: Namespace, name: str) -> dict[str, str]:
    namespace.apply(name, **LONG)
    namespace.run_now(name)
    return namespace.running(name)


def assert_runs_again(namespace: Namespace, name: str, before: dict[str, str]) -> dict[str, str]:
    def look() -> dict[str, str] | None:
        now = namespace.running(name)
        return now if now["attempt"] == 2 else None

    now = eventually(look, what="the second attempt", within=15)
    assert now["taskId"] == before["taskId"]
    return now


def assert_runs_elsewhere(namespace: Namespace, name: str, before: dict[str, str]) -> None:
    assert assert_runs_again(namespace, name, before)["worker"] != before["worker"]


def assert_no_attempt_lost(occurrences: list[list[str]]) -> None:
    """Workers had the time to end what they ran."""
    assert {(attempt, recoveries) for *_, attempt, recoveries in occurrences} == {("1", "0")}


def assert_nothing_lost(release: Release, namespace: Namespace, name: str, *, every: int) -> list[list[str]]:
    """Every occurrence until now is one task, and each ends well."""
    query = OCCURRENCES.format(name=name, namespace=namespace.name)
    (due,) = release.sql("SELECT extract(epoch FROM now())")

    def look() -> list[list[str]] | None:
        rows = release.sql(query)
        past = [row for row in rows if float(row[0]) <= float(due[0])]
        fresh = float(rows[-1][0]) > float(due[0]) if rows else False
        return past if fresh and all(row[1] == "succeeded" for row in past) else None

    past = eventually(look, what=f"every task of {name} has succeeded", within=60)
    moments = [float(row[0]) for row in past]
    assert [later - earlier for earlier, later in itertools.pairwise(moments)] == [every] * (len(past) - 1)
    assert release.sql(f"SELECT 1 FROM skipped_occurrences JOIN jobs ON jobs.id = job_id WHERE name = '{name}'") == []
    return past
