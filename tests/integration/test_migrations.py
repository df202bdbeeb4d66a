"""The schema's steps, up and down, beside River's own and over the legacy schema."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from support import SCOPE

from intervaljob.database.connection import Database, Row
from intervaljob.database.migrations import LATEST, applied, check_version, migrate_down, migrate_up, render
from intervaljob.errors import DatabaseError, SchemaVersionError
from intervaljob.recovery.recover import recover_orphans
from intervaljob.settings import DatabaseSettings, load

Ask = Callable[..., Awaitable[list[Row]]]

COLUMNS = """
    SELECT table_name, column_name, data_type, udt_name, is_nullable, column_default, is_generated
    FROM information_schema.columns WHERE table_schema = '{schema}' ORDER BY table_name, column_name
"""
CONSTRAINTS = """
    SELECT conrelid::regclass::text AS of, conname, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint WHERE connamespace = '{schema}'::regnamespace AND contype <> 'n' ORDER BY 1, 2
"""
INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = '{schema}' ORDER BY 1"
RELATIONS = """
    SELECT relname, relkind, relpersistence, reloptions
    FROM pg_class WHERE relnamespace = '{schema}'::regnamespace ORDER BY 1
"""
FUNCTIONS = """
    SELECT proname, pg_get_function_arguments(oid) AS arguments, pg_get_function_result(oid) AS result, provolatile,
        prosrc
    FROM pg_proc WHERE pronamespace = '{schema}'::regnamespace ORDER BY 1
