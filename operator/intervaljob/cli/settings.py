"""`intervaljob settings`"""

from __future__ import annotations

import click

from intervaljob.settings import DatabaseSettings, OperatorSettings, WorkerSettings


@click.command("settings")
def command() -> None:
    """List every setting: the environment variable, its default, what it means and who reads it."""
    shared = DatabaseSettings.model_fields
    for title, kind in (
        ("operator and worker", DatabaseSettings),
        ("operator", OperatorSettings),
        ("worker", WorkerSettings),
    ):
        click.echo(f"{title}:")
        for name, field in kind.model_fields.items():
            if kind is DatabaseSettings or name not in shared:
                default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
                click.echo(f"  INTERVALJOB_{name.upper()}={'' if default is None else default}")
                click.echo(f"      {field.description}")
