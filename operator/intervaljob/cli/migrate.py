"""`intervaljob migrate up | down --to N | check | status | sql`"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from intervaljob.cli.options import load_settings, run, setting_options
from intervaljob.database.connection import Database
from intervaljob.database.migrations import (
    LATEST,
    MIGRATIONS,
    Migration,
    applied,
    check_version,
    migrate_down,
    migrate_up,
    render,
)
from intervaljob.errors import DatabaseUnavailable, SchemaVersionError
from intervaljob.settings import DatabaseSettings

T = TypeVar("T")


def _wait_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--wait", type=click.FloatRange(0), default=0, show_default=True, help=f"seconds to wait for {what}"
    )


@click.group("migrate")
def command() -> None:
    """Bring the database's schema to another version, or show it. Two at once are safe."""


@command.command("up")
@click.option("--to", type=int, default=LATEST, show_default=True, help="version to stop at")
@_wait_option("the database")
@setting_options(DatabaseSettings)
def up(to: int, wait: float, **flags: Any) -> None:
    """Apply the missing steps."""

    async def steps(database: Database) -> None:
        _report("applied", await _patiently(lambda: migrate_up(database, to=to), seconds=wait))

    _with_database(flags, steps)


@command.command("down")
@click.option("--to", type=int, required=True, help="version to go back to; 0 removes everything")
@setting_options(DatabaseSettings)
def down(to: int, **flags: Any) -> None:
    """Undo the steps above a version. Data that only they hold is lost."""

    async def steps(database: Database) -> None:
        _report("undid", await migrate_down(database, to=to))

    _with_database(flags, steps)


@command.command("check")
@_wait_option("the database and its schema")
@setting_options(DatabaseSettings)
def check(wait: float, **flags: Any) -> None:
    """End well if no step is missing; with --wait, as soon as none is."""

    async def see(database: Database) -> None:
        await _patiently(lambda: check_version(database), seconds=wait)
        click.echo(f"the schema has every step up to {LATEST}")

    _with_database(flags, see)


@command.command("status")
@setting_options(DatabaseSettings)
def status(**flags: Any) -> None:
    """List the steps and when they were applied."""

    async def show(database: Database) -> None:
        times = {step.version: f"{step.applied_at:%Y-%m-%d %H:%M:%S%z}" for step in await applied(database)}
        for step in MIGRATIONS:
            click.echo(f"{step.version:03d}  {step.name:<24}  {times.get(step.version, 'missing')}")

    _with_database(flags, show)


@command.command("sql")
@click.option("--database-schema", default="intervaljob", show_default=True, help="schema to write it for")
def sql(database_schema: str) -> None:
    """Print the SQL of every step, without a database."""
    click.echo(render(schema=database_schema))


def _with_database(flags: dict[str, Any], act: Callable[[Database], Awaitable[None]]) -> None:
    settings = load_settings(DatabaseSettings, flags)

    async def session() -> None:
        async with Database(settings, application="intervaljob migrate") as database:
            await act(database)

    run(session())


async def _patiently(attempt: Callable[[], Awaitable[T]], *, seconds: float) -> T:
    """Try until it works, or for so long: Postgres may still be starting, the schema may still be made."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        try:
            return await attempt()
        except (DatabaseUnavailable, SchemaVersionError) as error:
            if loop.time() >= end:
                raise
            click.echo(f"waiting: {error}", err=True)
            await asyncio.sleep(1)


def _report(verb: str, steps: tuple[Migration, ...]) -> None:
    for step in steps:
        click.echo(f"{verb} {step.version:03d}_{step.name}")
    if not steps:
        click.echo("nothing to do")
