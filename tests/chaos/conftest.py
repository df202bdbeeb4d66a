"""A run of the campaign that is small and sound, for the checker to look at."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.small_world import SmallWorld

from intervaljob.database.connection import Database
from intervaljob.database.migrations import migrate_up
from intervaljob.embedded.postgres import Postgres
from intervaljob.settings import DatabaseSettings, load


@pytest.fixture(scope="session")
def chaos_database_url(postgres_server: Postgres) -> str:
    """The URL of a migrated database that small worlds use one after the other."""
    postgres_server.create_database("chaos")
    url = postgres_server.url("chaos")

    async def migrate() -> None:
        async with Database(load(DatabaseSettings, database_url=url), application="tests") as database:
            await migrate_up(database)

    asyncio.run(migrate())
    return url


@pytest.fixture
def world(chaos_database_url: str, tmp_path: Path) -> Iterator[SmallWorld]:
    """A run in which nothing is wrong."""
    with SmallWorld(tmp_path, chaos_database_url) as small:
        yield small
