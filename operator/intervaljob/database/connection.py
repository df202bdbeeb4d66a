"""Postgres: a pool whose connections speak named queries, and one error for "not now".

Every query lives in `queries/*.sql` behind a `-- name:` line. `{schema}` in them is the schema's name, so nothing
depends on a session's search path and a transaction-pooling proxy works.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from importlib import resources
from typing import Any, Self, TypeVar
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import AsyncRowFactory, DictRow, TupleRow, dict_row, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from intervaljob.errors import DatabaseError, DatabaseUnavailable, SettingsError
from intervaljob.settings import DatabaseSettings

Row = DictRow
Queries = Mapping[str, bytes]
R = TypeVar("R")

#: Every statement finds its rows by an index, in tables that grow faster than their statistics are renewed. A plan that
#: is kept from when a table was small reads all of it later on; by the default cost of a random page, made for disks,
#: the planner would do so for a table of ten thousand rows.
PLANNER = "-c plan_cache_mode=force_custom_plan -c random_page_cost=1.1"

#: Bound on waiting for a free connection, and on connecting.
CONNECT_SECONDS = 10


def load_queries(schema: str) -> Queries:
    """Every named query, with the schema's name filled in."""
    found: dict[str, bytes] = {}
    for file in sorted(resources.files(__package__).joinpath("queries").iterdir(), key=lambda f: f.name):
        _, *parts = re.split(r"^-- name: (\w+)$", file.read_text(), flags=re.MULTILINE)
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            if name in found:
                raise DatabaseError(f"query {name} is defined twice")
            found[name] = with_schema(text.strip(), schema).encode()
    return found


def with_schema(text: str, schema: str) -> str:
    """SQL text with the schema's name in the place of `{schema}`; the setting's pattern makes quoting needless."""
    return text.replace("{schema}", schema)


async def _check(connection: AsyncConnection[Row]) -> None:
    """Raises OperationalError where the server has hung up: seen in what it has sent, without a word to it.

    Of one that was told to end, the first look reads its last words.
    """
    for _ in range(2):
        connection.pgconn.consume_input()


class Session:
    """One connection, spoken to in named queries."""

    def __init__(self, connection: AsyncConnection[Row], queries: Queries) -> None:
        self.connection = connection
        self._queries = queries

    async def fetch(self, query: str, /, **parameters: object) -> list[Row]:
        """The rows of a named query.

        Raises DatabaseUnavailable when the connection or the server is gone, DatabaseError when it refuses.
        """
        return await self._fetch(dict_row, query, parameters)

    async def fetch_tuples(self, query: str, /, **parameters: object) -> list[TupleRow]:
        """The same rows without their columns' names, in binary: for queries that return thousands a second."""
        return await self._fetch(tuple_row, query, parameters, binary=True)

    async def _fetch(
        self, make: AsyncRowFactory[R], query: str, parameters: dict[str, object], *, binary: bool = False
    ) -> list[R]:
        try:
            cursor = self.connection.cursor(row_factory=make, binary=binary)
            await cursor.execute(self._queries[query], parameters or None)
            return await cursor.fetchall() if cursor.description else []
        except UNAVAILABLE as error:
            raise DatabaseUnavailable(f"{query}: {_line(error)}") from error
        except psycopg.Error as error:
            raise DatabaseError(f"{query}: {_line(error)}") from error

    async def fetch_within(self, seconds: float, query: str, /, **parameters: object) -> list[Row]:
        """The same, waiting so long for the answer; without one the connection is given up.

        A cancelled `fetch` asks the server to cancel the statement, and waits for that as long as the server likes.
        """
        answer = asyncio.create_task(self.fetch(query, **parameters), name=query)
        try:
            await asyncio.wait({answer}, timeout=seconds)
            if not answer.done():
                raise DatabaseUnavailable(f"{query}: no answer within {seconds:.1f} s")
            return answer.result()
        finally:
            if not answer.done():
                await self.connection.close()
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)

    async def run(self, text: str) -> None:
        """SQL of a migration, several statements at once."""
        await self.connection.execute(text.encode())


