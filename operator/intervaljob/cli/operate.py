"""`intervaljob operator`"""

from __future__ import annotations

from typing import Any

import click

from intervaljob.cli.options import load_settings, run, setting_options
from intervaljob.controller.serving import Operator
from intervaljob.settings import OperatorSettings


@click.command("operator")
@setting_options(OperatorSettings)
def command(**flags: Any) -> None:
    """Turn IntervalJobs into jobs, queue what is due, recover what died, and report back, until SIGTERM."""
    run(Operator(load_settings(OperatorSettings, flags)).serve())
