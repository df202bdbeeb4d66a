"""The checker says nothing about a sound run, names the rule that a change breaks, and takes the right excuse only."""

import json
import time
from collections.abc import Callable

import pytest
from chaos.checker import check
from chaos.record import Violation
from chaos.rows import STORY_LENGTH
from chaos.small_world import BOOT, SmallWorld, Try, uid

Change = Callable[[SmallWorld], object]


def sql(text: str, *parameters: object) -> Change:
    return lambda world: world.sql(text, *parameters)


def set_job(name: str, assignment: str) -> Change:
    return sql(f"UPDATE jobs SET {assignment} WHERE id = %s", uid(name))


def set_task(name: str, assignment: str) -> Change:
    return sql(f"UPDATE tasks SET {assignment} WHERE id = %s", uid(name))


def set_queue_job(name: str, assignment: str) -> Change:
    return sql(f"UPDATE river_job SET {assignment} WHERE tags = ARRAY[%s]::varchar[]", name)


def one_more_due(job: str) -> Change:
    return set_job(job, "next_run_at = next_run_at + interval '10 seconds'")


def count(job: str, name: str, by: int) -> Change:
    return lambda world: world.counts(job).update({name: world.counts(job)[name] + by})


def line(task: str, attempt: int, index: int, **fields: object) -> Change:
    return lambda world: world.lines(task, attempt)[index].update(fields)


def says(event: str, task: str, attempt: int, moment: float, **fields: object) -> Change:
    return lambda world: world.tell(event, task, attempt, moment, **fields)


def extra_task(name: str, job: str, due: float) -> Change:
    return lambda world: world.task(name, job, due, [Try(51, 52)])


def skipped(job: str, reason: str, moment: float) -> Change:
    return lambda world: world.skip(job, reason, moment, moment, 1)


def cancelled_queue_job(job: str, due: float) -> Change:
    return lambda world: world.queue_job("extra", job, due=due, inserted=due, ended=due + 1, state="cancelled")


def recovery(task: str, inserted: float, ended: float | None) -> Change:
    state = "completed" if ended else "available"
    return lambda world: world.queue_job(
        "extra", "plain", due=20, inserted=inserted, ended=ended, state=state, task=task, evidence="drained"
    )


def injected(event: str, **fields: object) -> Change:
    return lambda world: world.inject(event, **fields)


def requested(job: str) -> Change:
    return injected("run_requested", job=uid(job), at=BOOT)


def deleted_task(task: str, job: str, moment: float = 0) -> Change:
    return lambda world: world.deleted("tasks", uid(task), task=task, job=job, moment=moment)


def deleted_queue_job(job: str, task: str | None = None, moment: float = 0) -> Change:
    return lambda world: world.deleted("river_job", 999, task=task, job=job, moment=moment)


def killed(worker: str, seconds_from_now: float) -> Change:
    def change(world: SmallWorld) -> None:
        moment = time.clock_gettime(time.CLOCK_BOOTTIME) + seconds_from_now
        world.inject("fault", kind="kill_worker", target=worker, **{"from": moment, "to": moment})

    return change


def forget_status(job: str) -> Change:
    return lambda world: world.resources[job].pop("status")


def stranger(world: SmallWorld) -> None:
    plain = world.resources["plain"]
    world.resources["stranger"] = {**plain, "metadata": {**plain["metadata"], "uid": uid("stranger")}}


def both(*changes: Change) -> Change:
    return lambda world: [change(world) for change in changes]


DROP_PLAIN_10 = sql("DELETE FROM tasks WHERE id = %s", uid("plain-10"))
FORBID_OVERLAP = line("forbid-30", 1, 0, at=BOOT + 20.5)
SECOND_REPLACED = both(cancelled_queue_job("replace", 40), one_more_due("replace"))
NO_STORY = both(set_task("plain-20", "earlier_attempts = '[]', recoveries = 0"), count("plain", "recovered", -1))
UNDER_FAIL = set_job("plain", "recovery_policy = 'Fail'")
OLD_TOKEN = """output = '{"token": "old"}'"""

