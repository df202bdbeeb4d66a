"""The way to Postgres: what it says when it is gone, and that it comes back by itself."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
from support import Execute, eventually

from intervaljob.database import connection
from intervaljob.database.connection import Database
from intervaljob.embedded.postgres import Postgres
from intervaljob.errors import DatabaseError, DatabaseUnavailable, SettingsError
from intervaljob.settings import DatabaseSettings, load


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    """A server that tests may stop."""
    with Postgres(durable=False) as server:
        yield server


@pytest.fixture
async def own_database(own_server: Postgres) -> AsyncIterator[Database]:
    async with Database(load(DatabaseSettings, database_url=own_server.url()), application="tests") as opened:
        yield opened


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for a connection last a second, so that a test of an outage need not last long."""
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 1)


async def answers(database: Database) -> bool:
    try:
        return bool(await database.fetch("database_time"))
    except DatabaseUnavailable:
        return False


async def test_a_server_that_stopped_is_unavailable_until_it_is_back(
    hasty: None, own_server: Postgres, own_database: Database
) -> None:
    assert own_database.problem == "not yet reached"
    assert await answers(own_database)
    assert own_database.problem is None
    own_server.stop("immediate")
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await own_database.fetch("database_time")
        assert own_database.problem
    own_server.start()
    await eventually(lambda: answers(own_database), what="the pool connects again")
    assert own_database.problem is None


@pytest.mark.timeout(90)
async def test_after_a_long_outage_it_is_back_as_soon_as_after_a_short_one(
    hasty: None, own_server: Postgres, own_database: Database
) -> None:
    assert await answers(own_database)
    own_server.stop("immediate")
    end = time.monotonic() + 8  # with pauses that double for ever, the attempt after this is at 15 s
    while time.monotonic() < end:
        assert not await answers(own_database)
    own_server.start()
    await eventually(lambda: answers(own_database), what="the pool connects again", within=4)


async def test_a_statement_that_the_end_of_the_server_cuts_short_is_unavailable(
    own_server: Postgres, own_database: Database
) -> None:
    inside = asyncio.Event()

    async def sleep() -> None:
        async with own_database.transaction() as session:
            await session.fetch("database_time")
            inside.set()
            await session.connection.execute("SELECT pg_sleep(30)")

    async with asyncio.timeout(20):
        sleeper = asyncio.create_task(sleep())
        await inside.wait()
        own_server.stop("immediate")
        with pytest.raises(DatabaseUnavailable):
            await sleeper
    own_server.start()


async def test_a_backend_that_was_killed_is_replaced_without_an_error(database: Database, execute: Execute) -> None:
    (mine,) = await execute("SELECT pg_backend_pid() AS pid")
    async with database.dedicated() as session:
        await session.connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    (replaced,) = await execute("SELECT pg_backend_pid() AS pid")
    assert replaced != mine


async def test_nothing_of_a_transaction_that_was_cut_stays(database: Database, execute: Execute) -> None:
    await execute("CREATE TABLE {schema}.marks (mark integer)")
    with pytest.raises(DatabaseUnavailable):
        async with database.transaction() as session:
            await session.connection.execute("INSERT INTO intervaljob.marks VALUES (1)")
            await session.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert await execute("SELECT mark FROM {schema}.marks") == []


async def test_listening_yields_what_is_notified_and_ends_with_the_connection(
    database: Database, execute: Execute
) -> None:
    async with asyncio.timeout(20):
        for _ in range(2):
            async with aclosing(database.listen("river_insert", "river_control")) as notifications:
                assert await anext(notifications) == ("", "")
                await execute("SELECT pg_notify('{schema}.river_elsewhere', 'no')")
                await execute("SELECT pg_notify('{schema}.river_control', 'yes')")
                assert await anext(notifications) == ("river_control", "yes")
                await execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
                )
                with pytest.raises(DatabaseUnavailable):
                    await anext(notifications)
            assert database.problem is not None


async def test_a_statement_that_lasts_too_long_is_given_up_and_named(database_url: str) -> None:
    settings = load(DatabaseSettings, database_url=database_url, statement_timeout_seconds=0.2)
    async with Database(settings, application="tests") as database, Database(settings, application="b") as other:
        async with database.transaction() as session:
            await session.fetch("lock_migrations", schema=database.schema)
            with pytest.raises(
                DatabaseUnavailable, match="^lock_migrations: canceling statement due to statement timeout$"
            ):
                async with other.transaction() as waiting:
                    await waiting.fetch("lock_migrations", schema=database.schema)


async def test_what_the_database_refuses_is_an_error_in_one_line_that_names_the_query(database: Database) -> None:
    with pytest.raises(DatabaseError) as refused:
        await database.fetch("record_migration", version=1, name="again")
    assert not isinstance(refused.value, DatabaseUnavailable)
    assert str(refused.value).startswith("record_migration: duplicate key value violates unique constraint")
    assert "\n" not in str(refused.value)


SECRET = "Seecret5"


@pytest.mark.postgres_only(18)
@pytest.mark.parametrize(
    "url",
    [
        f"mysql://user:{SECRET}@127.0.0.1/db",
        f"postgresql://user:{SECRET}%zz@127.0.0.1/db",
        f"postgresql://user:{SECRET}/{SECRET}@127.0.0.1/db",
        f"postgresql://user:x@{SECRET}@127.0.0.1/db",
        f"host=127.0.0.1 password={SECRET} {SECRET}",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_in_one_line_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Database(load(DatabaseSettings, database_url=url), application="tests")
    assert str(refused.value).startswith("INTERVALJOB_DATABASE_URL: write postgresql://")
    assert "\n" not in str(refused.value)
    assert SECRET not in str(refused.value)


async def test_a_wrong_password_is_in_no_error_and_in_no_log(
    hasty: None, postgres_server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    user, host = postgres_server.url().split(":")[1].removeprefix("//"), postgres_server.url().split("@")[1]
    settings = load(DatabaseSettings, database_url=f"postgresql://{user}:{SECRET}@{host}")
    assert SECRET not in repr(settings)
    with caplog.at_level(logging.DEBUG):
        async with Database(settings, application="tests") as database:
            with pytest.raises(DatabaseUnavailable) as pooled:
                await database.fetch("database_time")
            with pytest.raises(DatabaseUnavailable, match="password authentication failed") as dedicated:
                async with database.dedicated():
                    pass
    assert SECRET not in f"{pooled.value} {dedicated.value} {database.problem} {caplog.text}"
    assert "password authentication failed" in caplog.text


def test_a_url_may_come_with_what_libpq_takes() -> None:
    for url in (
        "postgresql://a,b:5433/db?target_session_attrs=read-write",
        "postgresql://user:p%40ss%2F@[::1]:5432,other:/db",
        "host=/run/postgresql dbname=db",
        "postgresql://user:a?b#c:d@host/db",
        "postgresql:///db",
    ):
        Database(load(DatabaseSettings, database_url=url), application="tests")
