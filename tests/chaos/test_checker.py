"""The checker reads a run within bounds, measures it, reports it, and has nothing of the system in it."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from chaos.checker import Figures, check, percentile, report
from chaos.ledger_reader import read_ledger
from chaos.record import Violation
from chaos.small_world import SmallWorld, uid


def test_figures_count_what_ran_and_measure_the_gaps_of_lost_attempts(world: SmallWorld) -> None:
    """Plain's retry after an error is no gap: it waits for its backoff."""
    _, figures = check(world.write(), world.url)
    assert figures == Figures(
        tasks=12, attempts=16, recoveries={"executor_exited": 2}, gaps={"executor_exited": (1.5, 2.0)}
    )
    assert figures.longest_gap == 2.0


def test_a_gap_without_a_story_is_of_unknown_evidence(world: SmallWorld) -> None:
    world.sql("DELETE FROM tasks WHERE id = %s", uid("plain-20"))
    world.deleted("tasks", uid("plain-20"), task="plain-20", job="plain")
    violations, figures = check(world.write(), world.url)
    assert violations == []
    assert figures.gaps == {"executor_exited": (2.0,), "unknown": (1.5,)}


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)])
def test_percentiles_are_values_that_occurred(share: float, value: float) -> None:
    assert percentile(range(1, 101), share) == value


def test_the_report_says_figures_and_violations() -> None:
    figures = Figures(tasks=2, attempts=3, recoveries={"drained": 1}, gaps={"drained": (0.25,)})
    text = report([Violation("overlap", "a task", "what was seen")], figures)
    assert "tasks 2, attempts 3, recoveries 1" in text
    assert "drained: n 1, p50 0.250, p99 0.250, longest 0.250" in text
    assert "VIOLATION overlap a task: what was seen" in text
    assert text.endswith("violations 1")


def run_checker(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "chaos.checker", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_the_command_line_tells_a_sound_run_from_a_broken_one(world: SmallWorld) -> None:
    sound = run_checker(str(world.write()), world.url)
    assert (sound.returncode, sound.stdout.splitlines()[-1]) == (0, "violations 0"), sound.stderr
    world.sql("UPDATE jobs SET next_run_at = next_run_at + interval '10 seconds' WHERE name = 'plain'")
    lost = run_checker(str(world.write()), world.url)
    assert (lost.returncode, lost.stdout.splitlines()[-1]) == (1, "violations 1"), lost.stderr
    assert "VIOLATION occurrences" in lost.stdout
    assert run_checker().returncode == 2


@pytest.mark.parametrize("name", ["ledger.jsonl", "injections.jsonl", "resources.json"])
def test_a_run_without_one_of_its_files_is_not_judged(world: SmallWorld, name: str) -> None:
    (world.write() / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        check(world.folder, world.url)


def test_a_torn_line_is_not_passed_over(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text('{"event": "tick", "task": "a", "attempt": 1, "pid": 1, "at": 1.0}\n{"event": "ti')
    with pytest.raises(ValueError, match=r"ledger\.jsonl, line 2"):
        read_ledger(ledger)


def test_a_long_ledger_takes_no_more_memory_than_its_attempts(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    with ledger.open("w") as opened:
        for number in range(100_000):
            tick = {"event": "tick", "task": uid("a"), "attempt": number % 10, "pid": 1, "at": float(number)}
            opened.write(f"{json.dumps(tick)}\n")
    tracemalloc.start()
    traces = read_ledger(ledger).traces[uid("a")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(traces[n].begin, traces[n].last) for n in (0, 9)] == [(0.0, 99_990.0), (9.0, 99_999.0)]
    assert peak < 1_000_000 < ledger.stat().st_size


def test_the_checker_shares_no_code_with_the_system() -> None:
    """Of all that it loads, only the standard library and psycopg are not its own."""
    program = "import chaos.checker, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    clean = "import psycopg, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    loaded, known = (
        set(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True, timeout=30).split())
        for code in (program, clean)
    )
    assert "intervaljob" not in loaded
    assert loaded - known - sys.stdlib_module_names == {"chaos"}
