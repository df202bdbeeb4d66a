"""`intervaljob migrate up | down --to N | status | sql`"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import click

from intervaljob.cli.options import load_settings, run, setting_options
from intervaljob.database.connection import Database
from intervaljob.database.migrations import LATEST, MIGRATIONS, Migration, applied, migrate_down, migrate_up, render
from intervaljob.settings import DatabaseSettings


@click.group("migrate")
def command() -> None:
    """Bring the database's schema to another version, or show it. Two at once are safe."""


@command.command("up")
@click.option("--to", type=int, default=LATEST, show_default=True, help="version to stop at")
@setting_options(DatabaseSettings)
def up(to: int, **flags: Any) -> None:
    """Apply the missing steps."""

    async def steps(database: Database) -> None:
        _report("applied", await migrate_up(database, to=to))

    _with_database(flags, steps)


@command.command("down")
@click.option("--to", type=int, required=True, help="version to go back to; 0 removes everything")
@setting_options(DatabaseSettings)
def down(to: int, **flags: Any) -> None:
    """Undo the steps above a version. Data that only they hold is lost."""

    async def steps(database: Database) -> None:
        _report("undid", await migrate_down(database, to=to))

    _with_database(flags, steps)


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


def _report(verb: str, steps: tuple[Migration, ...]) -> None:
    for step in steps:
        click.echo(f"{verb} {step.version:03d}_{step.name}")
    if not steps:
        click.echo("nothing to do")
