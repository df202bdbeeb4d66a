from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intervaljob.errors import ArgsError
from intervaljob.model.args import (
    ACTIVE_STATES,
    MAX_ERROR_BYTES,
    MAX_TRACE_BYTES,
    QueueArgs,
    error_entry,
    forbid_key,
    recovery_key,
    unique_key,
)

JOB = UUID("0190a1b2-0000-7000-8000-000000000001")
USER = UUID("0190a1b2-0000-7000-8000-000000000002")
WORKSPACE = UUID("0190a1b2-0000-7000-8000-000000000003")
TASK = UUID("0190a1b2-0000-7000-8000-000000000004")
ENCODED = {
    "job_id": "0190a1b2-0000-7000-8000-000000000001",
    "user_id": "0190a1b2-0000-7000-8000-000000000002",
    "workspace_id": "0190a1b2-0000-7000-8000-000000000003",
    "payload": '{"n": 1}',
}
AT = datetime(2026, 11, 23, 10, 0, 0, 123456, tzinfo=UTC)


def test_a_new_jobs_args_have_exactly_four_keys() -> None:
    assert QueueArgs(JOB, USER, WORKSPACE, '{"n": 1}').to_json() == ENCODED


def test_a_recovery_jobs_args_name_the_task_as_well() -> None:
    assert QueueArgs(JOB, USER, WORKSPACE, '{"n": 1}', TASK).to_json() == ENCODED | {"task_id": str(TASK)}


@given(
    args=st.builds(
        QueueArgs,
        job_id=st.uuids(),
        user_id=st.uuids(),
        workspace_id=st.uuids(),
        payload=st.text(),
        task_id=st.none() | st.uuids(),
    )
)
def test_what_is_written_is_read(args: QueueArgs) -> None:
    assert QueueArgs.parse(args.to_json()) == args


@pytest.mark.parametrize("extra", [{"task_id": None}, {"trace": [1, 2]}])
def test_a_null_task_and_unknown_keys_are_ignored(extra: dict[str, Any]) -> None:
    assert QueueArgs.parse(ENCODED | extra) == QueueArgs(JOB, USER, WORKSPACE, '{"n": 1}')


@pytest.mark.parametrize("value", [None, [], "x", 1, [ENCODED]])
def test_args_that_are_no_object_are_refused(value: object) -> None:
    with pytest.raises(ArgsError, match=r"^args are not an object$"):
        QueueArgs.parse(value)


@pytest.mark.parametrize("key", list(ENCODED))
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ArgsError, match=rf"^args\.{key} is missing$"):
        QueueArgs.parse({k: v for k, v in ENCODED.items() if k != key})


@pytest.mark.parametrize("key", ["job_id", "user_id", "workspace_id", "task_id"])
@pytest.mark.parametrize("value", ["", "x", 7, [], {}, str(JOB)[:-1]])
def test_what_is_no_uuid_is_named(key: str, value: object) -> None:
    with pytest.raises(ArgsError, match=rf"^args\.{key} is not a uuid$"):
        QueueArgs.parse(ENCODED | {key: value})


@pytest.mark.parametrize("value", [None, 1, {"a": 1}, ["a"]])
def test_a_payload_that_is_no_string_is_refused(value: object) -> None:
    with pytest.raises(ArgsError, match=r"^args\.payload is not a string$"):
        QueueArgs.parse(ENCODED | {"payload": value})


@pytest.mark.parametrize(
    ("kind", "args", "key"),
    [
        (
            "vec.sub",
            {"customer_id": "c-1", "a": 7},
            "07bd87c062a63fd32a38d9c92e1ec26999df8af003dfadeceed73097265715cc",
        ),
        (
            "interval_job",
            {"job_id": "j1"},
            "7ae31a025491da739b973eba1c95060b9ee5c24a0338281327938f9d509fb8f5",
        ),
    ],
)
def test_unique_keys_are_those_of_rivers_go_client(kind: str, args: dict[str, object], key: str) -> None:
    assert unique_key(kind, args).hex() == key


def test_a_job_and_a_recovery_of_its_task_have_keys_of_their_own() -> None:
    assert forbid_key(JOB) == unique_key("interval_job", {"job_id": str(JOB)})
    assert recovery_key(JOB, TASK) == unique_key("interval_job", {"task_id": str(TASK), "job_id": str(JOB)})
    assert len({forbid_key(JOB), forbid_key(TASK), recovery_key(JOB, TASK), recovery_key(JOB, USER)}) == 4


def test_the_active_states_are_those_that_wait_or_run() -> None:
    """In the order of River's function `river_job_state_in_bitmask`, whose `get_bit` counts from the left."""
    states = ("scheduled", "running", "retryable", "pending", "discarded", "completed", "cancelled", "available")
    active = {state for state, bit in zip(states, ACTIVE_STATES, strict=True) if bit == "1"}
    assert active == {"available", "pending", "retryable", "running", "scheduled"}


def test_an_error_entry_has_rivers_four_keys() -> None:
    assert error_entry(at=AT, attempt=2, error="boom", trace="line 1") == {
        "at": "2026-11-23T10:00:00.123456Z",
        "attempt": 2,
        "error": "boom",
        "trace": "line 1",
    }
    assert error_entry(at=AT, attempt=1, error="boom")["trace"] == ""


def test_an_error_entrys_time_is_in_utc_and_keeps_its_fraction() -> None:
    local = AT.replace(microsecond=0).astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert error_entry(at=local, attempt=1, error="")["at"] == "2026-11-23T10:00:00.000000Z"


@given(head=st.text(max_size=50), tail=st.text(max_size=50), filler=st.sampled_from("x\u00e9\u20ac\U0001f600"))
def test_long_texts_are_cut_in_the_middle_and_say_so(head: str, tail: str, filler: str) -> None:
    clean = str.maketrans("\0", "\ufffd")
    text = f"{head}{filler * 20_000}{tail}"
    entry = error_entry(at=AT, attempt=1, error=text, trace=text)
    for key, limit in (("error", MAX_ERROR_BYTES), ("trace", MAX_TRACE_BYTES)):
        found = entry[key]
        assert isinstance(found, str)
        assert limit - 8 <= len(found.encode()) <= limit
        assert found.startswith(head.translate(clean))
        assert found.endswith(tail.translate(clean))
        assert f"cut to {limit}" in found


def test_a_text_at_the_limit_is_whole() -> None:
    text = "x" * MAX_ERROR_BYTES
    assert error_entry(at=AT, attempt=1, error=text)["error"] == text


def test_what_jsonb_refuses_is_replaced() -> None:
    """Postgres takes neither U+0000 nor half a surrogate pair in jsonb."""
    assert error_entry(at=AT, attempt=1, error="a\0b\ud800c")["error"] == "a\ufffdb?c"
