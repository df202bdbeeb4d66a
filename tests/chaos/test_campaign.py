"""A short campaign: everything is broken for a while, and nothing is lost, doubled or left behind."""

from pathlib import Path

import pytest
from chaos.campaign import Plan, run


@pytest.mark.timeout(400)
def test_a_short_campaign_ends_without_a_violation(tmp_path: Path) -> None:
    outcome = run(Plan(seed=5, rounds=2, seconds=20, jobs=60, workers=3), folder=tmp_path / "run")
    assert outcome.violations == []
    assert outcome.problems == []
    assert sum(outcome.faults.values()) >= 8
    assert outcome.figures.attempts > outcome.figures.tasks > 50
    assert sum(outcome.figures.recoveries.values()) >= 5