class Database:
    """A pool of connections; `async with` opens and closes it. Opening does not wait for the server.

    `problem` says why the database could not be reached when it was last needed, None when it was.
    Raises SettingsError for a URL that cannot be read.
    """

    problem: str | None = "not yet reached"

    def __init__(self, settings: DatabaseSettings, *, application: str) -> None:
        self.schema = settings.database_schema
        self._queries = load_queries(self.schema)
        self._dsn = _checked(settings.database_dsn())
        self._kwargs: dict[str, Any] = {
            "autocommit": True,
            "row_factory": dict_row,
            "connect_timeout": CONNECT_SECONDS,
            "application_name": application,
            "options": f"-c statement_timeout={int(settings.statement_timeout_seconds * 1000)} {PLANNER}",
            # A peer that vanished without a word is noticed in about half a minute, not after two hours.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }
        self._pool = AsyncConnectionPool(
            self._dsn,
            connection_class=AsyncConnection[Row],
            kwargs=self._kwargs,
            min_size=1,
            max_size=settings.database_pool_size,
            timeout=CONNECT_SECONDS,
            # Not longer: its pauses double until then, and whoever asks for a connection makes it start anew.
            reconnect_timeout=CONNECT_SECONDS,
            open=False,
            check=_check,
        )

    async def __aenter__(self) -> Self:
        await self._pool.open(wait=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close(timeout=5)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A connection of the pool; each statement is a transaction of its own."""
        cancellations = _cancellations()
        async with self._noticing(), self._pool.connection() as connection:
            # The pool waits with `asyncio.wait_for`, which before Python 3.12 may swallow a cancellation.
            if _cancellations() > cancellations:
                raise asyncio.CancelledError
            yield Session(connection, self._queries)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        """A connection of the pool in one transaction, committed when the block ends without an error."""
        async with self.session() as session, session.connection.transaction():
            yield session

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[Session]:
        """A connection outside the pool, for what must never queue behind other work: leases and LISTEN."""
        async with self._noticing(), await AsyncConnection[Row].connect(self._dsn, **self._kwargs) as connection:
            yield Session(connection, self._queries)

    @asynccontextmanager
    async def _noticing(self) -> AsyncIterator[None]:
        try:
            yield
        except UNAVAILABLE as error:
            self.problem = _line(error)
            raise DatabaseUnavailable(self.problem) from error
        except DatabaseUnavailable as error:
            self.problem = str(error)
            raise
        else:
            self.problem = None

    async def fetch(self, query: str, /, **parameters: object) -> list[Row]:
        """The rows of a named query, in a transaction of its own."""
        async with self.session() as session:
            return await session.fetch(query, **parameters)

    async def fetch_tuples(self, query: str, /, **parameters: object) -> list[TupleRow]:
        """The same rows without their columns' names."""
        async with self.session() as session:
            return await session.fetch_tuples(query, **parameters)

    async def listen(self, *topics: str) -> AsyncGenerator[tuple[str, str], None]:
        """(topic, payload) of every notification on these topics of the schema, until the connection ends.

        Yields ("", "") once when it listens: what came before that must be looked for. Topics are River's (§2.2).
        """
        async with self.dedicated() as session:
            for topic in topics:
                channel = sql.Identifier(f"{self.schema}.{topic}")
                await session.connection.execute(sql.SQL("LISTEN {}").format(channel))
            yield "", ""
            async for notification in session.connection.notifies():
                yield notification.channel.removeprefix(f"{self.schema}."), notification.payload


#: What psycopg raises when the server or the way to it is gone, or refuses for now (starting up, shutting down,
#: too many connections, read-only after a failover, disk full, deadlock): a later try may succeed.
UNAVAILABLE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    PoolTimeout,
)


def as_records(records: Iterable[Mapping[str, object]]) -> str:
    """Rows for a query that reads them with `jsonb_to_recordset`: one parameter, however many rows and columns."""
    return json.dumps(list(records), default=_plain)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"no column takes a {type(value).__name__}")


def _checked(dsn: str) -> str:
    """The URL, once libpq can read it: its own complaints, here and when it connects, quote pieces of a password."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        parts = None
    if parts is None or "@" in str(parts.get("host")) or not re.fullmatch(r"[\d,]*", str(parts.get("port", ""))):
        raise SettingsError(
            "INTERVALJOB_DATABASE_URL: write postgresql://user:password@host:5432/database,"
            " and percent-encode / @ % in the password"
        )
    return dsn


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