"""


@asynccontextmanager
async def opened(url: str, *, schema: str = "intervaljob") -> AsyncIterator[tuple[Database, Ask]]:
    """The database, and a way to ask it anything."""
    settings = load(DatabaseSettings, database_url=url, database_schema=schema)
    async with Database(settings, application="tests") as database:

        async def ask(sql: str, **parameters: object) -> list[Row]:
            async with database.session() as session:
                text = sql.replace("{schema}", schema)
                cursor = await session.connection.execute(text.encode(), parameters or None)
                return await cursor.fetchall() if cursor.description else []

        yield database, ask


async def catalogue(ask: Ask) -> list[list[Row]]:
    return [await ask(query) for query in (COLUMNS, CONSTRAINTS, INDEXES, RELATIONS, FUNCTIONS)]


async def version(database: Database) -> list[int]:
    return [step.version for step in await applied(database)]


async def test_up_applies_every_step_once(empty_database_url: str) -> None:
    async with opened(empty_database_url) as (database, _):
        assert await version(database) == []
        assert [step.version for step in await migrate_up(database)] == [*range(1, LATEST + 1)]
        assert await version(database) == [*range(1, LATEST + 1)]
        assert await migrate_up(database) == ()
        await check_version(database)


async def test_of_several_at_once_one_applies_the_steps_and_the_others_wait_for_it(empty_database_url: str) -> None:
    async with opened(empty_database_url) as (one, _), opened(empty_database_url) as (other, _):
        done = await asyncio.gather(*(migrate_up(each) for each in (one, other, one, other)))
        assert sorted(len(steps) for steps in done) == [0, 0, 0, LATEST]
        undone = await asyncio.gather(*(migrate_down(each, to=0) for each in (one, other)))
        assert sorted(len(steps) for steps in undone) == [0, LATEST]


async def test_a_step_that_fails_leaves_nothing_of_any_step(empty_database_url: str) -> None:
    async with opened(empty_database_url) as (database, ask):
        await ask("CREATE SCHEMA {schema}; CREATE TABLE {schema}.workers (mine integer)")
        with pytest.raises(DatabaseError, match="migration 003_operator: .*workers.* already exists"):
            await migrate_up(database)
        assert await version(database) == []
        assert [row["relname"] for row in await ask(RELATIONS)] == ["workers"]


async def test_down_to_nothing_and_up_again_leaves_the_same_catalogue(database: Database, database_url: str) -> None:
    async with opened(database_url) as (_, ask):
        before = await catalogue(ask)
        assert [step.version for step in await migrate_down(database, to=0)] == [*range(LATEST, 0, -1)]
        assert [row["relname"] for row in await ask(RELATIONS)] == [
            "intervaljob_migration",
            "intervaljob_migration_pkey",
        ]
        await migrate_up(database)
        assert await catalogue(ask) == before


@pytest.mark.parametrize("to", [1, 2, 3])
async def test_each_step_down_and_up_leaves_the_same_catalogue(database: Database, database_url: str, to: int) -> None:
    async with opened(database_url) as (_, ask):
        before = await catalogue(ask)
        assert [step.version for step in await migrate_down(database, to=to)] == [*range(LATEST, to, -1)]
        assert await version(database) == [*range(1, to + 1)]
        await migrate_up(database)
        assert await catalogue(ask) == before


async def test_a_schema_of_another_name_is_the_same_and_stands_beside(database: Database, database_url: str) -> None:
    async with opened(database_url, schema="beside_it") as (other, ask), opened(database_url) as (_, ask_first):
        with pytest.raises(SchemaVersionError, match="'beside_it' is at version 0"):
            await check_version(other)
        await migrate_up(other)
        renamed = str(await catalogue(ask)).replace("beside_it", "intervaljob")
        assert renamed == str(await catalogue(ask_first))
        await migrate_down(other, to=0)
        await check_version(database)


async def test_the_printed_sql_makes_what_up_makes(empty_database_url: str, database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(render(schema="intervaljob").encode())
    async with opened(empty_database_url) as (_, ask_printed), opened(database_url) as (_, ask):
        assert await catalogue(ask_printed) == await catalogue(ask)
        steps = "SELECT version, name FROM intervaljob.intervaljob_migration ORDER BY version"
        assert await ask_printed(steps) == await ask(steps)


async def test_a_version_that_is_not_there_is_refused(database: Database) -> None:
    with pytest.raises(DatabaseError, match=f"no schema version 99: give one from 0 to {LATEST}"):
        await migrate_up(database, to=99)
    with pytest.raises(DatabaseError, match="no schema version -1"):
        await migrate_down(database, to=-1)


async def test_an_older_schema_is_refused_and_a_newer_one_noted(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The newer one is what a rollback finds."""
    await migrate_down(database, to=3)
    with pytest.raises(SchemaVersionError) as older:
        await check_version(database)
    assert str(older.value) == (
        f"schema 'intervaljob' is at version 3, this program needs {LATEST}: run `intervaljob migrate up`"
    )
    await migrate_up(database)
    await database.fetch("record_migration", version=LATEST + 1, name="of_tomorrow")
    await check_version(database)
    assert caplog.messages == ["The schema is newer than this program"]


RIVER_BEFORE_5 = "id bigserial, created_at timestamptz, version bigint"
RIVER_SINCE_5 = "line text, version bigint, PRIMARY KEY (line, version)"


@pytest.mark.parametrize(
    ("columns", "row"),
    [(RIVER_BEFORE_5, "(1, now(), 4)"), (RIVER_SINCE_5, "('main', 7)")],
    ids=["before lines", "with lines"],
)
async def test_older_tables_of_rivers_are_rivers_to_upgrade(empty_database_url: str, columns: str, row: str) -> None:
    async with opened(empty_database_url) as (database, ask):
        await ask(f"CREATE SCHEMA {{schema}}; CREATE TABLE {{schema}}.river_migration ({columns})")
        await ask(f"INSERT INTO {{schema}}.river_migration VALUES {row}")
        with pytest.raises(DatabaseError, match=r"migration 002_river: .*older than version 8: run `river migrate-up`"):
            await migrate_up(database)
        assert await version(database) == []


