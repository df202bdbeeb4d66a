"""The whole system on this machine: Postgres, a control plane, and operators and workers as processes."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from intervaljob.embedded.control_plane import ControlPlane
from intervaljob.embedded.postgres import Postgres
from intervaljob.embedded.processes import Child, free_port, run
from intervaljob.embedded.programs import Programs

#: The database that a stack makes in its Postgres.
DATABASE = "intervaljob"

_START_SECONDS = 60.0
_STOP_SECONDS = 45.0
_PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class Process:
    """An operator or a worker of a stack; `log` is all that it wrote, `port` serves its probes."""

    name: str
    child: Child
    log: Path
    port: int

    @property
    def pid(self) -> int:
        return self.child.pid

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory is short."""
        self.child.stop(signal.SIGKILL, seconds=_STOP_SECONDS)

    def terminate(self) -> None:
        """SIGTERM, as Kubernetes does; returns when it has ended."""
        self.child.stop(seconds=_STOP_SECONDS)


class Stack:
    """Servers that are migrated and have the CRD; `start_operator` and `start_worker` add processes to them.

    On leaving, processes end first (workers drain), then the servers. Everything lies under `data`, or in a
    temporary folder that goes away.
    """

    def __init__(self, *, programs: Programs, data: Path | None = None, durable: bool = True) -> None:
        self._programs = programs
        self._data = data
        self._durable = durable
        self._resources = ExitStack()
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        with ExitStack() as resources:
            if self._data is None:
                self._data = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="intervaljob-")))
            self.logs = self._data / "logs"
            self.logs.mkdir(parents=True, exist_ok=True)
            postgres = resources.enter_context(Postgres(data=self._data / "postgres", durable=self._durable))
            self.control_plane = resources.enter_context(
                ControlPlane(programs=self._programs, data=self._data / "control-plane")
            )
            self.postgres = postgres
            self.database_url = postgres.url(DATABASE)
            self._prepare(fresh=not (self._data / "prepared").exists())
            resources.callback(self._stop_processes)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str:  # noqa: A002 - subprocess' word
        """What kubectl prints, as an administrator of the control plane."""
        return self.control_plane.kubectl(*arguments, input=input, check=check)

    def start_operator(self, name: str = "operator", **environment: str) -> Process:
        """An operator that is ready."""
        return self._start(name, "operator", environment)

    def start_worker(self, name: str, **environment: str) -> Process:
        """A worker of this name that is ready."""
        return self._start(name, "worker", {"INTERVALJOB_WORKER_NAME": name, **environment})

    def _prepare(self, *, fresh: bool) -> None:
        if fresh:
            self.postgres.create_database(DATABASE)
        run([sys.executable, "-m", "intervaljob", "migrate", "up"], environment=self._environment(), seconds=60)
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(packaged("crds")))
        self.kubectl("wait", "--for=condition=Established", "crd/intervaljobs.intervaljob.dev", "--timeout=30s")
        assert self._data is not None
        (self._data / "prepared").touch()

    def _start(self, name: str, verb: str, environment: Mapping[str, str]) -> Process:
        port = free_port()
        log = self.logs / f"{name}-{len(self._processes)}.log"
        child = Child(
            [sys.executable, "-m", "intervaljob", verb, "--http-address", f"127.0.0.1:{port}"],
            log=log,
            environment={**self._environment(), **environment},
            death_signal=signal.SIGTERM,
        )
        process = Process(name=name, child=child, log=log, port=port)
        self._processes.append(process)
        child.wait_until(lambda: _is_ready(port), seconds=_START_SECONDS)
        return process

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != "INTERVALJOB_DATABASE_URL_FILE"}
        return {
            **inherited,
            "INTERVALJOB_DATABASE_URL": self.database_url,
            "KUBECONFIG": str(self.control_plane.kubeconfig),
        }

    def _stop_processes(self) -> None:
        for process in reversed(self._processes):
            process.terminate()


def packaged(folder: str) -> Path:
    """`crds` or `manifests/samples`: in an installed package beside this file, in a checkout at its root."""
    here = Path(__file__).parent
    installed = here / folder
    return installed if installed.is_dir() else here.parents[2] / folder


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=_PROBE_SECONDS) as answer:
            return bool(answer.status == 200)  # noqa: PLR2004 - HTTP's OK
    except (urllib.error.URLError, OSError):
        return False