#: What one change breaks: exactly these rules.
PLANTED = {
    "an occurrence is lost": ("occurrences", one_more_due("plain")),
    "an occurrence is lost, another one counted twice": (
        "occurrences",
        both(
            one_more_due("plain"),
            sql("UPDATE skipped_occurrences SET count = 2 WHERE job_id = %s", uid("plain")),
            count("plain", "skipped", 1),
        ),
    ),
    "an occurrence is lost between two that are counted as skipped": (
        "occurrences",
        both(one_more_due("plain"), one_more_due("plain"), skipped("plain", "Missed", 60)),
    ),
    "a deleted job lost an occurrence before its last": ("occurrences", skipped("gone", "Missed", 40)),
    "an occurrence is two tasks": ("occurrences", extra_task("again", "plain", 10)),
    "an occurrence is two tasks of one queue job": (
        "occurrences",
        both(extra_task("again", "plain", 10), sql("DELETE FROM river_job WHERE tags = '{again}'")),
    ),
    "an occurrence is two queue jobs": ("occurrences", cancelled_queue_job("replace", 20)),
    "an occurrence ran and is counted as skipped": ("occurrences", skipped("plain", "Suspended", 10)),
    "an occurrence ran before it was due": ("occurrences", extra_task("early", "plain", 50)),
    "an occurrence ran from before there was a job": ("occurrences", extra_task("old", "plain", 0)),
    "a run that nobody asked for": ("occurrences", extra_task("unasked", "plain", 16.5)),
    "a second run for one request": ("occurrences", extra_task("again", "plain", 15.5)),
    "a queue job was cancelled, and nobody wanted that": (
        "occurrences",
        both(one_more_due("plain"), cancelled_queue_job("plain", 50), skipped("plain", "Cancelled", 50)),
    ),
    "a queue job was cancelled and does not say why": ("occurrences", set_queue_job("replace-20", "errors = NULL")),
    "a replaced occurrence is not counted": ("occurrences", SECOND_REPLACED),
    "a replaced occurrence is counted that was none": ("occurrences", skipped("replace", "Cancelled", 20)),
    "an attempt goes on while the next one runs": ("overlap", says("tick", "plain-20", 1, 22.6)),
    "an attempt found the lock held": ("overlap", says("overlap", "plain-20", 2, 22.5, holder=1)),
    "two processes run one attempt": ("overlap", line("plain-10", 1, 1, pid=1)),
    "one process runs an attempt twice": ("overlap", says("begin", "plain-10", 1, 10.2, job=uid("plain"))),
    "two tasks of a Forbid job at once": ("policy", FORBID_OVERLAP),
    "two tasks of a Replace job at once": ("policy", line("replace-30", 1, 0, at=BOOT + 30.05)),
    "the token of an earlier attempt": (
        "stale",
        both(says("end", "plain-20", 1, 21, how="returned", token="old"), set_task("plain-20", OLD_TOKEN)),
    ),
    "a token of nobody": ("stale", set_task("plain-10", OLD_TOKEN)),
    "success without a token": ("stale", set_task("plain-10", "output = NULL")),
    "success of a handler that raised": ("stale", line("plain-10", 1, -1, how="raised")),
    "success of an attempt that never ran": ("stale", set_task("plain-10", "attempt = 2")),
    "a task is left running": (
        "left_behind",
        both(set_task("plain-10", "status = 'running'"), count("plain", "succeeded", -1)),
    ),
    "a task is left waiting": (
        "left_behind",
        both(set_task("plain-10", "status = 'recovering'"), count("plain", "succeeded", -1)),
    ),
    "a lease ran out and nobody saw it": (
        "left_behind",
        sql("UPDATE workers SET lease_expires_at = '2020-01-01' WHERE name = 'alive'"),
    ),
    "a killed worker has not ended": ("left_behind", killed("alive", 5)),
    "the row of a resource that is gone": ("left_behind", lambda world: world.resources.pop("plain")),
    "two recovery jobs at once": ("recovery_job", recovery("plain-20", 23, 26)),
    "a recovery job within another": ("recovery_job", recovery("plain-20", 22.5, 23)),
    "recovered more often than it may be": ("limits", set_task("limited-10", "recoveries = 2")),
    "recoveries that the number does not tell of": (
        "limits",
        both(
            set_job("plain", "recovery_limit = 0"),
            set_task("plain-20", "recoveries = 0"),
            says("end", "plain-20", 1, 21, how="returned", token="unrecorded"),
        ),
    ),
    "a loss that only its handlers' silence tells of": (
        "limits",
        both(set_job("plain", "recovery_limit = 0"), NO_STORY),
    ),
    "given up too early": ("limits", set_job("limited", "recovery_limit = 2")),
    "run again under Fail, as the handlers saw": (
        "limits",
        both(set_job("plain", "recovery_policy = 'Fail'"), NO_STORY),
    ),
    "run again under Fail, as the rows say": (
        "limits",
        both(UNDER_FAIL, says("end", "plain-20", 1, 21, how="raised", token="")),
    ),
    "something is active": ("counts", lambda world: world.resources["plain"]["status"].update(activeCount=1)),
    "no status": ("counts", forget_status("plain")),
    "a resource without a row": ("counts", stranger),
    "an attempt that no row knows": ("truth", says("begin", "plain-20", 3, 25, job=uid("plain"))),
    "a task of another job": ("truth", line("plain-10", 1, 0, job=uid("forbid"))),
    "a task is missing that nobody deleted": (
        "truth",
        both(sql("DELETE FROM tasks WHERE id = %s", uid("plain-now")), count("plain", "succeeded", -1)),
    ),
    **{
        f"{name} is {'over' if by > 0 else 'under'}counted": ("counts", count("plain", name, by))
        for name in ("succeeded", "failed", "cancelled", "recovered", "skipped")
        for by in (1, -1)
    },
    **{
        f"a queue job is left {state}": (
            "left_behind",
            set_queue_job("plain-10", f"state = '{state}', finalized_at = NULL"),
        )
        for state in ("available", "running", "retryable", "scheduled", "pending")
    },
}

