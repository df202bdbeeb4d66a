"""Numbered migrations, `NNN_name.up.sql` and `.down.sql`, each step under one advisory transaction lock.

Two migrators at once are safe: the second waits for the lock and then finds nothing to do.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources

import psycopg

from intervaljob.database.connection import Database, Session, load_queries, with_schema
from intervaljob.errors import DatabaseError, SchemaVersionError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Migration:
    """One step of the schema, both ways."""

    version: int
    name: str
    up: str
    down: str


@dataclass(frozen=True)
class Applied:
    """A step that the database has."""

    version: int
    name: str
    applied_at: datetime


def load_migrations() -> tuple[Migration, ...]:
    """All migrations in order."""
    folder = resources.files(__package__).joinpath("migrations")
    found = []
    for file in folder.iterdir():
        if match := re.fullmatch(r"(\d{3})_(\w+)\.up\.sql", file.name):
            down = folder.joinpath(file.name.replace(".up.", ".down.")).read_text()
            found.append(Migration(int(match[1]), match[2], file.read_text(), down))
    return tuple(sorted(found, key=lambda migration: migration.version))


MIGRATIONS = load_migrations()
LATEST = MIGRATIONS[-1].version


async def applied(database: Database) -> tuple[Applied, ...]:
    """The steps that the database has; none where it was never migrated."""
    async with database.transaction() as session:
        return await _applied(session, database.schema)


async def migrate_up(database: Database, *, to: int = LATEST) -> tuple[Migration, ...]:
    """Apply every missing step up to `to`, in one transaction; returns those it applied."""
    _check_target(to)
    async with database.transaction() as session:
        await session.fetch("lock_migrations", schema=database.schema)
        await session.fetch("create_migration_table")
        present = {step.version for step in await _applied(session, database.schema)}
        steps = [m for m in MIGRATIONS if m.version <= to and m.version not in present]
        for step in steps:
            await _run(session, step, step.up, database.schema)
            await session.fetch("record_migration", version=step.version, name=step.name)
    return tuple(steps)


async def migrate_down(database: Database, *, to: int) -> tuple[Migration, ...]:
    """Undo every step above `to`, newest first, in one transaction; returns those it undid."""
    _check_target(to)
    async with database.transaction() as session:
        await session.fetch("lock_migrations", schema=database.schema)
        present = {step.version for step in await _applied(session, database.schema)}
        steps = [m for m in reversed(MIGRATIONS) if m.version > to and m.version in present]
        for step in steps:
            await _run(session, step, step.down, database.schema)
            await session.fetch("forget_migration", version=step.version)
    return tuple(steps)


async def check_version(database: Database) -> None:
    """Raises SchemaVersionError where steps are missing.

    A newer schema is one that an upgrade has prepared, or a rollback has left: a step keeps what the release before
    it says to the database working.
    """
    version = max((step.version for step in await applied(database)), default=0)
    if version < LATEST:
        raise SchemaVersionError(
            f"schema {database.schema!r} is at version {version}, this program needs {LATEST}:"
            " run `intervaljob migrate up`"
        )
    if version > LATEST:
        fields = {"schema": database.schema, "version": version, "expected": LATEST}
        logger.warning("The schema is newer than this program", extra=fields)


def render(*, schema: str) -> str:
    """The SQL that brings an empty database to the newest version, for its administrator to read or run."""
    queries = load_queries(schema)
    parts = ["BEGIN;", queries["create_migration_table"].decode()]
    for m in MIGRATIONS:
        record = f"INSERT INTO {schema}.intervaljob_migration (version, name) VALUES ({m.version}, '{m.name}');"  # noqa: S608
        parts += [f"-- {m.version:03d} {m.name}", with_schema(m.up, schema), record]
    return "\n\n".join([*parts, "COMMIT;"])


async def _applied(session: Session, schema: str) -> tuple[Applied, ...]:
    (row,) = await session.fetch("migration_table_exists", schema=schema)
    rows: Sequence[dict[str, object]] = await session.fetch("applied_migrations") if row["present"] else ()
    return tuple(Applied(**row) for row in rows)  # type: ignore[arg-type]


async def _run(session: Session, step: Migration, text: str, schema: str) -> None:
    try:
        await session.run(with_schema(text, schema))
    except psycopg.Error as error:
        raise DatabaseError(f"migration {step.version:03d}_{step.name}: {' '.join(str(error).split())}") from error


def _check_target(to: int) -> None:
    if not 0 <= to <= LATEST:
        raise DatabaseError(f"there is no schema version {to}: give one from 0 to {LATEST}")
