"""What becomes of a task whose worker is gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: A worker that drains, or whose Pod was deleted, was not ended by its task.
DRAINED: Final = "drained"
POD_GONE: Final = "pod_gone"
#: The claim's answer was lost, or the lease had no time left when the attempt was to begin: no handler saw it.
CLAIM_LOST: Final = "claim_lost"
NOT_STARTED: Final = "not_started"

_NOT_THE_TASK = frozenset({DRAINED, POD_GONE, CLAIM_LOST, NOT_STARTED})
_NEVER_RAN = frozenset({CLAIM_LOST, NOT_STARTED})


@dataclass(frozen=True)
class End:
    """The task is not run again; `status` is its final one."""

    status: str
    error: str


def verdict(*, cancelled: str | None, policy: str, limit: int, recoveries: int, evidence: str) -> End | None:
    """None: run it again. Otherwise how it ends.

    `cancelled` says why somebody wants it to end, `policy` and `limit` are the job's `recoveryPolicy` and
    `recoveryLimit`, `recoveries` counts the earlier losses that may have been the task's own doing.
    """
    if cancelled is not None:
        return End("cancelled", cancelled)
    if policy == "Fail" and evidence not in _NEVER_RAN:
        return End("failed", f"RecoveryPolicyFail: its worker was lost ({evidence}), and it must not run twice")
    if is_counted(evidence) and recoveries >= limit:
        return End("failed", f"RecoveryLimitExceeded: its worker was lost {recoveries + 1} times")
    return None


def is_counted(evidence: str) -> bool:
    """Whether the loss may be the task's own doing, and so brings it nearer to its `recoveryLimit`."""
    return evidence not in _NOT_THE_TASK
