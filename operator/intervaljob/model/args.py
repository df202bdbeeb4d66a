"""The args of our queue jobs, and the values that River's columns hold beside them.

River's rows are read and written by its clients in other languages too, so that everything here follows
them to the letter: the args' keys, the unique keys (River's `dbunique`), the errors' entries (River's
`AttemptError`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from intervaljob.errors import ArgsError

if TYPE_CHECKING:
    from collections.abc import Mapping

KIND = "interval_job"

#: `unique_states`, a bit(8), for "as long as the queue job waits or runs". From the left: scheduled, running,
#: retryable, pending, discarded, completed, cancelled, available (River's `river_job_state_in_bitmask`).
ACTIVE_STATES = "11110001"

MAX_ERROR_BYTES = 8 * 1024
MAX_TRACE_BYTES = 16 * 1024


@dataclass(frozen=True)
class QueueArgs:
    """What a queue job asks for: a new task of `job_id`, or, with `task_id`, the recovery of that one."""

    job_id: UUID
    user_id: UUID
    workspace_id: UUID
    payload: str
    task_id: UUID | None = None

    def to_json(self) -> dict[str, str]:
        """Exactly these keys; `task_id` is absent, not null, where there is none."""
        args = {
            "job_id": str(self.job_id),
            "user_id": str(self.user_id),
            "workspace_id": str(self.workspace_id),
            "payload": self.payload,
        }
        return args if self.task_id is None else args | {"task_id": str(self.task_id)}

    @classmethod
    def parse(cls, value: object) -> QueueArgs:
        """The args in a decoded JSON value, which any client may have inserted.

        Keys we do not know are ignored, and a null `task_id` counts as absent. Raises ArgsError, one line
        that says what cannot be read.
        """
        if not isinstance(value, dict):
            raise ArgsError("args are not an object")
        payload = _member(value, "payload")
        if not isinstance(payload, str):
            raise ArgsError("args.payload is not a string")
        return cls(
            job_id=_uuid(value, "job_id"),
            user_id=_uuid(value, "user_id"),
            workspace_id=_uuid(value, "workspace_id"),
            payload=payload,
            task_id=None if value.get("task_id") is None else _uuid(value, "task_id"),
        )


def unique_key(kind: str, args: Mapping[str, object]) -> bytes:
    """River's `unique_key` for uniqueness by kind and by these members of the args.

    It is a hash of JSON as Go writes it, so the members must be integers, or strings that Go does not escape.
    """
    members = json.dumps(args, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(f"&kind={kind}&args={members}".encode()).digest()


def forbid_key(job_id: UUID) -> bytes:
    """The key under which a job has one queue job at a time."""
    return unique_key(KIND, {"job_id": str(job_id)})


def recovery_key(job_id: UUID, task_id: UUID) -> bytes:
    """The key under which a task has one recovery job at a time."""
    return unique_key(KIND, {"job_id": str(job_id), "task_id": str(task_id)})


def error_entry(*, at: datetime, attempt: int, error: str, trace: str = "") -> dict[str, object]:
    """An entry of `river_job.errors` for an attempt that started `at`.

    Always these four keys, and the time in UTC with a Z: before 0.48, River's Go client cannot read the
    whole row otherwise. What jsonb does not take is replaced, and what is over 8 KiB of error or 16 KiB of
    trace is cut.
    """
    return {
        "at": at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "attempt": attempt,
        "error": _cut(error, MAX_ERROR_BYTES),
        "trace": _cut(trace, MAX_TRACE_BYTES),
    }


def _member(value: dict[str, object], key: str) -> object:
    if key not in value:
        raise ArgsError(f"args.{key} is missing")
    return value[key]


def _uuid(value: dict[str, object], key: str) -> UUID:
    text = _member(value, key)
    try:
        if isinstance(text, str):
            return UUID(text)
    except ValueError:
        pass
    raise ArgsError(f"args.{key} is not a uuid")


def _cut(text: str, limit: int) -> str:
    """The text in at most `limit` bytes of UTF-8: the middle goes, since both ends tell what happened."""
    data = text.replace("\0", "\ufffd").encode(errors="replace")
    if len(data) <= limit:
        return data.decode()
    mark = f"\n… {len(data)} bytes, cut to {limit} …\n".encode()
    half = (limit - len(mark)) // 2
    return b"".join((data[:half], mark, data[-half:])).decode(errors="ignore")
