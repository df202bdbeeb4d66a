"""One row that cannot be scheduled holds up no other."""

from support import SCOPE, AddJob, Execute

from intervaljob.database.connection import Database
from intervaljob.scheduler.scheduler import Scheduler


async def test_a_job_whose_zone_is_gone_is_set_aside_and_says_so(
    database: Database, execute: Execute, add_job: AddJob
) -> None:
    """The machine's zone data may lose a zone that a row names; the others of the same batch run."""
    due = (await execute("SELECT now() - interval '1 second' AS due"))[0]["due"]
    broken = await add_job(
        name="broken", interval_seconds=None, schedule="* * * * *", time_zone="Gone/Away", next_run_at=due
    )
    good = await add_job(name="good", anchor=due, next_run_at=due)
    assert await Scheduler(database, scope=SCOPE, batch_size=10).schedule_due() == 1
    (queued,) = await execute("SELECT args ->> 'job_id' AS job FROM {schema}.river_job")
    assert queued["job"] == str(good)
    (row,) = await execute(
        "SELECT next_run_at, problem_reason, problem_message FROM {schema}.jobs WHERE id = %(id)s", id=broken
    )
    assert row["next_run_at"] is None
    assert row["problem_reason"] == "InvalidSchedule"
    assert "Gone/Away" in row["problem_message"]
    (status,) = await execute("SELECT revision > written_revision AS waits FROM {schema}.job_status")
    assert status["waits"]
