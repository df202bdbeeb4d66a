"""The IntervalJob as the API server shows it, and the definition of a job that it amounts to.

The schema in `crds/intervaljobs.yaml` refuses nearly everything that is refused here. It is checked again, as
what is stored may be older than the schema, and as only code can tell whether a zone or a date exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from intervaljob.errors import ResourceError
from intervaljob.model.schedule import MAX_JITTER_SECONDS, Cron, Interval, parse_schedule
from intervaljob.settings import QUEUE_PATTERN

GROUP = "intervaljob.dev"
VERSION = "v1alpha1"
PLURAL = "intervaljobs"
#: Annotation: any new value asks for a task now.
RUN_REQUESTED_AT = f"{GROUP}/run-requested-at"
#: Annotation: any new value cancels what waits and runs now.
CANCEL_REQUESTED_AT = f"{GROUP}/cancel-requested-at"

HANDLER_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?$"
MAX_PAYLOAD_BYTES = 256 * 1024
NIL = UUID(int=0)

ConcurrencyPolicy = Literal["Allow", "Forbid", "Replace"]
RecoveryPolicy = Literal["Rerun", "Fail"]

_INSTEAD_OF_PATTERN = {
    "spec.handler": "write letters, digits and any of _ . : - between them, such as reports.nightly",
    "spec.queue": "write a-z and 0-9 with single - or _ between them, such as heavy-reports",
}


class _Model(BaseModel):
    # Unknown fields are left alone: the API server drops them, unless its schema is newer than this operator.
    model_config = ConfigDict(alias_generator=to_camel, frozen=True, extra="ignore")


class Backoff(_Model):
    """Seconds before a failed task is tried again; they double from the first number to the second."""

    initial_seconds: int = Field(default=10, ge=1, le=86_400)
    max_seconds: int = Field(default=360, ge=1, le=604_800)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_seconds < self.initial_seconds:
            raise ValueError("write a maxSeconds that is not less than initialSeconds")
        return self


class IntervalJobSpec(_Model):
    """`spec`, each field by itself; `parse_schedule` judges interval, schedule and timeZone."""

    interval: str | None = None
    schedule: str | None = None
    time_zone: str | None = None
    jitter_seconds: int = Field(default=0, ge=0, le=MAX_JITTER_SECONDS)
    suspend: bool = False
    concurrency_policy: ConcurrencyPolicy = "Allow"
    handler: str = Field(max_length=63, pattern=HANDLER_PATTERN)
    payload: str = ""
    user_id: UUID = NIL
    workspace_id: UUID = NIL
    queue: str = Field(default="default", max_length=64, pattern=QUEUE_PATTERN)
    priority: int = Field(default=1, ge=1, le=4)
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=31_536_000)
    backoff_limit: int = Field(default=3, ge=0, le=1000)
    backoff: Backoff = Backoff()
    recovery_policy: RecoveryPolicy = "Rerun"
    recovery_limit: int = Field(default=3, ge=0, le=1000)

    @field_validator("payload")
    @classmethod
    def _storable(cls, value: str) -> str:
        if "\0" in value:  # neither text nor jsonb of Postgres holds it
            raise ValueError("remove the NUL characters; write binary data as base64")
        size = len(value.encode())
        if size > MAX_PAYLOAD_BYTES:
            raise ValueError(f"write at most {MAX_PAYLOAD_BYTES} bytes of UTF-8, not {size}")
        return value


@dataclass(frozen=True)
class IntervalJob:
    """One IntervalJob as it was read; `spec` and `status` are as they came, for a bad one is reported too.

    One that is `deleting` waits for somebody else's finalizer, and starts nothing.
    """

    uid: UUID
    namespace: str
    name: str
    generation: int
    created_at: datetime
    resource_version: str
    run_requested_at: str | None
    cancel_requested_at: str | None
    deleting: bool
    spec: Mapping[str, Any]
    status: Mapping[str, Any]

    def version(self) -> int:
        """The resource version as a number that grows, 0 where it is none (Kubernetes: comparable since 1.35)."""
        return int(self.resource_version) if self.resource_version.isdecimal() else 0

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """The IntervalJob in this API object, whatever its spec says."""
        metadata = body["metadata"]
        annotations = metadata.get("annotations") or {}
        return cls(
            uid=UUID(metadata["uid"]),
            namespace=metadata["namespace"],
            name=metadata["name"],
            generation=metadata["generation"],
            created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
            resource_version=metadata["resourceVersion"],
            run_requested_at=annotations.get(RUN_REQUESTED_AT),
            cancel_requested_at=annotations.get(CANCEL_REQUESTED_AT),
            deleting="deletionTimestamp" in metadata,
            spec=_mapping(body.get("spec")),
            status=_mapping(body.get("status")),
        )


@dataclass(frozen=True)
class Definition:
    """Everything of an IntervalJob that its row in `jobs` holds.

    Either `interval_seconds` is set, or `schedule` (five fields) and `time_zone` are.
    """

    handler: str
    payload: str
    user_id: UUID
    workspace_id: UUID
    queue: str
    priority: int
    interval_seconds: int | None
    schedule: str | None
    time_zone: str | None
    jitter_seconds: int
    concurrency_policy: ConcurrencyPolicy
    suspend: bool
    active_deadline_seconds: int | None
    backoff_limit: int
    backoff_initial_seconds: int
    backoff_max_seconds: int
    recovery_policy: RecoveryPolicy
    recovery_limit: int


def definition(resource: IntervalJob) -> Definition:
    """The job that this IntervalJob asks for.

    Raises ResourceError, with reason InvalidSpec or one of `parse_schedule`'s; its message is one line that
    names every wrong field by its path and says what to write.
    """
    try:
        spec = IntervalJobSpec.model_validate(resource.spec)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        message = "; ".join(_sentence(problem["loc"], problem["type"], problem["msg"]) for problem in problems)
        raise ResourceError("InvalidSpec", message) from None
    schedule = parse_schedule(interval=spec.interval, schedule=spec.schedule, time_zone=spec.time_zone)
    if isinstance(schedule, Interval) and spec.jitter_seconds > schedule.seconds:
        raise ResourceError(
            "InvalidSpec",
            f"spec.jitterSeconds: write at most {schedule.seconds}, as many seconds as spec.interval has",
        )
    return Definition(
        handler=spec.handler,
        payload=spec.payload,
        user_id=spec.user_id,
        workspace_id=spec.workspace_id,
        queue=spec.queue,
        priority=spec.priority,
        interval_seconds=schedule.seconds if isinstance(schedule, Interval) else None,
        schedule=schedule.expression if isinstance(schedule, Cron) else None,
        time_zone=schedule.zone if isinstance(schedule, Cron) else None,
        jitter_seconds=spec.jitter_seconds,
        concurrency_policy=spec.concurrency_policy,
        suspend=spec.suspend or resource.deleting,
        active_deadline_seconds=spec.active_deadline_seconds,
        backoff_limit=spec.backoff_limit,
        backoff_initial_seconds=spec.backoff.initial_seconds,
        backoff_max_seconds=spec.backoff.max_seconds,
        recovery_policy=spec.recovery_policy,
        recovery_limit=spec.recovery_limit,
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sentence(location: tuple[int | str, ...], kind: str, message: str) -> str:
    path = ".".join(["spec", *map(str, location)])
    if kind == "string_pattern_mismatch":
        message = _INSTEAD_OF_PATTERN[path]
    return f"{path}: {message.removeprefix('Value error, ')}"