#: Sound, or explained by what was done.
EXCUSED = {
    "nothing happened": both(),
    "a task's row was deleted": both(DROP_PLAIN_10, deleted_task("plain-10", "plain")),
    "a task's row and its queue job were deleted": both(
        DROP_PLAIN_10, deleted_task("plain-10", "plain"), deleted_queue_job("plain", "plain-10")
    ),
    "a retry begins anew as its task's row was deleted": both(
        DROP_PLAIN_10, deleted_task("plain-10", "plain"), extra_task("anew", "plain", 12.7)
    ),
    "a waiting queue job was deleted": both(one_more_due("plain"), deleted_queue_job("plain")),
    "a Forbid task lost its queue job": both(FORBID_OVERLAP, deleted_queue_job("forbid", "forbid-10", 20.2)),
    "two requests, and one run": requested("plain"),
    "a request was refused": both(requested("forbid"), skipped("forbid", "ConcurrencyForbidden", 12.3)),
    "a waiting occurrence was cancelled": both(
        one_more_due("plain"),
        cancelled_queue_job("plain", 50),
        skipped("plain", "Cancelled", 50),
        injected("cancel_requested", job=uid("plain"), at=BOOT),
    ),
    "the last occurrence of a deleted job was refused uncounted": cancelled_queue_job("gone", 30),
    "a worker was restarted under its name": killed("alive", -3600),
    "somebody else's queue job waits": set_queue_job(
        "plain-10", "kind = 'another', state = 'available', finalized_at = NULL"
    ),
    "a recovery job ended as the next was inserted": recovery("plain-20", 21, 22),
    "a drain does not count": both(
        set_job("plain", "recovery_limit = 0"),
        set_task(
            "plain-20",
            "recoveries = 0, earlier_attempts = jsonb_set(earlier_attempts, '{0,evidence}', '\"drained\"')",
        ),
    ),
    "drains of attempts that were forgotten": both(
        set_job("plain", "recovery_limit = 0"),
        sql(
            "UPDATE tasks SET recoveries = 0, earlier_attempts = %s WHERE id = %s",
            json.dumps([{"attempt": 9, "outcome": "failed", "error": "RuntimeError"}] * STORY_LENGTH),
            uid("plain-20"),
        ),
    ),
    "another worker was killed": killed("drained", 5),
}

