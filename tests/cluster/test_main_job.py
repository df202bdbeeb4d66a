"""The main job as processes on a real API server: what a user applies runs, reports back, and survives deaths."""

import time
from datetime import UTC, datetime

import pytest
from cluster_support import LEASE_SECONDS, Namespace, eventually

from intervaljob.embedded.stack import Process, Stack

SLEEP = {"handler": "sleep", "payload": '{"seconds": 3}'}

pytestmark = pytest.mark.usefixtures("operator")


def test_an_interval_runs_and_shows(namespace: Namespace, workers: dict[str, Process]) -> None:
    """Applied, run as scheduled, and shown with all that kubectl prints."""
    namespace.apply("hello", interval="1s", payload='{"hello": "world"}')
    eventually(lambda: namespace.status("hello")["counts"]["succeeded"] >= 2, what="two runs")
    status = namespace.status("hello")
    assert status["lastResult"] == "Succeeded"
    assert status["schedule"] == "every 1s"
    assert status["jobId"] == namespace.get("hello")["metadata"]["uid"]
    assert [(c["type"], c["status"]) for c in status["conditions"]] == [("Ready", "True")]
    columns = namespace.kubectl("get", "intervaljobs").splitlines()[0].split("  ")
    assert [c.strip() for c in columns if c.strip()][:3] == ["NAME", "SCHEDULE", "SUSPEND"]
    (task,) = namespace.sql(
        "SELECT output FROM tasks JOIN jobs ON jobs.id = job_id WHERE namespace = %(n)s LIMIT 1", n=namespace.name
    )
    assert task["output"] == {"hello": "world"}
    assert "TaskSucceeded" in namespace.kubectl("describe", "ivj", "hello")


def test_occurrences_keep_to_the_anchor(namespace: Namespace, workers: dict[str, Process]) -> None:
    """Scheduled times are whole intervals after the creation, none is left out and none comes twice."""
    namespace.apply("steady", interval="1s")
    eventually(lambda: namespace.status("steady")["counts"]["succeeded"] >= 4, what="four runs")
    rows = namespace.sql(
        """SELECT extract(epoch FROM scheduled_for - anchor)::float8 AS after FROM tasks JOIN jobs ON jobs.id = job_id
        WHERE namespace = %(n)s ORDER BY scheduled_for""",
        n=namespace.name,
    )
    times = [row["after"] for row in rows]
    assert times == [float(n) for n in range(int(times[0]), int(times[0]) + len(times))]


def test_editing_the_interval_takes_effect_within_a_second(namespace: Namespace, workers: dict[str, Process]) -> None:
    """From an hour to a second: the row, the status and the next run follow."""
    namespace.apply("edited")
    eventually(lambda: namespace.status("edited").get("schedule") == "every 1h", what="first status")
    namespace.apply("edited", interval="1s")
    eventually(lambda: namespace.status("edited")["schedule"] == "every 1s", what="status of the edit", within=1.5)
    namespace.ended("edited")
    assert namespace.status("edited")["observedGeneration"] == 2


def test_suspending_stops_and_resuming_counts_what_was_left_out(
    namespace: Namespace, workers: dict[str, Process]
) -> None:
    """Nothing is started while suspended; the occurrences of that time are counted, not made up for."""
    namespace.apply("paused", interval="1s")
    namespace.ended("paused")
    namespace.kubectl("patch", "ivj", "paused", "--type=merge", '--patch={"spec":{"suspend":true}}')
    eventually(lambda: "nextScheduleTime" not in namespace.status("paused"), what="suspended", within=1.5)
    rows = "SELECT count(*) FROM river_job JOIN jobs ON jobs.id::text = args ->> 'job_id' WHERE namespace = %(n)s"
    before = namespace.sql(rows, n=namespace.name)
    suspended = time.monotonic()
    due = namespace.sql("SELECT next_run_at FROM jobs WHERE namespace = %(n)s", n=namespace.name)[0]["next_run_at"]
    eventually(lambda: (datetime.now(UTC) - due).total_seconds() > 2.2, what="three occurrences have passed")
    assert namespace.sql(rows, n=namespace.name) == before
    namespace.kubectl("patch", "ivj", "paused", "--type=merge", '--patch={"spec":{"suspend":false}}')
    skipped = eventually(lambda: namespace.status("paused")["counts"]["skipped"], what="the ledger is counted")
    assert 2 <= skipped <= time.monotonic() - suspended + 1
    ledger = namespace.sql(
        "SELECT reason, count FROM skipped_occurrences JOIN jobs ON jobs.id = job_id WHERE namespace = %(n)s",
        n=namespace.name,
    )
    assert ledger == [{"reason": "Suspended", "count": skipped}]
    assert {"Suspended", "Resumed"} <= set(namespace.events("paused"))


