"""An attempt from its claim to its end, as the manager keeps it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from intervaljob.model.policy import DRAINED, NOT_STARTED
from intervaljob.model.task import Attempt, Outcome, Result
from intervaljob.recovery.recover import Lost

if TYPE_CHECKING:
    from intervaljob.worker.remote import Executor


class Listener(Protocol):
    """Who hears what becomes of an attempt that was given to an executor."""

    def begun(self, running: Running, /) -> None:
        """Its turn has come: a handler may see it from now on."""

    def checkpointed(self, running: Running, number: int, data: str, /) -> None:
        """Its handler waits until this is stored, and the executor has been answered."""

    def ended(self, running: Running, result: Result, /) -> None:
        """What came of it."""

    def died(self, running: Running, why: str, /) -> None:
        """Its process ended before it did. Nothing of it runs any more."""

    def returned(self, running: Running, /) -> None:
        """The executor has not begun it and will not, or has ended before: no handler has seen it."""


@dataclass(eq=False, slots=True)
class Running:
    """An attempt from its claim to its end. `expected` is how many seconds its handler may take.

    `outcome` says why it is to end early; `handed_over`: a handler may have seen it;
    `is_shown`: the status is to say that it runs.
    """

    attempt: Attempt
    listener: Listener
    started_at: datetime
    expected: float = 0.0
    executor: Executor | None = None
    ticket: int = 0
    outcome: Outcome | None = None
    abandoned: bool = False
    handed_over: bool = False
    is_shown: bool = False
    deadline: asyncio.TimerHandle | None = None
    stopped: asyncio.Event | None = None

    def keep_no_deadline(self) -> None:
        """It does not run any more, or not yet again."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

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
