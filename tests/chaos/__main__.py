"""`python -m chaos --rounds 20 --seed 7`: see docs/reliability.md."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click
from chaos.campaign import Plan, run


@click.command()
@click.option("--seed", type=int, default=1, show_default=True, help="which faults, which jobs, and when")
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--seconds", type=float, default=40.0, show_default=True, help="of faults in a round")
@click.option("--jobs", type=click.IntRange(min=1), default=300, show_default=True, help="IntervalJobs")
@click.option("--workers", type=click.IntRange(min=2), default=4, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="new folder for what the run leaves")
def main(  # noqa: PLR0917 - click passes them by name
    seed: int, rounds: int, seconds: float, jobs: int, workers: int, keep: Path | None
) -> None:
    """Break everything for a while, then prove that nothing was lost, doubled or left behind."""
    folder = (keep or Path(tempfile.mkdtemp(prefix="intervaljob-chaos-")) / "run").resolve()
    plan = Plan(seed=seed, rounds=rounds, seconds=seconds, jobs=jobs, workers=workers)
    outcome = run(plan, folder=folder)
    click.echo("faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(outcome.faults.items())))
    for problem in outcome.problems:
        click.echo(f"PROBLEM {problem}")
    if outcome.violations or outcome.problems:
        click.echo(f"what the run left is in {folder}")
        sys.exit(1)
    if keep is None:
        shutil.rmtree(folder.parent)


if __name__ == "__main__":
    main()