def test_deleting_cancels_what_runs_within_a_second(namespace: Namespace, workers: dict[str, Process]) -> None:
    """`kubectl delete` returns at once, the handler is stopped, and nothing is left behind."""
    namespace.apply("doomed", handler="sleep", payload='{"seconds": 600}')
    namespace.run_now("doomed")
    task = namespace.running("doomed")
    namespace.kubectl("delete", "ivj", "doomed", "--timeout=2s")
    states = """SELECT task.status, queue_job.state::text FROM tasks AS task
        JOIN river_job AS queue_job ON queue_job.id = queue_job_id WHERE task.id = %(task)s"""
    done = [{"status": "cancelled", "state": "cancelled"}]
    eventually(lambda: namespace.sql(states, task=task["taskId"]) == done, what="cancelled", within=2.0)


def test_run_now_works_for_each_new_value_also_while_suspended(
    namespace: Namespace, workers: dict[str, Process]
) -> None:
    """One task for each new value of the annotation, as `kubectl create job --from` would make one."""
    namespace.apply("manual", suspend=True)
    for count in (1, 2):
        namespace.run_now("manual")
        eventually(
            lambda count=count: namespace.status("manual")["counts"]["succeeded"] == count,  # type: ignore[misc]
            what=f"run {count}",
        )
    namespace.kubectl("label", "ivj", "manual", "touched=yes")
    rows = namespace.sql(
        "SELECT count(*) FROM tasks JOIN jobs ON jobs.id = job_id WHERE namespace = %(n)s", n=namespace.name
    )
    assert rows == [{"count": 2}]


def test_forbid_never_overlaps(namespace: Namespace, workers: dict[str, Process]) -> None:
    """A task that outlasts its interval keeps the next occurrences out, and they are counted."""
    namespace.apply("single", interval="1s", concurrencyPolicy="Forbid", **SLEEP)
    eventually(lambda: namespace.status("single")["counts"]["succeeded"] >= 2, what="two runs", within=20)
    assert namespace.status("single")["counts"]["skipped"] >= 2
    overlaps = namespace.sql(
        """SELECT count(*) FROM tasks a JOIN tasks b ON a.job_id = b.job_id AND a.id <> b.id
        AND a.started_at < coalesce(b.finished_at, 'infinity') AND b.started_at < coalesce(a.finished_at, 'infinity')
        JOIN jobs ON jobs.id = a.job_id WHERE namespace = %(n)s""",
        n=namespace.name,
    )
    assert overlaps == [{"count": 0}]


def test_a_bad_schedule_is_reported_and_nothing_runs(namespace: Namespace, workers: dict[str, Process]) -> None:
    """What only code can tell becomes Ready=False with a reason, a message and an event; the good one goes on."""
    namespace.apply("zone", schedule="0 0 * * *", timeZone="Europe/Atlantis")
    eventually(lambda: namespace.status("zone").get("conditions"), what="a condition")
    (ready,) = namespace.status("zone")["conditions"]
    assert (ready["status"], ready["reason"]) == ("False", "UnknownTimeZone")
    assert "spec.timeZone" in ready["message"]
    eventually(lambda: "UnknownTimeZone" in namespace.events("zone"), what="an event")
    namespace.apply("zone", schedule="0 0 * * *", timeZone="Europe/Berlin")
    eventually(lambda: namespace.status("zone")["conditions"][0]["status"] == "True", what="accepted", within=1.5)
    next_run = namespace.status("zone")["nextScheduleTime"]
    namespace.apply("zone", schedule="0 0 31 2 *", timeZone="Europe/Berlin")
    eventually(lambda: namespace.status("zone")["conditions"][0]["status"] == "False", what="refused", within=1.5)
    assert namespace.status("zone")["nextScheduleTime"] == next_run


def test_an_unknown_handler_is_a_clear_failure(namespace: Namespace, workers: dict[str, Process]) -> None:
    """The task says what is missing and what there is; the worker goes on."""
    namespace.apply("unknown", handler="nobody")
    namespace.run_now("unknown")
    task = namespace.ended("unknown", "failed")
    assert "no handler 'nobody'" in task["message"]
    assert "echo" in task["message"]
    eventually(lambda: "TaskFailed" in namespace.events("unknown"), what="an event")


def test_a_task_whose_worker_is_killed_runs_again_elsewhere(namespace: Namespace, workers: dict[str, Process]) -> None:
    """SIGKILL in the middle: the same task id is run by the other worker, and says so in every place."""
    namespace.apply("survivor", **SLEEP)
    namespace.run_now("survivor")
    task = namespace.running("survivor")
    workers[task["worker"]].kill()
    ended = namespace.ended("survivor", within=20)
    other = ({"one", "two"} - {task["worker"]}).pop()
    assert (ended["taskId"], ended["attempt"], ended["recoveries"]) == (task["taskId"], 2, 1)
    assert ended["worker"] == other
    assert namespace.status("survivor")["counts"]["recovered"] == 1
    job = namespace.get("survivor")["metadata"]["uid"]
    line = f"Recovery job: using existing task {task['taskId']} for job {job}"
    assert line in workers[other].log.read_text()
    eventually(lambda: "TaskRecovered" in namespace.events("survivor"), what="an event")


