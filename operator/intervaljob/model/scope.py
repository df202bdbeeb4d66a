"""What an operator may touch: the rows of its own cluster, and of the namespaces it watches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scope:
    """`cluster` is the uid of kube-system or a setting; no namespaces means all of them."""

    cluster: str
    namespaces: tuple[str, ...] = ()

    def parameters(self) -> dict[str, object]:
        """The parameters by which queries tell an operator's own rows."""
        return {"cluster": self.cluster, "namespaces": list(self.namespaces)}
