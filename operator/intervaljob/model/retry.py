"""Retries: how long a task waits after it failed."""

from __future__ import annotations

import hashlib

JITTER = 0.1


def backoff_seconds(*, failures: int, initial: int, maximum: int, key: str) -> float:
    """Seconds to wait after the `failures`-th failure (from 1): `initial`, doubled each time up to `maximum`.

    Doubling up to a cap is the rule of Kubernetes' Job; the spread of ±10 % around it, so that what failed
    together does not come back together, is River's. The spread is a hash of `key` and `failures`: the same
    question has the same answer. It is applied last, so that tasks at the cap are spread too; they may wait
    10 % over `maximum`.
    """
    delay = min(maximum, initial << min(failures - 1, 62))
    digest = hashlib.sha256(f"{key}:{failures}".encode()).digest()
    spread = int.from_bytes(digest[:8], "big") / 2**64
    return delay * (1 - JITTER + 2 * JITTER * spread)
