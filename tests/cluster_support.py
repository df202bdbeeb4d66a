"""What tests of the whole system share: a user's view of one namespace."""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg.rows import dict_row

T = TypeVar("T")

LEASE_SECONDS = "3"
numbers = itertools.count()


def eventually(look: Callable[[], T | None], *, what: str, within: float = 15.0) -> T:
    """What `look` returns as soon as that is true; fails with `what` when it never is."""
    deadline = time.monotonic() + within
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.05)


class Whole(Protocol):
    """A system that serves IntervalJobs."""

    @property
    def database_url(self) -> str: ...

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str: ...  # noqa: A002


@dataclass
class Namespace:
    """IntervalJobs of one test, through kubectl alone as a user would; and the rows behind them."""

    stack: Whole
    name: str

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        return self.stack.kubectl("--namespace", self.name, *arguments, check=check)

    def apply(self, name: str, **spec: Any) -> None:
        """`kubectl apply` of an IntervalJob that is due in an hour unless the spec says otherwise."""
        schedule = {} if "schedule" in spec or "interval" in spec else {"interval": "1h"}
        body = {
            "apiVersion": "intervaljob.dev/v1alpha1",
            "kind": "IntervalJob",
            "metadata": {"name": name, "namespace": self.name},
            "spec": {"handler": "echo", **schedule, **spec},
        }
        self.stack.kubectl("apply", "--filename", "-", input=json.dumps(body))

    def run_now(self, name: str) -> None:
        self.kubectl("annotate", "ivj", name, "--overwrite", f"intervaljob.dev/run-requested-at={next(numbers)}")

    def get(self, name: str) -> dict[str, Any]:
        body = json.loads(self.kubectl("get", "ivj", name, "--output", "json"))
        assert isinstance(body, dict)
        return body

    def status(self, name: str) -> dict[str, Any]:
        status = self.get(name).get("status", {})
        assert isinstance(status, dict)
        return status

    def last_task(self, name: str) -> dict[str, Any]:
        task = self.status(name).get("lastTask") or {}
        assert isinstance(task, dict)
        return task

    def events(self, name: str) -> list[str]:
        """Reasons of the events about it."""
        found = json.loads(self.kubectl("get", "events", "--output", "json"))["items"]
        return [event["reason"] for event in found if event["involvedObject"]["name"] == name]

    def sql(self, text: str, **parameters: object) -> list[dict[str, Any]]:
        """Rows, as somebody at the database would see or change them; `job` is the id by this test's names."""
        with psycopg.connect(self.stack.database_url, autocommit=True, row_factory=dict_row) as connection:
            connection.execute("SET search_path = intervaljob")
            cursor = connection.execute(text.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def running(self, name: str) -> dict[str, Any]:
        """The entry of `status.active` once a task runs."""

        def look() -> dict[str, Any] | None:
            active = self.status(name).get("active") or []
            return active[0] if active and active[0].get("worker") else None

        return eventually(look, what=f"a task of {name} runs")

    def ended(self, name: str, result: str = "succeeded", *, within: float = 15.0) -> dict[str, Any]:
        """`status.lastTask` once it has this status."""

        def look() -> dict[str, Any] | None:
            task = self.last_task(name)
            return task if task.get("status") == result else None

        return eventually(look, what=f"the last task of {name} has {result}", within=within)
