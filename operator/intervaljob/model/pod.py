"""Worker Pods, and what they prove about the processes in them.

A container that has terminated proves that every process it ever had is dead. So an incarnation is dead whose
process started before the container's `finishedAt`: both times are of one clock, the node's, and `finishedAt` is cut
to whole seconds, which errs towards life. The guard tells the container's incarnations from those of the next one in
the same Pod, which a status that comes late does not know yet.

A Pod that is gone proves nothing about its processes. The object goes away after them when the kubelet takes it away;
`kubectl delete --force` and the collector of Pods on lost nodes take it away while its containers may run, on a node
that may be cut off for ever. Ending the worker then would have its tasks run twice. It is condemned instead: it is
refused its next renewal, stops everything, and says goodbye; or it is dead or cut off, and its lease runs out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self

#: What tells worker Pods from others.
WORKER_LABEL: Final = "intervaljob.dev/component=worker"

CONTAINER_TERMINATED: Final = "container_terminated"

_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


@dataclass(frozen=True)
class Pod:
    """A worker Pod. `finished_at` is when its worker container terminated; None: it may run."""

    uid: str
    name: str
    finished_at: datetime | None

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """The Pod in this API object."""
        metadata = body["metadata"]
        return cls(uid=metadata["uid"], name=metadata["name"], finished_at=_finished_at(body))


def _finished_at(body: Mapping[str, Any]) -> datetime | None:
    """The end of the worker container: of this one, or of the last one while none runs.

    None also for one whose end the kubelet could not determine (`ContainerStatusUnknown` has no `finishedAt`).
    """
    name = _worker_container(body)
    for status in body.get("status", {}).get("containerStatuses") or ():
        if status["name"] == name:
            state = status.get("state") or {}
            if "running" not in state and "terminated" not in state:
                state = status.get("lastState") or {}
            finished = (state.get("terminated") or {}).get("finishedAt")
            return datetime.fromisoformat(finished) if finished else None
    return None


def _worker_container(body: Mapping[str, Any]) -> str:
    """The container that kubectl takes, too: the annotated one, else the first."""
    annotations = body["metadata"].get("annotations") or {}
    return str(annotations.get(_DEFAULT_CONTAINER) or body["spec"]["containers"][0]["name"])
