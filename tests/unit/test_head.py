"""Where the next look at a queue begins."""

from datetime import UTC, datetime

from intervaljob.worker.head import BEGINNING, SHARE, SLOW_SECONDS, Head, Key

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
SLOW = 2 * SLOW_SECONDS


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(number: int, priority: int = 1) -> Key:
    return Key(priority, NOON, number)


def look(head: Head, start: Key, found: list[Key], *, seconds: float) -> None:
    head.looked(start, found, count=len(found), seconds=seconds)


def test_it_is_the_beginning_while_looks_from_there_are_quick() -> None:
    head = Head(Clock())
    for number in range(3):
        assert head.start() == BEGINNING
        look(head, BEGINNING, [key(number)], seconds=SLOW_SECONDS)
    assert head.start() == BEGINNING


def test_a_look_that_finds_much_takes_its_time() -> None:
    head = Head(Clock())
    look(head, BEGINNING, [key(number) for number in range(500)], seconds=SLOW)
    assert head.start() == BEGINNING


def test_after_a_slow_look_it_is_the_last_that_was_found_for_ten_times_as_long() -> None:
    clock = Clock()
    head = Head(clock)
    look(head, BEGINNING, [key(8), key(9), key(7)], seconds=SLOW)
    assert head.start() == key(9)
    clock.now += 0.9 * SHARE * SLOW
    assert head.start() == key(9)
    clock.now += 0.2 * SHARE * SLOW
    assert head.start() == BEGINNING


def test_it_moves_with_what_is_found_and_stays_where_nothing_is() -> None:
    head = Head(Clock())
    look(head, BEGINNING, [key(1)], seconds=SLOW)
    look(head, key(1), [key(3), key(1, priority=2)], seconds=SLOW)
    assert head.start() == key(1, priority=2)
    look(head, head.start(), [], seconds=SLOW)
    assert head.start() == key(1, priority=2)


def test_a_look_from_the_beginning_finds_what_came_before_and_goes_on_there() -> None:
    clock = Clock()
    head = Head(clock)
    look(head, BEGINNING, [key(9, priority=4)], seconds=SLOW)
    clock.now += 2 * SHARE * SLOW
    look(head, head.start(), [key(10)], seconds=SLOW)
    assert head.start() == key(10)


def test_one_that_found_nothing_leaves_it_where_it_was() -> None:
    clock = Clock()
    head = Head(clock)
    look(head, BEGINNING, [key(9)], seconds=SLOW)
    clock.now += 2 * SHARE * SLOW
    look(head, BEGINNING, [], seconds=SLOW)
    assert head.start() == key(9)
