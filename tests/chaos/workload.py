"""The IntervalJobs of a campaign: what they do, how often, and under which policies."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMESPACE = "chaos"


@dataclass(frozen=True)
class Kind:
    """A kind of IntervalJob; of `seconds` and `interval` each job draws its own, between the two bounds."""

    name: str
    share: int
    behaviour: str
    seconds: tuple[float, float]
    interval: tuple[int, int]
    handler: str = "chaos"
    spec: dict[str, Any] = field(default_factory=dict)


_SOON = {"backoff": {"initialSeconds": 1, "maxSeconds": 2}}

#: Shares are of 100. Two cores carry 300 of these jobs: about 18 tasks a second, of which some 40 run at any time.
KINDS = (
    Kind("short", 29, "return", (0.05, 0.5), (8, 30)),
    Kind("async", 12, "return", (0.05, 1.0), (10, 30), handler="chaos.async"),
    Kind("long", 9, "return", (3, 20), (20, 30)),
    Kind("gated", 5, "gated", (40, 60), (15, 30)),
    Kind("forbid", 9, "return", (1, 8), (5, 10), spec={"concurrencyPolicy": "Forbid"}),
    Kind("replace", 6, "return", (2, 12), (5, 10), spec={"concurrencyPolicy": "Replace"}),
    Kind("careful", 7, "return", (1, 6), (10, 20), spec={"recoveryPolicy": "Fail"}),
    Kind(
        "careful-forbid", 3, "return", (2, 6), (5, 10), spec={"recoveryPolicy": "Fail", "concurrencyPolicy": "Forbid"}
    ),
    Kind("retried", 4, "raise_once", (0.1, 1), (10, 20), spec=_SOON),
    Kind("fails", 2, "raise", (0.1, 0.5), (15, 30), spec={"backoffLimit": 1, **_SOON}),
    Kind("dies-once", 3, "kill_once", (0.2, 2), (10, 20)),
    Kind("dies-once-forbid", 2, "kill_once", (0.2, 2), (5, 10), spec={"concurrencyPolicy": "Forbid"}),
    Kind("exits", 1, "exit", (0.1, 0.5), (15, 30), spec={"recoveryLimit": 1}),
    Kind("segfaults", 1, "segfault", (0.1, 0.5), (15, 30), spec={"recoveryLimit": 0}),
    Kind("careful-exits", 1, "exit", (0.1, 0.5), (15, 30), spec={"recoveryPolicy": "Fail"}),
    Kind("stubborn", 2, "ignores_cancel", (4, 8), (10, 20), spec={"activeDeadlineSeconds": 2}),
    Kind("stubborn-replace", 1, "ignores_cancel", (4, 8), (5, 10), spec={"concurrencyPolicy": "Replace"}),
    Kind("blocks", 1, "blocks_gil", (0.5, 2), (10, 20)),
    Kind("with-child", 2, "child", (2, 8), (10, 20)),
)


@dataclass(frozen=True)
class Job:
    """An IntervalJob to apply."""

    name: str
    kind: str
    spec: dict[str, Any]

    def manifest(self, *, suspend: bool = False) -> dict[str, Any]:
        return {
            "apiVersion": "intervaljob.dev/v1alpha1",
            "kind": "IntervalJob",
            "metadata": {"name": self.name, "namespace": NAMESPACE},
            "spec": {**self.spec, "suspend": suspend},
        }


def draw_jobs(source: random.Random, *, count: int, folder: Path) -> list[Job]:
    """Of every kind that a campaign on one machine has."""
    return draw(source, KINDS, count=count, ledger=str(folder))


def draw(source: random.Random, kinds: Sequence[Kind], *, count: int, ledger: str) -> list[Job]:
    """At least one job of each kind, the others by the kinds' shares; handlers write to the folder `ledger`."""
    drawn = source.choices(kinds, weights=[kind.share for kind in kinds], k=max(0, count - len(kinds)))
    return [_job(source, kind, number, ledger) for number, kind in enumerate([*kinds, *drawn])]


def _job(source: random.Random, kind: Kind, number: int, ledger: str) -> Job:
    payload = {"seconds": round(source.uniform(*kind.seconds), 2), "behaviour": kind.behaviour, "ledger": ledger}
    spec = {
        "interval": f"{source.randint(*kind.interval)}s",
        "handler": kind.handler,
        "payload": json.dumps(payload),
        **kind.spec,
    }
    return Job(name=f"{kind.name}-{number}", kind=kind.name, spec=spec)


def manifests(jobs: Sequence[Job], *, suspend: bool = False) -> str:
    """What `kubectl apply` reads."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [job.manifest(suspend=suspend) for job in jobs]})