def test_a_restarted_worker_frees_its_own_tasks_at_once(
    namespace: Namespace, stack: Stack, workers: dict[str, Process]
) -> None:
    """A new incarnation of the same name proves the old one dead: nobody waits for the lease."""
    workers["two"].kill()
    namespace.apply("restarted", **SLEEP)
    namespace.run_now("restarted")
    eventually(lambda: namespace.running("restarted")["worker"] == "one", what="the only worker has it")
    workers["one"].kill()
    workers["one"] = stack.start_worker("one", INTERVALJOB_LEASE_SECONDS="600")
    assert namespace.ended("restarted")["attempt"] == 2
    (row,) = namespace.sql(
        "SELECT end_reason FROM workers WHERE name = 'one' AND ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT 1"
    )
    assert row["end_reason"] == "superseded"


def test_an_operator_that_starts_recovers_before_it_serves(
    namespace: Namespace, stack: Stack, operator: Process, workers: dict[str, Process]
) -> None:
    """Two tasks of one job lose their worker while no operator is there; the next one brings both back."""
    namespace.apply("twice", handler="sleep", payload='{"seconds": 6}')
    namespace.run_now("twice")
    eventually(lambda: namespace.status("twice")["activeCount"] == 1, what="one runs")
    namespace.run_now("twice")
    eventually(lambda: namespace.status("twice")["activeCount"] == 2, what="two run")
    operator.kill()
    for name in ("one", "two"):
        workers[name].kill()
        workers[name] = stack.start_worker(name, INTERVALJOB_LEASE_SECONDS=LEASE_SECONDS)
    eventually(
        lambda: namespace.sql("SELECT count(*) FROM workers WHERE end_reason IS NULL")[0]["count"] == 2,
        what="both are back",
    )
    successor = stack.start_operator()
    try:
        eventually(lambda: namespace.status("twice")["counts"]["succeeded"] == 2, what="both ended", within=20)
        log = successor.log.read_text()
        assert "Task recovery completed. Added 2 recovery jobs to queue" in log
        assert log.count("Added recovery job for task ") == 2
    finally:
        successor.kill()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM tasks WHERE id = %(task)s", "does not exist"),
        ("UPDATE tasks SET status = 'succeeded', finished_at = now() WHERE id = %(task)s", "has already ended"),
    ],
    ids=["task deleted", "task finished"],
)
def test_a_recovery_job_that_is_no_longer_right_runs_nothing(
    namespace: Namespace, stack: Stack, workers: dict[str, Process], change: str, reason: str
) -> None:
    """Its task is deleted, or ends, while it waits: the queue job is cancelled and says which."""
    namespace.apply("void", **SLEEP)
    namespace.run_now("void")
    task = namespace.running("void")["taskId"]
    for process in workers.values():
        process.kill()
    waiting = "SELECT id FROM river_job WHERE args ->> 'task_id' = %(task)s AND state = 'available'"
    eventually(lambda: namespace.sql(waiting, task=task), what="the recovery job waits")
    namespace.sql(change, task=task)
    workers["one"] = stack.start_worker("one", INTERVALJOB_LEASE_SECONDS=LEASE_SECONDS)
    ended = """SELECT errors[1] ->> 'error' AS error FROM river_job
        WHERE args ->> 'task_id' = %(task)s AND state = 'cancelled'"""
    (row,) = eventually(lambda: namespace.sql(ended, task=task), what="cancelled")
    assert reason in row["error"]
    assert task in row["error"]


def test_the_road_goes_on_after_an_operator_was_killed(
    namespace: Namespace, stack: Stack, operator: Process, workers: dict[str, Process]
) -> None:
    """Edits made while no operator runs take effect, and IntervalJobs deleted then are retired, when one is back."""
    namespace.apply("kept")
    namespace.apply("dropped")
    eventually(lambda: namespace.status("dropped").get("jobId"), what="both known")
    operator.kill()
    namespace.apply("kept", interval="2h")
    namespace.kubectl("delete", "ivj", "dropped", "--timeout=2s")
    successor = stack.start_operator()
    try:
        eventually(lambda: namespace.status("kept").get("schedule") == "every 2h", what="the edit was found")
        rows = "SELECT deleted_at IS NOT NULL AS deleted FROM jobs WHERE namespace = %(n)s AND name = 'dropped'"
        eventually(lambda: namespace.sql(rows, n=namespace.name)[0]["deleted"], what="retired")
    finally:
        successor.kill()
