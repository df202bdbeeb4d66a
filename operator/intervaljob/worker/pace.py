"""How long handlers take, and so how much may be claimed at once."""

from __future__ import annotations

from intervaljob.worker.remote import AHEAD_SECONDS, MAX_AHEAD

#: Share of the newest in the mean: it follows a change within some tens of attempts.
_SHARE = 0.05
#: What is claimed in one transaction stays small beside what a database does in a second.
_MOST_AT_ONCE = 1000


class Pace:
    """Means of the seconds that handlers took, newer ones counting for more; unknown ones are taken to be slow."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._all = AHEAD_SECONDS
        self._seconds: dict[str, float] = {}

    def note(self, handler: str, seconds: float) -> None:
        """One has taken so long."""
        self._all += _SHARE * (seconds - self._all)
        known = self._seconds.get(handler)
        self._seconds[handler] = seconds if known is None else known + _SHARE * (seconds - known)

    def expected(self, handler: str) -> float:
        """Of the next attempt."""
        return self._seconds.get(handler, AHEAD_SECONDS)

    def slow(self) -> None:
        """Attempts that were claimed had no place soon: until more of them have ended, none is taken to be quick."""
        self._all = AHEAD_SECONDS

    def most(self) -> int:
        """How many attempts a worker may hold: one for each place, or what is soon begun where they are quick."""
        ahead = min(MAX_AHEAD, int(AHEAD_SECONDS / max(self._all, 1e-6)))
        return max(self._concurrency, min(self._concurrency * ahead, _MOST_AT_ONCE))
