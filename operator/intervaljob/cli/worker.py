"""`intervaljob worker`"""

from __future__ import annotations

from typing import Any

import click

from intervaljob.cli.options import load_settings, run, setting_options
from intervaljob.settings import WorkerSettings
from intervaljob.worker.init import leave_pid_1
from intervaljob.worker.serving import Worker


@click.command("worker")
@setting_options(WorkerSettings)
def command(**flags: Any) -> None:
    """Claim tasks from the queue and run their handlers, until SIGTERM."""
    leave_pid_1()
    run(Worker(load_settings(WorkerSettings, flags)).serve())
