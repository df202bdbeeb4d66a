"""What a Pod proves: when its worker container ended, where nothing of that container can run any more."""

from datetime import UTC, datetime
from typing import Any

import pytest

from intervaljob.model.pod import Pod

RUNNING: dict[str, Any] = {"running": {"startedAt": "2026-11-24T10:00:00Z"}}
WAITING: dict[str, Any] = {"waiting": {"reason": "CrashLoopBackOff"}}
TERMINATED: dict[str, Any] = {"terminated": {"exitCode": 137, "finishedAt": "2026-11-24T10:00:07Z"}}
UNKNOWN: dict[str, Any] = {
    "terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "startedAt": None, "finishedAt": None}
}
Statuses = dict[str, tuple[Any, Any]]
AT = datetime(2026, 11, 24, 10, 0, 7, tzinfo=UTC)


def body(statuses: Statuses | None = None, **metadata: Any) -> dict[str, Any]:
    """A Pod with the containers `worker` and `sidecar`; `statuses` has (state, lastState) by container."""
    found = [{"name": name, "state": state, "lastState": last} for name, (state, last) in (statuses or {}).items()]
    return {
        "metadata": {"uid": "uid-1", "name": "pod-1", **metadata},
        "spec": {"containers": [{"name": "worker"}, {"name": "sidecar"}]},
        "status": {"containerStatuses": found} if statuses is not None else {},
    }


@pytest.mark.parametrize(
    ("state", "last", "finished_at"),
    [
        (TERMINATED, {}, AT),
        (WAITING, TERMINATED, AT),
        ({}, TERMINATED, AT),
        (None, None, None),
        (RUNNING, {}, None),
        (RUNNING, TERMINATED, None),
        (WAITING, {}, None),
        (UNKNOWN, {}, None),
        (WAITING, UNKNOWN, None),
        (UNKNOWN, TERMINATED, None),
    ],
)
def test_the_end_of_the_container_is_known_when_it_terminated_and_no_other_runs(
    state: Any, last: Any, finished_at: datetime | None
) -> None:
    assert Pod.from_body(body({"worker": (state, last)})) == Pod("uid-1", "pod-1", finished_at)


@pytest.mark.parametrize("statuses", [None, {}, {"sidecar": (TERMINATED, {})}])
def test_nothing_is_known_without_a_status_of_the_worker_container(statuses: Statuses | None) -> None:
    assert Pod.from_body(body(statuses)).finished_at is None


def test_another_container_than_the_workers_proves_nothing() -> None:
    statuses: Statuses = {"sidecar": (TERMINATED, {}), "worker": (RUNNING, {})}
    assert Pod.from_body(body(statuses)).finished_at is None


def test_the_annotation_names_the_worker_container_and_the_first_is_it_without() -> None:
    statuses: Statuses = {"worker": (RUNNING, {}), "sidecar": (TERMINATED, {})}
    annotations = {"kubectl.kubernetes.io/default-container": "sidecar"}
    assert Pod.from_body(body(statuses, annotations=annotations)).finished_at == AT
    assert Pod.from_body(body(statuses, annotations={})).finished_at is None
