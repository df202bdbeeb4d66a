"""The command line: one file per verb, imported when the verb is called, so that a worker needs no kopf."""

from __future__ import annotations

import importlib
import sys

import click

from intervaljob.errors import IntervalJobError

VERBS = {
    "operator": "Run the operator.",
    "worker": "Run a worker.",
    "migrate": "Bring the database's schema to another version, or show it.",
    "task": "Tell the story of a task.",
    "recover": "Put tasks of dead workers back on the queue, once.",
    "dev": "Run everything on this machine, to try it.",
    "settings": "List every setting with its default.",
    "version": "Print the version.",
}


#: Verbs whose module cannot have their name: the standard library has it.
MODULES = {"operator": "operate"}


class Verbs(click.Group):
    """Verbs by name; errors of ours become one line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        try:
            module = importlib.import_module(f"intervaljob.cli.{MODULES.get(cmd_name, cmd_name)}")
        except ModuleNotFoundError as error:
            part = "embedded" if cmd_name == "dev" else "operator"
            return _Missing(cmd_name, f"{cmd_name} needs {error.name}: install intervaljob[{part}]")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


class _Missing(click.Command):
    """A verb whose part of the package is not installed."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
        self._message = message

    def invoke(self, ctx: click.Context) -> None:
        raise click.UsageError(self._message)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
def verbs() -> None:
    """Recurring work on Kubernetes that survives the death of its workers."""


def main() -> None:
    """The console script `intervaljob`."""
    try:
        verbs(standalone_mode=False, prog_name="intervaljob")
    except click.ClickException as error:
        _stop(error.format_message(), error.exit_code if isinstance(error, click.FileError) else 2)
    except click.Abort:
        _stop("interrupted", 130)
    except IntervalJobError as error:
        _stop(str(error), 2)


def _stop(message: str, code: int) -> None:
    click.echo(f"intervaljob: {message}", err=True)
    sys.exit(code)
