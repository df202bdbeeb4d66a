"""The verdict on a run of the campaign: `python -m chaos.checker RUNFOLDER DATABASE_URL`.

It shares no code with the system: the standard library and psycopg are all that it imports.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from chaos.record import Record, Violation, read_record
from chaos.rules import RULES

_USAGE = "usage: python -m chaos.checker RUNFOLDER DATABASE_URL"


@dataclass(frozen=True)
class Figures:
    """How much a run was; without much of it, no violations mean little.

    `tasks` and `attempts` are those that the ledger saw begin. `recoveries` counts recovery jobs by evidence. `gaps`
    are the seconds from the last line of a lost attempt to the begin of the next one, by evidence, in order.
    """

    tasks: int
    attempts: int
    recoveries: dict[str, int]
    gaps: dict[str, tuple[float, ...]]

    @property
    def longest_gap(self) -> float | None:
        """None where no attempt followed a lost one."""
        return max((gaps[-1] for gaps in self.gaps.values()), default=None)


def check(run: Path, database_url: str) -> tuple[list[Violation], Figures]:
    """Judge what a run left in its folder and in its database.

    Raises FileNotFoundError or ValueError for a folder that is broken, psycopg.Error for a database that is.
    """
    record = read_record(run, database_url)
    return [violation for rule in RULES for violation in rule(record)], figures(record)


def figures(record: Record) -> Figures:
    """Attempts that raised are followed after a backoff, so they are no gaps."""
    gaps: defaultdict[str, list[float]] = defaultdict(list)
    for task, traces in record.ledger.traces.items():
        row = record.rows.tasks.get(task)
        story = {entry["attempt"]: entry for entry in row.story} if row else {}
        attempts = sorted(traces.items())
        for (number, trace), (_, following) in pairwise(attempts):
            entry = story.get(number, {"outcome": "lost", "evidence": "unknown"})
            if entry["outcome"] == "lost":
                gaps[entry["evidence"]].append(following.begin - trace.last)
    recoveries = Counter(job.evidence or "unknown" for job in record.rows.queue_jobs if job.task is not None)
    return Figures(
        tasks=len(record.ledger.traces),
        attempts=sum(len(traces) for traces in record.ledger.traces.values()),
        recoveries=dict(recoveries.most_common()),
        gaps={evidence: tuple(sorted(found)) for evidence, found in sorted(gaps.items())},
    )


def report(violations: Sequence[Violation], figures: Figures) -> str:
    """Both, for people; it ends with the number of violations."""
    lines = [f"tasks {figures.tasks}, attempts {figures.attempts}, recoveries {sum(figures.recoveries.values())}"]
    lines += [f"  {evidence}: {count}" for evidence, count in figures.recoveries.items()]
    lines.append("seconds from the last line of a lost attempt to the begin of the next")
    lines += [f"  {evidence}: {_spread(gaps)}" for evidence, gaps in figures.gaps.items()]
    lines += (
        [f"  all: {_spread(sorted(gap for gaps in figures.gaps.values() for gap in gaps))}"] if figures.gaps else []
    )
    lines += [f"VIOLATION {one.rule} {one.subject}: {one.detail}" for one in violations]
    return "\n".join([*lines, f"violations {len(violations)}"])


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them do not exceed; `ordered` is not empty."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _spread(ordered: Sequence[float]) -> str:
    p50, p99 = percentile(ordered, 0.5), percentile(ordered, 0.99)
    return f"n {len(ordered)}, p50 {p50:.3f}, p99 {p99:.3f}, longest {ordered[-1]:.3f}"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 without violations, 1 with, 2 for a wrong call."""
    if len(arguments) != 2:
        print(_USAGE, file=sys.stderr)
        return 2
    violations, found = check(Path(arguments[0]), arguments[1])
    print(report(violations, found))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
