"""`intervaljob task show ID`"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import click

from intervaljob.cli.options import load_settings, run, setting_options
from intervaljob.database.connection import Database
from intervaljob.database.migrations import check_version
from intervaljob.model.story import tell
from intervaljob.settings import DatabaseSettings


@click.group("task")
def command() -> None:
    """Look at one task."""


@command.command("show")
@click.argument("task", metavar="ID", type=click.UUID)
@setting_options(DatabaseSettings)
def show(task: UUID, **flags: Any) -> None:
    """Tell the story of a task: each attempt, who ran it, how it ended, and by what that was known.

    ID is the task's, as `kubectl describe intervaljob` shows it.
    """
    settings = load_settings(DatabaseSettings, flags)

    async def story() -> None:
        async with Database(settings, application="intervaljob task") as database:
            await check_version(database)
            rows = await database.fetch("read_story", task=task)
        if not rows:
            raise click.ClickException(f"task {task} does not exist")
        for line in tell(rows[0]):
            click.echo(line)

    run(story())
