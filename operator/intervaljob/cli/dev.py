"""`intervaljob dev`"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import click

from intervaljob.embedded import demo, programs
from intervaljob.embedded.stack import Process, Stack

#: Long enough for a busy laptop, short enough to watch a recovery; INTERVALJOB_LEASE_SECONDS wins.
LEASE_SECONDS = "5"


@click.command("dev")
@click.option("--workers", type=click.IntRange(1, 20), default=2, show_default=True, help="workers to start")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="folder that keeps everything for the next time  [a temporary one]",
)
@click.option("--demo", "tells", is_flag=True, help="kill a worker in the middle of a task, show what follows, and end")
def command(workers: int, data: Path | None, tells: bool) -> None:
    """Run Postgres, a control plane, an operator and workers on loopback, until Ctrl-C.

    Settings in the environment (INTERVALJOB_HANDLERS, …) reach the operator and the workers.
    """
    if tells and workers == 1:
        raise click.UsageError("--demo needs two workers or more: one is killed")
    for signum in (signal.SIGINT, signal.SIGTERM):  # SIGINT may have been ignored by whoever started this
        signal.signal(signum, signal.default_int_handler)
    found = programs.find(report=click.echo)
    click.echo(f"Starting Postgres, a Kubernetes {found.version} control plane, an operator and {workers} workers …")
    with Stack(programs=found, data=data and data.resolve(), durable=data is not None) as stack:
        operator = stack.start_operator()
        lease = os.environ.get("INTERVALJOB_LEASE_SECONDS", LEASE_SECONDS)
        names = [f"worker-{n}" for n in range(1, workers + 1)]
        pool = {name: stack.start_worker(name, INTERVALJOB_LEASE_SECONDS=lease) for name in names}
        _introduce(stack, operator, pool)
        if tells:
            _conclude(demo.tell(stack, operator=operator, workers=pool, say=click.echo))
        else:
            _serve(found)
        click.echo("Stopping …")


def _introduce(stack: Stack, operator: Process, workers: Mapping[str, Process]) -> None:
    for process in (operator, *workers.values()):
        click.echo(f"  {process.name:<10}  pid {process.pid:<7}  http://127.0.0.1:{process.port}/metrics")
    click.echo(f"  logs        {stack.logs}\n")
    click.echo(f"export KUBECONFIG={stack.control_plane.kubeconfig}")
    click.echo(f"export INTERVALJOB_DATABASE_URL={stack.database_url}")


def _serve(found: programs.Programs) -> None:
    kubectl = "kubectl" if shutil.which("kubectl") else str(found.kubectl)
    click.echo("\nSet these in another terminal and try:\n")
    click.echo(f"  {kubectl} apply -f manifests/samples/hello.yaml")
    click.echo(f"  {kubectl} get intervaljobs --watch\n")
    click.echo("Ctrl-C stops everything.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        click.echo()


def _conclude(recovery: demo.Recovery) -> None:
    click.echo("\n== Summary\n")
    click.echo(f"  task       {recovery.task_id}, attempt 2, recovered once")
    click.echo(f"  killed     {recovery.killed}")
    click.echo(f"  ended by   {recovery.finished_by}")
    click.echo(f"  again in   {recovery.seconds:.1f} s from the kill to the second attempt\n")
