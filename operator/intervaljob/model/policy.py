"""What becomes of a task whose worker is gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Recoveries after which a task that keeps ending its workers is given up.
RECOVERY_LIMIT: Final = 3

#: A worker that drains was not ended by its task, so that does not bring the task nearer to the limit.
DRAINED: Final = "drained"


@dataclass(frozen=True)
class End:
    """The task is not run again; `status` is its final one."""

    status: str
    error: str


def verdict(*, job_deleted: bool, recoveries: int, evidence: str) -> End | None:
    """None: run it again. Otherwise how it ends."""
    if job_deleted:
        return End("cancelled", "the IntervalJob was deleted")
    if evidence != DRAINED and recoveries >= RECOVERY_LIMIT:
        return End("failed", f"RecoveryLimitExceeded: its worker was lost {recoveries + 1} times")
    return None
