"""Handlers: the user's code, found by name.

from intervaljob import Task, handler

@handler("report")
async def report(task: Task) -> dict[str, int]:
    return {"rows": 3}
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import entry_points
from typing import Any, TypeVar
from uuid import UUID

from intervaljob.errors import HandlerError
from intervaljob.model.task import MAX_CHECKPOINT_BYTES, Json, storable_json

ENTRY_POINTS = "intervaljob.handlers"
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Task:
    """What a handler is given. `attempt` is 1 for the first try; `recovered` says that an earlier one was lost.

    `checkpoint` is what the last call of `save_checkpoint` stored, in this attempt or an earlier one.
    """

    id: UUID
    job_id: UUID
    user_id: UUID
    workspace_id: UUID
    payload: str
    attempt: int
    recovered: bool
    scheduled_for: datetime
    last_checkpoint: Json
    logger: logging.LoggerAdapter[logging.Logger]
    save: Callable[[str], None]

    def checkpoint(self, data: Json) -> None:
        """Store how far the work has come, for the next attempt's `last_checkpoint`; returns once it is stored.

        Raises HandlerError when the data is no JSON or is larger than 64 KiB.
        """
        try:
            text = storable_json(data)
        except (TypeError, ValueError, RecursionError) as error:
            raise HandlerError(f"checkpoint: {error}") from error
        if len(text) > MAX_CHECKPOINT_BYTES:
            raise HandlerError(f"checkpoint: write at most {MAX_CHECKPOINT_BYTES} bytes, not {len(text)}")
        self.save(text)


Handler = Callable[[Task], Json] | Callable[[Task], Awaitable[Json]]
H = TypeVar("H", bound=Callable[[Task], Any])

_registered: dict[str, Handler] = {}


def handler(name: str) -> Callable[[H], H]:
    """Make a function, `def` or `async def`, the handler of this name. It takes a Task and returns JSON or None.

    Raises HandlerError for a name that `spec.handler` cannot have, or that another function has.
    """
    if not NAME.fullmatch(name):
        raise HandlerError(f"{name!r} is no handler name: use letters, digits and _ . : - between, at most 63")

    def register(function: H) -> H:
        if _registered.setdefault(name, function) is not function:
            raise HandlerError(f"handler {name!r} is defined twice")
        return function

    return register


def load_handlers(modules: Iterable[str]) -> dict[str, Handler]:
    """Every handler of these modules (`module` or `module:function`) and of installed packages' entry points.

    Raises HandlerError when one cannot be imported.
    """
    for point in entry_points(group=ENTRY_POINTS):
        _import(point.value)
    for name in modules:
        _import(name)
    return dict(_registered)


def _import(name: str) -> None:
    module, _, function = name.partition(":")
    try:
        loaded = importlib.import_module(module)
    except HandlerError:
        raise
    except Exception as error:
        raise HandlerError(f"handlers {name!r}: {type(error).__name__}: {error}") from error
    if function and not any(known is getattr(loaded, function, None) for known in _registered.values()):
        raise HandlerError(f"handlers {name!r}: {module} has no handler function {function!r}")
