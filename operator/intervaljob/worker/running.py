"""An attempt from its claim to its end, as the manager keeps it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime

from intervaljob.model.policy import DRAINED, NOT_STARTED
from intervaljob.model.task import Attempt, Outcome, Result
from intervaljob.recovery.recover import Lost
from intervaljob.worker.remote import Executor


@dataclass(eq=False)
class Running:
    """An attempt from its claim to its end; `outcome` says why it is to end early.

    `handed_over`: a handler may have seen it.
    """

    attempt: Attempt
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    executor: Executor | None = None
    outcome: Outcome | None = None
    abandoned: bool = False
    handed_over: bool = False
    deadline: asyncio.TimerHandle | None = None
    ended: asyncio.Event | None = None

    def ended_early(self, outcome: Outcome) -> Result:
        """What came of it, whatever its handler returns."""
        if outcome is Outcome.DEADLINE_EXCEEDED:
            seconds = self.attempt.active_deadline_seconds
            return Result(outcome, error=f"DeadlineExceeded: it ran for {seconds} s, spec.activeDeadlineSeconds")
        return Result(outcome, error="JobCancelError: the task was cancelled")

    def handed_back(self) -> Lost:
        """The loss of one that a worker which drains has no time for."""
        evidence = DRAINED if self.handed_over else NOT_STARTED
        return Lost(self.attempt.task_id, self.attempt.number, evidence)
