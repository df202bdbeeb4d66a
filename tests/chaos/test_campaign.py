"""A short campaign: everything is broken for a while, and nothing is lost, doubled or left behind."""

from pathlib import Path
from typing import Any

import psycopg
import pytest
from chaos.campaign import Plan, heal, run
from chaos.faults import FAULTS
from chaos.world import World


@pytest.mark.timeout(400)
def test_a_short_campaign_ends_without_a_violation(tmp_path: Path) -> None:
    outcome = run(Plan(seed=5, rounds=2, seconds=20, jobs=60, workers=3), folder=tmp_path / "run")
    assert outcome.violations == []
    assert outcome.problems == []
    assert sum(outcome.faults.values()) >= 8
    assert outcome.figures.attempts > outcome.figures.tasks > 50
    assert sum(outcome.figures.recoveries.values()) >= 5


class Away(World):
    """Postgres answers the first statements, refuses the next ones, and answers again."""

    def __init__(self, *, answers: int, refuses: int) -> None:
        self.statements: list[str] = []
        self._answers = answers
        self._refuses = refuses

    def sql(self, text: str, **_: object) -> list[dict[str, Any]]:
        self.statements.append(text)
        if self._answers < len(self.statements) <= self._answers + self._refuses:
            raise psycopg.OperationalError("Connection refused")
        return []

    def say(self, line: str) -> None:
        pass


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_a_fault_counts_as_healed_only_when_it_is(tries: int) -> None:
    (read_only,) = (fault for fault in FAULTS if fault.kind == "read_only")
    world = Away(answers=2, refuses=tries)
    acting = read_only.act(world)
    next(acting)
    assert [heal(world, read_only, acting) for _ in range(tries + 1)] == [False] * tries + [True]
    assert [line for line in world.statements[2:] if line.endswith("= off")] == world.statements[2 : 3 + tries]
