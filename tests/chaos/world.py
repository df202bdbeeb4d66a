"""What a campaign acts on: servers, operators and workers behind their proxies, and the journal of its deeds."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import psycopg
from chaos.handlers import boot_time
from chaos.proxy import Proxy
from chaos.workload import NAMESPACE, Job, manifests
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from support import children_of, runs

from intervaljob.embedded.processes import Child, free_port
from intervaljob.embedded.stack import Stack

Verb = Literal["operator", "worker"]

#: Of every worker. Short, so that a run sees many leases run out.
LEASE_SECONDS = 5.0

_STOP_SECONDS = 20.0
_PROBE_SECONDS = 3.0


@dataclass(frozen=True)
class Pid:
    """A process, also told from a later one of the same number."""

    number: int
    started: str

    @classmethod
    def of(cls, number: int) -> Pid | None:
        """None when it is gone already."""
        with suppress(OSError):
            return cls(number, Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19])
        return None

    def send(self, signum: signal.Signals) -> bool:
        """Whether it was there to get it."""
        if Pid.of(self.number) != self:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.number, signum)
            return True
        return False


class Member:
    """An operator or a worker: one process after the other under one name, behind a proxy of its own."""

    def __init__(self, name: str, verb: Verb, *, stack: Stack, proxy: Proxy, environment: dict[str, str]) -> None:
        self.name = name
        self.verb = verb
        self.proxy = proxy
        self.expected = False
        self._stack = stack
        self._environment = environment
        self._child: Child | None = None
        self._port = 0
        self._starts = 0

    @property
    def pid(self) -> int | None:
        """None while it is not running."""
        return self._child.pid if self._child is not None and runs(self._child.pid) else None

    @property
    def log(self) -> Path:
        return self._stack.logs / f"{self.name}-{self._starts}.log"

    def start(self) -> None:
        """Without waiting until it is ready; nothing happens when it runs."""
        if self.pid is not None:
            return
        self.stop(signal.SIGKILL)
        self._starts += 1
        self._port = free_port()
        self._child = Child(
            [sys.executable, "-m", "intervaljob", self.verb, "--http-address", f"127.0.0.1:{self._port}"],
            log=self.log,
            environment=self._environment,
            death_signal=signal.SIGTERM,
        )
        self.expected = True

    def stop(self, signum: signal.Signals) -> None:
        """Returns when it has ended."""
        self.expected = False
        if self._child is not None:
            self._child.stop(signum, seconds=_STOP_SECONDS)
            self._child = None

    def ask_to_end(self) -> None:
        """SIGTERM, without waiting."""
        self.expected = False
        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)

    def zygote(self) -> int | None:
        with suppress(OSError):
            return next(iter(children_of(self.pid or 0)), None)
        return None

    def executors(self) -> list[int]:
        zygote = self.zygote()
        with suppress(OSError):
            return children_of(zygote) if zygote else []
        return []

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=_PROBE_SECONDS) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Journal:
    """injections.jsonl."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / "injections.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.faults: dict[str, int] = {}

    def write(self, event: str, **fields: object) -> None:
        line = json.dumps({"event": event, **fields}, default=str)
        os.write(self._descriptor, line.encode() + b"\n")

    def fault(self, kind: str, *, target: str, since: float, **fields: object) -> None:
        """It lasted from `since` until now."""
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.write("fault", kind=kind, target=target, **{"from": since, "to": boot_time()}, **fields)


class World:
    """Everything a fault may touch. `random` is for choices that depend on what runs when the fault begins."""

    def __init__(
        self,
        stack: Stack,
        *,
        members: Sequence[Member],
        folder: Path,
        source: random.Random,
        add: Callable[[str], Member],
    ) -> None:
        self.stack = stack
        self.members = {member.name: member for member in members}
        self.folder = folder
        self.random = source
        self.journal = Journal(folder)
        self.jobs: dict[str, Job] = {}
        self.uids: dict[str, UUID] = {}
        self.problems: list[str] = []
        self.add_worker = add

    @property
    def workers(self) -> list[Member]:
        return [member for member in self.members.values() if member.verb == "worker"]

    @property
    def operators(self) -> list[Member]:
        return [member for member in self.members.values() if member.verb == "operator"]

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def problem(self, text: str) -> None:
        """Something that should not have happened, which no file of the run would show."""
        self.problems.append(text)
        self.say(f"PROBLEM {text}")

    def connect(self) -> psycopg.Connection[dict[str, Any]]:
        """Past all proxies, and writable whatever a fault made of the defaults."""
        return psycopg.connect(
            self.stack.database_url,
            row_factory=dict_row,
            connect_timeout=10,
            application_name="chaos",
            options="-c search_path=intervaljob -c default_transaction_read_only=off -c lock_timeout=10s",
        )

    def sql(self, text: str, **parameters: object) -> list[dict[str, Any]]:
        """In autocommit."""
        with self.connect() as connection:
            connection.autocommit = True
            cursor = connection.execute(text.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.stack.kubectl("--namespace", NAMESPACE, *arguments, input=stdin)

    def apply(self, jobs: Sequence[Job], *, suspend: bool = False) -> None:
        """Create or change them, and learn their uids."""
        self.kubectl("apply", "--server-side", "--filename", "-", stdin=manifests(jobs, suspend=suspend))
        self.jobs |= {job.name: job for job in jobs}
        items = json.loads(self.kubectl("get", "intervaljobs", "--output", "json"))["items"]
        self.uids |= {item["metadata"]["name"]: UUID(item["metadata"]["uid"]) for item in items}

    def watch_members(self) -> None:
        """Whoever ended without being asked to is a finding; it is started again, as Kubernetes would."""
        for member in self.members.values():
            if member.expected and member.pid is None:
                lines = member.log.read_text(errors="replace").splitlines()[-3:]
                self.problem(f"{member.name} ended by itself ({member.log.name}): {' | '.join(lines)}")
                member.start()


def environment_of(stack: Stack, verb: Verb, name: str, *, port: int) -> dict[str, str]:
    """The settings of a member that reaches Postgres through this port."""
    parts = conninfo_to_dict(stack.database_url)
    url = stack.database_url.replace(f":{parts['port']}/", f":{port}/")
    worker = {
        "INTERVALJOB_WORKER_NAME": name,
        "INTERVALJOB_HANDLERS": "chaos.handlers",
        "INTERVALJOB_LEASE_SECONDS": str(LEASE_SECONDS),
        "INTERVALJOB_CONCURRENCY": "16",
        "INTERVALJOB_DRAIN_SECONDS": "2",
        "INTERVALJOB_CANCEL_SECONDS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    return {
        **os.environ,
        "INTERVALJOB_DATABASE_URL": url,
        "KUBECONFIG": str(stack.control_plane.kubeconfig),
        **(worker if verb == "worker" else {"INTERVALJOB_RESYNC_SECONDS": "15"}),
    }
