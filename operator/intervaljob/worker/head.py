"""Where a queue's live rows begin.

While some session holds an old snapshot, no index entry of a queue job that was claimed since can be removed, and a
look at the queue from its beginning reads them all: a tenth of a microsecond each, which are a million after some
minutes. So when such a look has been slow, the next ones begin at the last queue job that was found, for ten times as
long as it took. What comes to lie before that meanwhile, of a higher priority or an earlier time, waits until then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import NamedTuple


class Key(NamedTuple):
    """A place in the order in which queue jobs are claimed."""

    priority: int
    scheduled_at: datetime
    id: int


BEGINNING = Key(0, datetime(1, 1, 1, tzinfo=UTC), 0)
#: A look that took longer than this, and so much for each queue job found, is slow.
SLOW_SECONDS = 0.005
FOUND_SECONDS = 0.0001
#: Looks from the beginning take one part of so many of the time.
SHARE = 10


class Head:
    """Where the next look at a queue begins."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._key = BEGINNING
        self._until = 0.0

    def start(self) -> Key:
        """Of the next look."""
        return self._key if self._clock() < self._until else BEGINNING

    def looked(self, start: Key, found: Iterable[Key], *, count: int, seconds: float) -> None:
        """A look from there found these queue jobs, so many, and took so long. Most are quick, and need no key."""
        slow = start == BEGINNING and seconds > SLOW_SECONDS + count * FOUND_SECONDS
        if slow or start != BEGINNING:
            self._key = max(found, default=self._key if start == BEGINNING else start)
        if slow:
            self._until = self._clock() + SHARE * seconds
