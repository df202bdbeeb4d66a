"""How much a worker claims: what it can begin, and no more."""

from intervaljob.worker.pace import Pace


def paced(*seconds: float, concurrency: int = 10) -> Pace:
    pace = Pace(concurrency)
    for one in seconds:
        pace.note("handler", one)
    return pace


def test_an_unknown_handler_is_taken_to_be_slow() -> None:
    assert Pace(10).most() == 10
    assert paced(0.00001).expected("another") > paced(0.00001).expected("handler")


def test_slow_tasks_are_claimed_for_each_place() -> None:
    assert paced(*[3.0] * 100).most() == 10


def test_quick_tasks_are_claimed_ahead_within_a_bound() -> None:
    quick = paced(*[0.0001] * 100)
    assert 10 < quick.most() <= 10 * 20
    assert paced(*[0.0] * 1000, concurrency=10_000).most() == 10_000


def test_a_few_slow_ones_end_the_haste() -> None:
    pace = paced(*[0.0001] * 100, 1.0)
    assert pace.most() == 10
    assert pace.expected("handler") > 0.01
