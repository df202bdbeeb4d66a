"""Every setting is a flag: made here from the settings' classes, so that neither can be forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

from intervaljob.settings import DatabaseSettings, load
from intervaljob.telemetry import logs

S = TypeVar("S", bound=DatabaseSettings)
Command = Callable[..., Any]


def setting_options(kind: type[DatabaseSettings]) -> Callable[[Command], Command]:
    """A flag for each field of a settings class; what is given on the command line wins over the environment."""

    def decorate(function: Command) -> Command:
        for name, field in reversed(kind.model_fields.items()):
            option = click.option(
                f"--{name.replace('_', '-')}",
                name,
                default=None,
                help=f"{field.description}  [INTERVALJOB_{name.upper()}]",
            )
            function = option(function)
        return function

    return decorate


def load_settings(kind: type[S], flags: dict[str, Any]) -> S:
    """The settings, with logging set up as they say.

    Raises SettingsError.
    """
    settings = load(kind, **flags)
    logs.configure(format=settings.log_format, level=settings.log_level)
    return settings


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end; Ctrl-C ends quietly."""
    try:
        asyncio.run(main)
    except KeyboardInterrupt:
        raise click.Abort from None
