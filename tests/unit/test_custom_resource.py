"""An API object as an IntervalJob, and an IntervalJob as the definition of a job."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from intervaljob.errors import ResourceError
from intervaljob.model import custom_resource
from intervaljob.model.custom_resource import Definition, IntervalJob, definition

UID = "0b0c7a52-7d52-4b3e-9a3f-0d6c1a9d8a11"
USER = "7d9f1c9e-0b1a-4f5e-8f43-5a1f0c2d3e4b"
WORKSPACE = "0f8b6c1d-2e3f-4a5b-9c6d-7e8f9a0b1c2d"


def body(spec: object = None, **metadata: object) -> dict[str, Any]:
    """An object as the API server returns it; `spec` is left out when it is None."""
    whole: dict[str, Any] = {
        "apiVersion": f"{custom_resource.GROUP}/{custom_resource.VERSION}",
        "kind": "IntervalJob",
        "metadata": {
            "uid": UID,
            "namespace": "team",
            "name": "hello",
            "generation": 3,
            "creationTimestamp": "2026-11-23T10:00:00Z",
            "resourceVersion": "4711",
            **metadata,
        },
    }
    return whole if spec is None else {**whole, "spec": spec}


def defined(**spec: object) -> Definition:
    return definition(IntervalJob.from_body(body({"handler": "echo", "interval": "30s"} | spec)))


def refusal(spec: dict[str, object]) -> ResourceError:
    with pytest.raises(ResourceError) as caught:
        definition(IntervalJob.from_body(body(spec)))
    return caught.value


def test_reads_what_the_api_server_says_of_an_object() -> None:
    read = IntervalJob.from_body(body({"handler": "echo"}) | {"status": {"observedGeneration": 2}})

    assert read == IntervalJob(
        uid=UUID(UID),
        namespace="team",
        name="hello",
        generation=3,
        created_at=datetime(2026, 11, 23, 10, tzinfo=UTC),
        resource_version="4711",
        run_requested_at=None,
        cancel_requested_at=None,
        deleting=False,
        spec={"handler": "echo"},
        status={"observedGeneration": 2},
    )


def test_reads_a_request_to_run_now() -> None:
    asked = IntervalJob.from_body(body(annotations={"intervaljob.dev/run-requested-at": "monday", "other": "x"}))
    assert asked.run_requested_at == "monday"


def test_reads_a_request_to_cancel() -> None:
    asked = IntervalJob.from_body(body(annotations={"intervaljob.dev/cancel-requested-at": "monday"}))
    assert (asked.cancel_requested_at, asked.run_requested_at) == ("monday", None)


def test_an_object_with_other_annotations_alone_asks_for_nothing() -> None:
    read = IntervalJob.from_body(body(annotations={"other": "x"}))
    assert (read.run_requested_at, read.cancel_requested_at) == (None, None)


def test_an_object_that_waits_for_its_finalizers_starts_nothing() -> None:
    read = IntervalJob.from_body(body({"interval": "30s", "handler": "echo"}, deletionTimestamp="2026-11-23T11:00:00Z"))
    assert read.deleting
    assert definition(read).suspend


@pytest.mark.parametrize("spec", [None, [], "echo", 7, {}, {"handler": None}, {"backoff": []}])
def test_an_object_with_any_spec_can_be_read_and_only_its_definition_is_refused(spec: object) -> None:
    read = IntervalJob.from_body(body(spec))

    with pytest.raises(ResourceError) as caught:
        definition(read)
    assert caught.value.reason == "InvalidSpec"
    assert "spec.handler: " in caught.value.message


def test_a_spec_of_every_field_becomes_a_definition_of_every_field() -> None:
    assert defined(
        interval=None,
        schedule="*/5  3 * * *",
        timeZone="Europe/Berlin",
        jitterSeconds=604_800,
        suspend=True,
        concurrencyPolicy="Forbid",
        handler="reports.nightly",
        payload="{}",
        userId=USER,
        workspaceId=WORKSPACE,
        queue="heavy-reports",
        priority=4,
        activeDeadlineSeconds=600,
        backoffLimit=0,
        backoff={"initialSeconds": 20, "maxSeconds": 20},
        recoveryPolicy="Fail",
        recoveryLimit=0,
    ) == Definition(
        handler="reports.nightly",
        payload="{}",
        user_id=UUID(USER),
        workspace_id=UUID(WORKSPACE),
        queue="heavy-reports",
        priority=4,
        interval_seconds=None,
        schedule="*/5 3 * * *",
        time_zone="Europe/Berlin",
        jitter_seconds=604_800,
        concurrency_policy="Forbid",
        suspend=True,
        active_deadline_seconds=600,
        backoff_limit=0,
        backoff_initial_seconds=20,
        backoff_max_seconds=20,
        recovery_policy="Fail",
        recovery_limit=0,
    )


def test_defaults_hold_where_a_spec_says_nothing() -> None:
    assert defined() == Definition(
        handler="echo",
        payload="",
        user_id=UUID(int=0),
        workspace_id=UUID(int=0),
        queue="default",
        priority=1,
        interval_seconds=30,
        schedule=None,
        time_zone=None,
        jitter_seconds=0,
        concurrency_policy="Allow",
        suspend=False,
        active_deadline_seconds=None,
        backoff_limit=3,
        backoff_initial_seconds=10,
        backoff_max_seconds=360,
        recovery_policy="Rerun",
        recovery_limit=3,
    )


def test_a_schedule_without_a_zone_is_read_in_utc() -> None:
    assert defined(interval=None, schedule="@daily").time_zone == "UTC"


def test_half_a_backoff_is_completed_by_its_default() -> None:
    half = defined(backoff={"maxSeconds": 11})
    assert (half.backoff_initial_seconds, half.backoff_max_seconds) == (10, 11)


def test_a_field_of_a_newer_schema_changes_nothing() -> None:
    assert defined(ofTheFuture=5) == defined()


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("spec.handler", {"handler": "-echo"}),
        ("spec.handler", {"handler": "e" * 64}),
        ("spec.handler", {"handler": "echo\n"}),
        ("spec.payload", {"payload": {"an": "object"}}),
        ("spec.userId", {"userId": "seven"}),
        ("spec.workspaceId", {"workspaceId": ""}),
        ("spec.queue", {"queue": "Default"}),
        ("spec.queue", {"queue": "a" * 65}),
        ("spec.queue", {"queue": "a" * 63 + "-"}),
        ("spec.priority", {"priority": 0}),
        ("spec.priority", {"priority": 5}),
        ("spec.suspend", {"suspend": "perhaps"}),
        ("spec.jitterSeconds", {"jitterSeconds": -1}),
        ("spec.jitterSeconds", {"jitterSeconds": 31}),
        ("spec.jitterSeconds", {"interval": None, "schedule": "@yearly", "jitterSeconds": 604_801}),
        ("spec.concurrencyPolicy", {"concurrencyPolicy": "Queue"}),
        ("spec.recoveryPolicy", {"recoveryPolicy": "Retry"}),
        ("spec.recoveryLimit", {"recoveryLimit": -1}),
        ("spec.recoveryLimit", {"recoveryLimit": 1001}),
        ("spec.activeDeadlineSeconds", {"activeDeadlineSeconds": 0}),
        ("spec.activeDeadlineSeconds", {"activeDeadlineSeconds": 31_536_001}),
        ("spec.backoffLimit", {"backoffLimit": -1}),
        ("spec.backoffLimit", {"backoffLimit": 1001}),
        ("spec.backoff.initialSeconds", {"backoff": {"initialSeconds": 0}}),
        ("spec.backoff.maxSeconds", {"backoff": {"maxSeconds": 604_801}}),
        ("spec.backoff", {"backoff": {"initialSeconds": 20, "maxSeconds": 19}}),
    ],
)
def test_a_wrong_field_is_refused_by_its_path_in_one_line(path: str, spec: dict[str, object]) -> None:
    refused = refusal({"handler": "echo", "interval": "30s"} | spec)

    assert refused.reason == "InvalidSpec"
    assert refused.message.startswith(f"{path}: ")
    assert "\n" not in refused.message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"priority": 9}, "spec.priority: Input should be less than or equal to 4"),
        ({"queue": "A"}, "spec.queue: write a-z and 0-9 with single - or _ between them, such as heavy-reports"),
        (
            {"handler": "a b"},
            "spec.handler: write letters, digits and any of _ . : - between them, such as reports.nightly",
        ),
        (
            {"interval": "1m30s", "jitterSeconds": 91},
            "spec.jitterSeconds: write at most 90, as many seconds as spec.interval has",
        ),
        (
            {"backoff": {"maxSeconds": 9}},
            "spec.backoff: write a maxSeconds that is not less than initialSeconds",
        ),
        (
            {"priority": 9, "backoffLimit": -1},
            (
                "spec.priority: Input should be less than or equal to 4; "
                "spec.backoffLimit: Input should be greater than or equal to 0"
            ),
        ),
    ],
)
def test_a_refusal_says_what_to_write(spec: dict[str, object], message: str) -> None:
    assert refusal({"handler": "echo", "interval": "30s"} | spec).message == message


def test_a_payload_is_measured_in_bytes_of_utf_8() -> None:
    limit = 262_144
    assert len(defined(payload="é" * (limit // 2)).payload) == limit // 2

    refused = refusal({"handler": "echo", "interval": "30s", "payload": "é" * (limit // 2) + "x"})
    assert refused.message == "spec.payload: write at most 262144 bytes of UTF-8, not 262145"


def test_a_payload_that_postgres_cannot_hold_is_refused() -> None:
    refused = refusal({"handler": "echo", "interval": "30s", "payload": "a\0b"})
    assert refused.message == "spec.payload: remove the NUL characters; write binary data as base64"


@pytest.mark.parametrize(
    ("spec", "reason", "field"),
    [
        ({"interval": "0s"}, "InvalidInterval", "spec.interval"),
        ({"schedule": "61 * * * *"}, "InvalidSchedule", "spec.schedule"),
        ({"schedule": "@daily", "timeZone": "Europe/Atlantis"}, "UnknownTimeZone", "spec.timeZone"),
        ({"interval": "5m", "timeZone": "UTC"}, "InvalidInterval", "spec.timeZone"),
        ({"interval": "5m", "schedule": "@daily"}, "InvalidSchedule", "spec.interval"),
        ({}, "InvalidSchedule", "spec.interval"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_its_own_reason(
    spec: dict[str, object], reason: str, field: str
) -> None:
    refused = refusal({"handler": "echo"} | spec)
    assert refused.reason == reason
    assert field in refused.message
