"""Recurring work on Kubernetes that survives the death of its workers.

Handlers need two names only: `from intervaljob import Task, handler`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intervaljob.worker.handlers import Task, handler

__all__ = ["Task", "handler"]


def __getattr__(name: str) -> object:
    """Only when they are used, so that no other part of the package loads the worker's."""
    if name in __all__:
        return getattr(importlib.import_module("intervaljob.worker.handlers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
