"""What an operator promises the cluster: nothing of its own on objects, few writes, its own namespaces, patience."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from cluster_support import Namespace, eventually, numbers

from intervaljob.database.migrations import LATEST
from intervaljob.embedded.stack import Process, Stack


def readiness(process: Process) -> tuple[int, str]:
    """What /readyz says."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{process.port}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.usefixtures("operator", "workers")
def test_nothing_of_ours_is_put_on_the_resource(namespace: Namespace) -> None:
    """No finalizer and no annotation: deleting never waits for an operator, and a diff shows what users wrote."""
    namespace.apply("plain", interval="1s")
    namespace.ended("plain")
    metadata = namespace.get("plain")["metadata"]
    assert "finalizers" not in metadata
    assert set(metadata.get("annotations", {})) == {"kubectl.kubernetes.io/last-applied-configuration"}


def test_a_status_is_written_only_when_it_changes(namespace: Namespace, stack: Stack) -> None:
    """A restarted operator looks at everything again and finds nothing to write."""
    first = stack.start_operator()
    namespace.apply("quiet")
    eventually(lambda: namespace.status("quiet").get("nextScheduleTime"), what="the status")
    first.terminate()
    version = namespace.get("quiet")["metadata"]["resourceVersion"]
    second = stack.start_operator()
    try:
        namespace.apply("later")
        eventually(lambda: namespace.status("later").get("nextScheduleTime"), what="the other one's status")
        # Even when asked for, a status that says nothing new is not sent.
        namespace.sql("UPDATE job_status SET revision = revision + 1, write_after = now()")
        unwritten = (
            "SELECT 1 FROM job_status JOIN jobs ON id = job_id WHERE revision > written_revision AND namespace = %(n)s"
        )
        eventually(lambda: not namespace.sql(unwritten, n=namespace.name), what="both looked at")
        assert namespace.get("quiet")["metadata"]["resourceVersion"] == version
    finally:
        second.terminate()


def test_status_writes_keep_within_the_bound(namespace: Namespace, stack: Stack) -> None:
    """Twenty new IntervalJobs at four writes a second: the last status comes no sooner than the bound allows."""
    operator = stack.start_operator(INTERVALJOB_STATUS_WRITES_PER_SECOND="4")
    try:
        begun = time.monotonic()
        for number in range(20):
            namespace.apply(f"many-{number}")

        def written() -> bool:
            items = json.loads(namespace.kubectl("get", "ivj", "--output", "json"))["items"]
            return len(items) == 20 and all(item.get("status") for item in items)

        eventually(written, what="all have a status", within=20)
        # A second's worth may be saved up; the other sixteen need four seconds.
        assert time.monotonic() - begun >= (20 - 4) / 4 - 0.1
    finally:
        operator.terminate()


def test_an_operator_of_one_namespace_leaves_others_alone(namespace: Namespace, stack: Stack) -> None:
    """It neither makes jobs of what is in others, nor schedules, nor retires what another operator made there."""
    elsewhere = Namespace(stack, f"elsewhere-{next(numbers)}")
    stack.kubectl("create", "namespace", elsewhere.name)
    everywhere = stack.start_operator()
    elsewhere.apply("other", interval="1s")
    eventually(lambda: elsewhere.status("other").get("jobId"), what="known to the first operator")
    everywhere.terminate()
    row = "SELECT last_run_at, deleted_at, generation FROM jobs WHERE namespace = %(n)s"
    operator = stack.start_operator(INTERVALJOB_WATCH_NAMESPACES=namespace.name)
    try:
        before = elsewhere.sql(row, n=elsewhere.name)
        elsewhere.apply("other", interval="2s")
        elsewhere.apply("unseen")
        namespace.apply("mine", interval="1s")
        eventually(lambda: namespace.status("mine").get("lastScheduleTime"), what="its own is scheduled")
        assert elsewhere.sql(row, n=elsewhere.name) == before
        assert elsewhere.status("unseen") == {}
        elsewhere.kubectl("delete", "ivj", "--all", "--timeout=2s")
        namespace.apply("mine", interval="3s")
        eventually(lambda: namespace.status("mine")["schedule"] == "every 3s", what="it went on")
        assert elsewhere.sql(row, n=elsewhere.name) == before
    finally:
        operator.terminate()


def test_a_database_that_is_away_is_waited_for(
    namespace: Namespace, stack: Stack, operator: Process, workers: dict[str, Process]
) -> None:
    """Postgres crashes and comes back: /readyz says so, edits made meanwhile take effect, nothing is lost."""
    namespace.apply("patient", interval="1s")
    namespace.ended("patient")
    stack.postgres.stop("immediate")
    try:
        for process in (operator, workers["one"]):
            eventually(lambda process=process: readiness(process)[0] == 503, what="not ready")  # type: ignore[misc]
        namespace.apply("meanwhile")
    finally:
        stack.postgres.start()
    eventually(lambda: namespace.status("meanwhile").get("jobId"), what="the edit took effect", within=30)
    done = namespace.status("patient")["counts"]["succeeded"]
    eventually(lambda: namespace.status("patient")["counts"]["succeeded"] > done, what="it runs again", within=30)
    for process in (operator, *workers.values()):
        eventually(lambda process=process: readiness(process)[0] == 200, what="ready again")  # type: ignore[misc]
    (counts,) = namespace.sql(
        """SELECT extract(epoch FROM last_run_at - anchor)::int AS due,
            (SELECT count(*) FROM river_job WHERE args ->> 'job_id' = jobs.id::text
                AND NOT args ? 'task_id' AND scheduled_at <= last_run_at) AS queued,
            (SELECT coalesce(sum(count), 0)::int FROM skipped_occurrences WHERE job_id = jobs.id) AS skipped
        FROM jobs WHERE namespace = %(n)s AND name = 'patient'""",
        n=namespace.name,
    )
    assert counts["queued"] + counts["skipped"] == counts["due"]


def test_an_api_server_that_is_away_stops_nothing(
    namespace: Namespace, stack: Stack, operator: Process, workers: dict[str, Process]
) -> None:
    """Tasks go on being scheduled and run; what was edited or deleted afterwards is seen."""
    namespace.apply("steady", interval="1s")
    namespace.ended("steady")
    runs = "SELECT count(*) FROM tasks JOIN jobs ON jobs.id = job_id WHERE namespace = %(n)s AND status = 'succeeded'"
    stack.control_plane.stop_apiserver()
    try:
        before = namespace.sql(runs, n=namespace.name)[0]["count"]
        eventually(lambda: namespace.sql(runs, n=namespace.name)[0]["count"] >= before + 3, what="three more runs")
    finally:
        stack.control_plane.start_apiserver()
    namespace.apply("steady", interval="2s")
    eventually(lambda: namespace.status("steady")["schedule"] == "every 2s", what="the edit took effect", within=40)
    assert namespace.status("steady")["counts"]["succeeded"] >= before + 3


def test_a_schema_of_another_version_is_one_line_and_code_2(namespace: Namespace, stack: Stack) -> None:
    """The operator migrates nothing; it says what to run and ends."""
    stack.postgres.create_database("unmigrated")
    environment = {**os.environ, "KUBECONFIG": str(stack.control_plane.kubeconfig)}
    environment["INTERVALJOB_DATABASE_URL"] = stack.postgres.url("unmigrated")
    command = [sys.executable, "-m", "intervaljob", "operator", "--http-address", "127.0.0.1:0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"intervaljob: schema 'intervaljob' is at version 0, this program needs {LATEST}: run `intervaljob migrate up`"
    )
    assert "Traceback" not in done.stderr