async def test_current_tables_of_rivers_are_left_as_they_are(empty_database_url: str) -> None:
    async with opened(empty_database_url) as (database, ask):
        await migrate_up(database, to=2)
        await ask("INSERT INTO {schema}.river_job (kind, args) VALUES ('theirs', '{}')")
        await ask("INSERT INTO {schema}.river_migration VALUES ('theirs', 3)")
        await ask("DELETE FROM {schema}.intervaljob_migration WHERE version = 2")
        before = await catalogue(ask)
        await migrate_up(database, to=2)
        assert await catalogue(ask) == before
        assert len(await ask("SELECT id FROM {schema}.river_job")) == 1
        assert len(await ask("SELECT line FROM {schema}.river_migration")) == 9


async def legacy_job(ask: Ask, *, task: UUID | None, payload: str = "{}") -> UUID:
    job = uuid4()
    await ask(
        "INSERT INTO {schema}.jobs (id, user_id, workspace_id, payload, interval_seconds, current_task_id)"
        " VALUES (%(job)s, %(job)s, %(job)s, %(payload)s, 30, %(task)s)",
        job=job,
        payload=payload,
        task=task,
    )
    return job


async def legacy_task(ask: Ask, job: UUID, **columns: Any) -> UUID:
    task = uuid4()
    columns = {"id": task, "job_id": job, "status": "running", **columns}
    values = ", ".join(f"%({name})s" for name in columns)
    await ask(f"INSERT INTO {{schema}}.tasks ({', '.join(columns)}) VALUES ({values})", **columns)
    return task


async def test_what_legacy_jobs_pointed_at_runs_afterwards_and_is_recovered(empty_database_url: str) -> None:
    async with opened(empty_database_url) as (database, ask):
        await migrate_up(database, to=1)
        unknown = uuid4()
        without_row = await legacy_job(ask, task=unknown, payload="unknown")
        with_row = await legacy_job(ask, task=None, payload="known")
        known = await legacy_task(ask, with_row)
        await ask("UPDATE {schema}.jobs SET current_task_id = %(task)s WHERE id = %(job)s", task=known, job=with_row)
        ended = await legacy_job(ask, task=None)
        stale = await legacy_task(ask, ended, status="succeeded")
        await ask("UPDATE {schema}.jobs SET current_task_id = %(task)s WHERE id = %(job)s", task=stale, job=ended)
        await legacy_job(ask, task=None)

        await migrate_up(database)
        tasks = {row["id"]: row for row in await ask("SELECT * FROM {schema}.tasks")}
        assert tasks.keys() == {unknown, known, stale}
        assert (tasks[unknown]["job_id"], tasks[unknown]["status"]) == (without_row, "running")
        assert (tasks[known]["job_id"], tasks[known]["payload"]) == (with_row, "known")
        assert tasks[stale]["status"] == "succeeded"

        assert await recover_orphans(database, scope=SCOPE, by="test", every_task=True) == 2
        queued = {row["args"]["task_id"]: row["args"] for row in await ask("SELECT args FROM {schema}.river_job")}
        assert queued == {
            str(task): {
                "job_id": str(job),
                "user_id": str(job),
                "workspace_id": str(job),
                "payload": payload,
                "task_id": str(task),
            }
            for task, job, payload in [(unknown, without_row, "unknown"), (known, with_row, "known")]
        }
        assert await recover_orphans(database, scope=SCOPE, by="test", every_task=True) == 0


async def test_down_points_each_job_at_its_newest_task_that_has_not_ended(empty_database_url: str) -> None:
    async with opened(empty_database_url) as (database, ask):
        await migrate_up(database, to=3)
        running, idle = await legacy_job(ask, task=None), await legacy_job(ask, task=None)
        await legacy_task(ask, running, created_at="2026-11-23 12:00Z")
        newest = await legacy_task(ask, running, status="retrying", created_at="2026-11-23 13:00Z")
        await legacy_task(ask, running, status="failed", created_at="2026-11-23 14:00Z")
        await legacy_task(ask, idle, status="succeeded")
        await migrate_up(database)
        await migrate_down(database, to=3)
        rows = await ask("SELECT id, current_task_id FROM {schema}.jobs")
        assert {row["id"]: row["current_task_id"] for row in rows} == {running: newest, idle: None}
