"""`intervaljob task show`: what a person sees of one task."""

import asyncio
import sys
from uuid import UUID, uuid4

from msgspec import Raw
from support import Work

from intervaljob.model.task import Outcome, Result


async def show(url: str, task: UUID) -> tuple[int, str]:
    """Exit code and output of the command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "intervaljob", "task", "show", str(task), "--database-url", url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_a_task_that_was_retried_recovered_and_ended_tells_it_all(work: Work, database_url: str) -> None:
    first, attempt = await work.start(name="report", namespace="team", payload="secret", backoff_initial_seconds=1)
    await work.finish(first, attempt, Result(Outcome.RAISED, error="no luck"))
    await work.execute("UPDATE {schema}.river_job SET scheduled_at = now()")
    second = await work.worker()
    await work.claim(second)
    await work.end(second)
    await work.recover()
    third = await work.worker()
    (last,) = await work.claim(third)
    await work.finish(third, last, Result(Outcome.RETURNED, Raw(b'{"secret": 1}')))

    code, text = await show(database_url, attempt.task_id)
    assert code == 0
    for words in (
        str(attempt.task_id),
        f"team/report ({attempt.job_id})",
        "status      succeeded",
        "recoveries  1 of 3 (recoveryPolicy Rerun)",
        f"recovery    queue job {last.queue_job_id}, completed",
        f"{first.name}  failed: no luck",
        f"{second.name}  lost (lease_expired) and recovered",
        f"{third.name}  succeeded",
    ):
        assert words in text
    assert [line.split()[0] for line in text.split("attempts:")[1].strip().splitlines()] == ["1", "2", "3"]
    assert "secret" not in text


async def test_a_task_that_was_given_up_names_its_last_attempt_once(work: Work, database_url: str) -> None:
    worker, attempt = await work.start(recovery_policy="Fail")
    await work.end(worker)
    await work.recover()
    _, text = await show(database_url, attempt.task_id)
    assert "1   " in text
    assert f"{worker.name}  lost (lease_expired) and not recovered" in text
    assert text.count(worker.name) == 1
    assert "error: RecoveryPolicyFail" in text


async def test_a_task_that_does_not_exist_is_an_error_in_one_line(work: Work, database_url: str) -> None:
    task = uuid4()
    code, text = await show(database_url, task)
    assert (code, text.strip()) == (2, f"intervaljob: task {task} does not exist")
