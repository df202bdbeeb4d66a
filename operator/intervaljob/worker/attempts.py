"""The attempts that a worker holds: placed, heard of, stopped early, recorded or given back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

from intervaljob.database.connection import Database
from intervaljob.errors import DatabaseUnavailable
from intervaljob.model.policy import NOT_STARTED
from intervaljob.model.task import Attempt, Outcome, Result, conclude
from intervaljob.recovery.recover import Lost, give_back
from intervaljob.settings import WorkerSettings
from intervaljob.telemetry import metrics
from intervaljob.worker import wire
from intervaljob.worker.finisher import Finisher
from intervaljob.worker.incarnation import Incarnation
from intervaljob.worker.pace import Pace
from intervaljob.worker.pool import Pool
from intervaljob.worker.remote import Executor
from intervaljob.worker.running import Running

logger = logging.getLogger(__name__)

#: Evidence of a loss: the process of the attempt ended, by itself or by a signal, while its worker lived on.
EXECUTOR_EXITED = "executor_exited"

#: Seconds that an attempt beyond the worker's concurrency waits for its turn; then another worker may have it.
HOLD_SECONDS = 1.0
#: What is here at two looks so far apart is shown as running; what is quicker is news when it has ended.
SHOW_SECONDS = 0.25
#: Bound on getting an attempt back that an executor has not begun.
ASK_BACK_SECONDS = 0.5


class Attempts:
    """Of one incarnation, from their claims to their records; `freed` is called when there is one less.

    It hears what becomes of them (`Listener`); what takes time is done in `group`, until that ends.
    """

    def __init__(
        self,
        database: Database,
        settings: WorkerSettings,
        *,
        worker: Incarnation,
        pool: Pool,
        finisher: Finisher,
        group: asyncio.TaskGroup,
        freed: Callable[[], None],
    ) -> None:
        self._database = database
        self._settings = settings
        self._worker = worker
        self._pool = pool
        self._finisher = finisher
        self._group = group
        self._freed = freed
        self._pace = Pace(settings.concurrency)
        self._ended = asyncio.Event()
        self.running: dict[UUID, Running] = {}
        metrics.TASKS_RUNNING.set_function(lambda: len(self.running))

    def begin(self, claimed: Iterable[Attempt]) -> None:
        """Have executors run what was claimed just now."""
        now = datetime.now(UTC)
        for attempt in claimed:
            if attempt.number == 1:
                waited = now - max(attempt.created_at, attempt.scheduled_for)
                metrics.PICKUP_SECONDS.observe(max(0.0, waited.total_seconds()))
            self.running[attempt.task_id] = running = Running(attempt, self, now)
            self._place(running)

    def free(self) -> int:
        """How many more may be claimed. Where tasks are quick it is worth the while to wait until that is many."""
        most = self._pace.most()
        free = max(0, most - len(self.running))
        return free if most == self._settings.concurrency or free >= most / 2 else 0

    def begun(self, running: Running) -> None:
        if running.attempt.active_deadline_seconds is not None and not running.abandoned:
            running.deadline = asyncio.get_running_loop().call_later(
                running.attempt.active_deadline_seconds, self.stop, running, Outcome.DEADLINE_EXCEEDED
            )

    def ended(self, running: Running, result: Result) -> None:
        self._pace.note(running.attempt.handler, result.seconds)
        metrics.TASK_SECONDS.observe(result.seconds)
        if running.attempt.recovered:
            metrics.RECOVERED_EXECUTION_SECONDS.observe(result.seconds)
        self._conclude(running, result if running.outcome is None else running.ended_early(running.outcome))

    def died(self, running: Running, why: str) -> None:
        if running.outcome is None or running.abandoned:
            self._lose(running, EXECUTOR_EXITED, why)
        else:
            self._conclude(running, running.ended_early(running.outcome))

    def returned(self, running: Running) -> None:
        running.keep_no_deadline()
        self._place(running)

    def checkpointed(self, running: Running, number: int, data: str) -> None:
        if running.executor is not None and not running.abandoned:
            self._start(self._checkpoint(running, running.executor, number, data), name="checkpoint")

    def _place(self, running: Running) -> None:
        """Have an executor run it, unless it is to end before."""
        if running.abandoned:
            self._forget(running)
        elif running.outcome is not None:
            self._conclude(running, running.ended_early(running.outcome))
        elif not self._worker.alive():
            self._lose(running, NOT_STARTED, "the lease had no time left")
        else:
            running.expected = self._pace.expected(running.attempt.handler)
            self._pool.place(running, deadline=self._worker.deadline)

    def _conclude(self, running: Running, result: Result) -> None:
        if not running.abandoned:
            finish = conclude(running.attempt, result, started_at=running.started_at)
            self._finisher.put(running.attempt, finish)
        self._forget(running)

    def _lose(self, running: Running, evidence: str, why: str) -> None:
        """It goes back on the queue, unless it is another's already."""
        if running.abandoned:
            self._forget(running)
            return
        event = "Executor died" if evidence == EXECUTOR_EXITED else "Attempt handed back"
        logger.warning(event, extra={**self.fields(running.attempt), "error": why})
        lost = Lost(running.attempt.task_id, running.attempt.number, evidence, why)
        self._start(self._hand_back(running, lost), name=f"hand back {lost.task_id}")

    def _start(self, work: Coroutine[None, None, None], *, name: str) -> None:
        """Beside the duties; where they have ended, what is left is for those who recover it."""
        try:
            self._group.create_task(work, name=name)
        except RuntimeError:
            work.close()

    async def _hand_back(self, running: Running, lost: Lost) -> None:
        await self.give_back([lost])
        self._forget(running)

    def _forget(self, running: Running) -> None:
        running.keep_no_deadline()
        if running.stopped is not None:
            running.stopped.set()
        if self.running.get(running.attempt.task_id) is running:  # the next attempt may have come here, too
            del self.running[running.attempt.task_id]
        self._ended.set()
        self._freed()

    async def show_what_runs(self) -> None:
        """For ever: what stays is news for the status. After an outage of the database it still is."""
        seen: set[Running] = set()
        while True:
            await asyncio.sleep(SHOW_SECONDS)
            shown = [one for one in self.running.values() if one in seen and not one.is_shown]
            seen = set(self.running.values())
            with suppress(DatabaseUnavailable):
                if shown:
                    tasks = [one.attempt.task_id for one in shown]
                    await self._database.fetch("note_started", tasks=tasks, worker=self._worker.id)
                for one in shown:
                    one.is_shown = True

    async def hand_back_what_waits(self) -> None:
        """For ever: what has no place soon, since tasks take longer than when it was claimed, others may have."""
        while True:
            await asyncio.sleep(HOLD_SECONDS / 2)
            for running in self._pool.withdraw_older(HOLD_SECONDS):
                if len(self.running) > self._settings.concurrency:
                    self._pace.slow()
                    self._lose(running, NOT_STARTED, "the worker had no place for it")
                else:
                    self._place(running)

    def abandon(self, running: Running) -> None:
        """The attempt is no longer ours: it is stopped, and its end is not recorded."""
        running.abandoned = True
        if running.outcome is None:
            self.stop(running, Outcome.CANCELLED)
        elif (executor := running.executor) is not None and executor.runs(running):
            # Its handler was asked to stop, and takes its time.
            self._start(self._pool.kill(executor), name=f"stop {running.attempt.task_id}")

    def stop(self, running: Running, outcome: Outcome) -> None:
        """It is to end early, for this reason unless there is one already."""
        if running.outcome is not None:
            return
        running.outcome = outcome
        if self._pool.withdraw(running):
            self._conclude(running, running.ended_early(outcome))
        else:
            running.stopped = asyncio.Event()
            self._start(self._stop_early(running, running.stopped), name=f"stop {running.attempt.task_id}")

    async def _stop_early(self, running: Running, stopped: asyncio.Event) -> None:
        """Ask the handler to stop, and kill its process when it does not, or when the attempt is another's already."""
        while (executor := running.executor) is not None and not stopped.is_set():
            runs = executor.runs(running)
            if not (running.abandoned and runs):
                executor.ask_back()
                executor.cancel(running)
                with suppress(TimeoutError):
                    async with asyncio.timeout(ASK_BACK_SECONDS if not runs else self._settings.cancel_seconds):
                        await stopped.wait()
            if not stopped.is_set() and (running.abandoned or runs):
                await self._pool.kill(executor)
                await stopped.wait()

    async def _checkpoint(self, running: Running, executor: Executor, number: int, data: str) -> None:
        attempt, saved = running.attempt, None
        while saved is None:
            try:
                saved = await self._database.fetch(
                    "save_checkpoint",
                    task=attempt.task_id,
                    attempt=attempt.number,
                    worker=self._worker.id,
                    number=number,
                    checkpoint=data,
                )
            except DatabaseUnavailable as error:
                logger.warning("Checkpoint waits", extra={**self.fields(attempt), "error": error})
                await asyncio.sleep(0.5)
        executor.send(wire.Saved(number, ok=bool(saved)))

    async def give_back(self, lost: list[Lost]) -> None:
        """Put attempts of ours on the queue again, as recovery jobs; waits for the database if need be."""
        while True:
            try:
                await give_back(self._database, worker=self._worker.id, name=self._worker.name, lost=lost)
            except DatabaseUnavailable as error:
                logger.warning("Recovery waits", extra={"worker": self._worker.name, "error": error})
                await asyncio.sleep(0.5)
            else:
                return

    async def all_ended(self) -> None:
        """Returns when there are none."""
        while self.running:
            self._ended.clear()
            await self._ended.wait()

    def leave(self) -> None:
        """This incarnation is over: executors end with their pool, and what they tell then is nobody's business."""
        for running in self.running.values():
            running.abandoned = True
            running.keep_no_deadline()

    def fields(self, attempt: Attempt) -> dict[str, object]:
        """What a log line says of it."""
        return {
            "job": attempt.job_id,
            "task": attempt.task_id,
            "attempt": attempt.number,
            "worker": self._worker.name,
        }
