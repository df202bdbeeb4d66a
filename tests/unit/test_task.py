"""Whether a claimed queue job may run, how an attempt ends, and what JSON can be stored."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, structs

from intervaljob.model.args import QueueArgs
from intervaljob.model.task import Attempt, Outcome, Refusal, Result, Status, conclude, judge, storable_json

JOB, OTHER_JOB, TASK, NOBODY = (UUID(int=number) for number in range(1, 5))
NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
NEW = QueueArgs(job_id=JOB, user_id=NOBODY, workspace_id=NOBODY, payload="")
RECOVERY = replace(NEW, task_id=TASK)
KNOWN: dict[str, Any] = {
    "job_id": JOB,
    "deleted_at": None,
    "cancel_before": None,
    "task_id": TASK,
    "task_job_id": JOB,
    "task_created_at": NOW,
    "status": "recovering",
}
NO_TASK: dict[str, Any] = {**KNOWN, "task_id": None, "task_job_id": None, "task_created_at": None, "status": None}
LATER = NOW + timedelta(microseconds=1)
ATTEMPT = Attempt(
    task_id=TASK,
    job_id=JOB,
    user_id=str(NOBODY),
    workspace_id=str(NOBODY),
    queue_job_id=7,
    number=2,
    handler="echo",
    payload="",
    recovered=False,
    scheduled_for=NOW,
    created_at=NOW,
    failures=0,
    checkpoint=None,
    active_deadline_seconds=None,
    backoff_limit=2,
    backoff_initial_seconds=10,
    backoff_max_seconds=15,
)


@pytest.mark.parametrize(
    ("args", "row"),
    [
        (NEW, NO_TASK),
        (NEW, {**KNOWN, "status": "retrying"}),
        (RECOVERY, KNOWN),
        (RECOVERY, {**KNOWN, "status": "retrying"}),
        (NEW, {**NO_TASK, "cancel_before": NOW}),
        (RECOVERY, {**KNOWN, "cancel_before": NOW}),
    ],
)
def test_a_new_task_a_retry_and_a_recovery_may_run(args: QueueArgs, row: dict[str, Any]) -> None:
    assert judge(args, row, queued_at=NOW) is None


@pytest.mark.parametrize(
    ("args", "row", "reason"),
    [
        (NEW, {**NO_TASK, "job_id": None}, "job_missing"),
        (RECOVERY, {**KNOWN, "job_id": None}, "job_missing"),
        (NEW, {**NO_TASK, "deleted_at": NOW}, "job_deleted"),
        (RECOVERY, {**KNOWN, "deleted_at": NOW}, "job_deleted"),
        (NEW, {**NO_TASK, "cancel_before": LATER}, "cancelled"),
        (RECOVERY, {**KNOWN, "cancel_before": LATER}, "cancelled"),
        (RECOVERY, NO_TASK, "task_missing"),
        (RECOVERY, {**KNOWN, "task_job_id": OTHER_JOB}, "task_of_another_job"),
        (RECOVERY, {**KNOWN, "status": "running"}, "task_held"),
        (NEW, {**KNOWN, "status": "running"}, "task_held"),
        (RECOVERY, {**KNOWN, "status": "succeeded"}, "task_finished"),
        (RECOVERY, {**KNOWN, "status": "failed"}, "task_finished"),
        (NEW, {**KNOWN, "status": "cancelled"}, "task_finished"),
    ],
)
def test_anything_else_is_refused_with_the_reason(args: QueueArgs, row: dict[str, Any], reason: str) -> None:
    refusal = judge(args, row, queued_at=NOW)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert str(JOB) in refusal.message or str(TASK) in refusal.message


def test_a_recovery_is_as_old_as_its_task() -> None:
    """Its queue job is younger than the wish to cancel the task."""
    refusal = judge(RECOVERY, {**KNOWN, "cancel_before": LATER}, queued_at=NOW + timedelta(hours=1))
    assert refusal is not None


def test_a_return_succeeds_with_its_output() -> None:
    finish = conclude(ATTEMPT, Result(Outcome.RETURNED, Raw(b"[1]")), started_at=NOW)
    assert (finish.status, finish.output, finish.error, finish.entry) == (Status.SUCCEEDED, Raw(b"[1]"), None, None)
    assert (finish.task_id, finish.attempt) == (TASK, 2)


@pytest.mark.parametrize(
    ("outcome", "status"), [(Outcome.CANCELLED, Status.CANCELLED), (Outcome.DEADLINE_EXCEEDED, Status.FAILED)]
)
def test_what_was_stopped_is_not_tried_again(outcome: Outcome, status: Status) -> None:
    finish = conclude(ATTEMPT, Result(outcome, error="stopped"), started_at=NOW)
    assert (finish.status, finish.error, finish.delay_seconds) == (status, "stopped", None)


@pytest.mark.parametrize(("failures", "seconds"), [(0, 10), (1, 15)])
def test_a_failure_is_tried_again_after_a_growing_delay(failures: int, seconds: int) -> None:
    attempt = structs.replace(ATTEMPT, failures=failures)
    finish = conclude(attempt, Result(Outcome.RAISED, error="bad"), started_at=NOW)
    assert finish.status is Status.RETRYING
    assert finish.delay_seconds is not None
    assert seconds * 0.9 <= finish.delay_seconds <= seconds * 1.1


@pytest.mark.parametrize(("failures", "retry"), [(2, True), (0, False)])
def test_the_last_failure_and_one_that_nothing_mends_are_final(failures: int, retry: bool) -> None:
    attempt = structs.replace(ATTEMPT, failures=failures)
    finish = conclude(attempt, Result(Outcome.RAISED, error="bad", retry=retry), started_at=NOW)
    assert (finish.status, finish.delay_seconds) == (Status.FAILED, None)


def test_an_error_is_written_as_rivers_entry() -> None:
    result = Result(Outcome.RAISED, error="bad\0", trace="Traceback …")
    finish = conclude(ATTEMPT, result, started_at=NOW)
    assert finish.entry == {
        "at": "2026-11-23T10:00:00.000000Z",
        "attempt": 2,
        "error": "bad\ufffd",
        "trace": "Traceback …",
    }
    assert finish.error == "bad\ufffd"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a\0b", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("\udc00x", "\ufffdx"),
        ("\ud800\ud83d\ude00", "\ufffd😀"),
        ("\\u0000", "\\u0000"),
        ("\\\0", "\\\ufffd"),
        ({"\0": 1}, {"\ufffd": 1}),
        ((1, 2), [1, 2]),
    ],
)
def test_characters_that_jsonb_refuses_are_replaced_and_no_others(value: object, stored: object) -> None:
    text = storable_json(value)
    assert text.isascii()
    assert json.loads(text) == stored


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_keeps_a_character_that_jsonb_refuses(text: str) -> None:
    stored = json.loads(storable_json(text))
    assert "\0" not in stored
    stored.encode()  # no half of a surrogate pair
    if "\0" not in text and text.isprintable():
        assert stored == text


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {1}, object()])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        storable_json(value)


@pytest.mark.parametrize(("text", "fits"), [("[" * 200 + "]" * 200, True), ("[" * 201 + "]" * 201, False)])
def test_what_is_nested_too_deeply_is_refused(text: str, fits: bool) -> None:
    if fits:
        assert storable_json(json.loads(text)) == text
    else:
        with pytest.raises(ValueError, match="nested deeper than 200"):
            storable_json(json.loads(text))


def test_brackets_beside_each_other_and_in_strings_are_no_depth() -> None:
    value = [{"[": '"[{'}] * 300
    assert json.loads(storable_json(value)) == value
