"""Leases: the arithmetic by which a worker is dead before anybody takes over its tasks.

A worker reads its clock, then sends a renewal; the database adds `lease_seconds` of witnessed
time when it gets it, which is later. So an executor that ends `fence_after` seconds after the *sending*
ends before the lease runs out, with a margin for witnessed time that runs ahead: a tick adds two seconds at
most, whatever the database's clock does, so a clock that is stepped forward once puts it ahead by no more
than that.
"""

from __future__ import annotations


def fence_after(lease_seconds: float) -> float:
    """Seconds after the sending of the last renewal that was answered at which executors must be dead.

    The lease less two seconds, or less a fifth of it where that is shorter. Leases of 10 seconds and more
    thereby outlast a stepped clock; shorter ones rely on a database whose clock is steady to a fifth of the
    lease.
    """
    return lease_seconds - min(2.0, lease_seconds / 5)


def renew_every(lease_seconds: float) -> float:
    """Seconds between the sendings of renewals, and the longest to wait for an answer: a fifth of the lease.

    Two renewals in a row may be lost: with the pauses after them the third is sent after three and two fifths of a
    period, and the fence is at four periods at the earliest.
    """
    return lease_seconds / 5
