"""A bound on how often something is done."""

from __future__ import annotations

import asyncio
import time


class RateLimit:
    """A token bucket that holds one second's worth: on average `per_second`, and no burst beyond that."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._tokens = max(1.0, per_second)
        self._counted = time.monotonic()
        self._lock = asyncio.Lock()

    async def wait(self) -> None:
        """Returns when one more is within the bound; callers are served in turn."""
        async with self._lock:
            while not self.allow():  # noqa: ASYNC110 - tokens come with time
                await asyncio.sleep((1.0 - self._tokens) / self._per_second)

    def allow(self) -> bool:
        """Whether one more is within the bound now; it counts if so."""
        now = time.monotonic()
        self._tokens = min(max(1.0, self._per_second), self._tokens + (now - self._counted) * self._per_second)
        self._counted = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
