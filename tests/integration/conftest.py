"""A fresh, migrated database for each test, copied from a template; and jobs to put into it."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pool_support import Started
from support import CLUSTER, AddJob, Execute, Work, worker_settings

from intervaljob.database.connection import Database, Row, as_records
from intervaljob.database.migrations import migrate_up
from intervaljob.embedded.postgres import Postgres
from intervaljob.settings import DatabaseSettings, load
from intervaljob.worker.pool import Pool, pool

_numbers = itertools.count()


@pytest.fixture
def empty_database_url(postgres_server: Postgres) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    name = f"empty_{next(_numbers)}"
    postgres_server.create_database(name)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def migrated_template(postgres_server: Postgres) -> str:
    """The name of a database that has every migration; no test writes to it."""
    import asyncio

    name = f"template_{next(_numbers)}"
    postgres_server.create_database(name)

    async def migrate() -> None:
        async with Database(settings(postgres_server.url(name)), application="tests") as database:
            await migrate_up(database)

    asyncio.run(migrate())
    return name


@pytest.fixture
def database_url(postgres_server: Postgres, migrated_template: str) -> Iterator[str]:
    """The URL of a migrated database of the test's own."""
    name = f"test_{next(_numbers)}"
    postgres_server.create_database(name, template=migrated_template)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """That database, opened as operators and workers do."""
    async with Database(settings(database_url), application="tests") as opened:
        yield opened


@pytest.fixture
def handlers_for_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Executors find the module of handlers for tests."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.fixture
async def executors(handlers_for_tests: None) -> AsyncIterator[Pool]:
    async with pool(worker_settings("postgresql://nowhere", handlers="handlers_for_tests", concurrency=400)) as made:
        yield made


@pytest.fixture
def started(tmp_path: Path) -> Started:
    return Started(tmp_path)


@pytest.fixture
def execute(database: Database) -> Execute:
    """Any SQL in that database, `{schema}` filled in, in a transaction of its own; returns the rows."""

    async def run(sql: str, **parameters: object) -> list[Row]:
        async with database.session() as session:
            text = sql.replace("{schema}", database.schema)
            cursor = await session.connection.execute(text.encode(), parameters or None)
            return await cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def add_job(database: Database) -> AddJob:
    """Write a row of `jobs` (an interval of a minute, due in a minute, handler `echo`) with these columns instead."""

    async def add(**columns: Any) -> UUID:
        now = datetime.now(UTC)
        row = {
            "id": uuid4(),
            "cluster_id": CLUSTER,
            "namespace": "default",
            "name": "job",
            "generation": 1,
            "resource_version": 1,
            "user_id": uuid4(),
            "workspace_id": uuid4(),
            "payload": "{}",
            "handler": "echo",
            "queue": "default",
            "priority": 1,
            "interval_seconds": 60,
            "schedule": None,
            "time_zone": None,
            "jitter_seconds": 0,
            "anchor": now,
            "concurrency_policy": "Allow",
            "active_deadline_seconds": None,
            "backoff_limit": 3,
            "backoff_initial_seconds": 1,
            "backoff_max_seconds": 1,
            "recovery_policy": "Rerun",
            "recovery_limit": 3,
            "suspended": False,
            "runnable_since": None,
            "next_run_at": now + timedelta(minutes=1),
            "run_requested_at": None,
            "cancel_requested_at": None,
            "problem_reason": None,
            "problem_message": None,
            "ready_changed_at": now,
            **columns,
        }
        await database.fetch("upsert_jobs", jobs=as_records([row]), known=[])
        assert isinstance(row["id"], UUID)
        return row["id"]

    return add


@pytest.fixture
def work(database: Database, database_url: str, execute: Execute, add_job: AddJob) -> Work:
    """Workers, queue jobs and tasks in that database."""
    return Work(database, url=database_url, execute=execute, add_job=add_job)


def settings(url: str, **others: Any) -> DatabaseSettings:
    """Settings of a database alone."""
    return load(DatabaseSettings, database_url=url, **others)