#: An excuse for one row excuses no other.
NO_EXCUSE = {
    "another task of the job": ({"occurrences", "truth", "counts"}, DROP_PLAIN_10, deleted_task("plain-20", "plain")),
    "a task of another job": ({"occurrences", "truth", "counts"}, DROP_PLAIN_10, deleted_task("forbid-10", "forbid")),
    "one deletion for two tasks": (
        {"occurrences", "truth", "counts"},
        both(DROP_PLAIN_10, sql("DELETE FROM tasks WHERE id = %s", uid("plain-20"))),
        both(deleted_task("plain-10", "plain"), deleted_task("plain-10", "plain")),
    ),
    "one task, for two occurrences": (
        {"occurrences"},
        both(DROP_PLAIN_10, one_more_due("plain")),
        both(deleted_task("plain-10", "plain"), deleted_queue_job("plain", "plain-10")),
    ),
    "one task, for two that are counted": (
        {"counts"},
        both(DROP_PLAIN_10, count("plain", "failed", 1)),
        deleted_task("plain-10", "plain"),
    ),
    "a waiting queue job of another job": ({"occurrences"}, one_more_due("plain"), deleted_queue_job("forbid")),
    "a queue job whose task is there": ({"occurrences"}, one_more_due("plain"), deleted_queue_job("plain", "plain-10")),
    "a deletion after the fact": ({"policy"}, FORBID_OVERLAP, deleted_queue_job("forbid", "forbid-10", 20.6)),
    "another queue job": ({"policy"}, FORBID_OVERLAP, deleted_queue_job("plain", "plain-10")),
    "a request of another job": ({"occurrences"}, extra_task("unasked", "plain", 16.5), requested("forbid")),
    "a cancellation of another job": (
        {"occurrences"},
        both(one_more_due("plain"), cancelled_queue_job("plain", 50), skipped("plain", "Cancelled", 50)),
        injected("cancel_requested", job=uid("forbid"), at=BOOT),
    ),
    "a kill of another worker": (
        {"left_behind"},
        sql("UPDATE workers SET ended_at = NULL, lease_expires_at = '2020-01-01' WHERE name = 'drained'"),
        killed("alive", -3600),
    ),
}


def broken(world: SmallWorld) -> list[Violation]:
    return check(world.write(), world.url)[0]


@pytest.mark.parametrize("name", PLANTED)
def test_one_change_breaks_one_rule(world: SmallWorld, name: str) -> None:
    rule, change = PLANTED[name]
    change(world)
    assert {violation.rule for violation in broken(world)} == {rule}


@pytest.mark.parametrize("name", EXCUSED)
def test_what_is_sound_or_explained_is_no_violation(world: SmallWorld, name: str) -> None:
    EXCUSED[name](world)
    assert broken(world) == []


@pytest.mark.parametrize("name", NO_EXCUSE)
def test_an_excuse_for_one_row_excuses_no_other(world: SmallWorld, name: str) -> None:
    rules, change, excuse = NO_EXCUSE[name]
    change(world)
    excuse(world)
    assert {violation.rule for violation in broken(world)} == rules


def test_a_violation_names_its_subject_and_shows_why(world: SmallWorld) -> None:
    world.tell("tick", "plain-20", 1, 22.6)
    (violation,) = broken(world)
    assert violation.subject == uid("plain-20")
    assert "attempt 2 began 0.100 s before the last line of attempt 1" in violation.detail
