"""The ledger of occurrences that were not run, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from intervaljob.database.connection import Session, as_records


@dataclass(frozen=True)
class Skip:
    """Occurrences of one job that are not run, for one reason."""

    job_id: UUID
    reason: str
    first_at: datetime
    last_at: datetime
    count: int = 1


async def record_skips(session: Session, skips: Iterable[Skip]) -> None:
    """Add to the ledger."""
    merged: dict[tuple[UUID, str], Skip] = {}
    for skip in skips:
        known = merged.get((skip.job_id, skip.reason))
        merged[skip.job_id, skip.reason] = skip if known is None else _merge(known, skip)
    if merged:
        await session.fetch("record_skips", skips=as_records(vars(skip) for skip in merged.values()))


def _merge(one: Skip, other: Skip) -> Skip:
    return Skip(
        job_id=one.job_id,
        reason=one.reason,
        first_at=min(one.first_at, other.first_at),
        last_at=max(one.last_at, other.last_at),
        count=one.count + other.count,
    )
